//! Leases: what passes for a time, what goes on when that is over, and what does not.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use opencode_egress::{
    kernel::{
        instance::InstanceIndex,
        maps::{LoadedPolicy, boottime},
    },
    policy::{
        Policy,
        compile::compile,
        lease::{Leased, LeasedRule},
    },
};
use opencode_egress_common::reason::DropReason;

use crate::{
    names::{MARK, Named, WAYS, Way, names},
    network::{ALLOWED, DENIED, DENIED6, FAR, PORT},
    probe::Outcome,
    raw::ping,
    sys::{connect, disconnect, domain, get, send, send_to, socket},
    tcp::tcp,
    tls::{RULES, learn},
    udp::{connected, udp},
    world::{World, any, base_policy},
};

/// Leases of these rules until a second, and others that ended.
pub(crate) fn leases(rules: &[&str], until: u64, ended: &[&str]) -> Leased {
    let parse = |rule: &&str| rule.parse().expect("a rule");
    Leased {
        rules: rules.iter().map(|rule| LeasedRule { rule: parse(rule), until }).collect(),
        ended: ended.iter().map(parse).collect(),
        audit: None,
    }
}

fn put_in_force(world: &mut World, policy: Policy) {
    let mut loaded = LoadedPolicy::load(&compile(&policy).expect("it compiles")).expect("it loads");
    loaded.with_names(0, MARK, vec![]);
    world.loaded.maps.put_in_force(vec![(InstanceIndex::FIRST, loaded)]).expect("it is in force");
}

/// A world whose cgroup is confined under these leases.
fn world(leased: Leased) -> World {
    under(base_policy().leased(leased))
}

fn under(policy: Policy) -> World {
    let mut world = World::unconfined();
    put_in_force(&mut world, policy);
    world.confine();
    world
}

/// Long after the test.
pub(crate) const FAR_AHEAD: u64 = u32::MAX as u64;

/// Has the leases of these rules end, and waits until they are over.
fn end(world: &mut World, rules: &[&str]) {
    let over = boottime() + 1;
    put_in_force(world, base_policy().leased(leases(rules, over, &[])));
    world.wait_until(over);
}

/// A network of which an address is leased, and the address by a way to write it.
const LEASED: [(&str, IpAddr); 3] = [
    ("192.0.2.0/28:400-500", IpAddr::V4(DENIED)),
    ("[2001:db8:1::/64]:400-500", IpAddr::V6(DENIED6)),
    ("192.0.2.0/28:400-500", IpAddr::V6(DENIED.to_ipv6_mapped())),
];

#[test]
fn a_lease_of_a_network_passes_until_its_time() {
    for (rule, address) in LEASED {
        let mut world = world(leases(&[rule], FAR_AHEAD, &[]));
        for (name, way) in WAYS {
            world.passes(name, (address, PORT), way);
            world.denies(name, (address, 399), way);
            world.check_last(DropReason::NotAllowed);
        }
        world.denies("another address", (IpAddr::from(FAR), PORT), WAYS[0].1);
        end(&mut world, &[rule]);
        for (name, way) in WAYS {
            world.denies(name, (address, PORT), way);
            world.check_last(DropReason::NotAllowed);
        }
    }
}

/// A lease is for TCP and UDP, and for those that its rule says.
#[test]
fn a_lease_is_for_its_protocols() {
    let mut world = world(leases(&["192.0.2.0/28:443/tcp", "198.51.100.0/24/udp"], FAR_AHEAD, &[]));
    world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
    let [(_, by_tcp), (_, by_udp), _] = WAYS;
    world.passes("TCP", (DENIED, 443), by_tcp);
    world.denies("UDP", (DENIED, 443), by_udp);
    world.passes("UDP", (FAR, PORT), by_udp);
    world.denies("TCP", (FAR, PORT), by_tcp);
    for address in [DENIED, FAR] {
        world.denies("ping", (address, 0), ping);
    }
}

#[test]
fn no_lease_passes_a_deny_rule() {
    let policy = Policy { deny: vec![any("192.0.2.3/32"), any("192.0.2.2/32")], ..base_policy() };
    let mut world = under(policy.leased(leases(&["0.0.0.0/0"], boottime() + 100, &["192.0.2.0/28"])));
    for (name, way) in WAYS {
        for address in [DENIED, ALLOWED] {
            world.denies(name, (address, PORT), way);
            world.check_last(DropReason::DenyRule);
        }
        world.passes(name, (FAR, PORT), way);
    }
}

