//! Sockets that send by an interface of their choice: what is for the resolver stays on this host.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use super::{
    API, Named, RESOLVER, names,
    questions::{BY_TCP, BY_UDP, DOMAIN, QUESTION, UNKNOWN6, asks},
};
use crate::{
    network::{ALLOWED, ALLOWED6, FAR, INTERFACE, PORT},
    probe::Outcome,
    sys::{Message, connect, domain, send, send_to, set, set_bytes, socket},
    udp::udp,
};

type Way = Box<dyn Fn(SocketAddr) -> io::Result<()>>;

/// Ways to send out through the wire, whatever the address.
fn ways_through_the_wire(index: libc::c_int) -> [(&'static str, Way); 4] {
    let bound = |kind, to: SocketAddr| {
        let socket = socket(domain(to), kind, 0)?;
        set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, INTERFACE.as_bytes())?;
        io::Result::Ok(socket)
    };
    [
        (
            "UDP of a bound socket",
            Box::new(move |to| send_to(&bound(libc::SOCK_DGRAM, to)?, QUESTION, 0, to).map(drop)),
        ),
        (
            "connected UDP of a bound socket",
            Box::new(move |to| {
                let socket = bound(libc::SOCK_DGRAM, to)?;
                connect(&socket, to)?;
                send(&socket, QUESTION, 0).map(drop)
            }),
        ),
        (
            "UDP by an option",
            Box::new(move |to| {
                let socket = udp(to)?;
                let (level, option) = match to {
                    SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
                    SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF),
                };
                set(&socket, level, option, index.to_be())?;
                send_to(&socket, QUESTION, 0, to).map(drop)
            }),
        ),
        (
            "UDP by a control message",
            Box::new(move |to| {
                // The index, and no address to send from.
                let index = index.to_ne_bytes();
                let (level, kind, info) = match to {
                    SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO, [&index[..], &[0; 8]].concat()),
                    SocketAddr::V6(_) => {
                        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, [&[0; 16], &index[..]].concat())
                    }
                };
                let message = Message::new(Some(to.into()), QUESTION, Some((level, kind, &info)));
                message.send(&udp(to)?, 0).map(drop)
            }),
        ),
    ]
}

/// A socket that sends through an interface would take the question out there, with the resolver's address on it.
#[test]
fn nothing_for_the_resolver_leaves_the_host() {
    let mut named = Named::new(&names(&[API]));
    let index = named.world.unit_interface();
    for (name, way) in ways_through_the_wire(index) {
        for server in [IpAddr::from(FAR), UNKNOWN6.into(), [127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()]
        {
            let port = if server.is_loopback() { RESOLVER } else { DOMAIN };
            let to = SocketAddr::new(server, port);
            let (outcome, arrived) = named.world.run(|| way(to));
            assert_eq!(arrived.sent(), [""; 0], "LEAK: {name} to {to} ({outcome:?})");
            // Either it goes by loopback all the same, or it is refused.
            let asked = !named.resolver.asked().is_empty();
            assert_eq!(outcome, if asked { Outcome::DONE } else { Outcome::EPERM }, "{name} to {to}");
        }
        // The control: what a rule lists goes out.
        for listed in [IpAddr::from(ALLOWED), ALLOWED6.into()] {
            named.world.passes(name, (listed, PORT), &way);
        }
    }
    let to = SocketAddr::from((FAR, DOMAIN));
    named.world.denies("TCP of a bound socket", to, |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, INTERFACE.as_bytes())?;
        connect(&socket, to)
    });
}

/// A server at a link-local address, as home routers have them. Where the call takes the interface from the address before it is judged,
/// the question does not reach loopback, and is refused.
#[test]
fn a_link_local_server_is_asked_by_connect() {
    let mut named = Named::new(&names(&[API]));
    let scope = named.world.unit_interface().unsigned_abs();
    let server =
        SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2), DOMAIN, 0, scope));
    // What comes from loopback has no interface of its own.
    let from = SocketAddr::new(server.ip(), DOMAIN);
    let ways = [BY_UDP[0], BY_TCP[0]];
    for (name, ask) in ways {
        asks(&mut named, name, server, || ask(server, from));
    }
    named.world.denies("UDP by sendto", server, |to| send_to(&udp(to)?, QUESTION, 0, to).map(drop));
    assert_eq!(named.resolver.asked(), Vec::<Vec<u8>>::new());
}
