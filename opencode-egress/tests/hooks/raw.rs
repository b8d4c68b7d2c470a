//! Ping and raw sockets: packets whose transport header the sender writes, and sockets that would let it
//! write the IP header too.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use opencode_egress::policy::{Policy, RuleProtocol};
use opencode_egress_common::reason::{DropReason, Hook};

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, FAR, UNIT},
    probe::Outcome,
    sys::{bind, connect, domain, send, send_to, set, socket},
    world::{World, any, base_policy, listen, rule},
};

const LISTENER: u16 = 8787;
const IPPROTO_RAW: libc::c_int = 255;
const IPV6_HDRINCL: libc::c_int = 36;
const V4_PAIRS: [(IpAddr, IpAddr); 2] =
    [(IpAddr::V4(ALLOWED), IpAddr::V4(DENIED)), (IpAddr::V4(ALLOWED), IpAddr::V4(FAR))];
const V6_PAIR: (IpAddr, IpAddr) = (IpAddr::V6(ALLOWED6), IpAddr::V6(DENIED6));

/// An echo request.
fn echo(to: SocketAddr) -> [u8; 8] {
    [if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1]
}

fn icmp(to: SocketAddr) -> libc::c_int {
    if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 }
}

pub(crate) fn ping(to: SocketAddr) -> io::Result<()> {
    send_to(&socket(domain(to), libc::SOCK_DGRAM, icmp(to))?, &echo(to), 0, to).map(drop)
}

fn allow_ping(world: &World) {
    world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
}

#[test]
fn ping_is_judged() {
    let mut world = World::new(&base_policy());
    allow_ping(&world);
    for (allowed, denied) in V4_PAIRS {
        world.passes("ping", (allowed, 0), ping);
        world.denies("ping", (denied, 0), ping);
        let connected = |to| {
            let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)?;
            connect(&socket, to)?;
            send(&socket, &echo(to), 0).map(drop)
        };
        world.passes("ping of a connected socket", (allowed, 0), connected);
        world.denies("ping of a connected socket", (denied, 0), connected);
    }
    let (allowed, denied) = V6_PAIR;
    world.passes("ping", (allowed, 0), ping);
    // The kernel does not tell the sender of an ICMPv6 ping what became of it.
    world.denies_as("ping", (denied, 0), Outcome::DONE, ping);
}

/// Where no rule lets ICMPv6 pass, the caller is told when it makes the socket.
#[test]
fn a_socket_that_can_never_speak_is_refused() {
    let ipv4_only = Policy { allow: vec![any("192.0.2.2/32")], ..Policy::default() };
    let mut world = World::new(&ipv4_only);
    allow_ping(&world);
    world.passes("ping", (ALLOWED, 0), ping);
    world.denies("ping", (ALLOWED6, 0), ping);
    let icmp6 = rule("2001:db8:1::2/128", RuleProtocol::Icmp, &[]);
    world.install(&Policy { allow: vec![icmp6], ..Policy::default() });
    world.passes("ping", (ALLOWED6, 0), ping);
}

