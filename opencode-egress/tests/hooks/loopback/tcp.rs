//! TCP of an instance to itself.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use opencode_egress::{
    kernel::{features::Features, instance::InstanceIndex},
    policy::{Errno, Policy},
};
use opencode_egress_common::{abi::Mode, reason::DropReason};

use super::{
    ANSWER, ANY4, ANY6, PLACE, TCP, V4, V6, WAYS, at, client, connects, datagrams, free_port, listed,
    listener, own, serve, server, talks,
};
use crate::{
    probe::Outcome,
    sys::{connect, disconnect, domain, listening, local_port, send_to, socket},
    tcp::{IPPROTO_MPTCP, has_mptcp},
    world::{World, any, listen},
};

#[test]
fn the_instance_talks_to_itself() {
    let mut world = World::new(&own());
    for protocol in [TCP, IPPROTO_MPTCP] {
        if protocol == IPPROTO_MPTCP && !has_mptcp(&mut world) {
            return;
        }
        // The kernel closes a listener of MPTCP when it comes to it, so each has a port of its own.
        for ((place, to), own_port) in WAYS.into_iter().zip(PLACE..) {
            // A port of the program's choice, and one of the kernel's.
            for port in [own_port, 0] {
                world.install(&own());
                let denied = world.denied();
                let (_server, port) = server(&world, SocketAddr::new(place, port), protocol);
                let to = SocketAddr::new(to, port);
                let (outcome, _) = world.run(|| talks(&mut client(to, TCP)?));
                assert_eq!(outcome, Outcome::DONE, "{to}, of a server at {place}");
                let (outcome, _) = world.run(|| talks(&mut client(to, protocol)?));
                assert_eq!(outcome, Outcome::DONE, "{to}, of a server at {place}, by {protocol}");
                assert_eq!(world.denied(), denied, "nothing of it is denied");
                world.install(&listed());
                connects(&mut world, to, Outcome::EPERM);
                assert!(world.denied() > denied, "with `listed` it is denied");
            }
        }
    }
}

/// `listen` without `bind` has the kernel choose a port. No program sees that, so the call that connects cannot tell whose it is.
#[test]
fn a_server_that_was_never_bound_is_nobodys() {
    let mut world = World::new(&own());
    let (outcome, _) = world.run(|| {
        let server = listening(socket(libc::AF_INET, libc::SOCK_STREAM, 0)?)?;
        client(SocketAddr::new(V4, local_port(&server)?), TCP).map(drop)
    });
    assert_eq!(outcome, Outcome::EPERM);
    let (outcome, _) = world.run(|| {
        let server = listener(SocketAddr::new(V4, 0), TCP)?;
        client(SocketAddr::new(V4, local_port(&server)?), TCP).map(drop)
    });
    assert_eq!(outcome, Outcome::DONE, "one that was bound to a port of the kernel's choice");
}

#[test]
fn where_nobody_listens_the_connection_is_refused_as_without_a_policy() {
    let mut world = World::new(&own());
    let port = free_port(&world);
    for to in [V4, V6, ANY4, ANY6, super::MAPPED] {
        connects(&mut world, SocketAddr::new(to, port), Outcome::Errno(libc::ECONNREFUSED));
    }
    assert_eq!(world.denied(), 0, "nothing is denied");
    // Data in the first packet would be there before anything is known of who takes it.
    let fast = |to| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    };
    world.unit.sysctl("ipv4/tcp_fastopen", "5");
    world.events();
    let to = SocketAddr::new(V4, port);
    let (outcome, _, _) = world.run_with_resets(|| fast(to));
    assert_ne!(outcome, Outcome::DONE);
    assert_eq!(
        world.events().first().map(|told| told.reason),
        Some(DropReason::NotAllowed),
        "its SYN had data"
    );
}

#[test]
fn data_in_the_first_packet_reaches_a_server_of_its_own() {
    let mut world = World::new(&own());
    world.unit.sysctl("ipv4/tcp_fastopen", "519");
    let (_server, port) = server(&world, SocketAddr::new(V4, 0), TCP);
    let to = SocketAddr::new(V4, port);
    let (outcome, _, _) = world.run_with_resets(|| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        send_to(&socket, &[1], libc::MSG_FASTOPEN, to)?;
        let mut client = TcpStream::from(socket);
        client.set_read_timeout(Some(ANSWER))?;
        client.read_exact(&mut [0])?;
        talks(&mut client)
    });
    assert_eq!(outcome, Outcome::DONE);
}

/// The kernel may give a client a port among those of resolvers, which is nobody's resolver then.
#[test]
fn a_client_at_a_resolvers_port_is_answered() {
    // With an error of its own, for which datagrams' calls are judged, and without.
    for errno in [Errno::default(), Errno::Econnrefused] {
        let policy = Policy { errno, ..own() };
        if Features::of_this_kernel().check(&policy).is_ok() {
            is_answered_at_a_resolvers_port(&policy);
        }
    }
}