/// What began goes on when the time is over, also under later policies, until one has the lease no more.
#[test]
fn what_began_goes_on_until_the_lease_is_revoked() {
    for (rule, address) in LEASED {
        let mut world = world(leases(&[rule], FAR_AHEAD, &[]));
        let to = SocketAddr::new(address, PORT);
        let mut probe = world.start(|steps| {
            let stream = tcp(to)?;
            let (joined, free) = (connected(to)?, udp(to)?);
            loop {
                let sent = [
                    send(&stream, b"data", 0).map(drop),
                    send(&joined, b"data", 0).map(drop),
                    send_to(&free, b"data", 0, to).map(drop),
                ];
                let bits = sent.iter().enumerate().map(|(at, sent)| u64::from(sent.is_err()) << at);
                steps.wait_with(bits.sum())?;
            }
        });
        let mut peer = None;
        let mut goes_on = |world: &mut World, probe: &mut crate::probe::Probe, when: &str| {
            // It has begun by itself.
            if peer.is_some() {
                let _ = world.witness.arrived();
                probe.go_on();
            }
            assert_eq!(probe.step(), 0, "{to} {when}");
            let (peer, _) = peer.get_or_insert_with(|| world.server().accept().expect("the connection"));
            peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let mut data = [0; 4];
            peer.read_exact(&mut data).expect("what was sent");
            assert!(world.witness.arrived().to(address).len() >= 3, "{to} {when}: all three arrive");
        };
        goes_on(&mut world, &mut probe, "in time");
        // Another change of the policy, before the end.
        put_in_force(&mut world, base_policy().leased(leases(&[rule, "203.0.113.9/32"], FAR_AHEAD, &[])));
        goes_on(&mut world, &mut probe, "under another policy");
        end(&mut world, &[rule]);
        world.denies("a new connection", to, WAYS[0].1);
        goes_on(&mut world, &mut probe, "when the time is over");
        put_in_force(&mut world, base_policy().leased(leases(&[], 0, &[rule])));
        world.denies("a new connection", to, WAYS[0].1);
        goes_on(&mut world, &mut probe, "under a policy where it ended");
        put_in_force(&mut world, base_policy().leased(leases(&["203.0.113.9/32"], boottime() + 100, &[])));
        let _ = world.witness.arrived();
        probe.go_on();
        let ended = probe.step();
        // A stream takes the data, and its packet is refused.
        assert_eq!(ended & 0b110, 0b110, "datagrams to {to} when it is revoked");
        assert!(world.witness.arrived().to(address).is_empty(), "LEAK: {to} when it is revoked");
    }
}

/// What began under a lease that ended goes on when another one that covers it comes and is revoked.
#[test]
fn what_began_is_of_no_later_lease() {
    let rule = "192.0.2.0/28:400-500";
    let mut world = world(leases(&[rule], FAR_AHEAD, &[]));
    let to = SocketAddr::from((DENIED, PORT));
    let mut probe = world.start(|steps| {
        let joined = connected(to)?;
        loop {
            let refused = send(&joined, b"data", 0).is_err();
            steps.wait_with(u64::from(refused))?;
        }
    });
    assert_eq!(probe.step(), 0, "in time");
    end(&mut world, &[rule]);
    for (active, when) in [(&["192.0.2.0/24"][..], "under a wider one"), (&[], "when that is revoked")] {
        put_in_force(&mut world, base_policy().leased(leases(active, FAR_AHEAD, &[rule])));
        probe.go_on();
        assert_eq!(probe.step(), 0, "{when}");
        let _ = world.witness.arrived();
    }
    // Nothing else is.
    world.denies("a new flow", to, WAYS[1].1);
}

/// What a socket began under a lease opens nothing else for it.
#[test]
fn what_goes_on_is_the_flow_alone() {
    let rule = "192.0.2.0/28:400-500";
    let mut world = world(leases(&[rule], FAR_AHEAD, &[]));
    let to = SocketAddr::from((DENIED, PORT));
    let others = [(DENIED, PORT + 1), (FAR, PORT)].map(SocketAddr::from);
    let mut probe = world.start(|steps| {
        let free = udp(to)?;
        send_to(&free, b"data", 0, to)?;
        let stream = tcp(to)?;
        steps.wait()?;
        let passed = others.iter().filter(|other| send_to(&free, b"data", 0, **other).is_ok()).count();
        disconnect(&stream)?;
        let again = connect(&stream, to).is_ok();
        Ok(passed as u64 + u64::from(again))
    });
    probe.step();
    end(&mut world, &[rule]);
    put_in_force(&mut world, base_policy().leased(leases(&[], 0, &[rule])));
    probe.go_on();
    assert_eq!(probe.end(), Outcome::Done(0));
}

/// The second lock lets flows by lease pass by their mark, like those by name.
#[test]
fn a_socket_is_marked_while_it_goes_to_what_is_leased() {
    let mut world = world(leases(&["192.0.2.0/28"], boottime() + 100, &[]));
    let marked = |to: SocketAddr, kind| {
        let socket = socket(domain(to), kind, 0)?;
        connect(&socket, to)?;
        let mark = get(&socket, libc::SOL_SOCKET, libc::SO_MARK)?;
        Ok::<_, std::io::Error>(mark.cast_unsigned() == MARK)
    };
    let (outcome, _) = world.run(|| {
        let mut right = true;
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            right &= marked((DENIED, PORT).into(), kind)? && !marked((ALLOWED, PORT).into(), kind)?;
        }
        if right { Ok(()) } else { Err(std::io::Error::other("a wrong mark")) }
    });
    assert_eq!(outcome, Outcome::DONE);
}

