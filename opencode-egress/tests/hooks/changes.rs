//! Policy changes under open sockets, and the moments without a policy.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use opencode_egress::{
    kernel::{
        hooks::Needs,
        instance::InstanceIndex,
        loader::{Lifetime, load},
    },
    policy::{Policy, RuleProtocol, compile::compile},
};
use opencode_egress_common::reason::DropReason;

use crate::{
    bpffs::Bpffs,
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, PORT},
    probe::{Outcome, unhurried},
    raw::ping,
    sys::{bind, connect, send, send_to, socket},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, any, base_policy, listen, rule},
};

fn nothing() -> Policy {
    Policy::default()
}

#[test]
fn an_open_connection_is_judged_anew() {
    for address in [IpAddr::from(ALLOWED), IpAddr::from(ALLOWED6), IpAddr::from(ALLOWED.to_ipv6_mapped())] {
        let mut world = World::new(&base_policy());
        let mut probe = world.start(|steps| {
            let socket = tcp((address, PORT).into())?;
            send(&socket, b"allowed", 0)?;
            steps.wait()?;
            // The kernel takes the data and would send it when it can.
            send(&socket, b" denied", 0)?;
            steps.wait()?;
            Ok(0)
        });
        probe.step();
        let (mut peer, _) = world.server().accept().expect("the connection");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut data = [0; 7];
        peer.read_exact(&mut data).expect("what was sent while it was allowed");
        assert_eq!(&data, b"allowed");
        world.install(&nothing());
        let _ = world.witness.arrived();
        probe.go_on();
        probe.step();
        assert_eq!(world.witness.arrived().to(address), [""; 0], "LEAK: on a connection that was open");
        assert!(world.counters().denied.reasons[DropReason::NotAllowed as usize].packets > 0);
        world.install(&base_policy());
        peer.read_exact(&mut data).expect("what the kernel sends again once it is allowed");
        assert_eq!(&data, b" denied");
        probe.go_on();
        assert_eq!(probe.end(), Outcome::DONE);
    }
}

/// Also the end of a connection is a packet.
#[test]
fn a_process_that_ends_tells_nobody() {
    let mut world = World::new(&base_policy());
    let mut probe = world.start(|steps| {
        let _socket = tcp((ALLOWED, PORT).into())?;
        steps.wait()?;
        Ok(0)
    });
    probe.step();
    world.install(&nothing());
    let _ = world.witness.arrived();
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.witness.arrived().to(ALLOWED.into()), [""; 0], "LEAK: the end of a connection");
}

#[test]
fn a_datagram_socket_is_judged_anew() {
    let mut world = World::new(&base_policy());
    let told = |result: io::Result<usize>| match result {
        Ok(_) => Ok(0),
        Err(error) => error.raw_os_error().map(|errno| u64::from(errno.unsigned_abs())).ok_or(error),
    };
    let mut probe = world.start(|steps| {
        let to = SocketAddr::from((ALLOWED, PORT));
        let (joined, free) = (connected(to)?, udp(to)?);
        loop {
            let first = told(send(&joined, b"data", 0))?;
            steps.wait_with(first << 8 | told(send_to(&free, b"data", 0, to))?)?;
        }
    });
    let refused = u64::from(libc::EPERM.unsigned_abs());
    for (policy, expect, packets) in [
        (nothing(), refused << 8 | refused, 0),
        (base_policy(), 0, 2),
        (nothing(), refused << 8 | refused, 0),
    ] {
        probe.step();
        let _ = world.witness.arrived();
        world.install(&policy);
        probe.go_on();
        let told = probe.step();
        assert_eq!(told, expect, "what a connected and a free socket are told under {policy:?}");
        let arrived = world.witness.arrived();
        assert_eq!(arrived.to(ALLOWED.into()).len(), packets, "what arrives under {policy:?}: {arrived:#?}");
        probe.go_on();
    }
}

#[test]
fn a_refused_socket_connects_once_it_is_allowed() {
    let mut world = World::new(&nothing());
    let mut probe = world.start(|steps| {
        let to = SocketAddr::from((ALLOWED, PORT));
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let first = connect(&socket, to).err().and_then(|error| error.raw_os_error());
        steps.wait_with(u64::from(first.unwrap_or(0).unsigned_abs()))?;
        connect(&socket, to).map(|()| 0)
    });
    assert_eq!(probe.step(), u64::from(libc::EPERM.unsigned_abs()), "the first connect is refused");
    world.install(&base_policy());
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE, "the second connect is allowed");
}