fn is_answered_at_a_resolvers_port(policy: &Policy) {
    let mut world = World::new(policy);
    world.unit.sysctl("ipv4/ip_local_port_range", "22600 22700");
    for (place, to) in [(V4, V4), (V6, V6), (ANY6, V4)] {
        let (_server, port) = server(&world, at(place), TCP);
        let (outcome, _, _) = world.run_with_resets(|| talks(&mut client(SocketAddr::new(to, port), TCP)?));
        assert_eq!(outcome, Outcome::DONE, "{to}, of a server at {place}");
        let (_echo, port) = super::udp::echo(&world, at(place));
        let (outcome, _) = world.run(|| super::udp::asks(SocketAddr::new(to, port)));
        assert_eq!(outcome, Outcome::DONE, "{to} by UDP, of a server at {place}");
    }
    assert_eq!(world.denied(), 0, "nothing of it is denied");
}

#[test]
fn processes_below_are_the_instance_too() {
    let mut world = World::new(&own());
    world.move_below("a");
    let (_below, port) = server(&world, at(V4), TCP);
    world.move_up();
    let to = SocketAddr::new(V4, port);
    let (outcome, _) = world.run(|| talks(&mut client(to, TCP)?));
    assert_eq!(outcome, Outcome::DONE, "from above");
    world.move_below("b");
    let (outcome, _) = world.run(|| talks(&mut client(to, TCP)?));
    assert_eq!(outcome, Outcome::DONE, "from beside");
    assert_eq!(world.denied(), 0);
}

/// What an earlier start of the unit left, in a cgroup of its own that is the same instance's.
#[test]
fn a_server_of_an_earlier_start_is_the_instances_own() {
    let mut world = World::new(&own());
    let (_server, port) = server(&world, at(V4), TCP);
    let later = world.neighbour(InstanceIndex::FIRST, &own());
    let to = SocketAddr::new(V4, port);
    let outcome =
        crate::probe::Probe::start(&later.0, &world.unit, |_| talks(&mut client(to, TCP)?).map(|()| 0)).end();
    assert_eq!(outcome, Outcome::DONE);
}

/// A connection is to whom it was opened; who has the port later is somebody else.
#[test]
fn a_port_that_changes_hands_is_its_new_owners() {
    let mut world = World::new(&own());
    let mut probe = world.start(|steps| {
        let server = listener(at(V4), TCP)?;
        let mut talking = client(at(V4), TCP)?;
        let (accepted, _) = server.accept()?;
        drop(server);
        steps.wait()?;
        // The connection goes on.
        talking.write_all(&[1])?;
        (&accepted).read_exact(&mut [0])?;
        (&accepted).write_all(&[1])?;
        talking.read_exact(&mut [0])?;
        // The socket itself, to the place of before.
        disconnect(&talking)?;
        match connect(&talking, at(V4)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            result => return result.map(|()| 1),
        }
        drop(accepted);
        client(at(V4), TCP).map(|_| 2)
    });
    probe.step();
    let other = world.unit.enter(|| listener(at(V4), TCP).expect("the place is free"));
    probe.go_on();
    assert_eq!(probe.end(), Outcome::EPERM, "the new one is somebody else's");
    other.set_nonblocking(true).expect("a listener");
    assert!(other.accept().is_err(), "LEAK: somebody else's server has a connection");
    drop(other);
    let (_server, _) = server(&world, at(V4), TCP);
    let (outcome, _) = world.run(|| talks(&mut client(at(V4), TCP)?));
    assert_eq!(outcome, Outcome::DONE, "it is the instance's again");
}

/// Open connections are judged anew by a new policy.
#[test]
fn a_policy_without_own_loopback_ends_what_was_open() {
    let mut world = World::new(&own());
    let (_server, _) = server(&world, at(V4), TCP);
    let mut probe = world.start(|steps| {
        let mut talking = client(at(V4), TCP)?;
        talks(&mut talking)?;
        steps.wait()?;
        talks(&mut talking)?;
        steps.wait()?;
        talking.set_read_timeout(Some(super::SILENCE))?;
        talks(&mut talking).map(|()| 1)
    });
    probe.step();
    world.install(&own());
    probe.go_on();
    probe.step();
    world.install(&listed());
    probe.go_on();
    assert_ne!(probe.end(), Outcome::Done(1), "LEAK: it goes on");
    assert!(world.denied() > 0);
}

