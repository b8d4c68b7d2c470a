//! Questions: what is addressed to port 53 goes to the instance's own resolver, and the caller does not notice.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use io_uring::{IoUring, opcode, types};
use opencode_egress_common::reason::{DropReason, Hook};

use super::{API, Named, names};
use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, FAR, INTERFACE, UNIT, UNIT6},
    probe::Outcome,
    sys::{
        Message, RawAddress, bind, connect, domain, peer, receive_from, receive_message, send, send_messages,
        send_to, set_bytes, socket,
    },
    tcp::tcp,
    udp::{connected, udp},
    uring::submit,
    world::{World, any, base_policy},
};

pub(super) const DOMAIN: u16 = 53;

/// Servers that no rule lists, on the far side and on this host, and where their answers have to come from.
fn servers() -> Vec<(SocketAddr, SocketAddr)> {
    let at = |address: IpAddr| SocketAddr::new(address, DOMAIN);
    let same = [
        IpAddr::from(FAR),
        DENIED.into(),
        DENIED.to_ipv6_mapped().into(),
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).into(),
        [127, 0, 0, 53].into(),
        [127, 0, 0, 1].into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    let mut servers: Vec<_> = same.map(|address| (at(address), at(address))).into();
    // As without names: the unspecified address is loopback.
    servers.push((at([0; 4].into()), at([127, 0, 0, 1].into())));
    servers.push((at([0; 16].into()), at(Ipv6Addr::LOCALHOST.into())));
    servers
}

/// A socket that does not wait for ever.
fn patient(socket: OwnedFd) -> io::Result<OwnedFd> {
    let seconds = libc::timeval { tv_sec: 2, tv_usec: 0 };
    let mut value = seconds.tv_sec.to_ne_bytes().to_vec();
    value.extend(seconds.tv_usec.to_ne_bytes());
    set_bytes(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value)?;
    Ok(socket)
}

/// What came back is what was sent, from where it was sent to.
fn is_answer((data, from): (Vec<u8>, SocketAddr), question: &[u8], server: SocketAddr) -> io::Result<()> {
    if data == question && from == server {
        return Ok(());
    }
    Err(io::Error::other(format!("{} from {from}, not from {server}", data.escape_ascii())))
}

fn is_peer(socket: &OwnedFd, server: SocketAddr) -> io::Result<()> {
    let peer = peer(socket)?;
    if peer == server { Ok(()) } else { Err(io::Error::other(format!("the peer is {peer}, not {server}"))) }
}

const QUESTION: &[u8] = b"question";

pub(super) type Ask = fn(SocketAddr, SocketAddr) -> io::Result<()>;

/// Ways to ask by UDP.
pub(super) const BY_UDP: [(&str, Ask); 3] = [
    ("UDP of a connected socket", |to, server| {
        let socket = patient(connected(to)?)?;
        is_peer(&socket, server)?;
        send(&socket, QUESTION, 0)?;
        is_answer(receive_from(&socket)?, QUESTION, server)
    }),
    ("UDP by sendto", |to, server| {
        let socket = patient(udp(to)?)?;
        send_to(&socket, QUESTION, 0, to)?;
        is_answer(receive_from(&socket)?, QUESTION, server)
    }),
    ("UDP by sendmsg", |to, server| {
        let socket = patient(udp(to)?)?;
        Message::new(Some(to.into()), QUESTION, None).send(&socket, 0)?;
        is_answer(receive_message(&socket)?, QUESTION, server)
    }),
];

/// Asks over a connection.
fn over(socket: OwnedFd, server: SocketAddr) -> io::Result<()> {
    let socket = patient(socket)?;
    is_peer(&socket, server)?;
    std::fs::File::from(socket.try_clone()?).write_all(QUESTION)?;
    // A stream's messages have no address.
    is_answer((receive_stream(&socket)?, server), QUESTION, server)
}

fn receive_stream(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut data = vec![0; QUESTION.len()];
    let length = rustix::io::read(socket, &mut data)?;
    data.truncate(length);
    Ok(data)
}

pub(super) const BY_TCP: [(&str, Ask); 2] = [
    ("TCP", |to, server| over(tcp(to)?, server)),
    ("TCP fast open", |to, server| {
        let socket = patient(socket(domain(to), libc::SOCK_STREAM, 0)?)?;
        send_to(&socket, QUESTION, libc::MSG_FASTOPEN, to)?;
        is_peer(&socket, server)?;
        is_answer((receive_stream(&socket)?, server), QUESTION, server)
    }),
];

