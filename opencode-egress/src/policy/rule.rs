//! A rule for a network, and its parts: networks, protocols, ports.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use opencode_egress_common::flow::{Class, Flow};

use crate::policy::Invalid;

/// A network: an address and a prefix length, without host bits. An IPv4-mapped IPv6 network is its IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

impl Cidr {
    /// The network of this one address.
    pub fn host(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }

    /// The network.
    pub fn net(&self) -> IpNet {
        self.0
    }

    /// The network that a text is, without a word on why it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let net = net(text)?;
        (net.trunc() == net).then(|| Self(unmapped(net)))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).ok_or_else(|| {
            Invalid(match (text.parse::<IpAddr>(), net(text)) {
                (Ok(address), _) => {
                    let host = IpNet::from(address);
                    format!("`{text}` has no prefix length; write `{host}` for this one address")
                }
                (_, Some(net)) => format!("`{text}` has host bits set; write `{}`", net.trunc()),
                _ => format!(
                    "`{text}` is no network; write an address and a prefix length, as in `10.10.0.0/16` or `2001:db8::/32`"
                ),
            })
        })
    }
}

/// An address and a prefix length. The address is std's to parse: it refuses leading zeros, which some read as octal.
fn net(text: &str) -> Option<IpNet> {
    let (address, len) = text.split_once('/')?;
    let len = len.parse().ok().filter(|_| len.bytes().all(|byte| byte.is_ascii_digit()))?;
    IpNet::new(address.parse().ok()?, len).ok()
}

impl From<IpNet> for Cidr {
    /// The network; host bits are cleared.
    fn from(net: IpNet) -> Self {
        Self(unmapped(net.trunc()))
    }
}

/// An IPv4-mapped network as IPv4. A shorter prefix that merely covers the mapped range stays IPv6.
fn unmapped(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(net, IpNet::V4),
            None => net,
        },
        _ => net,
    }
}

/// The protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, clap::ValueEnum)]
pub enum RuleProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 for IPv6 networks.
    Icmp,
    /// Every protocol; with ports: TCP and UDP.
    #[default]
    Any,
}

impl RuleProtocol {
    /// The name used in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Any => "any",
        }
    }

    /// Whether a rule for this protocol, and for every port or only some, speaks of a class of packets.
    pub fn speaks_of(self, class: Class, every_port: bool) -> bool {
        match (self, class) {
            (Self::Tcp, Class::Tcp)
            | (Self::Udp, Class::Udp)
            | (Self::Icmp, Class::Icmp)
            | (Self::Any, Class::Tcp | Class::Udp) => true,
            (Self::Any, Class::Icmp | Class::Other) => every_port,
            (Self::Tcp | Self::Udp | Self::Icmp, _) => false,
        }
    }
}

impl FromStr for RuleProtocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Tcp, Self::Udp, Self::Icmp, Self::Any]
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or_else(|| Invalid(format!("`{text}` is no protocol; write `tcp`, `udp`, `icmp` or `any`")))
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The fewest ranges of exactly these ports, which ascend.
    pub fn runs(ports: impl IntoIterator<Item = u16>) -> Vec<Self> {
        let mut runs: Vec<Self> = vec![];
        for port in ports {
            match runs.last_mut() {
                Some(run) if run.last.checked_add(1) == Some(port) => run.last = port,
                _ => runs.push(Self::one(port)),
            }
        }
        runs
    }

    /// The fewest ranges of exactly the ports of these, in ascending order.
    pub fn joined(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut joined: Vec<Self> = vec![];
        for range in ranges {
            match joined.last_mut() {
                Some(before) if before.last.saturating_add(1) >= range.first => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        joined
    }

    /// A rule's ports, as they stand behind its destination: `:443,8000-8100`; nothing for all of them.
    pub(super) fn fmt_list(ranges: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in ranges.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }

    /// Its ports.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether it has a port.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let port = |part: &str| match part.parse::<u16>() {
            Ok(port) if port > 0 && !part.starts_with('+') => Ok(port),
            _ => Err(Invalid(format!(
                "`{text}` is no port; write one from 1 to 65535, or a range as in `8000-8100`"
            ))),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(Invalid(format!("`{text}` runs backwards; write `{last}-{first}`")));
        }
        Ok(Self { first, last })
    }
}

/// A rule for a network. Ordered by network, protocol and ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    cidr: Cidr,
    protocol: RuleProtocol,
    /// Shared by the rules that have the same, which in a list of a million are nearly all.
    pub(super) ports: Arc<[PortRange]>,
}

impl Rule {
    /// A rule; without `ports` it covers them all.
    ///
    /// # Errors
    ///
    /// ICMP has no ports.
    pub fn new(
        cidr: Cidr,
        protocol: RuleProtocol,
        ports: impl Into<Arc<[PortRange]>>,
    ) -> Result<Self, Invalid> {
        let ports = ports.into();
        if protocol == RuleProtocol::Icmp && !ports.is_empty() {
            return Err(Invalid("ICMP has no ports; leave them out, or write `tcp` or `udp`".into()));
        }
        Ok(Self { cidr, protocol, ports })
    }

    /// A rule for every protocol and port.
    pub fn any(cidr: Cidr) -> Self {
        Self { cidr, protocol: RuleProtocol::Any, ports: Arc::default() }
    }

    /// The network.
    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// The protocol.
    pub fn protocol(&self) -> RuleProtocol {
        self.protocol
    }

    /// The ports; empty for all.
    pub fn ports(&self) -> &[PortRange] {
        &self.ports
    }

    /// Whether it speaks of a flow's protocol and port, wherever the flow goes.
    pub fn speaks_of(&self, flow: &Flow) -> bool {
        let every_port = self.ports.is_empty();
        self.protocol.speaks_of(flow.class(), every_port)
            && (every_port || self.ports.iter().any(|range| range.contains(flow.port)))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cidr, protocol, ports } = self;
        match cidr.net() {
            IpNet::V6(_) if !ports.is_empty() => write!(f, "[{cidr}]")?,
            _ => cidr.fmt(f)?,
        }
        PortRange::fmt_list(ports, f)?;
        if *protocol == RuleProtocol::Any { Ok(()) } else { write!(f, "/{}", protocol.name()) }
    }
}
