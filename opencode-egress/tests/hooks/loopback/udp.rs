//! Datagrams of an instance to itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use opencode_egress_common::reason::DropReason;

use super::{ANSWER, PLACE, SILENCE, V4, V6, WAYS, at, datagrams, free_port, listed, own, socket_with};
use crate::{
    probe::{Outcome, Probe},
    sys::{Message, bind, domain, local_port, send, send_to, set, socket},
    udp::{connected, udp},
    world::World,
};

/// One that answers each datagram, until it is ended.
pub(super) fn echo(world: &World, place: SocketAddr) -> (Probe, u16) {
    let mut probe = world.start(|steps| {
        let server = datagrams(place)?;
        server.set_read_timeout(None)?;
        steps.wait_with(u64::from(local_port(&server)?))?;
        loop {
            let mut byte = [0];
            let (_, from) = server.recv_from(&mut byte)?;
            server.send_to(&[byte[0] + 1], from)?;
        }
    });
    let port = u16::try_from(probe.step()).expect("a port");
    probe.go_on();
    (probe, port)
}

/// Asks and is answered, by a socket with a peer and by one without.
pub(super) fn asks(to: SocketAddr) -> io::Result<()> {
    for socket in [UdpSocket::from(connected(to)?), UdpSocket::from(udp(to)?)] {
        socket.set_read_timeout(Some(ANSWER))?;
        for number in [1, 2] {
            if socket.peer_addr().is_ok() {
                send(&socket, &[number], 0)?;
            } else {
                send_to(&socket, &[number], 0, to)?;
            }
            let mut answer = [0];
            socket.recv(&mut answer)?;
            if answer != [number + 1] {
                return Err(io::Error::other("another answer"));
            }
        }
    }
    Ok(())
}

#[test]
fn the_instance_talks_to_itself() {
    let mut world = World::new(&own());
    for (place, to) in WAYS {
        for port in [PLACE, 0] {
            world.install(&own());
            let denied = world.denied();
            let (_server, port) = echo(&world, SocketAddr::new(place, port));
            let to = SocketAddr::new(to, port);
            let (outcome, _) = world.run(|| asks(to));
            assert_eq!(outcome, Outcome::DONE, "{to}, of a server at {place}");
            assert_eq!(world.denied(), denied, "nothing of it is denied");
            world.install(&listed());
            let (outcome, _) = world.run(|| send_to(&udp(to)?, b"data", 0, to).map(drop));
            assert_eq!(outcome, Outcome::EPERM, "with `listed` it is denied");
        }
    }
}

/// Two sockets with each other for a peer.
#[test]
fn a_pair_of_sockets_talks() {
    let mut world = World::new(&own());
    let (outcome, _) = world.run(|| {
        let (one, other) = (datagrams(SocketAddr::new(V4, 0))?, datagrams(SocketAddr::new(V4, 0))?);
        one.connect(other.local_addr()?)?;
        other.connect(one.local_addr()?)?;
        for _ in 0..2 {
            one.send(&[1])?;
            other.recv(&mut [0])?;
            other.send(&[1])?;
            one.recv(&mut [0])?;
        }
        // To itself.
        let alone = datagrams(SocketAddr::new(V4, 0))?;
        alone.send_to(&[1], alone.local_addr()?)?;
        alone.recv(&mut [0]).map(drop)
    });
    assert_eq!(outcome, Outcome::DONE);
}

