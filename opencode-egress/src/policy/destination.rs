//! A flow as an operator writes it.

use std::{fmt, net::IpAddr, str::FromStr};

use opencode_egress_common::flow::{Address, Flow, Protocol};
use serde::{Deserialize, Serialize};

use crate::policy::Invalid;

/// A flow as an operator writes it: `DEST[:PORT][/PROTO]`. Without a protocol: TCP with a port, ICMP without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 for none.
    pub port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}

/// A destination as a request has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    address: IpAddr,
    port: u16,
    protocol: u8,
}

impl TryFrom<Parts> for Destination {
    type Error = &'static str;

    fn try_from(parts: Parts) -> Result<Self, &'static str> {
        Self::new(parts.address, parts.port, Protocol(parts.protocol))
    }
}

impl Destination {
    /// A port where the protocol has one that rules see, and none where not; an IPv4-mapped address is its
    /// IPv4 address.
    fn new(address: IpAddr, port: u16, protocol: Protocol) -> Result<Self, &'static str> {
        let has_ports = matches!(protocol, Protocol::TCP | Protocol::UDP);
        match (has_ports, port) {
            (true, 0) => Err("no port"),
            (false, 1..) => Err("a port, which this protocol does not have,"),
            _ => Ok(Self { address: address.to_canonical(), port, protocol: protocol.0 }),
        }
    }

    /// Where a flow goes; `None` for one that no operator can write: TCP or UDP to port 0.
    pub fn of(flow: &Flow) -> Option<Self> {
        Self::new(flow.address.into(), flow.port, flow.protocol).ok()
    }

    /// The flow to judge.
    pub fn flow(&self) -> Flow {
        Flow {
            address: Address::from(self.address).reached(),
            protocol: Protocol(self.protocol),
            port: self.port,
        }
    }
}

impl FromStr for Destination {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |what: &str| {
            Err(Invalid(format!(
                "{what} in `{text}`; write an address, maybe a port, maybe a protocol, as in `10.10.0.1`, `10.10.0.1:443` or `[2001:db8::1]:53/udp`"
            )))
        };
        let (place, protocol) = match text.split_once('/') {
            Some((place, protocol)) => (place, Some(protocol)),
            None => (text, None),
        };
        let (address, port) = match (place.parse::<IpAddr>(), place.parse::<std::net::SocketAddr>()) {
            (Ok(address), _) => (address, 0),
            (_, Ok(socket)) => (socket.ip(), socket.port()),
            _ => return wrong("no address, or no port, that can be read"),
        };
        let address = address.to_canonical();
        let icmp = if address.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        let protocol = match (protocol, port) {
            (Some("icmp"), _) => icmp,
            (Some(name), _) => match protocol_named(name) {
                Some(protocol) => protocol,
                None => return wrong("no protocol (tcp, udp, icmp or its number)"),
            },
            (None, 0) => icmp,
            (None, _) => Protocol::TCP,
        };
        Self::new(address, port, protocol).or_else(wrong)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => write!(f, "{}", self.address)?,
            port => write!(f, "{}", std::net::SocketAddr::new(self.address, port))?,
        }
        write!(f, "/{}", protocol_name(Protocol(self.protocol)))
    }
}

/// A protocol's name, or its number where it has none.
pub fn protocol_name(protocol: Protocol) -> String {
    protocol.name().map_or_else(|| protocol.0.to_string(), str::to_owned)
}

/// The protocol that [`protocol_name`] calls so.
pub fn protocol_named(name: &str) -> Option<Protocol> {
    let named = (0..=u8::MAX).map(Protocol).find(|protocol| protocol.name() == Some(name));
    named.or_else(|| name.parse().ok().map(Protocol))
}
