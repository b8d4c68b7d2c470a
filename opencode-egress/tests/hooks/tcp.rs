//! TCP, whatever opens the connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use opencode_egress_common::event::Denial;

use crate::{
    network::{ALLOWED, DENIED, INTERFACE, PORT, UNIT, allowed_like},
    probe::{Outcome, Steps, unhurried},
    sys::{bind, connect, disconnect, domain, listening, send, send_to, set, socket},
    world::{World, any, base_policy},
};

const TCP_FASTOPEN: libc::c_int = 23;
const TCP_FASTOPEN_CONNECT: libc::c_int = 30;
pub(crate) const IPPROTO_MPTCP: libc::c_int = 262;
const IPPROTO_SCTP: libc::c_int = 132;

/// A connected TCP socket.
pub(crate) fn tcp(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
    connect(&socket, to)?;
    Ok(socket)
}

#[test]
fn a_connect_is_judged() {
    let mut world = World::new(&base_policy());
    world.judges("TCP connect", |to| tcp(to).map(drop));
    world.judges("TCP connect without waiting", |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        connect(&socket, to).or_else(|error| match error.raw_os_error() {
            Some(libc::EINPROGRESS) => Ok(()),
            _ => Err(error),
        })
    });
    world.judges("TCP connect from a bound address", |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        bind(&socket, SocketAddr::new(any, 0))?;
        connect(&socket, to)
    });
}

#[test]
fn a_socket_is_judged_at_every_connect() {
    let mut world = World::new(&base_policy());
    world.judges("TCP connect after a dissolved connection", |to| {
        let socket = tcp(allowed_like(to))?;
        disconnect(&socket)?;
        connect(&socket, to)
    });
    world.passes("TCP connect after a refused one", (ALLOWED, PORT), |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        match connect(&socket, SocketAddr::from((DENIED, PORT))) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => connect(&socket, to),
            other => Err(io::Error::other(format!("the first connect should be refused: {other:?}"))),
        }
    });
}

/// The first packet can carry data already.
#[test]
fn fast_open_is_judged() {
    let mut world = World::new(&base_policy());
    // Client and server, and data in the first packet without a cookie from an earlier connection.
    world.unit.sysctl("ipv4/tcp_fastopen", "7");
    world.far.sysctl("ipv4/tcp_fastopen", "3");
    set(world.server(), libc::IPPROTO_TCP, TCP_FASTOPEN, 16).expect("the server takes fast opens");
    world.judges("TCP fast open", |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    });
    world.judges("TCP fast open at connect", |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?;
        connect(&socket, to)?;
        send(&socket, b"data", 0).map(drop)
    });
    world.judges("TCP fast open after a dissolved connection", |to| {
        let socket = tcp(allowed_like(to))?;
        disconnect(&socket)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    });
}

pub(crate) fn mptcp(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(domain(to), libc::SOCK_STREAM, IPPROTO_MPTCP)?;
    connect(&socket, to)?;
    Ok(socket)
}

/// Whether this kernel has MPTCP; says so when not.
pub(crate) fn has_mptcp(world: &mut World) -> bool {
    let (outcome, _) = world.run(|| socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP).map(drop));
    let has = outcome != Outcome::Errno(libc::EPROTONOSUPPORT);
    if !has {
        eprintln!("skipped: no MPTCP in this kernel");
    }
    has
}

#[test]
fn mptcp_is_judged() {
    let mut world = World::new(&base_policy());
    if !has_mptcp(&mut world) {
        return;
    }
    world.judges("MPTCP connect", |to| mptcp(to).map(drop));
    let fast_open = |to: SocketAddr| {
        let socket = socket(domain(to), libc::SOCK_STREAM, IPPROTO_MPTCP)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    };
    // Linux 6.1 has MPTCP and not this.
    if world.run(|| fast_open((ALLOWED, PORT).into())).0 == Outcome::Errno(libc::EOPNOTSUPP) {
        eprintln!("skipped: no MPTCP fast open in this kernel");
        return;
    }
    world.judges("MPTCP fast open", fast_open);
}