#[test]
fn a_deny_rule_is_above_it() {
    let mut world = World::new(&Policy { deny: vec![any("127.0.0.0/8")], ..own() });
    let (_v4, _) = server(&world, at(V4), TCP);
    let (_v6, _) = server(&world, at(V6), TCP);
    world.denies("a connection that a rule denies", at(V4), |to| client(to, TCP).map(drop));
    world.check_last(DropReason::DenyRule);
    let (outcome, _) = world.run(|| talks(&mut client(at(V6), TCP)?));
    assert_eq!(outcome, Outcome::DONE, "of the other family none speaks");
}

#[test]
fn rules_and_listeners_beside_it_count_as_ever() {
    let mut policy = own();
    policy.allow.push(crate::world::rule(
        "127.0.0.1/32",
        opencode_egress::policy::RuleProtocol::Tcp,
        &["5432"],
    ));
    policy.listen.push(listen("127.0.0.1", 8787, false));
    let mut world = World::new(&policy);
    let database = SocketAddr::new(V4, 5432);
    world.unit.enter(|| {
        let listener = listener(database, TCP).expect("a listener");
        std::thread::spawn(move || serve(&listener));
    });
    let (outcome, _) = world.run(|| talks(&mut client(database, TCP)?));
    assert_eq!(outcome, Outcome::DONE, "a listed service of the host's");
    let listed = SocketAddr::new(V4, 8787);
    let (_server, _) = server(&world, listed, TCP);
    let (outcome, _) = world.run(|| talks(&mut client(listed, TCP)?));
    assert_eq!(outcome, Outcome::DONE, "its listener, by itself");
    let served = world.unit.enter(|| talks(&mut client(listed, TCP)?));
    assert!(served.is_ok(), "its listener, by others: {served:?}");
    let (_server, _) = server(&world, at(V4), TCP);
    let (outcome, _) = world.run(|| talks(&mut client(at(V4), TCP)?));
    assert_eq!(outcome, Outcome::DONE, "its own beside them");
    assert_eq!(world.denied(), 0);
}

/// Before loopback could be own, a rule for the port is what let a server be reached.
#[test]
fn a_rule_for_the_servers_port_takes_nothing_away() {
    let mut policy = own();
    policy.allow.push(crate::world::rule(
        "127.0.0.1/32",
        opencode_egress::policy::RuleProtocol::Any,
        &["3000"],
    ));
    let mut world = World::new(&policy);
    let (_server, _) = server(&world, at(V4), TCP);
    let (outcome, _) = world.run(|| talks(&mut client(at(V4), TCP)?));
    assert_eq!(outcome, Outcome::DONE, "TCP");
    let (outcome, _) = world.run(|| {
        let (server, client) = (datagrams(at(V4))?, datagrams(SocketAddr::new(V4, 0))?);
        client.send_to(&[1], at(V4))?;
        let (_, from) = server.recv_from(&mut [0])?;
        server.send_to(&[2], from)?;
        client.recv(&mut [0]).map(drop)
    });
    assert_eq!(outcome, Outcome::DONE, "UDP");
    let other = world.unit.enter(|| TcpStream::connect_timeout(&at(V4), super::SILENCE));
    assert!(other.is_err(), "LEAK: another program reaches it");
}

#[test]
fn a_mode_that_only_tells_lets_pass_what_is_somebody_elses() {
    let mut world = World::new(&Policy { mode: Mode::Audit, ..own() });
    let _other = world.unit.enter(|| TcpListener::bind(at(V4)).expect("a listener"));
    connects(&mut world, at(V4), Outcome::DONE);
    assert!(world.denied() > 0, "it is told");
}

/// A socket that is bound to an interface leaves by it, where the address is somebody else's.
#[test]
fn loopback_by_another_interface_is_not_own() {
    let mut world = World::new(&own());
    let (_server, _) = server(&world, at(V4), TCP);
    let through = |interface: &str| {
        let socket = socket(domain(at(V4)), libc::SOCK_STREAM, 0)?;
        crate::sys::set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes())?;
        connect(&socket, at(V4))
    };
    let (outcome, _) = world.run(|| through("lo"));
    assert_eq!(outcome, Outcome::DONE, "by the loopback interface");
    world.denies("a connection by another interface", at(V4), |_| through(crate::network::INTERFACE));
}

/// What goes to a raw socket's own making is of no socket.
#[test]
fn a_raw_socket_says_nothing_to_servers() {
    let mut world = World::new(&own());
    let (_server, _) = server(&world, at(V4), TCP);
    // A SYN from port 9.
    let mut syn = [0_u8; 20];
    syn[..4].copy_from_slice(&[0, 9, (PLACE >> 8) as u8, (PLACE & 0xff) as u8]);
    (syn[12], syn[13]) = (0x50, 2);
    world.denies("TCP of a raw socket", SocketAddr::new(V4, 0), |to| {
        let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
        send_to(&socket, &syn, 0, to).map(drop)
    });
}
