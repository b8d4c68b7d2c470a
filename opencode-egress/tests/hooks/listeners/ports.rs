//! What may be bound, and what leaves from a listener's port.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use opencode_egress::policy::{Loopback, Policy};
use opencode_egress_common::reason::DropReason;

use super::{ANSWER, LISTENER, client, only};
use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, PORT, UNIT, UNIT6},
    probe::Outcome,
    sys::{bind, connect, disconnect, domain, listening, send_to, set, socket},
    world::{World, base_policy, listen},
};

#[test]
fn binds_are_judged() {
    let listeners = only(&[listen("192.0.2.1", LISTENER, true), listen("::", 9000, false)]);
    let mut world = World::new(&Policy { loopback: Loopback::Listed, ..listeners });
    let mut check = |kind, to: (&str, u16), expect| {
        let to = SocketAddr::new(to.0.parse().expect("an address"), to.1);
        let (outcome, _) = world.run(|| bind(&socket(domain(to), kind, 0)?, to));
        assert_eq!(outcome, expect, "a bind to {to}");
    };
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
        for address in ["0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "::ffff:192.0.2.1"] {
            check(kind, (address, 0), Outcome::DONE);
            check(kind, (address, 8788), Outcome::EPERM);
        }
        for address in ["192.0.2.1", "::ffff:192.0.2.1"] {
            check(kind, (address, LISTENER), Outcome::DONE);
        }
        for address in ["0.0.0.0", "127.0.0.1", "::", "::ffff:0.0.0.0", "2001:db8:1::1"] {
            check(kind, (address, LISTENER), Outcome::EPERM);
        }
        check(kind, ("::", 9000), Outcome::DONE);
        check(kind, ("::1", 9000), Outcome::EPERM);
    }
}

/// A socket on the listener's port.
fn on_listener_port(kind: libc::c_int, to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(domain(to), kind, 0)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let own: IpAddr = if to.is_ipv4() { UNIT.into() } else { UNIT6.into() };
    bind(&socket, SocketAddr::new(own, LISTENER))?;
    Ok(socket)
}

#[test]
fn nothing_is_opened_from_a_listeners_port() {
    let listeners = vec![listen("192.0.2.1", LISTENER, true), listen("2001:db8:1::1", LISTENER, true)];
    let mut world = World::new(&Policy { listen: listeners, ..base_policy() });
    let opened = |to| connect(&on_listener_port(libc::SOCK_STREAM, to)?, to);
    let sent = |to| send_to(&on_listener_port(libc::SOCK_DGRAM, to)?, b"data", 0, to).map(drop);
    let fast =
        |to| send_to(&on_listener_port(libc::SOCK_STREAM, to)?, b"data", libc::MSG_FASTOPEN, to).map(drop);
    for (allowed, denied) in
        [(IpAddr::from(ALLOWED), IpAddr::from(DENIED)), (ALLOWED6.into(), DENIED6.into())]
    {
        for to in [allowed, denied] {
            world.denies("TCP from the listener's port", (to, PORT), opened);
            world.check_last(DropReason::ListenerPort);
            world.denies("TCP fast open from the listener's port", (to, PORT), fast);
            world.check_last(DropReason::ListenerPort);
        }
        // Only TCP has replies of listeners, so UDP is judged as ever.
        world.passes("UDP from the listener's port", (allowed, PORT), sent);
        world.denies("UDP from the listener's port", (denied, PORT), sent);
    }
}

/// The kernel picks a source port after the hook of connect; when it is the listener's, no packet leaves.
#[test]
fn a_port_that_the_kernel_picks_is_judged() {
    let connects = |to: SocketAddr| {
        let socket = socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        match connect(&socket, to) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            result => result,
        }
    };
    let port = 40_001;
    let mut world = World::new(&Policy { listen: vec![listen("192.0.2.1", port, true)], ..base_policy() });
    // First and last port that it may pick. A program may narrow the range for its socket (since Linux 6.3).
    let range = |port| format!("{port} {port}");
    world.unit.sysctl("ipv4/ip_local_port_range", &range(port + 1));
    world.passes("TCP from a picked port", (ALLOWED, PORT), connects);
    world.unit.sysctl("ipv4/ip_local_port_range", &range(port));
    world.denies_as("TCP from a picked port", (ALLOWED, PORT), Outcome::DONE, connects);
    world.check_last(DropReason::ListenerPort);
    world.denies("TCP from a picked port", (DENIED, PORT), connects);
}

/// An accepted socket that was dissolved is one like any other, and not on the listener's port.
#[test]
fn a_dissolved_accepted_socket_is_judged() {
    let mut world =
        World::new(&Policy { listen: vec![listen("192.0.2.1", LISTENER, true)], ..base_policy() });
    for (to, fast) in [(ALLOWED, false), (DENIED, false), (ALLOWED, true), (DENIED, true)] {
        let mut probe = world.start(|steps| {
            let listener = listening(on_listener_port(libc::SOCK_STREAM, (ALLOWED, PORT).into())?)?;
            steps.wait()?;
            let (accepted, _) = listener.accept()?;
            disconnect(&accepted)?;
            steps.wait()?;
            let to = SocketAddr::from((to, PORT));
            if fast {
                send_to(&accepted, b"data", libc::MSG_FASTOPEN, to).map(|_| 0)
            } else {
                connect(&accepted, to).map(|()| 0)
            }
        });
        probe.step();
        let connection =
            client(&world.far, (UNIT, LISTENER).into(), ANSWER).expect("an open listener serves");
        probe.go_on();
        probe.step();
        let _ = world.witness.arrived();
        probe.go_on();
        let outcome = probe.end();
        let arrived = world.witness.arrived();
        let opened: Vec<_> = arrived.to(to.into()).into_iter().filter(|line| line.contains("[S]")).collect();
        if to == ALLOWED {
            assert!(
                matches!(outcome, Outcome::Done(_)),
                "an accepted socket may connect to {to}: {outcome:?}"
            );
            assert_eq!(opened.len(), 1, "its connection to {to} arrives: {arrived:#?}");
            let from = format!("{UNIT}.{LISTENER} >");
            assert!(!opened[0].contains(&from), "LEAK: from the listener's port: {opened:?}");
        } else {
            assert_eq!(opened, [""; 0], "LEAK: an accepted socket opens a connection to {to}");
            assert_eq!(outcome, Outcome::EPERM, "an accepted socket connects to {to}");
        }
        drop(connection);
    }
}
