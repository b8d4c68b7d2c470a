//! What is told of denials: events, folding, the rate limit, and counters that add up.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use opencode_egress::{
    kernel::{features::Features, hooks::Needs, instance::InstanceIndex},
    policy::LogLimits,
};
use opencode_egress_common::{
    event::Denial,
    flow::Protocol,
    reason::{DropReason, Hook},
};

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, PORT},
    probe::{Outcome, unhurried},
    raw::ping,
    sys::{bind, send, send_to, set},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, base_policy},
};

const USER: u32 = 4321;

/// Becomes another user, who cannot make raw sockets any more.
fn become_user() -> io::Result<()> {
    let user = rustix::process::Uid::from_raw(USER);
    rustix::thread::set_thread_uid(user).map_err(Into::into)
}

#[test]
fn events_say_what_was_denied_to_whom() {
    let mut world = World::new(&base_policy());
    world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
    let generation = world.loaded.maps.current(InstanceIndex::FIRST).generation();
    let mapped = SocketAddr::from((DENIED.to_ipv6_mapped(), PORT));
    type Technique<'a> = &'a dyn Fn(SocketAddr) -> io::Result<()>;
    let connects: Technique = &|to| tcp(to).map(drop);
    let sends: Technique = &|to| send_to(&udp(to)?, b"data", 0, to).map(drop);
    let datagrams: Technique = &|to| send(&connected(to)?, b"data", 0).map(drop);
    let binds: Technique = &|to| bind(&udp(to)?, to);
    let options: Technique = &|to| set(&udp(to)?, libc::IPPROTO_IP, libc::IP_HDRINCL, 1);
    let not_allowed = DropReason::NotAllowed;
    let features = Features::of_this_kernel();
    // Where a packet's program knows the process, nothing is judged before.
    let call = |hook| {
        if world.loaded.programs.hooks(Needs::NONE).any(|known| known == hook) { hook } else { Hook::Egress }
    };
    let (sendmsg4, sendmsg6) = (call(Hook::Sendmsg4), call(Hook::Sendmsg6));
    let (v4, v6) = (SocketAddr::from((DENIED, PORT)), SocketAddr::from((DENIED6, PORT)));
    let nowhere = SocketAddr::from(([0; 4], 0));
    for (technique, to, told, hook, reason, protocol) in [
        (connects, v4, v4, Hook::Connect4, not_allowed, Protocol::TCP),
        (connects, v6, v6, Hook::Connect6, not_allowed, Protocol::TCP),
        (connects, mapped, v4, Hook::Connect6, not_allowed, Protocol::TCP),
        (sends, v4, v4, sendmsg4, not_allowed, Protocol::UDP),
        (sends, v6, v6, sendmsg6, not_allowed, Protocol::UDP),
        (datagrams, v4, v4, Hook::Egress, not_allowed, Protocol::UDP),
        (datagrams, v6, v6, Hook::Egress, not_allowed, Protocol::UDP),
        (
            &ping,
            SocketAddr::from((DENIED, 0)),
            SocketAddr::from((DENIED, 0)),
            Hook::Egress,
            not_allowed,
            Protocol::ICMP,
        ),
        (
            binds,
            SocketAddr::from(([127, 0, 0, 1], 53)),
            SocketAddr::from(([127, 0, 0, 1], 53)),
            Hook::Bind4,
            DropReason::BindNotListed,
            Protocol::UDP,
        ),
        (options, v4, nowhere, Hook::Setsockopt, DropReason::HeaderIncluded, Protocol::UDP),
    ] {
        world.events();
        let probe = world.start(|_| become_user().and_then(|()| technique(to)).map(|()| 0));
        let pid = probe.pid();
        assert_eq!(probe.end(), Outcome::EPERM, "{hook:?} denies {to}");
        let events = world.events();
        let [Denial { event, hook: at, reason: why, flow, asked: None, .. }] = &events[..] else {
            panic!("one event is told of {to} at {hook:?}: {events:#?}");
        };
        assert_eq!((*at, *why), (hook, reason), "where and why {to} is refused");
        let destination = SocketAddr::new(IpAddr::from(flow.address), flow.port);
        assert_eq!((destination, flow.protocol), (told, protocol), "what is refused at {hook:?}");
        assert_eq!((event.instance, event.generation), (1, generation));
        assert_eq!(event.uid, USER, "whose it is at {hook:?}");
        assert_eq!(event.audit, 0);
        let untold = match hook {
            Hook::Setsockopt => !features.setsockopt_knows_caller,
            Hook::Egress => !features.packet_knows_caller,
            _ => false,
        };
        if untold {
            eprintln!("skipped: this kernel does not tell the program of {hook:?} the process");
        }
        assert_eq!(event.pid, if untold { 0 } else { pid }, "the process at {hook:?}");
        assert_eq!(event.comm[0] == 0, untold, "the process' name at {hook:?}");
    }
}