/// A question that a technique asks reaches the instance's resolver, and nothing reaches anybody else.
#[track_caller]
pub(super) fn asks(
    named: &mut Named,
    name: &str,
    to: SocketAddr,
    technique: impl FnOnce() -> io::Result<()>,
) {
    let _ = named.resolver.asked();
    named.world.events();
    let (outcome, arrived) = named.world.run(technique);
    let told = named.world.events();
    assert_eq!(outcome, Outcome::DONE, "a question to {to} by {name} is answered; told {told:?}");
    assert_eq!(arrived.sent(), [""; 0], "LEAK: a question to {to} by {name}");
    assert!(told.is_empty(), "nothing of a question to {to} by {name} is refused: {told:?}");
    let asked = named.resolver.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked == QUESTION), "{name} to {to}: {asked:?}");
}

#[test]
fn questions_go_to_the_instances_resolver() {
    let mut named = Named::new(&names(&[API]));
    // Client and server.
    named.world.unit.sysctl("ipv4/tcp_fastopen", "3");
    for place in ["the cgroup", "a cgroup below"] {
        for (name, ask) in BY_UDP.iter().chain(&BY_TCP) {
            for (to, server) in servers() {
                asks(&mut named, &format!("{name} in {place}"), to, || ask(to, server));
            }
        }
        named.world.move_below("below");
    }
}

/// From a socket that is bound to an address, or to none, of either family.
#[test]
fn questions_of_bound_sockets_go_there_too() {
    let mut named = Named::new(&names(&[API]));
    let pairs = [
        (IpAddr::from(UNIT), IpAddr::from(FAR)),
        (UNIT6.into(), DENIED_SERVER6.into()),
        (UNIT.to_ipv6_mapped().into(), FAR.to_ipv6_mapped().into()),
        ([0; 16].into(), FAR.to_ipv6_mapped().into()),
    ];
    for (own, server) in pairs {
        let server = SocketAddr::new(server, DOMAIN);
        let bound = move |kind| {
            let socket = patient(socket(domain(server), kind, 0)?)?;
            bind(&socket, SocketAddr::new(own, 0)).map(|()| socket)
        };
        asks(&mut named, &format!("TCP from {own}"), server, || {
            let socket = bound(libc::SOCK_STREAM)?;
            connect(&socket, server)?;
            over(socket, server)
        });
        asks(&mut named, &format!("UDP from {own}"), server, || {
            let socket = bound(libc::SOCK_DGRAM)?;
            send_to(&socket, QUESTION, 0, server)?;
            is_answer(receive_from(&socket)?, QUESTION, server)
        });
        asks(&mut named, &format!("connected UDP from {own}"), server, || {
            let socket = bound(libc::SOCK_DGRAM)?;
            connect(&socket, server)?;
            send(&socket, QUESTION, 0)?;
            is_answer(receive_from(&socket)?, QUESTION, server)
        });
    }
}

const DENIED_SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// A socket that is bound to an interface would take the question out through it, with the resolver's address on it.
#[test]
fn questions_of_a_socket_that_is_bound_to_an_interface_stay_here() {
    let mut named = Named::new(&names(&[API]));
    let on_the_wire = |kind, to: SocketAddr| {
        let socket = socket(domain(to), kind, 0)?;
        set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, INTERFACE.as_bytes())?;
        io::Result::Ok(socket)
    };
    let own = |address| SocketAddr::new(address, super::RESOLVER);
    let far = [IpAddr::from(FAR), DENIED_SERVER6.into()].map(|address| SocketAddr::new(address, DOMAIN));
    let own = [own([127, 0, 0, 1].into()), own(Ipv6Addr::LOCALHOST.into())];
    for to in far.into_iter().chain(own) {
        for (name, outcome) in [
            (
                "UDP",
                named.world.run(|| send_to(&on_the_wire(libc::SOCK_DGRAM, to)?, QUESTION, 0, to).map(drop)),
            ),
            (
                "connected UDP",
                named.world.run(|| {
                    let socket = on_the_wire(libc::SOCK_DGRAM, to)?;
                    connect(&socket, to)?;
                    send(&socket, QUESTION, 0).map(drop)
                }),
            ),
            (
                "TCP",
                named.world.run(|| {
                    let socket = on_the_wire(libc::SOCK_STREAM | libc::SOCK_NONBLOCK, to)?;
                    connect(&socket, to).or_else(|error| match error.raw_os_error() {
                        Some(libc::EINPROGRESS) => Ok(()),
                        _ => Err(error),
                    })
                }),
            ),
        ] {
            let (outcome, arrived) = outcome;
            assert_eq!(arrived.sent(), [""; 0], "LEAK: {name} to {to} ({outcome:?})");
            let refused = if name == "TCP" && to.port() != DOMAIN { Outcome::DONE } else { Outcome::EPERM };
            assert_eq!(outcome, refused, "{name} to {to}");
        }
    }
    // The control: bound to the interface, what a rule lists goes out.
    let to = SocketAddr::from((ALLOWED, 443));
    named.world.passes("UDP of a socket bound to the interface", to, |to| {
        send_to(&on_the_wire(libc::SOCK_DGRAM, to)?, b"data", 0, to).map(drop)
    });
}

