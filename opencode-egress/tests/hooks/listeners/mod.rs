//! The instance's own listeners, in both directions: what they accept, what their replies may do, and what
//! nothing may do because of them.

mod ports;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use opencode_egress::policy::{Listen, Loopback, Policy};
use opencode_egress_common::reason::DropReason;

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, Namespace, PORT, UNIT, UNIT6},
    probe::{Outcome, Probe},
    sys::{bind, connect, domain, listening, local_port, send, set, socket},
    tcp::{IPPROTO_MPTCP, has_mptcp, tcp},
    udp::udp,
    world::{World, any, base_policy, listen},
};

const LISTENER: u16 = 8787;
const TCP: libc::c_int = libc::IPPROTO_TCP;
const ANSWER: Duration = Duration::from_secs(5);
/// How long a refused client waits for nothing.
const SILENCE: Duration = Duration::from_millis(300);

fn only(listeners: &[Listen]) -> Policy {
    Policy { listen: listeners.to_vec(), ..Policy::default() }
}

/// A probe that listens at an address and serves one client after the other: it adds one to each byte.
fn serve(world: &World, address: IpAddr, protocol: libc::c_int) -> Probe {
    let mut probe = world.start(|steps| {
        let address = SocketAddr::new(address, LISTENER);
        let listener = socket(domain(address), libc::SOCK_STREAM, protocol)?;
        set(&listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        bind(&listener, address)?;
        let listener = listening(listener)?;
        steps.wait()?;
        loop {
            let (mut client, _) = listener.accept()?;
            let mut byte = [0];
            while client.read(&mut byte)? == 1 {
                client.write_all(&[byte[0] + 1])?;
            }
        }
    });
    probe.step();
    probe.go_on();
    probe
}

fn client(place: &Namespace, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let client = place.enter(|| TcpStream::connect_timeout(&to, patience))?;
    client.set_read_timeout(Some(ANSWER))?;
    Ok(client)
}

/// Data goes both ways.
#[track_caller]
fn talks(client: &mut TcpStream, number: u8) {
    client.write_all(&[number]).expect("the server takes data");
    let mut answer = [0];
    client.read_exact(&mut answer).expect("the server answers");
    assert_eq!(answer, [number + 1]);
}

#[track_caller]
fn is_served(place: &Namespace, to: (impl Into<IpAddr>, u16)) {
    let to = SocketAddr::new(to.0.into(), to.1);
    let mut client = client(place, to, ANSWER).unwrap_or_else(|error| panic!("{to} serves: {error}"));
    talks(&mut client, 1);
}

#[track_caller]
fn is_refused(world: &mut World, to: (impl Into<IpAddr>, u16), expect: DropReason) {
    let to = SocketAddr::new(to.0.into(), to.1);
    world.events();
    let error = client(&world.far, to, SILENCE).expect_err("a client that is refused hears nothing");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "a client of {to} hears nothing");
    let told = world.events();
    assert_eq!(told.first().map(|record| record.reason), Some(expect), "why {to} denies");
}

#[test]
fn replies_need_no_rule() {
    let mut world = World::unconfined();
    world.confine();
    // Cookies 2: each connection comes of a cookie in the reply to its first packet, as in a flood.
    for (cookies, protocol) in [("1", TCP), ("2", TCP), ("1", IPPROTO_MPTCP)] {
        world.unit.sysctl("ipv4/tcp_syncookies", cookies);
        for (own, wildcard) in [(IpAddr::from(UNIT), false), (UNIT6.into(), false), (UNIT.into(), true)] {
            let address = if wildcard { Ipv6Addr::UNSPECIFIED.into() } else { own };
            let policy = only(&[Listen { address, port: LISTENER, open: true }]);
            world.install(&policy);
            if protocol == IPPROTO_MPTCP && !has_mptcp(&mut world) {
                return;
            }
            let _server = serve(&world, address, protocol);
            let mut client =
                client(&world.far, (own, LISTENER).into(), ANSWER).expect("an open listener serves");
            talks(&mut client, 1);
            world.install(&policy);
            talks(&mut client, 2);
            world.install(&Policy { allow: base_policy().allow, ..policy });
            talks(&mut client, 3);
            assert_eq!(world.denied(), 0, "nothing of a served connection is denied");
        }
    }
}