/// Everything that was denied was told, folded, left out or lost, and nothing twice.
#[track_caller]
fn adds_up(world: &World, told: usize) {
    let denied = world.counters().denied;
    let accounted = denied.folded + denied.limited + denied.lost + told as u64;
    assert_eq!(accounted, world.denied(), "folded, limited, lost and told add up to what was denied");
}

fn limited(log: &LogLimits) -> World {
    let mut world = World::new(&base_policy());
    world.loaded.maps.set_limits(log).expect("limits");
    world
}

#[test]
fn repeats_are_folded() {
    let interval = unhurried(Duration::from_secs(1));
    let mut world = limited(&LogLimits { interval, burst: 1000, per_sec: 1000 });
    let mut probe = world.start(|steps| {
        for attempts in [10, 1] {
            for _ in 0..attempts {
                for to in
                    [SocketAddr::from((DENIED, PORT)), (DENIED, PORT + 1).into(), (DENIED6, PORT).into()]
                {
                    if send_to(&udp(to)?, b"data", 0, to).is_ok() {
                        return Ok(1);
                    }
                }
            }
            steps.wait()?;
        }
        Ok(0)
    });
    probe.step();
    let events = world.events();
    let told: Vec<_> = events.iter().map(|record| (record.event.attempts, record.event.suppressed)).collect();
    assert_eq!(told, [(1, 0); 3], "the first attempt at each of three destinations is told at once");
    assert_eq!(world.counters().denied.folded, 27, "the others are folded");
    for record in &events {
        assert_eq!(world.loaded.maps.attempts(&record.destination_key()), Some(10), "attempts are counted");
    }
    adds_up(&world, 3);
    // The interval is the fact that is waited for.
    std::thread::sleep(interval);
    probe.go_on();
    probe.step();
    let events = world.events();
    let told: Vec<_> = events.iter().map(|record| (record.event.attempts, record.event.suppressed)).collect();
    assert_eq!(told, [(11, 9); 3], "the next one tells how many were folded into it");
    adds_up(&world, 6);
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
}

#[test]
fn a_scan_is_held_to_the_rate() {
    let mut world = limited(&LogLimits { interval: Duration::from_secs(10), burst: 20, per_sec: 5 });
    let scan = || {
        for port in 1..=200 {
            let to = SocketAddr::from((DENIED, port));
            if !tcp(to).is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
                return Err(io::Error::other("a scanned port is not refused"));
            }
        }
        Ok(())
    };
    let (outcome, arrived) = world.run(scan);
    assert_eq!(outcome, Outcome::DONE, "each of 200 ports is refused, told or not");
    assert_eq!(arrived.to(DENIED.into()), [""; 0], "LEAK: a scan");
    let told = world.events().len();
    // The burst, and what came back of it while the scan ran.
    assert!((20..60).contains(&told), "{told} events of 200 denials at a burst of 20");
    assert_eq!(world.denied(), 200, "each of them is counted");
    assert_eq!(world.counters().denied.limited, 200 - told as u64, "what the rate left out is counted");
    adds_up(&world, told);
}

