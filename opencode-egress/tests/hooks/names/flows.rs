//! Flows by name: to the addresses that answers brought, for the protocols and ports of the rule.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use opencode_egress::{
    kernel::{
        instance::InstanceIndex,
        loader::Lifetime,
        maps::{LoadedPolicy, boottime},
    },
    policy::{RuleProtocol, compile::compile},
};
use opencode_egress_common::reason::DropReason;

use super::{API, MARK, Named, RESOLVER, names, questions::UNKNOWN6};
use crate::{
    bpffs::Bpffs,
    network::{ALLOWED, DENIED, DENIED6, FAR, PORT},
    probe::{Outcome, Probe},
    raw::ping,
    sys::{connect, domain, receive_from, send, send_to, set, socket},
    tcp::{has_mptcp, mptcp, tcp},
    udp::{connected, udp},
    world::{Scratch, any, rule},
};

pub(crate) type Way = fn(SocketAddr) -> io::Result<()>;

pub(super) const TCP: (&str, Way) = ("TCP", |to| tcp(to).map(drop));
pub(super) const UDP: (&str, Way) = ("UDP", |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
const CONNECTED: (&str, Way) = ("connected UDP", |to| send(&connected(to)?, b"data", 0).map(drop));
pub(crate) const WAYS: [(&str, Way); 3] = [TCP, UDP, CONNECTED];

/// An address that a test has learned, and one of the same form that nobody told of.
const PAIRS: [(IpAddr, IpAddr); 4] = [
    (IpAddr::V4(DENIED), IpAddr::V4(FAR)),
    (IpAddr::V4(FAR), IpAddr::V4(DENIED)),
    (IpAddr::V6(DENIED6), IpAddr::V6(UNKNOWN6)),
    (IpAddr::V6(DENIED.to_ipv6_mapped()), IpAddr::V6(FAR.to_ipv6_mapped())),
];

#[test]
fn flows_pass_to_what_was_learned() {
    for (learned, unknown) in PAIRS {
        let mut named = Named::new(&names(&[API]));
        for (name, way) in WAYS {
            named.world.denies(name, (learned, PORT), way);
            named.world.check_last(DropReason::NotAllowed);
        }
        named.learn(API, learned, 100);
        named.world.passes("UDP in fragments", (learned, PORT), |to| {
            send_to(&udp(to)?, &[0; 4000], 0, to).map(drop)
        });
        named.world.passes("UDP of parts", (learned, PORT), |to| {
            let socket = udp(to)?;
            send_to(&socket, b"da", libc::MSG_MORE, to)?;
            send_to(&socket, b"ta", 0, to).map(drop)
        });
        for (name, way) in WAYS {
            named.world.passes(name, (learned, PORT), way);
            for (address, port) in [(learned, 399), (learned, 501), (unknown, PORT)] {
                named.world.denies(name, (address, port), way);
                named.world.check_last(DropReason::NotAllowed);
            }
        }
    }
}

/// Only the rule's protocol and ports, and never any other protocol. Where a network rule speaks of the address, a denial says what
/// that rule says.
#[test]
fn flows_pass_for_the_protocol_and_ports_of_the_rule() {
    let mut policy = names(&["web.example.org", "time.example.org:123,443/udp"]);
    policy.allow.push(rule("198.51.100.0/24", RuleProtocol::Tcp, &["80"]));
    let mut named = Named::new(&policy);
    named.world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
    named.learn("web.example.org", DENIED, 100);
    named.learn("time.example.org:123,443/udp", FAR, 100);
    named.world.passes("TCP to its port", (DENIED, 443), TCP.1);
    named.world.denies("TCP to another port", (DENIED, 80), TCP.1);
    named.world.check_last(DropReason::NotAllowed);
    named.world.denies("UDP where TCP is allowed", (DENIED, 443), UDP.1);
    named.world.check_last(DropReason::NotAllowed);
    named.world.passes("UDP to its port", (FAR, 123), UDP.1);
    named.world.passes("UDP to its port", (FAR, 443), CONNECTED.1);
    named.world.denies("UDP to another port", (FAR, 124), UDP.1);
    named.world.check_last(DropReason::ProtocolNotAllowed);
    named.world.denies("TCP where UDP is allowed", (FAR, 443), TCP.1);
    named.world.check_last(DropReason::PortNotAllowed);
    for address in [DENIED, FAR] {
        named.world.denies("ping", (address, 0), ping);
    }
}

/// What a raw socket sends is of no flow that it began.
#[test]
fn raw_packets_do_not_pass_by_name() {
    let mut named = Named::new(&names(&["api.example.org/any"]));
    let segment = |protocol, source: u16| {
        move |to: SocketAddr| {
            let mut segment = [0_u8; 24];
            segment[..2].copy_from_slice(&source.to_be_bytes());
            segment[2..4].copy_from_slice(&PORT.to_be_bytes());
            segment[5] = 24;
            segment[12..14].copy_from_slice(&[0x50, 0x02]);
            send_to(&socket(domain(to), libc::SOCK_RAW, protocol)?, &segment, 0, to).map(drop)
        }
    };
    for (learned, _) in &PAIRS[..3] {
        named.learn("api.example.org/any", *learned, 100);
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP, 136, libc::IPPROTO_ICMP] {
            // The second is what the kernel takes for the port of such a socket.
            for source in [40_000, u16::try_from(protocol).expect("a small number")] {
                named.world.denies(
                    &format!("raw {protocol}"),
                    SocketAddr::new(*learned, 0),
                    segment(protocol, source),
                );
            }
        }
        named.world.passes("TCP", (*learned, PORT), TCP.1);
    }
}