/// What the host serves on loopback is leased like anything else.
#[test]
fn a_lease_of_loopback_is_for_the_hosts_server() {
    let mut world = world(leases(&["127.0.0.1/32:5432/tcp"], boottime() + 100, &[]));
    let run = |world: &mut World, port: u16| world.run(|| WAYS[0].1(([127, 0, 0, 1], port).into())).0;
    let server = world.unit.enter(|| std::net::TcpListener::bind(("127.0.0.1", 5432)).expect("a server"));
    let other = world.unit.enter(|| std::net::TcpListener::bind(("127.0.0.1", 5433)).expect("a server"));
    assert_eq!(run(&mut world, 5432), Outcome::DONE);
    assert_eq!(run(&mut world, 5433), Outcome::EPERM);
    drop((server, other));
}

/// Where a name with `tls` has an address, and a lease its network, the connection is free.
#[test]
fn what_is_leased_need_not_open_tls() {
    let mut named = Named::new(&names(&RULES));
    learn(&mut named);
    let plain = |to: SocketAddr| send(&tcp(to)?, b"no hello", 0).map(drop);
    let arrives = |named: &mut Named| {
        let to = SocketAddr::from((DENIED, PORT));
        let (outcome, _) = named.world.run(|| plain(to));
        assert_eq!(outcome, Outcome::DONE);
        let (mut peer, _) = named.world.server().accept().expect("the connection");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut data = vec![];
        let read = peer.read_to_end(&mut data);
        read.is_ok() && data == b"no hello"
    };
    assert!(!arrives(&mut named), "without a lease");
    let policy = names(&RULES).leased(leases(&["192.0.2.0/28:443/tcp"], boottime() + 100, &[]));
    named.install(&policy, &[(RULES[0], DENIED.into(), 1000)]);
    assert!(arrives(&mut named), "with a lease");
}

/// A lease of a resolver is a rule for it like the file's: questions to it are sent there.
#[test]
fn a_leased_resolver_is_asked() {
    let mut named = Named::new(&names(&RULES));
    let asks = |named: &mut Named| {
        let by = |way: Way| named.world.run(|| way((FAR, 53).into())).1.to(FAR.into()).len();
        [WAYS[1].1, WAYS[2].1].map(by)
    };
    assert_eq!(asks(&mut named), [0, 0], "without a lease the instance's own is asked");
    let policy = names(&RULES).leased(leases(&[&format!("{FAR}/32:53/udp")], boottime() + 100, &[]));
    named.install(&policy, &[]);
    assert_eq!(asks(&mut named), [1, 1], "with a lease");
}

/// Audit mode that was leased ends in the kernel, whether a daemon runs or not.
#[test]
fn audit_mode_ends_by_itself() {
    let until = |audit| base_policy().leased(Leased { audit: Some(audit), ..Leased::default() });
    let mut world = under(until(FAR_AHEAD));
    for (name, way) in WAYS {
        world.passes(name, (DENIED, PORT), way);
    }
    assert!(!world.events().is_empty(), "it is told");
    let over = boottime() + 1;
    put_in_force(&mut world, until(over));
    world.wait_until(over);
    for (name, way) in WAYS {
        world.denies(name, (DENIED, PORT), way);
    }
}

/// A lease's time goes on while the machine sleeps, and by no clock that somebody sets.
#[test]
fn a_lease_ends_while_the_machine_sleeps_whatever_its_clock_says() {
    if std::env::var_os("OPENCODE_EGRESS_TEST_OWNS_MACHINE").is_none() {
        return eprintln!("skipped: no machine to put to sleep (cargo xtask vm-test --kernel 6.12 sleeps)");
    }
    const DAY: i64 = 24 * 60 * 60;
    let [(rule, address), ..] = LEASED;
    let (_, way) = WAYS[1];
    let mut world = world(leases(&[rule], boottime() + 600, &[]));
    for jump in [2 * DAY, -4 * DAY, 2 * DAY] {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let other = rustix::time::Timespec { tv_sec: now.tv_sec + jump, ..now };
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, other).expect("another time");
        world.passes("when the clock jumped", (address, PORT), way);
    }
    let (begin, over) = (Instant::now(), boottime() + 20);
    put_in_force(&mut world, base_policy().leased(leases(&[rule], over, &[])));
    world.passes("before it sleeps", (address, PORT), way);
    // rtc(4), and https://docs.kernel.org/admin-guide/pm/sleep-states.html.
    for (file, text) in
        [("class/rtc/rtc0/wakealarm", "0"), ("class/rtc/rtc0/wakealarm", "+22"), ("power/state", "mem")]
    {
        fs::write(format!("/sys/{file}"), text).unwrap_or_else(|error| panic!("{text} in {file}: {error}"));
    }
    assert!(boottime() >= over && begin.elapsed() < Duration::from_secs(20), "the time passed as it slept");
    world.denies("when it sleeps no more", (address, PORT), way);
}
