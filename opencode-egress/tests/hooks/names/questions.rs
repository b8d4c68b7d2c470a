//! Questions: what is addressed to port 53 goes to the instance's own resolver, and the caller does not notice.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use io_uring::{IoUring, opcode, types};
use opencode_egress::kernel::instance::InstanceIndex;

use super::{API, Named, names};
use crate::{
    network::{DENIED, FAR, UNIT, UNIT6},
    probe::Outcome,
    sys::{
        Message, RawAddress, bind, connect, domain, peer, receive_from, receive_message, send, send_messages,
        send_to, set_bytes, socket, uninterrupted,
    },
    tcp::{has_mptcp, mptcp, tcp},
    udp::{connected, udp},
    uring::submit,
};

pub(super) const DOMAIN: u16 = 53;

/// An address that nobody has.
pub(super) const UNKNOWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// Servers that no rule lists, on the far side and on this host, and where their answers have to come from.
fn servers() -> Vec<(SocketAddr, SocketAddr)> {
    let at = |address: IpAddr| SocketAddr::new(address, DOMAIN);
    let same = [
        IpAddr::from(FAR),
        DENIED.into(),
        DENIED.to_ipv6_mapped().into(),
        UNKNOWN6.into(),
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
pub(super) fn patient(socket: OwnedFd) -> io::Result<OwnedFd> {
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

pub(super) const QUESTION: &[u8] = b"question";

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
    is_peer(&socket, server)?;
    converse(socket, server)
}

fn converse(socket: OwnedFd, server: SocketAddr) -> io::Result<()> {
    let socket = patient(socket)?;
    send(&socket, QUESTION, 0)?;
    // A stream's messages have no address.
    is_answer((receive_stream(&socket)?, server), QUESTION, server)
}

fn receive_stream(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut data = vec![0; QUESTION.len()];
    let length = uninterrupted(|| Ok(rustix::io::read(socket, &mut data)?))?;
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
    if has_mptcp(&mut named.world) {
        for (to, server) in servers() {
            // The kernel connects by a socket of its own, so the caller's says the resolver's address.
            asks(&mut named, "MPTCP", to, || converse(mptcp(to)?, server));
        }
    }
}

/// From a socket that is bound to an address, or to none, of either family.
#[test]
fn questions_of_bound_sockets_go_there_too() {
    let mut named = Named::new(&names(&[API]));
    let pairs = [
        (IpAddr::from(UNIT), IpAddr::from(FAR)),
        (UNIT6.into(), UNKNOWN6.into()),
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

/// A refused question is told with its user and process, which may be gone by then.
#[test]
fn whose_a_question_was_is_known_when_its_socket_is_gone() {
    let named = Named::new(&names(&[API]));
    let server = SocketAddr::new(FAR.into(), DOMAIN);
    let asks: [fn(SocketAddr) -> io::Result<OwnedFd>; 4] = [
        |to| connected(to).inspect(|socket| drop(send(socket, QUESTION, 0))),
        |to| udp(to).inspect(|socket| drop(send_to(socket, QUESTION, 0, to))),
        tcp,
        |to| {
            let to = SocketAddr::new(UNKNOWN6.into(), to.port());
            udp(to).inspect(|socket| drop(send_to(socket, QUESTION, 0, to)))
        },
    ];
    for (ask, user) in asks.into_iter().zip(65_530..) {
        let probe = named.world.start(move |_| {
            // SAFETY: only this process, which the test made, becomes another user's.
            if unsafe { libc::setresuid(user, user, user) } != 0 {
                return Err(io::Error::last_os_error());
            }
            rustix::thread::set_name(c"asks")?;
            let socket = ask(server)?;
            Ok(u64::from(SocketAddr::try_from(rustix::net::getsockname(&socket)?)?.port()))
        });
        let pid = probe.pid();
        let outcome = probe.end();
        let Outcome::Done(port) = outcome else { panic!("{outcome:?}") };
        let port = u16::try_from(port).expect("a port");
        let asker = |of, from: IpAddr| named.world.loaded.maps.asker(of, SocketAddr::new(from, port));
        let own: IpAddr = if user == 65_533 { Ipv6Addr::LOCALHOST.into() } else { [127, 0, 0, 1].into() };
        let comm = *b"asks\0\0\0\0\0\0\0\0\0\0\0\0";
        let known = asker(InstanceIndex::FIRST, own).map(|asker| (asker.user, asker.pid, asker.comm));
        assert_eq!(known, Some((user, pid, comm)), "from port {port}");
        assert_eq!(asker(InstanceIndex::FIRST, UNIT.into()), None);
        assert_eq!(asker(InstanceIndex::new(2).expect("a number"), own), None, "another instance's");
    }
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
