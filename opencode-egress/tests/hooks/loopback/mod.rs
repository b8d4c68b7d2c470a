//! Own loopback: what an instance says to itself needs no rule, and opens nothing that is somebody else's.

mod binds;
mod marks;
mod others;
mod tcp;
mod udp;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

use opencode_egress::policy::{Loopback, Policy};

use crate::{
    probe::{Outcome, Probe},
    sys::{bind, connect, domain, listening, local_port, set, socket},
    world::World,
};

/// A port that no policy here lists.
const PLACE: u16 = 3000;
const ANSWER: Duration = Duration::from_secs(5);
/// How long one waits for what must not come.
const SILENCE: Duration = Duration::from_millis(300);
const TCP: libc::c_int = libc::IPPROTO_TCP;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ANY_MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());

/// Where a server is and how its client addresses it, in every way that there is.
const WAYS: [(IpAddr, IpAddr); 13] = [
    (V4, V4),
    (V6, V6),
    (MAPPED, MAPPED),
    (V4, MAPPED),
    (MAPPED, V4),
    (ANY4, V4),
    (ANY6, V6),
    (ANY6, V4),
    (ANY6, MAPPED),
    (V4, ANY4),
    (V4, ANY_MAPPED),
    (V6, ANY6),
    (IpAddr::V4(Ipv4Addr::new(127, 3, 2, 1)), IpAddr::V4(Ipv4Addr::new(127, 3, 2, 1))),
];

/// Nothing is listed at all.
fn own() -> Policy {
    Policy::default()
}

/// Nor is own loopback.
fn listed() -> Policy {
    Policy { loopback: Loopback::Listed, ..Policy::default() }
}

fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PLACE)
}

/// A socket that listens.
fn listener(place: SocketAddr, protocol: libc::c_int) -> io::Result<TcpListener> {
    let socket = socket(domain(place), libc::SOCK_STREAM, protocol)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(&socket, place)?;
    listening(socket)
}

/// A client that has connected.
fn client(to: SocketAddr, protocol: libc::c_int) -> io::Result<TcpStream> {
    let socket = socket(domain(to), libc::SOCK_STREAM, protocol)?;
    connect(&socket, to)?;
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(ANSWER))?;
    Ok(client)
}

/// Serves its clients one after the other: it adds one to each byte.
fn serve(listener: &TcpListener) -> io::Result<u64> {
    loop {
        let (mut client, _) = listener.accept()?;
        let mut byte = [0];
        // A client that dissolves its connection ends it for itself alone.
        while client.read(&mut byte).is_ok_and(|count| count == 1)
            && client.write_all(&[byte[0].wrapping_add(1)]).is_ok()
        {}
    }
}

/// Data goes both ways, in more than one segment.
fn talks(client: &mut TcpStream) -> io::Result<()> {
    for number in 1..=3 {
        client.write_all(&[number])?;
        let mut answer = [0];
        client.read_exact(&mut answer)?;
        if answer != [number + 1] {
            return Err(io::Error::other("another answer"));
        }
    }
    Ok(())
}

/// A server of the instance's own, in a process of its own. Returns where it is.
fn server(world: &World, place: SocketAddr, protocol: libc::c_int) -> (Probe, u16) {
    let mut probe = world.start(|steps| {
        let listener = listener(place, protocol)?;
        steps.wait_with(u64::from(local_port(&listener)?))?;
        serve(&listener)
    });
    let port = u16::try_from(probe.step()).expect("a port");
    probe.go_on();
    (probe, port)
}

/// A datagram socket of an address.
fn datagrams(place: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(domain(place), libc::SOCK_DGRAM, 0)?;
    bind(&socket, place)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// A port that nobody has, of the kernel's choice.
fn free_port(world: &World) -> u16 {
    world.unit.enter(|| local_port(&TcpListener::bind((V4, 0)).expect("a listener")).expect("a port"))
}

/// What a connect comes to.
#[track_caller]
fn connects(world: &mut World, to: SocketAddr, expect: Outcome) {
    let (outcome, _, _) = world.run_with_resets(|| client(to, TCP).map(drop));
    assert_eq!(outcome, expect, "a connect to {to}");
}

/// As the first socket option with this number of this level.
fn socket_with(place: SocketAddr, kind: libc::c_int, option: libc::c_int) -> io::Result<OwnedFd> {
    let socket = socket(domain(place), kind, 0)?;
    set(&socket, libc::SOL_SOCKET, option, 1)?;
    bind(&socket, place)?;
    Ok(socket)
}