/// A peer can name more addresses of its own, to which the kernel itself then connects.
#[test]
fn mptcp_subflows_are_judged() {
    let mut world = World::new(&base_policy());
    if !has_mptcp(&mut world) {
        return;
    }
    world.unit.ip("mptcp limits set subflow 2 add_addr_accepted 2\n");
    world.far.ip("mptcp limits set subflow 2\n");
    world.far.ip(&format!("mptcp endpoint add {DENIED} dev {INTERFACE} signal\n"));
    let server = world.far.enter(|| {
        let server = socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP)?;
        bind(&server, SocketAddr::from((ALLOWED, PORT + 1)))?;
        listening(server)
    });
    let server = server.expect("an MPTCP server");
    let connection = |steps: &mut Steps| {
        let _socket = mptcp((ALLOWED, PORT + 1).into())?;
        steps.wait()?;
        Ok(0)
    };
    let subflow = |record: &Denial| IpAddr::from(record.flow.address) == DENIED;
    let deadline = Instant::now() + unhurried(Duration::from_secs(5));
    let mut probe = world.start(connection);
    probe.step();
    let _accepted = server.accept().expect("the connection");
    while !world.events().iter().any(subflow) {
        assert!(Instant::now() < deadline, "the kernel tries to connect to the address that the peer named");
        thread::yield_now();
    }
    let arrived = world.witness.arrived();
    assert_eq!(arrived.to(DENIED.into()), [""; 0], "LEAK: a subflow to {DENIED}");
    drop(probe);
    let mut policy = base_policy();
    policy.allow.push(any("192.0.2.3/32"));
    world.install(&policy);
    let mut probe = world.start(connection);
    probe.step();
    let _accepted = server.accept().expect("the connection");
    while world.witness.arrived().to(DENIED.into()).is_empty() {
        assert!(Instant::now() < deadline, "a subflow to an allowed address arrives");
    }
}

#[test]
fn sctp_is_judged() {
    let mut world = World::new(&base_policy());
    let (outcome, _) = world.run(|| socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_SCTP).map(drop));
    if outcome == Outcome::Errno(libc::EPROTONOSUPPORT) {
        eprintln!("skipped: no SCTP in this kernel");
        return;
    }
    // Its connect waits for an answer from a host that speaks SCTP, and retries in silence when refused.
    let connect = |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, IPPROTO_SCTP)?;
        connect(&socket, to).or_else(|error| match error.raw_os_error() {
            Some(libc::EINPROGRESS) => Ok(()),
            _ => Err(error),
        })
    };
    world.passes("SCTP connect", (ALLOWED, PORT), connect);
    world.denies_as("SCTP connect", (DENIED, PORT), Outcome::DONE, connect);
}

/// `connect()` to `0.0.0.0` or `::` reaches loopback, so that is what is judged.
#[test]
fn the_unspecified_address_is_loopback() {
    let mut policy = base_policy();
    policy.allow.extend([any("0.0.0.0/0"), any("::/0")]);
    policy.deny.extend([any("127.0.0.0/8"), any("::1/128")]);
    let mut world = World::new(&policy);
    for unspecified in [IpAddr::from([0; 4]), IpAddr::from([0; 16]), "::ffff:0.0.0.0".parse().expect("one")] {
        world.denies("TCP connect", (unspecified, PORT), |to| tcp(to).map(drop));
        world.denies("UDP", (unspecified, PORT), |to| {
            let socket = socket(domain(to), libc::SOCK_DGRAM, 0)?;
            send_to(&socket, b"data", 0, to).map(drop)
        });
    }
    // The control: the same, where loopback is allowed, finds that nothing listens there.
    policy.deny.clear();
    policy.allow = vec![any("127.0.0.0/8"), any("::1/128"), any("192.0.2.1/32")];
    world.install(&policy);
    for unspecified in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        let (outcome, _) = world.run(|| tcp(SocketAddr::new(unspecified, PORT)).map(drop));
        assert_eq!(outcome, Outcome::Errno(libc::ECONNREFUSED), "{unspecified} is loopback, and allowed");
    }
    let (outcome, _) = world.run(|| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        bind(&socket, SocketAddr::from((UNIT, 0)))?;
        connect(&socket, SocketAddr::from(([0; 4], PORT)))
    });
    assert_eq!(outcome, Outcome::Errno(libc::ECONNREFUSED), "from its own address it reaches that address");
}