#[test]
fn a_socket_may_ask_several_servers() {
    let mut named = Named::new(&names(&[API]));
    let [one, two] = [FAR, DENIED].map(|server| SocketAddr::from((server, DOMAIN)));
    asks(&mut named, "UDP in turn", one, || {
        let socket = patient(udp(one)?)?;
        for server in [one, two, one] {
            send_to(&socket, QUESTION, 0, server)?;
            is_answer(receive_from(&socket)?, QUESTION, server)?;
        }
        // A socket with a peer that asks elsewhere, and then another peer.
        for server in [one, two] {
            connect(&socket, server)?;
            is_peer(&socket, server)?;
            send(&socket, QUESTION, 0)?;
            is_answer(receive_from(&socket)?, QUESTION, server)?;
        }
        Ok(())
    });
    // Asked at once, all answers seem to come from the last: a client that asks several takes an answer from any of them.
    asks(&mut named, "sendmmsg", two, || {
        let socket = patient(udp(one)?)?;
        let messages = [one, two].map(|server| Message::new(Some(server.into()), QUESTION, None));
        if send_messages(&socket, &messages)? != 2 {
            return Err(io::Error::other("not both were sent"));
        }
        is_answer(receive_from(&socket)?, QUESTION, two)?;
        is_answer(receive_message(&socket)?, QUESTION, two)
    });
}

#[test]
fn questions_by_io_uring_go_there_too() {
    let mut named = Named::new(&names(&[API]));
    if let (Outcome::Errno(error @ (libc::ENOSYS | libc::EPERM)), _) =
        named.world.run(|| IoUring::new(2).map(drop))
    {
        eprintln!("skipped: no io_uring in this kernel (error {error})");
        return;
    }
    let server = SocketAddr::from((FAR, DOMAIN));
    for polled in [false, true] {
        asks(&mut named, "io_uring sendmsg", server, || {
            let socket = patient(udp(server)?)?;
            let message = Message::new(Some(server.into()), QUESTION, None);
            let fd = types::Fd(socket.as_raw_fd());
            submit(polled, &opcode::SendMsg::new(fd, message.as_ptr()).build())?;
            is_answer(receive_from(&socket)?, QUESTION, server)
        });
        asks(&mut named, "io_uring connect", server, || {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            let address = RawAddress::new(server);
            let fd = types::Fd(socket.as_raw_fd());
            submit(polled, &opcode::Connect::new(fd, address.as_ptr(), address.len()).build())?;
            over(socket, server)
        });
    }
}

/// A rule for networks that lists the server wins over the redirect, and one that denies it does not.
#[test]
fn a_listed_server_is_asked_itself() {
    let mut policy = names(&[API]);
    policy.deny = vec![any("198.51.100.0/24")];
    let mut named = Named::new(&policy);
    for server in [IpAddr::from(ALLOWED), ALLOWED6.into(), ALLOWED.to_ipv6_mapped().into()] {
        let sends = |to| send_to(&udp(to)?, QUESTION, 0, to).map(drop);
        named.world.passes("UDP to a listed server", (server, DOMAIN), sends);
        let sends = |to| send(&connected(to)?, QUESTION, 0).map(drop);
        named.world.passes("connected UDP to a listed server", (server, DOMAIN), sends);
        // Nobody listens there; the attempt arrives.
        let (outcome, arrived) = named.world.run(|| tcp(SocketAddr::new(server, DOMAIN)).map(drop));
        assert_eq!(outcome, Outcome::Errno(libc::ECONNREFUSED));
        assert!(!arrived.to(server).is_empty());
        assert_eq!(named.resolver.asked(), Vec::<Vec<u8>>::new());
    }
    let denied = SocketAddr::from((FAR, DOMAIN));
    for (name, ask) in BY_UDP.iter().chain(&BY_TCP[..1]) {
        asks(&mut named, name, denied, || ask(denied, denied));
    }
}

