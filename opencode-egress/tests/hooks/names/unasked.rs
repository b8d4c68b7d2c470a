//! What is addressed to port 53 and is no question for the instance's resolver.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use opencode_egress::kernel::hooks::Needs;
use opencode_egress_common::reason::{DropReason, Hook};

use super::{
    API, Named, names,
    questions::{BY_TCP, BY_UDP, DOMAIN, QUESTION, UNKNOWN6, asks, patient},
};
use crate::{
    network::{ALLOWED, ALLOWED6, DENIED6, FAR},
    probe::Outcome,
    sys::{connect, domain, receive_from, send, send_to, socket},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, any, base_policy},
};

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

/// DNS over TLS and QUIC, over HTTPS, and to a server on a port of its choice.
#[test]
fn questions_to_other_ports_are_flows_like_any_other() {
    let mut named = Named::new(&names(&[API]));
    for server in [IpAddr::from(FAR), DENIED6.into()] {
        for port in [853, 443, 5353] {
            let to = (server, port);
            named.world.denies("a connection to another port", to, |to| tcp(to).map(drop));
            named.world.check_last(DropReason::NotAllowed);
            named
                .world
                .denies("a datagram to another port", to, |to| send_to(&udp(to)?, QUESTION, 0, to).map(drop));
            named.world.check_last(DropReason::NotAllowed);
            named.world.denies("a datagram of a connected socket to another port", to, |to| {
                send(&connected(to)?, QUESTION, 0).map(drop)
            });
            named.world.check_last(DropReason::NotAllowed);
        }
    }
    assert_eq!(named.resolver.asked(), Vec::<Vec<u8>>::new());
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
    let links: Vec<_> = world.loaded.programs.hooks(Needs::NONE).collect();
    for hook in [Hook::Recvmsg4, Hook::Recvmsg6, Hook::Getpeername4, Hook::Getpeername6] {
        assert!(!links.contains(&hook), "{hook:?}");
        assert!(world.loaded.programs.hooks(Needs::ALL).any(|named| named == hook), "{hook:?}");
    }
    let sends = |to| send_to(&udp(to)?, QUESTION, 0, to).map(drop);
    let connected = |to| send(&connected(to)?, QUESTION, 0).map(drop);
    for server in [IpAddr::from(FAR), UNKNOWN6.into(), FAR.to_ipv6_mapped().into()] {
        world.denies("TCP", (server, DOMAIN), |to| tcp(to).map(drop));
        world.check_last(DropReason::NotAllowed);
        world.denies("UDP", (server, DOMAIN), sends);
        world.check_last(DropReason::NotAllowed);
        world.denies("connected UDP", (server, DOMAIN), connected);
        world.check_last(DropReason::NotAllowed);
    }
    world.passes("UDP", (ALLOWED, DOMAIN), sends);
}
