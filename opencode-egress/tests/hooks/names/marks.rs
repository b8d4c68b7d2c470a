//! The socket's mark, by which the second lock lets flows by name pass.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use super::{API, MARK, Named, flows, names, questions::DOMAIN, time::refused};
use crate::{
    network::{ALLOWED, DENIED, DENIED6, FAR, PORT},
    probe::Outcome,
    sys::{connect, disconnect, domain, get, send, send_to, set, socket},
    tcp::{has_mptcp, mptcp, tcp},
    udp::{connected, udp},
};

/// Bits of somebody else's.
const OTHERS: u32 = 0x0000_0005;

fn mark(socket: &OwnedFd) -> io::Result<u64> {
    let mark = get(socket, libc::SOL_SOCKET, libc::SO_MARK)?;
    Ok(u64::from(mark.cast_unsigned()))
}

fn set_mark(socket: &OwnedFd, mark: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

/// The marks that a probe saw, in order, in halves of a word that tells only which of them had the bit; each must have the others' bits.
fn bits(marks: &[u64]) -> io::Result<u64> {
    marks.iter().try_fold(0, |bits, mark| match mark - u64::from(OTHERS) {
        0 => Ok(bits << 1),
        named if named == u64::from(MARK) => Ok(bits << 1 | 1),
        _ => Err(io::Error::other(format!("a mark of {mark:#x}"))),
    })
}

/// A server's address of each form, and that of a network that is listed.
fn forms() -> [(SocketAddr, SocketAddr, SocketAddr); 3] {
    let at = |named: IpAddr, listed: IpAddr, server: IpAddr| {
        (SocketAddr::new(named, PORT), SocketAddr::new(listed, PORT), SocketAddr::new(server, DOMAIN))
    };
    [
        at(DENIED.into(), ALLOWED.into(), FAR.into()),
        at(DENIED6.into(), crate::network::ALLOWED6.into(), DENIED6.into()),
        at(DENIED.to_ipv6_mapped().into(), ALLOWED.to_ipv6_mapped().into(), FAR.to_ipv6_mapped().into()),
    ]
}

#[test]
fn a_connection_by_name_is_marked() {
    for (by_name, listed, server) in forms() {
        let mut named = Named::new(&names(&[API]));
        named.learn(API, by_name.ip().to_canonical(), 100);
        let (outcome, _) = named.world.run(|| {
            // The network's verdict is remembered by the second connection.
            drop(tcp(listed)?);
            let socket = socket(domain(by_name), libc::SOCK_STREAM, 0)?;
            set_mark(&socket, OTHERS)?;
            let mut marks = vec![];
            for to in [by_name, listed, by_name, server, by_name] {
                connect(&socket, to)?;
                marks.push(mark(&socket)?);
                disconnect(&socket)?;
            }
            match bits(&marks)? {
                0b10101 => Ok(()),
                bits => Err(io::Error::other(format!("marks {bits:#b}"))),
            }
        });
        assert_eq!(outcome, Outcome::DONE, "marks of connections to {by_name}");
    }
}

#[test]
fn a_datagram_socket_is_marked_while_it_sends_by_name() {
    for (by_name, listed, server) in forms() {
        let mut named = Named::new(&names(&[API]));
        named.learn(API, by_name.ip().to_canonical(), 100);
        let sendmsg_may_mark = named.world.sendmsg_may_mark();
        let (outcome, _) = named.world.run(|| {
            let free = udp(by_name)?;
            set_mark(&free, OTHERS)?;
            let mut marks = vec![];
            for to in [listed, by_name, listed, by_name, server] {
                send_to(&free, b"data", 0, to)?;
                marks.push(mark(&free)?);
            }
            let expect = if sendmsg_may_mark { 0b01010 } else { 0 };
            if bits(&marks)? != expect {
                return Err(io::Error::other(format!("marks {:#b} of sendto", bits(&marks)?)));
            }
            marks.clear();
            for to in [by_name, listed, by_name, server, by_name] {
                connect(&free, to)?;
                marks.push(mark(&free)?);
            }
            if bits(&marks)? != 0b10101 {
                return Err(io::Error::other(format!("marks {:#b} of connect", bits(&marks)?)));
            }
            Ok(())
        });
        assert_eq!(outcome, Outcome::DONE, "marks of datagrams to {by_name}");
    }
}

/// Only with `CAP_NET_ADMIN`, which instances do not have.
#[test]
fn nobody_marks_a_socket_itself() {
    let mut named = Named::new(&names(&[API]));
    named.learn(API, DENIED, 100);
    for user in [0, 65_534] {
        let (outcome, _) = named.world.run(|| {
            // SAFETY: the probe's own process, which has one thread.
            if unsafe { libc::setresuid(user, user, user) } != 0 {
                return Err(io::Error::last_os_error());
            }
            set_mark(&udp((DENIED, PORT).into())?, MARK)
        });
        assert_eq!(outcome, if user == 0 { Outcome::DONE } else { Outcome::EPERM }, "as user {user}");
    }
    // And without any capability a socket is marked all the same.
    let (outcome, _) = named.world.run(|| {
        // SAFETY: as above.
        if unsafe { libc::setresuid(65_534, 65_534, 65_534) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let marked = mark(&tcp((DENIED, PORT).into())?)? == u64::from(MARK);
        if marked { Ok(()) } else { Err(io::Error::other("no mark")) }
    });
    assert_eq!(outcome, Outcome::DONE);
}

/// The second lock as nftables has it: what is marked passes, and loopback, and the witness' own markers.
fn second_lock(named: &Named) {
    named.world.unit.nft(&format!(
        "table inet second {{
             chain output {{
                 type filter hook output priority 0; policy drop;
                 meta mark & {MARK:#x} == {MARK:#x} accept
                 oifname lo accept
                 ip daddr 192.0.2.254 accept
             }}
         }}
         "
    ));
}

#[test]
fn the_second_lock_sees_the_mark() {
    for (by_name, listed, _) in forms() {
        let mut named = Named::new(&names(&[API]));
        named.learn(API, by_name.ip().to_canonical(), 100);
        second_lock(&named);
        named.world.passes("TCP", by_name, flows::TCP.1);
        named.world.passes("connected UDP", by_name, |to| send(&connected(to)?, b"data", 0).map(drop));
        // It has no mark, so this lock alone refuses it.
        let (outcome, arrived) = named.world.run(|| match refused(send(&connected(listed)?, b"data", 0))? {
            1 => Ok(()),
            _ => Err(io::Error::other("not refused")),
        });
        assert_eq!(outcome, Outcome::DONE);
        assert_eq!(arrived.to(listed.ip()), [""; 0]);
    }
}

/// The kernel takes the mark for a datagram before it runs the program that sets it. So the first datagram of a socket without a peer
/// has none, and those that follow have it.
#[test]
fn a_free_sockets_first_datagram_has_no_mark() {
    for (by_name, ..) in forms() {
        let mut named = Named::new(&names(&[API]));
        named.learn(API, by_name.ip().to_canonical(), 100);
        second_lock(&named);
        let sendmsg_may_mark = named.world.sendmsg_may_mark();
        let (outcome, arrived) = named.world.run(|| {
            let socket = udp(by_name)?;
            let times = || refused(send_to(&socket, b"data", 0, by_name));
            match ([times()?, times()?, times()?], sendmsg_may_mark) {
                ([1, 0, 0], true) | ([1, 1, 1], false) => Ok(()),
                (refused, _) => Err(io::Error::other(format!("refused: {refused:?}"))),
            }
        });
        assert_eq!(outcome, Outcome::DONE, "three datagrams to {by_name}");
        let expect = if sendmsg_may_mark { 2 } else { 0 };
        assert_eq!(arrived.to(by_name.ip()).len(), expect, "what arrives at {by_name}: {arrived:#?}");
    }
}

/// The program marks the socket that the caller has, and the kernel sends by others of its own.
#[test]
fn mptcp_and_the_second_lock() {
    let mut named = Named::new(&names(&[API]));
    named.learn(API, DENIED, 100);
    if !has_mptcp(&mut named.world) {
        return;
    }
    named.world.passes("MPTCP", (DENIED, PORT), |to| mptcp(to).map(drop));
    second_lock(&named);
    named.world.passes("MPTCP with the second lock", (DENIED, PORT), |to| mptcp(to).map(drop));
}