/// Where rules list loopback, its servers are asked themselves, also by the unspecified address.
#[test]
fn a_listed_server_on_loopback_is_asked_itself() {
    let mut policy = names(&[API]);
    policy.allow.extend([any("127.0.0.0/8"), any("::1/128")]);
    let mut named = Named::new(&policy);
    for server in [IpAddr::from([127, 0, 0, 53]), [0; 4].into(), Ipv6Addr::LOCALHOST.into(), [0; 16].into()] {
        let to = SocketAddr::new(server, DOMAIN);
        let refused = Outcome::Errno(libc::ECONNREFUSED);
        let (outcome, _) = named.world.run(|| tcp(to).map(drop));
        assert_eq!(outcome, refused, "nobody listens at {to}");
        let (outcome, _) = named.world.run(|| {
            let socket = patient(connected(to)?)?;
            send(&socket, QUESTION, 0)?;
            receive_from(&socket).map(drop)
        });
        assert_eq!(outcome, refused, "nobody listens at {to}");
        assert_eq!(named.resolver.asked(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn other_protocols_are_no_questions() {
    let mut named = Named::new(&names(&[API]));
    let (outcome, _) = named.world.run(|| socket(libc::AF_INET, libc::SOCK_DGRAM, 136).map(drop));
    if outcome == Outcome::Errno(libc::EPROTONOSUPPORT) {
        eprintln!("skipped: no UDP-Lite in this kernel");
    } else {
        named.world.denies("UDP-Lite", (FAR, DOMAIN), |to| {
            let socket = socket(domain(to), libc::SOCK_DGRAM, 136)?;
            send_to(&socket, QUESTION, 0, to).map(drop)
        });
        named.world.denies("UDP-Lite of a connected socket", (FAR, DOMAIN), |to| {
            let socket = socket(domain(to), libc::SOCK_DGRAM, 136)?;
            connect(&socket, to)?;
            send(&socket, QUESTION, 0).map(drop)
        });
    }
    // Source port 17, which is what the kernel takes for such a socket's port, to port 53.
    let datagram = [0, 17, 0, 53, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    named.world.denies("raw UDP", (FAR, 0), |to| {
        send_to(&socket(domain(to), libc::SOCK_RAW, libc::IPPROTO_UDP)?, &datagram, 0, to).map(drop)
    });
    let quiet = |to: SocketAddr| {
        let socket = socket(domain(to), libc::SOCK_RAW, libc::IPPROTO_UDP)?;
        connect(&socket, SocketAddr::new(to.ip(), DOMAIN))?;
        send(&socket, &datagram, 0).map(drop)
    };
    named.world.denies("raw UDP of a connected socket", (FAR, 0), quiet);
    assert_eq!(named.resolver.asked(), Vec::<Vec<u8>>::new());
}

/// Without rules for names nothing is given another address, and there are no programs that could.
#[test]
fn without_names_questions_are_flows_like_any_other() {
    let mut world = World::new(&base_policy());
    let links: Vec<_> = world.loaded.programs.hooks(false).collect();
    for hook in [Hook::Recvmsg4, Hook::Recvmsg6, Hook::Getpeername4, Hook::Getpeername6] {
        assert!(!links.contains(&hook), "{hook:?}");
        assert!(world.loaded.programs.hooks(true).any(|named| named == hook), "{hook:?}");
    }
    let sends = |to| send_to(&udp(to)?, QUESTION, 0, to).map(drop);
    let connected = |to| send(&connected(to)?, QUESTION, 0).map(drop);
    for server in [IpAddr::from(FAR), DENIED_SERVER6.into(), FAR.to_ipv6_mapped().into()] {
        world.denies("TCP", (server, DOMAIN), |to| tcp(to).map(drop));
        world.check_last(DropReason::NotAllowed);
        world.denies("UDP", (server, DOMAIN), sends);
        world.check_last(DropReason::NotAllowed);
        world.denies("connected UDP", (server, DOMAIN), connected);
        world.check_last(DropReason::NotAllowed);
    }
    world.passes("UDP", (ALLOWED, DOMAIN), sends);
}
