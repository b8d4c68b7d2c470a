//! Time: what began goes on, whatever becomes of the address; what is new has to be in time.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use opencode_egress_common::reason::DropReason;

use super::{API, Named, flows, names};
use crate::{
    network::{DENIED, DENIED6, FAR, PORT},
    probe::{Outcome, Probe},
    sys::{connect, disconnect, send, send_to},
    tcp::tcp,
    udp::{connected, udp},
};

/// Whether a call was refused: 1 or 0. Any other error is one.
pub(super) fn refused<T>(result: io::Result<T>) -> io::Result<u64> {
    match result {
        Ok(_) => Ok(0),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(1),
        Err(error) => Err(error),
    }
}

#[test]
fn a_connection_lives_on_when_its_address_is_over() {
    for address in [IpAddr::from(DENIED), DENIED6.into(), DENIED.to_ipv6_mapped().into()] {
        let mut named = Named::new(&names(&[API]));
        let over = named.learn_briefly(API, address.to_canonical());
        let to = SocketAddr::new(address, PORT);
        let mut probe = named.world.start(|steps| {
            let socket = tcp(to)?;
            send(&socket, b"before", 0)?;
            steps.wait()?;
            send(&socket, b"behind", 0)?;
            steps.wait()?;
            // Another connection, of the same socket.
            disconnect(&socket)?;
            refused(connect(&socket, to))
        });
        probe.step();
        let (mut peer, _) = named.world.server().accept().expect("the connection");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut data = [0; 6];
        peer.read_exact(&mut data).expect("what was sent in time");
        named.world.wait_until(over);
        named.world.denies("a new connection", to, |to| tcp(to).map(drop));
        named.world.check_last(DropReason::NameExpired);
        probe.go_on();
        probe.step();
        peer.read_exact(&mut data).expect("what is sent when the time is over");
        assert_eq!(&data, b"behind");
        probe.go_on();
        assert_eq!(probe.end(), Outcome::Done(1), "a new connection to {to}");
    }
}

/// Sends by sockets that it keeps, at each step again, and tells what became of each, the first in the lowest bit.
fn keep_sending(named: &Named, to: &[SocketAddr]) -> Probe {
    named.world.start(|steps| {
        let joined = connected(to[0])?;
        let free = udp(to[0])?;
        loop {
            let mut bits = refused(send(&joined, b"data", 0))?;
            for (index, to) in to.iter().enumerate() {
                bits |= refused(send_to(&free, b"data", 0, *to))? << (index + 1);
            }
            steps.wait_with(bits)?;
        }
    })
}

#[test]
fn datagrams_go_on_when_their_address_is_over() {
    for address in [IpAddr::from(DENIED), DENIED6.into(), DENIED.to_ipv6_mapped().into()] {
        let mut named = Named::new(&names(&[API]));
        let over = named.learn_briefly(API, address.to_canonical());
        let to = SocketAddr::new(address, PORT);
        let mut probe = keep_sending(&named, &[to]);
        assert_eq!(probe.step(), 0, "in time");
        named.world.wait_until(over);
        for (name, way) in [flows::TCP, flows::UDP] {
            named.world.denies(name, to, way);
            named.world.check_last(DropReason::NameExpired);
        }
        let _ = named.world.witness.arrived();
        probe.go_on();
        assert_eq!(probe.step(), 0, "when the time is over");
        assert_eq!(named.world.witness.arrived().to(address).len(), 2, "both sockets' datagrams arrive");
    }
}

/// A socket without a peer has four flows that are remembered. Which began before the last four needs an address that is good.
#[test]
fn a_socket_goes_on_with_its_last_four_flows() {
    let ports = [444, 445, 446, 447, 448].map(|port| SocketAddr::from((DENIED, port)));
    // The first is pushed out by the fifth; the lowest bit is the socket with a peer.
    for (count, refused) in [(4, 0), (5, 0b10)] {
        let mut named = Named::new(&names(&[API]));
        // So that no datagram comes back as an error of the socket.
        let _servers = named.world.far.enter(|| ports.map(|at| UdpSocket::bind(at).expect("a socket")));
        let over = named.learn_briefly(API, DENIED);
        let mut probe = keep_sending(&named, &ports[..count]);
        assert_eq!(probe.step(), 0, "in time");
        named.world.wait_until(over);
        named.world.denies("a new flow", ports[0], flows::UDP.1);
        probe.go_on();
        assert_eq!(probe.step(), refused, "{count} flows, when the time is over");
    }
}

/// Under another address nothing goes on.
#[test]
fn a_flow_is_its_address_port_and_protocol() {
    let mut named = Named::new(&names(&[API]));
    let over = named.learn_briefly(API, DENIED);
    named.learn(API, FAR, 0);
    let to = SocketAddr::from((DENIED, PORT));
    let mut probe = named.world.start(|steps| {
        let socket = udp(to)?;
        send_to(&socket, b"data", 0, to)?;
        steps.wait()?;
        for other in [SocketAddr::from((DENIED, PORT + 1)), (FAR, PORT).into()] {
            if refused(send_to(&socket, b"data", 0, other))? == 0 {
                return Err(io::Error::other(format!("not refused: {other}")));
            }
        }
        refused(send_to(&socket, b"data", 0, to))
    });
    probe.step();
    named.world.wait_until(over);
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
}