#[test]
fn raw_icmp_is_judged() {
    let mut world = World::new(&base_policy());
    let raw = |to| send_to(&socket(domain(to), libc::SOCK_RAW, icmp(to))?, &echo(to), 0, to).map(drop);
    let connected = |to| {
        let socket = socket(domain(to), libc::SOCK_RAW, icmp(to))?;
        connect(&socket, to)?;
        send(&socket, &echo(to), 0).map(drop)
    };
    for (allowed, denied) in V4_PAIRS.into_iter().chain([V6_PAIR]) {
        world.passes("raw ICMP", (allowed, 0), raw);
        world.denies("raw ICMP", (denied, 0), raw);
        world.passes("raw ICMP of a connected socket", (allowed, 0), connected);
        world.denies("raw ICMP of a connected socket", (denied, 0), connected);
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A TCP segment from a raw socket of a protocol number that the IP header has as TCP.
fn segment(protocol: libc::c_int, source: u16, flags: u8) -> impl Fn(SocketAddr) -> io::Result<()> {
    move |to| {
        let mut segment = [0_u8; 24];
        segment[..2].copy_from_slice(&source.to_be_bytes());
        segment[2..4].copy_from_slice(&443_u16.to_be_bytes());
        segment[12] = 0x50;
        segment[13] = flags;
        let socket = socket(domain(to), libc::SOCK_RAW, protocol)?;
        send_to(&socket, &segment, 0, to).map(drop)
    }
}

#[test]
fn raw_tcp_is_judged_and_is_no_reply() {
    let mut policy = base_policy();
    policy.listen = vec![listen("192.0.2.1", LISTENER, true), listen("2001:db8:1::1", LISTENER, true)];
    let mut world = World::new(&policy);
    for (allowed, denied) in V4_PAIRS.into_iter().chain([V6_PAIR]) {
        for flags in [SYN, ACK, SYN | ACK, 0] {
            world.passes("raw TCP", (allowed, 0), segment(libc::IPPROTO_TCP, 40_000, flags));
            world.denies("raw TCP", (denied, 0), segment(libc::IPPROTO_TCP, 40_000, flags));
            world.denies(
                "raw TCP from the listener",
                (denied, 0),
                segment(libc::IPPROTO_TCP, LISTENER, flags),
            );
        }
        world.denies("raw TCP", (allowed, 0), segment(libc::IPPROTO_TCP, LISTENER, SYN));
    }
    // The kernel's number for MPTCP ends in the byte that TCP has, and IPv4 takes it.
    world.denies("raw MPTCP", (DENIED, 0), segment(262, LISTENER, ACK));
    // The socket's own number can be the listener's too: a raw socket's is its protocol.
    policy.listen = vec![listen("192.0.2.1", 6, true)];
    world.install(&policy);
    world.denies("raw TCP", (DENIED, 0), segment(libc::IPPROTO_TCP, 6, ACK));
}

#[test]
fn any_raw_protocol_is_judged() {
    let mut world = World::new(&base_policy());
    for protocol in [2, 4, 17, 41, 47, 132, 136, 200] {
        let raw = |to| send_to(&socket(domain(to), libc::SOCK_RAW, protocol)?, &[0; 64], 0, to).map(drop);
        for (allowed, denied) in V4_PAIRS.into_iter().chain([V6_PAIR]) {
            let name = format!("raw protocol {protocol}");
            world.passes(&name, (allowed, 0), raw);
            world.denies(&name, (denied, 0), raw);
        }
    }
}

/// The way of a packet with a hand-made header need not be the one in its header, so no rule can allow it.
#[test]
fn nobody_writes_ip_headers() {
    let everything = Policy { allow: vec![any("0.0.0.0/0"), any("::/0")], ..Policy::default() };
    // A raw socket's options have two levels in IPv6: its family's and its own.
    let options = [
        (libc::AF_INET, libc::IPPROTO_IP, libc::IP_HDRINCL),
        (libc::AF_INET6, libc::IPPROTO_IPV6, IPV6_HDRINCL),
        (libc::AF_INET6, libc::SOL_RAW, IPV6_HDRINCL),
    ];
    let make = |domain| socket(domain, libc::SOCK_RAW, IPPROTO_RAW).map(drop);
    let include = |(domain, level, name)| {
        move || set(&socket(domain, libc::SOCK_RAW, libc::IPPROTO_UDP)?, level, name, 1)
    };
    let mut world = World::unconfined();
    for option in options {
        assert_eq!(world.run(|| make(option.0)).0, Outcome::DONE, "without confinement");
        assert_eq!(world.run(include(option)).0, Outcome::DONE, "without confinement, {option:?} is set");
    }
    world.install(&everything);
    world.confine();
    for option in options {
        world.events();
        assert_eq!(world.run(|| make(option.0)).0, Outcome::EPERM, "a socket of IPPROTO_RAW is refused");
        assert_eq!(world.run(include(option)).0, Outcome::EPERM, "{option:?} is refused");
        let told: Vec<_> = world.events().iter().map(|record| (record.hook, record.reason)).collect();
        let expect = [Hook::SockCreate, Hook::Setsockopt].map(|hook| (hook, DropReason::HeaderIncluded));
        assert_eq!(told, expect, "why {option:?} is refused");
    }
    for (domain, level, name) in [
        (libc::AF_INET, libc::IPPROTO_IP, libc::IP_TTL),
        (libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    ] {
        let (outcome, _) =
            world.run(|| set(&socket(domain, libc::SOCK_RAW, libc::IPPROTO_UDP)?, level, name, 9));
        assert_eq!(outcome, Outcome::DONE, "another option, {level}/{name}, is set in family {domain}");
    }
}

/// A raw socket's bind takes no port, and gives it no way to speak that it had not.
#[test]
fn a_bound_raw_socket_is_judged() {
    let mut world = World::new(&base_policy());
    let raw = |to: SocketAddr| {
        let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
        bind(&socket, SocketAddr::from((UNIT, 0)))?;
        send_to(&socket, &echo(to), 0, to).map(drop)
    };
    world.passes("bound raw ICMP", (ALLOWED, 0), raw);
    world.denies("bound raw ICMP", (DENIED, 0), raw);
}
