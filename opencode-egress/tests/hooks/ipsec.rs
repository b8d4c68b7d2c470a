//! IPsec on the host: the packet hook sees what a packet became, to a gateway that is on the list, and not where it goes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use opencode_egress_common::reason::DropReason;

use crate::{
    network::{ALLOWED, PORT},
    probe::Outcome,
    raw::ping,
    sys::{send, send_to, socket},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, any, base_policy},
};

/// Behind the gateway, which is the witness' allowed address.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 2);
const DENIED_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 3);

/// Wraps what the unit's namespace sends to 10.10.0.0/24 for the gateway, which unwraps it. Says so where the kernel cannot.
fn tunnel(world: &World, wrapped_into_udp: bool) -> bool {
    let (from, to) = ("192.0.2.1", "192.0.2.2");
    let key = format!("0x{}", "11".repeat(32));
    let mut state =
        vec!["state", "add", "src", from, "dst", to, "proto", "esp", "spi", "0x100", "mode", "tunnel"];
    state.extend(["auth", "hmac(sha256)", &key, "enc", "ecb(cipher_null)", ""]);
    if wrapped_into_udp {
        state.extend(["encap", "espinudp", "4500", "4500", "0.0.0.0"]);
    }
    let policy = |direction| {
        let selector = ["policy", "add", "src", from, "dst", "10.10.0.0/24", "dir", direction];
        let template = ["tmpl", "src", from, "dst", to, "proto", "esp", "mode", "tunnel"];
        selector.into_iter().chain(template).collect::<Vec<_>>()
    };
    world.far.ip("addr add 10.10.0.2/32 dev wire\naddr add 10.10.0.3/32 dev wire\n");
    if !world.unit.xfrm(&state) {
        eprintln!("skipped: no ESP in this kernel");
        return false;
    }
    world.unit.xfrm(&policy("out")) && world.far.xfrm(&state) && world.far.xfrm(&policy("in"))
}

type Technique = fn(SocketAddr) -> io::Result<()>;

fn datagram(to: SocketAddr) -> io::Result<()> {
    send_to(&udp(to)?, b"data", 0, to).map(drop)
}

fn joined_datagram(to: SocketAddr) -> io::Result<()> {
    send(&connected(to)?, b"data", 0).map(drop)
}

fn raw_echo(to: SocketAddr) -> io::Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    send_to(&socket, &[8, 0, 0, 0, 0, 1, 0, 1], 0, to).map(drop)
}

const TECHNIQUES: [(&str, u16, Technique); 4] = [
    ("UDP", PORT, datagram),
    ("UDP of a connected socket", PORT, joined_datagram),
    ("ping", 0, ping),
    ("raw ICMP", 0, raw_echo),
];

/// It is refused, whatever the caller is told of it, and arrives neither inside nor at the gateway.
#[track_caller]
fn is_refused(world: &mut World, name: &str, to: SocketAddr, technique: Technique) -> DropReason {
    world.events();
    let _ = world.witness.arrived();
    let (outcome, arrived) = world.run(|| technique(to));
    let leaked = [arrived.to(to.ip()), arrived.to(ALLOWED.into())].concat();
    assert_eq!(leaked, [""; 0], "LEAK: {name} to {to} ({outcome:?})");
    let told = world.events();
    told.last().unwrap_or_else(|| panic!("{name} to {to} is told ({outcome:?})")).reason
}

#[test]
fn what_goes_through_a_tunnel_is_judged_by_where_it_goes() {
    for wrapped_into_udp in [false, true] {
        let mut world = World::unconfined();
        world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
        if !tunnel(&world, wrapped_into_udp) {
            return;
        }
        for (name, port, technique) in TECHNIQUES {
            // Nobody unwraps UDP at the witness.
            let seen_at = if wrapped_into_udp { ALLOWED } else { DENIED_INSIDE };
            let (outcome, arrived) = world.run(|| technique((DENIED_INSIDE, port).into()));
            assert_eq!(outcome, Outcome::DONE, "without confinement, {name}");
            assert!(
                !arrived.to(seen_at.into()).is_empty(),
                "without confinement, {name} arrives: {arrived:#?}"
            );
        }
        let mut policy = base_policy();
        policy.allow.push(any("10.10.0.2/32"));
        world.install(&policy);
        world.confine();
        for (name, port, technique) in TECHNIQUES {
            let reason = is_refused(&mut world, name, (DENIED_INSIDE, port).into(), technique);
            let judged = world.judges_sendmsg() && port != 0;
            let expect = if judged { DropReason::NotAllowed } else { DropReason::Transformed };
            assert_eq!(reason, expect, "why {name} is refused");
            if judged && !wrapped_into_udp {
                world.passes(name, (INSIDE, port), technique);
            } else if !judged {
                let reason = is_refused(&mut world, name, (INSIDE, port).into(), technique);
                assert_eq!(reason, DropReason::Transformed, "where {name} goes cannot be known");
            }
        }
        world.denies("TCP", (DENIED_INSIDE, PORT), |to| tcp(to).map(drop));
        if wrapped_into_udp {
            continue;
        }
        world.passes("TCP", (INSIDE, PORT), |to| tcp(to).map(drop));
        // An open connection whose peer is denied from now on, while its gateway is not.
        let mut probe = world.start(|steps| {
            let socket = tcp((INSIDE, PORT).into())?;
            steps.wait()?;
            send(&socket, b"denied", 0)?;
            steps.wait().map(|()| 0)
        });
        probe.step();
        world.install(&base_policy());
        let _ = world.witness.arrived();
        probe.go_on();
        probe.step();
        let arrived = world.witness.arrived();
        let leaked = [arrived.to(INSIDE.into()), arrived.to(ALLOWED.into())].concat();
        assert_eq!(leaked, [""; 0], "LEAK: on a connection that was open");
        assert_eq!(world.events().last().map(|told| told.reason), Some(DropReason::NotAllowed));
    }
}
