//! Random packets: mostly such as a policy speaks of, sometimes at the edge of what it says, sometimes broken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use opencode_egress::policy::{Policy, Rule};
use opencode_egress_common::flow::Flow;

/// An IP packet and what the link layer says that it is.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) ethertype: u16,
    pub(crate) packet: Vec<u8>,
}

impl Frame {
    /// Its length as IP has it.
    pub(crate) fn len(&self) -> u64 {
        self.packet.len() as u64
    }

    /// With the link layer's header.
    pub(crate) fn ethernet(&self) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend(self.ethertype.to_be_bytes());
        bytes.extend(&self.packet);
        bytes
    }
}

type Endpoint = (IpAddr, u16);

/// A packet between places of the policy's rules and listeners, or of the flows.
pub(crate) fn random(rng: &mut Rng, policy: Option<&Policy>, flows: &[Flow]) -> Frame {
    let (source, destination) = (endpoint(rng, policy, flows), endpoint(rng, policy, flows));
    let protocol = match rng.u8(..20) {
        0..7 => 6,
        7..12 => 17,
        12..14 => 1,
        14..16 => 58,
        16 => 136,
        17 => 132,
        _ => rng.u8(..),
    };
    let behind = transport(rng, protocol, source.1, destination.1);
    let mut frame = match (source.0, destination.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) if rng.u8(..8) != 0 => {
            Frame { ethertype: 0x0800, packet: ipv4(rng, source, destination, protocol, &behind) }
        }
        (source, destination) => Frame {
            ethertype: 0x86dd,
            packet: ipv6(rng, mapped(source), mapped(destination), protocol, &behind),
        },
    };
    match rng.u8(..40) {
        0 => frame.ethertype = *rng.choice(&[0x0800, 0x86dd, 0x0806, 0x8100]).expect("one"),
        1..4 => frame.packet.truncate(rng.usize(1..=frame.packet.len())),
        4..6 => frame.packet[0] = rng.u8(..),
        6..8 => {
            let at = rng.usize(..frame.packet.len());
            frame.packet[at] = rng.u8(..);
        }
        _ => {}
    }
    frame
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn endpoint(rng: &mut Rng, policy: Option<&Policy>, flows: &[Flow]) -> Endpoint {
    let (allow, deny, listen) =
        policy.map_or((&[][..], &[][..], &[][..]), |policy| (&policy.allow, &policy.deny, &policy.listen));
    let rules: Vec<&Rule> = allow.iter().chain(deny).collect();
    let from_flows = |rng: &mut Rng| {
        let flow = rng.choice(flows).expect("flows");
        (flow.address.into(), flow.port)
    };
    let (mut address, port) = from_flows(rng);
    match rng.u8(..10) {
        0..4 => match rng.choice(&rules) {
            Some(rule) => edge(rng, rule),
            None => (address, port),
        },
        4..7 => match rng.choice(listen) {
            Some(listen) => {
                // Somewhere else, or loopback, where it listens everywhere.
                if !listen.address.is_unspecified() {
                    address = listen.address;
                } else if rng.bool() {
                    address =
                        if rng.bool() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                }
                (address, listen.port)
            }
            None => (address, port),
        },
        7 => (if rng.bool() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }, port),
        _ => (address, port),
    }
}

/// The first or last of what a rule covers, or one beyond.
fn edge(rng: &mut Rng, rule: &Rule) -> Endpoint {
    let net = rule.cidr().net();
    let address = if rng.bool() { net.network() } else { net.broadcast() };
    let step = rng.i8(-1..=1);
    let address = match address {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add_signed(step.into()).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_add_signed(step.into()).into()),
    };
    let port = match rng.choice(rule.ports()) {
        Some(range) => {
            if rng.bool() { range.first() } else { range.last() }.wrapping_add_signed(rng.i16(-1..=1))
        }
        None => *rng.choice(&[0, 1, 5, u16::MAX]).expect("one"),
    };
    (address, port)
}

fn transport(rng: &mut Rng, protocol: u8, source: u16, destination: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = source.to_be_bytes().into_iter().chain(destination.to_be_bytes()).collect();
    match protocol {
        6 => {
            bytes.extend([0; 8]);
            // SYN; SYN and ACK; ACK; FIN and ACK; RST; SYN with ECN set-up; SYN and FIN; none; any.
            let some = rng.u8(..);
            let flags = *rng.choice(&[2, 2, 2, 2, 0x12, 0x10, 0x11, 4, 0xc2, 3, 0, some]).expect("one");
            bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        }
        17 | 136 => bytes.extend([0, 8, 0, 0]),
        _ => {
            bytes = vec![0; rng.usize(..24)];
            rng.fill(&mut bytes);
        }
    }
    bytes
}

fn ipv4(rng: &mut Rng, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut options = vec![];
    if rng.u8(..6) == 0 {
        for _ in 0..rng.u8(1..4) {
            options.extend(option(rng));
        }
        options.resize(options.len().next_multiple_of(4).min(40), 0);
    }
    let words = u8::try_from(5 + options.len() / 4).expect("at most fifteen");
    // Don't fragment, or nothing; seldom a fragment.
    let fragment = if rng.u8(..12) == 0 { rng.u16(..) } else { *rng.choice(&[0x4000, 0]).expect("one") };
    let mut packet = vec![0x40 | words, 0, 0, 0, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(behind);
    let len = u16::try_from(packet.len()).expect("a short one");
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet
}

fn option(rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..12) {
        0..3 => vec![1],
        3..5 => vec![148, 4, 0, 0],
        5 => vec![68, 8, 5, 0, 0, 0, 0, 0],
        6 => vec![7, 7, 4, 0, 0, 0, 0],
        7 => vec![0],
        8 => vec![131, 7, 4, 203, 0, 113, 1],
        9 => vec![137, 7, 4, 203, 0, 113, 1],
        10 => vec![*rng.choice(&[7, 68, 130, 136, 148]).expect("one"), rng.u8(..), 0, 0],
        _ => vec![rng.u8(..), 4, 0, 0],
    }
}

fn ipv6(rng: &mut Rng, source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut chain = vec![];
    if rng.u8(..4) == 0 {
        for _ in 0..*rng.choice(&[1, 1, 2, 3, 7, 8, 9]).expect("one") {
            // Hop-by-hop and destination options; seldom what is refused.
            let kinds: &[u8] = match rng.u8(..16) {
                0..2 => &[43, 44],
                2 => &[50, 51, 59, 135, 139, 140, 253, 254],
                _ => &[0, 60],
            };
            chain.push((*rng.choice(kinds).expect("one"), rng.u8(..=2)));
        }
    }
    let mut extensions = vec![];
    for (index, (_, more)) in chain.iter().enumerate() {
        let next = chain.get(index + 1).map_or(protocol, |(kind, _)| *kind);
        extensions.extend([next, *more]);
        extensions.resize(extensions.len() + 6 + usize::from(*more) * 8, 0);
    }
    let mut packet = vec![0x60, 0, 0, 0];
    let len = u16::try_from(extensions.len() + behind.len()).expect("a short one");
    packet.extend(len.to_be_bytes());
    packet.extend([chain.first().map_or(protocol, |(kind, _)| *kind), 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(extensions);
    packet.extend(behind);
    packet
}