/// A datagram carries what it has to say, so it goes to a socket that is there.
#[test]
fn a_datagram_to_nobody_or_somebody_else_is_denied() {
    let mut world = World::new(&own());
    for address in [V4, V6, super::MAPPED, super::ANY4, super::ANY6] {
        let nobody = SocketAddr::new(address, free_port(&world));
        world.denies("a datagram to nobody", nobody, |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
        world.check_last(DropReason::NotAllowed);
        world.denies("a datagram to nobody, of a connected socket", nobody, |to| {
            send(&connected(to)?, b"data", 0).map(drop)
        });
    }
    let other = world.unit.enter(|| datagrams(at(super::ANY6)).expect("a socket"));
    for address in [V4, V6, super::MAPPED, super::ANY4, super::ANY6] {
        world.denies("a datagram to another program", at(address), |to| {
            send_to(&udp(to)?, b"data", 0, to).map(drop)
        });
        world.denies("a datagram to another program, of a connected socket", at(address), |to| {
            send(&connected(to)?, b"data", 0).map(drop)
        });
    }
    other.set_nonblocking(true).expect("a socket");
    assert!(other.recv(&mut [0]).is_err(), "LEAK: somebody else has a datagram");
}

#[test]
fn a_port_that_changes_hands_is_its_new_owners() {
    let world = World::new(&own());
    let mut probe = world.start(|steps| {
        let server = datagrams(at(V4))?;
        let client = connected(at(V4))?;
        send(&client, b"data", 0)?;
        server.recv(&mut [0; 8])?;
        drop(server);
        steps.wait()?;
        send(&client, b"data", 0).map(|_| 0)
    });
    probe.step();
    let other = world.unit.enter(|| datagrams(at(V4)).expect("the place is free"));
    probe.go_on();
    assert_eq!(probe.end(), Outcome::EPERM);
    other.set_nonblocking(true).expect("a socket");
    assert!(other.recv(&mut [0]).is_err(), "LEAK: somebody else has a datagram");
}

/// What a socket shares with others of its port may come to any of them.
#[test]
fn sockets_that_share_a_port_do_not_count() {
    let mut world = World::new(&own());
    // The control: alone, one that others could share with `SO_REUSEADDR` is the instance's own.
    let (outcome, _) = world.run(|| {
        let server = UdpSocket::from(socket_with(at(V4), libc::SOCK_DGRAM, libc::SO_REUSEADDR)?);
        send_to(&udp(at(V4))?, b"data", 0, at(V4))?;
        server.set_read_timeout(Some(ANSWER))?;
        server.recv(&mut [0; 8]).map(drop)
    });
    assert_eq!(outcome, Outcome::DONE);
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        // A process that another test forks meanwhile has a copy of the socket that is somebody else's, and keeps it there.
        let world = World::new(&own());
        let mut probe = world.start(|steps| {
            let server = socket_with(at(V4), libc::SOCK_DGRAM, option)?;
            steps.wait()?;
            // Many source ports, so that each socket of a group has its turn.
            let mut sent = 0;
            for _ in 0..32 {
                sent += u64::from(send_to(&udp(at(V4))?, b"data", 0, at(V4)).is_ok());
            }
            drop(server);
            Ok(sent)
        });
        probe.step();
        let other = world.unit.enter(|| {
            UdpSocket::from(socket_with(at(V4), libc::SOCK_DGRAM, option).expect("it shares the port"))
        });
        probe.go_on();
        assert!(matches!(probe.end(), Outcome::Done(_)));
        other.set_nonblocking(true).expect("a socket");
        assert!(other.recv(&mut [0]).is_err(), "LEAK: by option {option} somebody else has a datagram");
    }
}

/// An agent must not take what is sent to a service that shares its port.
#[test]
fn a_shared_port_of_somebody_elses_is_not_taken() {
    let mut world = World::new(&own());
    let (outcome, _) = world.run(|| {
        let one = socket_with(at(V4), libc::SOCK_DGRAM, libc::SO_REUSEADDR)?;
        let other = socket_with(at(V4), libc::SOCK_DGRAM, libc::SO_REUSEADDR)?;
        drop((one, other));
        Ok(())
    });
    assert_eq!(outcome, Outcome::DONE, "a port that the instance has it may share with itself");
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        // As above.
        let mut world = World::new(&own());
        let _other = world.unit.enter(|| socket_with(at(V4), libc::SOCK_DGRAM, option).expect("a socket"));
        let (outcome, _) = world.run(|| socket_with(at(V4), libc::SOCK_DGRAM, option).map(drop));
        assert_eq!(outcome, Outcome::EPERM, "by option {option}");
        let (outcome, _) = world.run(|| datagrams(at(V4)).map(drop));
        assert_eq!(outcome, Outcome::Errno(libc::EADDRINUSE), "the kernel's own answer to all others");
    }
}

/// What is sent to all of a network comes to every socket of the port.
#[test]
fn broadcast_is_not_own() {
    let mut world = World::new(&own());
    let (_server, _) = echo(&world, at(super::ANY4));
    let all: IpAddr = Ipv4Addr::new(127, 255, 255, 255).into();
    let send_to_all = |to: SocketAddr| {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
        send_to(&socket, b"data", 0, to).map(drop)
    };
    world.denies("a datagram to all", at(all), send_to_all);
    let (outcome, _) = world.run(|| send_to_all(at(V4)));
    assert_eq!(outcome, Outcome::DONE, "to one");
}

/// Nobody else's datagram reaches a socket of the instance's, even one that says to come from there.
#[test]
fn nobody_else_reaches_a_socket_of_the_instances() {
    let world = World::new(&own());
    let mut probe = world.start(|steps| {
        let (server, client) = (datagrams(at(V4))?, datagrams(SocketAddr::new(V4, 4001))?);
        steps.wait()?;
        client.send_to(&[7], at(V4))?;
        server.set_read_timeout(Some(SILENCE))?;
        let mut byte = [0];
        server.recv(&mut byte)?;
        // One more would be somebody else's.
        Ok(u64::from(byte[0]) + u64::from(server.recv(&mut byte).is_ok()))
    });
    probe.step();
    world.unit.enter(|| {
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        other.send_to(&[1], at(V4)).expect("it is sent");
        // As if from the instance's own client, which has this port at another address.
        let place = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 4001));
        let other = socket(domain(place), libc::SOCK_DGRAM, 0).expect("a socket");
        bind(&other, place).expect("the place is free");
        let mut source = [0_u8; 12];
        source[4..8].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
        let control = (libc::IPPROTO_IP, libc::IP_PKTINFO, &source[..]);
        Message::new(Some(at(V4).into()), &[2], Some(control)).send(&other, 0).expect("it is sent");
    });
    probe.go_on();
    assert_eq!(probe.end(), Outcome::Done(7), "its own datagram alone");
}