#[test]
fn flows_to_what_is_over_are_denied() {
    let mut named = Named::new(&names(&[API]));
    for (learned, _) in &PAIRS[..3] {
        let learned = *learned;
        named.learn(API, learned, 0);
        for (name, way) in WAYS {
            named.world.denies(name, (learned, PORT), way);
            named.world.check_last(DropReason::NameExpired);
            named.world.denies(name, (learned, 399), way);
            named.world.check_last(DropReason::NotAllowed);
        }
        named.learn(API, learned, 100);
        named.world.passes("TCP, once it is learned again", (learned, PORT), TCP.1);
        // What is learned with less time shortens nothing.
        named.learn(API, learned, 0);
        named.world.passes("TCP, once it is learned for less", (learned, PORT), TCP.1);
    }
}

/// Answers come in, for sockets with and without a peer.
#[test]
fn answers_by_udp_come_in() {
    let mut named = Named::new(&names(&[API]));
    for address in [IpAddr::from(DENIED), DENIED6.into(), DENIED.to_ipv6_mapped().into()] {
        named.learn(API, address.to_canonical(), 100);
        let server = SocketAddr::new(address.to_canonical(), 444);
        let server = named.world.far.enter(|| UdpSocket::bind(server).expect("a socket"));
        let to = SocketAddr::new(address, 444);
        for with_peer in [true, false] {
            let mut probe = named.world.start(|steps| {
                let socket = if with_peer { connected(to)? } else { udp(to)? };
                if with_peer {
                    send(&socket, b"data", 0)?
                } else {
                    send_to(&socket, b"data", 0, to)?
                };
                steps.wait()?;
                let (data, from) = receive_from(&socket)?;
                Ok(u64::from(data == b"answer" && from == to))
            });
            probe.step();
            let (_, from) = server.recv_from(&mut [0; 8]).expect("the datagram");
            server.send_to(b"answer", from).expect("the answer");
            probe.go_on();
            assert_eq!(probe.end(), Outcome::Done(1), "the answer from {to}");
        }
        // One of a port that the rule has not.
        let to = SocketAddr::new(address, 444);
        let other = SocketAddr::new(address.to_canonical(), 600);
        let other = named.world.far.enter(|| UdpSocket::bind(other).expect("a socket"));
        let mut probe = named.world.start(|steps| {
            let socket = udp(to)?;
            send_to(&socket, b"data", 0, to)?;
            steps.wait()?;
            let (data, _) = receive_from(&socket)?;
            Ok(u64::from(data == b"answer"))
        });
        probe.step();
        let (_, from) = server.recv_from(&mut [0; 8]).expect("the datagram");
        named.world.events();
        other.send_to(b"foreign", from).expect("it is sent");
        server.send_to(b"answer", from).expect("the answer");
        probe.go_on();
        assert_eq!(probe.end(), Outcome::Done(1), "what comes from elsewhere does not come in");
        let told = named.world.events();
        assert_eq!(told.last().map(|denial| denial.reason), Some(DropReason::PeerNotAllowed));
    }
}

#[test]
fn deny_rules_win_over_names() {
    let mut policy = names(&[API]);
    policy.deny = vec![rule("192.0.2.3/32", RuleProtocol::Any, &["443"])];
    let mut named = Named::new(&policy);
    named.learn(API, DENIED, 100);
    for (name, way) in WAYS {
        named.world.denies(name, (DENIED, 443), way);
        named.world.check_last(DropReason::DenyRule);
    }
    named.world.passes("UDP to a port that is not denied", (DENIED, 444), UDP.1);
    // A network that is listed is reached as ever, and again from the cache.
    for _ in 0..2 {
        for (name, way) in WAYS {
            named.world.passes(name, (ALLOWED, PORT), way);
        }
    }
}

