//! UDP and UDP-Lite, whatever makes a datagram of the data.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use crate::{
    network::{ALLOWED, DENIED, FAR, PAIRS, PORT, allowed_like},
    probe::Outcome,
    sys::{Message, RawAddress, connect, disconnect, domain, send, send_to, set, socket},
    world::{World, base_policy},
};

const UDP_CORK: libc::c_int = 1;
const UDP_SEGMENT: libc::c_int = 103;
const IPPROTO_UDPLITE: libc::c_int = 136;

/// A UDP socket for a destination.
pub(crate) fn udp(to: SocketAddr) -> io::Result<OwnedFd> {
    socket(domain(to), libc::SOCK_DGRAM, 0)
}

/// A UDP socket with its peer.
pub(crate) fn connected(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = udp(to)?;
    connect(&socket, to)?;
    Ok(socket)
}

#[test]
fn a_datagram_is_judged() {
    let mut world = World::new(&base_policy());
    world.judges("UDP", |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
    world.judges("UDP of a connected socket", |to| send(&connected(to)?, b"data", 0).map(drop));
    world.judges("UDP by sendmsg", |to| {
        Message::new(Some(to.into()), b"data", None).send(&udp(to)?, 0).map(drop)
    });
    world.judges("UDP in fragments", |to| send_to(&udp(to)?, &[0; 4000], 0, to).map(drop));
    world.judges("UDP in fragments, of a connected socket", |to| {
        send(&connected(to)?, &[0; 4000], 0).map(drop)
    });
    world.judges("UDP by write", |to| {
        rustix::io::write(connected(to)?, b"data").map(drop).map_err(Into::into)
    });
}

#[test]
fn a_datagram_of_parts_is_judged() {
    let mut world = World::new(&base_policy());
    world.judges("UDP with MSG_MORE", |to| {
        let socket = udp(to)?;
        send_to(&socket, b"da", libc::MSG_MORE, to)?;
        send_to(&socket, b"ta", 0, to).map(drop)
    });
    world.judges("UDP with MSG_MORE, of a connected socket", |to| {
        let socket = connected(to)?;
        send(&socket, b"da", libc::MSG_MORE)?;
        send(&socket, b"ta", 0).map(drop)
    });
    // Pulling the cork sends, and does not tell what came of it. So it depends on whether the call itself is judged.
    let free = |to| {
        let socket = udp(to)?;
        set(&socket, libc::IPPROTO_UDP, UDP_CORK, 1)?;
        send_to(&socket, b"da", 0, to)?;
        set(&socket, libc::IPPROTO_UDP, UDP_CORK, 0)
    };
    let corked = |to| {
        let socket = connected(to)?;
        set(&socket, libc::IPPROTO_UDP, UDP_CORK, 1)?;
        send(&socket, b"data", 0)?;
        set(&socket, libc::IPPROTO_UDP, UDP_CORK, 0)
    };
    for (allowed, denied) in PAIRS {
        // To an IPv4-mapped peer the kernel sends as if without one.
        let mapped = matches!(denied, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let in_call = if world.judges_sendmsg() { Outcome::EPERM } else { Outcome::DONE };
        world.passes("corked UDP", (allowed, PORT), free);
        world.denies_as("corked UDP", (denied, PORT), in_call, free);
        let told = if mapped { in_call } else { Outcome::DONE };
        world.passes("corked UDP of a connected socket", (allowed, PORT), corked);
        world.denies_as("corked UDP of a connected socket", (denied, PORT), told, corked);
    }
    // The kernel keeps the first part's destination; either way no part may go to the second's.
    let (_, arrived) = world.run(|| {
        let socket = udp((ALLOWED, PORT).into())?;
        send_to(&socket, b"da", libc::MSG_MORE, SocketAddr::from((ALLOWED, PORT)))?;
        send_to(&socket, b"ta", 0, SocketAddr::from((DENIED, PORT))).map(drop)
    });
    assert_eq!(arrived.to(DENIED.into()), [""; 0], "a datagram begun for {ALLOWED} does not go to {DENIED}");
}

#[test]
fn segmented_datagrams_are_judged() {
    let mut world = World::new(&base_policy());
    world.judges("UDP segmentation", |to| {
        let socket = udp(to)?;
        set(&socket, libc::IPPROTO_UDP, UDP_SEGMENT, 100)?;
        send_to(&socket, &[0; 1000], 0, to).map(drop)
    });
    world.judges("UDP segmentation by a control message", |to| {
        let size = 100_u16.to_ne_bytes();
        let control = Some((libc::IPPROTO_UDP, UDP_SEGMENT, &size[..]));
        Message::new(None, &[0; 1000], control).send(&connected(to)?, 0).map(drop)
    });
}

#[test]
fn udplite_is_judged() {
    let mut world = World::new(&base_policy());
    let (outcome, _) = world.run(|| socket(libc::AF_INET, libc::SOCK_DGRAM, IPPROTO_UDPLITE).map(drop));
    if outcome == Outcome::Errno(libc::EPROTONOSUPPORT) {
        eprintln!("skipped: no UDP-Lite in this kernel");
        return;
    }
    world.judges("UDP-Lite", |to| {
        let socket = socket(domain(to), libc::SOCK_DGRAM, IPPROTO_UDPLITE)?;
        send_to(&socket, b"data", 0, to).map(drop)
    });
    world.judges("UDP-Lite of a connected socket", |to| {
        let socket = socket(domain(to), libc::SOCK_DGRAM, IPPROTO_UDPLITE)?;
        connect(&socket, to)?;
        send(&socket, b"data", 0).map(drop)
    });
}

/// What the address says of its family and what the socket is need not be the same.
#[test]
fn odd_address_families_are_judged() {
    let mut world = World::new(&base_policy());
    for (allowed, denied) in [(ALLOWED, DENIED), (ALLOWED, FAR)] {
        let unspecified = |to: SocketAddr| {
            let address = RawAddress::new(to).with_family(libc::AF_UNSPEC);
            send_to(&udp(to)?, b"data", 0, address).map(drop)
        };
        world.passes("UDP to AF_UNSPEC", (allowed, PORT), unspecified);
        world.denies("UDP to AF_UNSPEC", (denied, PORT), unspecified);
        let from_ipv6 =
            |to: SocketAddr| send_to(&socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?, b"data", 0, to).map(drop);
        world.passes("UDP to an IPv4 address from an IPv6 socket", (allowed, PORT), from_ipv6);
        world.denies("UDP to an IPv4 address from an IPv6 socket", (denied, PORT), from_ipv6);
    }
}

#[test]
fn a_socket_is_judged_at_every_send() {
    let mut world = World::new(&base_policy());
    world.judges("UDP past the peer of a connected socket", |to| {
        let socket = connected(allowed_like(to))?;
        send_to(&socket, b"data", 0, to).map(drop)
    });
    world.judges("UDP with a new peer", |to| {
        let socket = connected(allowed_like(to))?;
        disconnect(&socket)?;
        connect(&socket, to)?;
        send(&socket, b"data", 0).map(drop)
    });
}
