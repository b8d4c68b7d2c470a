//! Random policies, and flows that they speak of.
//!
//! The hook tests include this file too, so it names the crate's modules by `crate`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use opencode_egress_common::flow::{Flow, Protocol};
use proptest::prelude::*;

use crate::policy::{Cidr, Listen, Loopback, Mode, Policy, PortRange, Rule, RuleProtocol};

fn cidrs() -> impl Strategy<Value = Cidr> {
    // A narrow space, so that prefixes cover one another and flows hit them.
    let v4 = (0..4_u8, 0..4_u8, 0..=32_u8).prop_map(|(a, b, len)| {
        let net = Ipv4Net::new_assert([10, a, b, b << 6].into(), len);
        IpNet::V4(net.trunc())
    });
    let v6 = (0..3_u16, 0..=128_u8).prop_map(|(a, len)| {
        let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, a, 0, 0, 0, 0, a);
        IpNet::V6(ipnet::Ipv6Net::new_assert(address, len).trunc())
    });
    let wide = Just("::/0".parse().expect("a network"));
    prop_oneof![4 => v4, 2 => v6, 1 => wide].prop_map(|net| net.to_string().parse().expect("a network"))
}

/// A few ranges of low ports.
pub(crate) fn ports() -> impl Strategy<Value = Vec<PortRange>> {
    let port = (1..12_u16, 0..6_u16)
        .prop_map(|(first, more)| format!("{first}-{}", first + more).parse::<PortRange>().expect("a range"));
    prop::collection::vec(port, 0..3)
}

/// Rules for networks.
pub(crate) fn rules() -> impl Strategy<Value = Rule> {
    let protocol = prop_oneof![
        Just(RuleProtocol::Any),
        Just(RuleProtocol::Tcp),
        Just(RuleProtocol::Udp),
        Just(RuleProtocol::Icmp)
    ];
    (cidrs(), protocol, ports()).prop_map(|(cidr, protocol, ports)| {
        let ports = if protocol == RuleProtocol::Icmp { vec![] } else { ports };
        Rule::new(cidr, protocol, ports).expect("a rule")
    })
}

/// Policies.
pub(crate) fn policies() -> impl Strategy<Value = Policy> {
    let listener = prop_oneof![
        Just("127.0.0.1"),
        Just("::1"),
        Just("10.1.1.64"),
        Just("0.0.0.0"),
        Just("::"),
        Just("2001:db8:1::1")
    ];
    let listen = (listener, 1..12_u16, any::<bool>()).prop_map(|(at, port, open)| Listen {
        address: at.parse().expect("an address"),
        port,
        open,
    });
    (
        prop::collection::vec(rules(), 0..12),
        prop::collection::vec(rules(), 0..6),
        prop::collection::vec(listen, 0..3),
        prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Audit)],
        prop_oneof![Just(Loopback::Own), Just(Loopback::Listed)],
    )
        .prop_map(|(allow, deny, listen, mode, loopback)| Policy {
            allow,
            deny,
            listen,
            mode,
            loopback,
            ..Policy::default()
        })
}

/// Flows that such policies speak of.
pub(crate) fn flows() -> impl Strategy<Value = Flow> {
    let v4 = (0..4_u8, 0..4_u8, 0..=255_u8).prop_map(|(a, b, c)| IpAddr::from([10, a, b, c]));
    let v6 = (0..3_u16, 0..3_u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b]));
    let fixed = prop_oneof![Just("127.0.0.1"), Just("::1"), Just("10.1.1.64"), Just("::ffff:10.1.1.64")]
        .prop_map(|text| text.parse().expect("an address"));
    let protocol = prop_oneof![
        Just(Protocol::TCP),
        Just(Protocol::UDP),
        Just(Protocol::ICMP),
        Just(Protocol::ICMPV6),
        Just(Protocol(132))
    ];
    (prop_oneof![4 => v4, 2 => v6, 1 => fixed], protocol, 0..16_u16).prop_map(|(address, protocol, port)| {
        let port = if matches!(protocol, Protocol::TCP | Protocol::UDP) { port } else { 0 };
        Flow { address: address.into(), protocol, port }
    })
}