/// Everything is denied to a confined cgroup without a policy, whether it never had one or lost it.
#[test]
fn without_a_policy_everything_is_denied() {
    let check = |world: &mut World| {
        world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
        for to in
            [IpAddr::from(ALLOWED), ALLOWED6.into(), ALLOWED.to_ipv6_mapped().into(), [127, 0, 0, 1].into()]
        {
            world.denies("TCP", (to, PORT), |to| tcp(to).map(drop));
            world.check_last(DropReason::NoPolicy);
            world.denies("UDP", (to, PORT), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
            world.check_last(DropReason::NoPolicy);
            world.denies("UDP of a connected socket", (to, PORT), |to| {
                send(&connected(to)?, b"data", 0).map(drop)
            });
            world.check_last(DropReason::NoPolicy);
        }
        world.denies("ping", (ALLOWED, 0), ping);
        world.check_last(DropReason::NoPolicy);
        world.denies("bind", (ALLOWED, PORT), |_| {
            bind(&socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, SocketAddr::from(([0; 4], 8787)))
        });
        world.check_last(DropReason::NoPolicy);
    };
    let mut world = World::unconfined();
    world.confine();
    check(&mut world);
    world.install(&base_policy());
    world.judges("TCP", |to| tcp(to).map(drop));
    let generation = world.loaded.maps.current(InstanceIndex::FIRST).generation();
    world.loaded.maps.retire(&[InstanceIndex::FIRST]).expect("the policy is retired");
    check(&mut world);
    world.install(&base_policy());
    world.judges("TCP", |to| tcp(to).map(drop));
    assert_eq!(world.loaded.maps.current(InstanceIndex::FIRST).generation(), generation + 1);
}

/// Two policies that agree on two destinations are changed back and forth while a probe tries both: it must
/// never see a moment of neither policy, or of a mixture.
#[test]
fn a_change_is_atomic() {
    let time = unhurried(Duration::from_secs(2));
    let mut world = World::new(&base_policy());
    let one = base_policy();
    let other = Policy {
        // Other entries for the same destinations, port sets, a deny, and a listener.
        allow: vec![
            any("192.0.0.0/16"),
            rule("2001:db8::/32", RuleProtocol::Tcp, &["1-1000"]),
            rule("2001:db8::/32", RuleProtocol::Udp, &["400-443"]),
        ],
        deny: vec![any("192.0.2.3/32"), any("2001:db8:1::3/128")],
        listen: vec![listen("192.0.2.1", 8787, true)],
        ..Policy::default()
    };
    let [one, other] = [one, other].map(|policy| compile(&policy).expect("the policy compiles"));
    let probe = world.start(|_| hammer(time));
    let end = thread::scope(|scope| {
        let probe = scope.spawn(|| probe.end());
        let mut changes = 0;
        while !probe.is_finished() {
            for policy in [&one, &other] {
                world.loaded.maps.install(InstanceIndex::FIRST, policy).expect("the policy is installed");
                changes += 1;
            }
        }
        assert!(changes > 3, "only {changes} changes while the probe ran");
        probe.join().expect("the probe's end")
    });
    let Outcome::Done(rounds) = end else { panic!("X never fails and Y never passes, yet: {end:?}") };
    assert!(rounds > 100, "the probe tried only {rounds} times");
    let arrived = world.witness.arrived();
    assert!(!arrived.to(ALLOWED.into()).is_empty(), "what is allowed arrives");
    for denied in [IpAddr::from(DENIED), DENIED6.into()] {
        assert_eq!(arrived.to(denied), [""; 0], "LEAK: during a change of policy");
    }
}

#[test]
fn a_new_build_takes_the_links_of_an_old_one() {
    let world = World::unconfined();
    let cgroup = &world.cgroup.0;
    // Pinned, as the daemon's are: a link takes only programs with its own storage.
    let bpffs = Bpffs::mounted();
    let pins = bpffs.0.path().join("maps");
    let load = || load(&Lifetime::Pinned(&pins)).expect("the kernel side loads");
    let (old, new) = (load(), load());
    for hook in old.programs.hooks(Needs::NONE) {
        let link = old.programs.attach(hook, cgroup).expect("a link");
        let attached = || link.info().expect("what the kernel says of the link").program;
        let before = attached();
        new.programs.renew(hook, &link, cgroup.path()).expect("the kernel takes another program");
        let program =
            new.programs.program(hook).expect("a program").info().expect("what the kernel says of it");
        assert_eq!(attached(), program.id(), "{hook:?}");
        assert_ne!(attached(), before, "{hook:?}");
    }
}

/// A port where the witness does not listen.
const CLOSED_PORT: u16 = PORT + 1;

/// Tries allowed and denied destinations for some time and returns how often, or fails with what went wrong.
fn hammer(time: Duration) -> io::Result<u64> {
    let started = Instant::now();
    let mut rounds = 0;
    let refused = |result: io::Result<()>, what: &str| match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => Err(io::Error::other(format!("{what}: {other:?}"))),
    };
    let pairs = [(IpAddr::from(ALLOWED), IpAddr::from(DENIED)), (ALLOWED6.into(), DENIED6.into())];
    while started.elapsed() < time {
        for (allowed, denied) in pairs.map(|(a, b)| (SocketAddr::new(a, PORT), SocketAddr::new(b, PORT))) {
            let datagrams = udp(allowed)?;
            for _ in 0..10 {
                send_to(&datagrams, b"data", 0, allowed)?;
                refused(send_to(&datagrams, b"data", 0, denied).map(drop), "UDP")?;
                refused(tcp(denied).map(drop), "TCP")?;
            }
            connect(&datagrams, denied)?;
            refused(send(&datagrams, b"data", 0).map(drop), "connected UDP")?;
            // Nothing listens there: the answer to the first packet ends it, and no state stays behind.
            match tcp(SocketAddr::new(allowed.ip(), CLOSED_PORT)) {
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                other => return Err(io::Error::other(format!("TCP: {other:?}"))),
            }
        }
        rounds += 1;
    }
    Ok(rounds)
}