/// Whatever the log leaves out: that is what a suggestion is made of.
#[test]
fn the_kernel_remembers_what_was_denied_and_why() {
    let mut world = limited(&LogLimits { interval: Duration::from_secs(10), burst: 1, per_sec: 1 });
    let here = SocketAddr::from(([127, 0, 0, 1], 53));
    let (outcome, _) = world.run(|| {
        let refused = |result: io::Result<()>| match result {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
            other => Err(io::Error::other(format!("not refused: {other:?}"))),
        };
        for port in 1..=100 {
            refused(tcp((DENIED, port).into()).map(drop))?;
        }
        // The same address and port, from two sides.
        refused(bind(&udp(here)?, here))?;
        refused(send_to(&udp(here)?, b"data", 0, here).map(drop))
    });
    assert_eq!(outcome, Outcome::DONE);
    assert!(world.events().len() < 100, "the log leaves some out");
    let seen = world.loaded.maps.seen(InstanceIndex::FIRST).expect("what the kernel remembers");
    assert_eq!(
        seen.len(),
        102,
        "each denial is remembered once; a bind is another than a flow to the same place"
    );
    let mut there: Vec<_> = seen
        .iter()
        .filter(|(key, _)| IpAddr::from(key.flow().address) == here.ip())
        .map(|(key, _)| DropReason::from_number(key.reason))
        .collect();
    there.sort_unstable();
    assert_eq!(there, [Some(DropReason::NotAllowed), Some(DropReason::BindNotListed)]);
    for (key, denials) in seen {
        assert_eq!(denials.attempts, 1, "{key:?}");
    }
}

#[test]
fn a_full_ring_loses_events_and_counts_them() {
    let mut world = World::new(&base_policy());
    let (outcome, _) = world.run(|| {
        let socket = udp(SocketAddr::from((DENIED, PORT)))?;
        for _ in 0..10_000 {
            if send_to(&socket, b"data", 0, SocketAddr::from((DENIED, PORT))).is_ok() {
                return Err(io::Error::other("losing events must not change the verdict"));
            }
        }
        Ok(())
    });
    assert_eq!(outcome, Outcome::DONE, "each attempt is refused, also without room for its event");
    let told = world.events().len();
    assert!(world.counters().denied.lost > 0, "the ring has no room for 10000 events");
    assert_eq!(world.denied(), 10_000);
    adds_up(&world, told);
}

#[test]
fn counters_are_exact() {
    const PACKETS: u64 = 25;
    const PAYLOAD: usize = 100;
    let mut world = World::new(&base_policy());
    // IP length: header, UDP header, data.
    for (allowed, denied, header) in
        [(IpAddr::from(ALLOWED), IpAddr::from(DENIED), 20), (ALLOWED6.into(), DENIED6.into(), 40)]
    {
        let bytes = PACKETS * (header + 8 + PAYLOAD as u64);
        let sent = |to: IpAddr| {
            move || {
                let to = SocketAddr::new(to, PORT);
                let socket = connected(to)?;
                let results = (0..PACKETS).map(|_| send(&socket, &[0; PAYLOAD], 0));
                results.map(|result| result.map(drop)).fold(Ok(()), Result::and)
            }
        };
        let before = world.counters();
        assert_eq!(world.run(sent(allowed)).0, Outcome::DONE);
        let after = world.counters();
        let counted =
            (after.allowed.packets - before.allowed.packets, after.allowed.bytes - before.allowed.bytes);
        assert_eq!(counted, (PACKETS, bytes), "allowed packets and bytes");
        assert_eq!(after.denied, before.denied, "what is allowed is not counted as denied");
        assert_eq!(world.run(sent(denied)).0, Outcome::EPERM);
        let end = world.counters();
        assert_eq!(end.allowed, after.allowed, "what is denied is not counted as allowed");
        let reason = DropReason::NotAllowed as usize;
        let (before, end) = (after.denied.reasons[reason], end.denied.reasons[reason]);
        let counted = (end.packets - before.packets, end.bytes - before.bytes);
        assert_eq!(counted, (PACKETS, bytes), "denied packets and bytes");
    }
    // A refused call never became a packet.
    let before = world.counters().denied.reasons[DropReason::NotAllowed as usize];
    let (outcome, _) = world.run(|| tcp((DENIED, PORT).into()).map(drop));
    assert_eq!(outcome, Outcome::EPERM);
    let after = world.counters().denied.reasons[DropReason::NotAllowed as usize];
    assert_eq!((after.packets - before.packets, after.bytes - before.bytes), (1, 0));
}