/// Without its listener in the policy an accepted connection is an old flow like any other.
#[test]
fn a_removed_listener_silences_its_connections() {
    let mut world = World::new(&only(&[listen("192.0.2.1", LISTENER, true)]));
    let _server = serve(&world, UNIT.into(), TCP);
    let mut client = client(&world.far, (UNIT, LISTENER).into(), ANSWER).expect("an open listener serves");
    talks(&mut client, 1);
    world.install(&Policy::default());
    let _ = world.witness.arrived();
    client.set_read_timeout(Some(SILENCE)).expect("a timeout");
    client.write_all(&[2]).expect("the client's own side");
    let error = client.read(&mut [0]).expect_err("no answer passes");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "no answer passes");
    let arrived = world.witness.arrived();
    assert_eq!(arrived.to(ALLOWED.into()), [""; 0], "LEAK: a reply of a listener that is no more");
}

/// A server of the instance's own, on a port of the kernel's choice, as test suites start them.
fn talk_to_oneself() -> io::Result<()> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect_timeout(&server.local_addr()?, ANSWER)?;
    server.accept()?.0.write_all(&[1])?;
    client.read_exact(&mut [0])
}

#[test]
fn the_instance_talks_to_itself_over_loopback_when_loopback_is_allowed() {
    let mut world = World::new(&Policy { allow: vec![any("127.0.0.0/8")], ..Policy::default() });
    assert_eq!(world.run(talk_to_oneself).0, Outcome::DONE, "loopback is allowed");
    world.install(&Policy { loopback: Loopback::Listed, ..base_policy() });
    assert_eq!(
        world.run(talk_to_oneself).0,
        Outcome::EPERM,
        "loopback is not allowed, and the caller is told"
    );
}

#[test]
fn a_listener_that_is_not_open_serves_loopback_alone() {
    for (address, others) in [
        (IpAddr::from(UNIT), vec![IpAddr::from(UNIT)]),
        (UNIT6.into(), vec![UNIT6.into()]),
        (Ipv4Addr::UNSPECIFIED.into(), vec![UNIT.into(), Ipv4Addr::LOCALHOST.into()]),
        (Ipv6Addr::UNSPECIFIED.into(), vec![UNIT.into(), UNIT6.into(), Ipv6Addr::LOCALHOST.into()]),
    ] {
        let mut world = World::new(&only(&[Listen { address, port: LISTENER, open: false }]));
        let _server = serve(&world, address, TCP);
        for other in others {
            if !other.is_loopback() {
                is_refused(&mut world, (other, LISTENER), DropReason::ListenerNotOpen);
            }
            is_served(&world.unit, (other, LISTENER));
        }
        world.install(&only(&[Listen { address, port: LISTENER, open: true }]));
        let own = if address == UNIT6 { UNIT6.into() } else { IpAddr::from(UNIT) };
        is_served(&world.far, (own, LISTENER));
    }
}

/// That the policy lists another machine's address makes it no rule.
#[test]
fn a_listener_at_another_machine_is_no_rule() {
    let elsewhere = [DENIED.to_string(), DENIED6.to_string()].map(|address| listen(&address, PORT, true));
    let policy = Policy { listen: elsewhere.to_vec(), deny: vec![any("192.0.2.3/32")], ..base_policy() };
    let mut world = World::new(&policy);
    world.judges("TCP beside a listener elsewhere", |to| tcp(to).map(drop));
}

#[test]
fn inbound_connections_reach_listeners_only() {
    let mut world =
        World::new(&Policy { listen: vec![listen("192.0.2.1", LISTENER, true)], ..base_policy() });
    let _server = serve(&world, UNIT.into(), TCP);
    let mut probe = world.start(|steps| {
        let (v4, v6) = (TcpListener::bind(("0.0.0.0", 0))?, TcpListener::bind(("::", 0))?);
        let ports = [local_port(&v4)?, local_port(&v6)?];
        for port in ports {
            steps.wait_with(u64::from(port))?;
        }
        steps.wait()?;
        Ok(0)
    });
    let [v4, v6] = [(); 2].map(|()| {
        let port = u16::try_from(probe.step()).expect("a port");
        probe.go_on();
        port
    });
    probe.step();
    for to in [(IpAddr::from(UNIT), v4), (UNIT.into(), v6), (UNIT6.into(), v6)] {
        is_refused(&mut world, to, DropReason::NotAListener);
        let local = client(&world.unit, to.into(), SILENCE);
        assert!(local.is_err(), "a port that is no listener denies its own host too");
    }
    is_served(&world.far, (UNIT, LISTENER));
}