/// As many combinations of protocol and ports as a policy can have, and an address under two of them with different times.
#[test]
fn each_combination_has_its_own_addresses() {
    let rules: Vec<_> =
        (1..8).map(|n| format!("n{n}.example.org:{}-{}/udp", 1000 * n, 1000 * n + 1)).collect();
    let mut rules: Vec<_> = rules.iter().map(String::as_str).collect();
    rules.push("n8.example.org:1001,8000/udp");
    let mut named = Named::new(&names(&rules));
    let server = |n: usize| Ipv4Addr::new(198, 51, 100, u8::try_from(n).expect("a few"));
    for (n, rule) in rules.iter().enumerate() {
        named.learn(rule, server(n), 100);
    }
    let ports = [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000];
    for n in 0..rules.len() {
        for (m, port) in ports.into_iter().enumerate() {
            if n == m {
                named.world.passes("UDP to its port", (server(n), port), UDP.1);
            } else {
                named.world.denies("UDP to another's port", (server(n), port), UDP.1);
            }
        }
    }
    // The first and the last have a port in common: either lets it pass.
    for (good, over, address) in [(0, 7, DENIED), (7, 0, FAR)] {
        named.learn(rules[over], address, 0);
        named.world.denies("UDP to what is over", (address, 1001), UDP.1);
        named.world.check_last(DropReason::NameExpired);
        named.learn(rules[good], address, 100);
        named.world.passes("UDP to what is good by another rule", (address, 1001), UDP.1);
        named.world.denies("UDP to what is over", (address, if over == 0 { 1000 } else { 8000 }), UDP.1);
        named.world.check_last(DropReason::NameExpired);
    }
}

#[test]
fn other_ways_to_connect_pass_by_name() {
    let mut named = Named::new(&names(&[API]));
    named.world.unit.sysctl("ipv4/tcp_fastopen", "7");
    named.world.far.sysctl("ipv4/tcp_fastopen", "3");
    set(named.world.server(), libc::IPPROTO_TCP, 23, 16).expect("the server takes fast opens");
    named.learn(API, DENIED, 100);
    let fast_open = |to: SocketAddr| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    };
    let at_connect = |to: SocketAddr| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        set(&socket, libc::IPPROTO_TCP, 30, 1)?;
        connect(&socket, to)?;
        send(&socket, b"data", 0).map(drop)
    };
    for _ in 0..2 {
        named.world.passes("TCP fast open", (DENIED, PORT), fast_open);
        named.world.denies("TCP fast open", (FAR, PORT), fast_open);
        named.world.passes("TCP fast open at connect", (DENIED, PORT), at_connect);
        named.world.denies("TCP fast open at connect", (FAR, PORT), at_connect);
    }
    if has_mptcp(&mut named.world) {
        named.world.passes("MPTCP", (DENIED, PORT), |to| mptcp(to).map(drop));
        named.world.denies("MPTCP", (FAR, PORT), |to| mptcp(to).map(drop));
    }
}

/// What one instance's names brought is not another's, whatever both list.
#[test]
fn another_instances_addresses_are_not_this_ones() {
    let pins = Bpffs::mounted();
    let second = InstanceIndex::new(2).expect("a number");
    let mut named = Named::with(&Lifetime::Pinned(&pins.0.path().join("maps")), &names(&[API]));
    let neighbour = named.world.neighbour(second, &names(&[API]));
    let mut policy =
        LoadedPolicy::load(&compile(&names(&[API])).expect("it compiles")).expect("it is loaded");
    let learned = named.learned(API, DENIED, boottime() + 100);
    policy.with_names(RESOLVER + 1, MARK, vec![learned]);
    named.world.loaded.maps.put_in_force(vec![(second, policy)]).expect("the policy is in force");
    named.learn(API, FAR, 100);
    let at_the_neighbour = |named: &Named, neighbour: &Scratch, way: Way, to| {
        Probe::start(&neighbour.0, &named.world.unit, |_| way(SocketAddr::from((to, PORT))).map(|()| 0)).end()
    };
    for (name, way) in WAYS {
        named.world.passes(name, (FAR, PORT), way);
        named.world.denies(name, (DENIED, PORT), way);
        assert_eq!(at_the_neighbour(&named, &neighbour, way, DENIED), Outcome::DONE, "{name}");
        assert_eq!(at_the_neighbour(&named, &neighbour, way, FAR), Outcome::EPERM, "{name}");
    }
    drop(named);
}

/// A network rule lets its flows pass, whatever becomes of a name's addresses in it.
#[test]
fn a_network_rule_stays_what_it_is() {
    let mut policy = names(&[API]);
    policy.allow.push(any("198.51.100.0/24"));
    let mut named = Named::new(&policy);
    named.learn(API, FAR, 0);
    for (name, way) in WAYS {
        named.world.passes(name, (FAR, PORT), way);
        named.world.passes(name, (FAR, 600), |to| match way(to) {
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(()),
            other => other,
        });
    }
}