/// A datagram comes in where its answer may go out.
#[test]
fn inbound_datagrams_are_judged_by_their_sender() {
    for (own, allowed, denied) in [
        (IpAddr::from(UNIT), IpAddr::from(ALLOWED), IpAddr::from(DENIED)),
        (UNIT6.into(), ALLOWED6.into(), DENIED6.into()),
    ] {
        let world = World::new(&base_policy());
        let mut probe = world.start(|steps| {
            let socket = udp((own, 0).into())?;
            bind(&socket, SocketAddr::new(own, 0))?;
            steps.wait_with(u64::from(local_port(&socket)?))?;
            let socket = UdpSocket::from(socket);
            let lengths = [socket.recv(&mut [0; 9000])?, socket.recv(&mut [0; 9000])?];
            if lengths == [2, 3002] { Ok(0) } else { Err(io::Error::other(format!("{lengths:?}"))) }
        });
        let port = u16::try_from(probe.step()).expect("a port");
        probe.go_on();
        // The second is in fragments, which are one datagram again when they are judged.
        for (from, length) in [(denied, 1_usize), (denied, 3001), (allowed, 2), (denied, 1), (allowed, 3002)]
        {
            let sent = world.far.enter(|| {
                let socket = udp((own, port).into())?;
                bind(&socket, SocketAddr::new(from, 0))?;
                connect(&socket, SocketAddr::new(own, port))?;
                send(&socket, &vec![0; length], 0)
            });
            assert_eq!(sent.expect("the peer sends"), length);
        }
        assert_eq!(probe.end(), Outcome::DONE, "what comes from {allowed} alone arrives");
        let denied = world.counters().denied.reasons[DropReason::PeerNotAllowed as usize].packets;
        assert_eq!(denied, 3, "what does not arrive is counted");
    }
}

/// A listener on loopback is an address and a port, and the instance reaches it there only while the socket that would take the
/// connection is its own: another program may have taken the place, before its server or after it.
#[test]
fn only_the_instances_own_server_is_reached_at_its_listener() {
    for (at, protocol) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), TCP),
        (Ipv6Addr::LOCALHOST.into(), TCP),
        (Ipv4Addr::UNSPECIFIED.into(), TCP),
        (Ipv4Addr::LOCALHOST.into(), IPPROTO_MPTCP),
    ] {
        let mut world = World::new(&only(&[Listen { address: at, port: LISTENER, open: false }]));
        if protocol == IPPROTO_MPTCP && !has_mptcp(&mut world) {
            return;
        }
        let reached = if at.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { at };
        let to = SocketAddr::new(reached, LISTENER);
        {
            let _server = serve(&world, at, protocol);
            let (outcome, _) = world.run(|| {
                let socket = socket(domain(to), libc::SOCK_STREAM, protocol)?;
                connect(&socket, to)?;
                let mut client = TcpStream::from(socket);
                client.set_read_timeout(Some(ANSWER))?;
                // More than one packet: the connection goes on.
                for number in [1, 2] {
                    client.write_all(&[number])?;
                    let mut byte = [0];
                    client.read_exact(&mut byte)?;
                }
                Ok(())
            });
            assert_eq!(outcome, Outcome::DONE, "the instance reaches its own server at {at}");
            assert_eq!(world.denied(), 0, "nothing of a connection to itself is denied");
        }
        // Somebody else is there now, in the same network namespace and in no confined cgroup.
        let _other = world.unit.enter(|| TcpListener::bind(to)).expect("the place is free");
        world.denies("a connection to another program", to, |to| {
            let socket = socket(domain(to), libc::SOCK_STREAM, protocol)?;
            connect(&socket, to)
        });
        world.check_last(DropReason::PortNotAllowed);
    }
}
