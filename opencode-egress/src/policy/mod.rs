//! What an operator wants for an instance. Values of these types are valid: they are made by
//! [`file`] or by `FromStr`, which refuse everything else and say what to write instead.

pub mod compile;
pub mod destination;
pub mod explain;
pub mod file;
mod listen;
pub mod suggest;

use std::{collections::BTreeMap, fmt, net::IpAddr, path::Path, str::FromStr, sync::Arc, time::Duration};

use ipnet::{IpNet, Ipv4Net};
pub use listen::Listen;
pub use opencode_egress_common::abi::{DEFAULT_MAX_SOCKETS, Mode};
use opencode_egress_common::flow::{Class, Flow};

/// The name of a mode in policies and reports.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

/// Why a text is not a value of one of this module's types, with what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Everything in one policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    /// How denied flows are logged.
    pub log: LogLimits,
    /// The instances' policies.
    pub instances: BTreeMap<InstanceName, Policy>,
}

impl PolicySet {
    /// The policy of an instance; `file` is for the message.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn instance(&self, name: &InstanceName, file: &Path) -> Result<&Policy, Invalid> {
        self.instances.get(name).ok_or_else(|| {
            let known: Vec<_> = self.instances.keys().map(InstanceName::as_str).collect();
            Invalid(format!("{} has no instance `{name}`; it has: {}", file.display(), known.join(", ")))
        })
    }
}

/// How denied flows are logged, the same for every instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Repeats of a destination within this time are folded into one line.
    pub interval: Duration,
    /// Lines an instance may log at once.
    pub burst: u32,
    /// Lines a second after that.
    pub per_sec: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), burst: 20, per_sec: 5 }
    }
}

/// One instance's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The units that it confines.
    pub units: Vec<UnitName>,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// What may be reached.
    pub allow: Vec<Rule>,
    /// What may not, whatever `allow` says.
    pub deny: Vec<Rule>,
    /// Where the instance listens.
    pub listen: Vec<Listen>,
    /// How many sockets it may have open, of those that it made.
    pub max_sockets: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            units: vec![],
            mode: Mode::Enforce,
            allow: vec![],
            deny: vec![],
            listen: vec![],
            max_sockets: DEFAULT_MAX_SOCKETS,
        }
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// An instance's name: letters, digits, `-` and `_`, at most 64, so that it fits into identifiers and paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);
text_type!(InstanceName);

impl FromStr for InstanceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            return Err(Invalid(format!(
                "`{text}` is no instance name; use 1 to 64 letters, digits, `-` or `_`"
            )));
        }
        Ok(Self(text.into()))
    }
}

/// The name of a systemd service unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);
text_type!(UnitName);

impl FromStr for UnitName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
        match text.strip_suffix(".service") {
            Some(stem) if !stem.is_empty() && text.len() <= 255 && text.chars().all(good) => {
                Ok(Self(text.into()))
            }
            Some(_) => Err(Invalid(format!("`{text}` is no unit name; see systemd.unit(5)"))),
            None => Err(Invalid(format!(
                "`{text}` is no service unit; write its full name, as in `{text}.service`"
            ))),
        }
    }
}

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
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The address is std's to parse: it refuses leading zeros, which some read as octal.
        let net = text.split_once('/').and_then(|(address, len)| {
            let len = len.parse().ok().filter(|_| len.bytes().all(|byte| byte.is_ascii_digit()))?;
            IpNet::new(address.parse().ok()?, len).ok()
        });
        let Some(net) = net else {
            return Err(Invalid(match text.parse::<IpAddr>() {
                Ok(address) => format!(
                    "`{text}` has no prefix length; write `{}` for this one address",
                    IpNet::from(address)
                ),
                Err(_) => format!(
                    "`{text}` is no network; write an address and a prefix length, as in `10.10.0.0/16` or `2001:db8::/32`"
                ),
            }));
        };
        if net.trunc() != net {
            return Err(Invalid(format!("`{text}` has host bits set; write `{}`", net.trunc())));
        }
        Ok(Self(unmapped(net)))
    }
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
    pub fn one(port: u16) -> Self {
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

/// One entry of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    cidr: Cidr,
    protocol: RuleProtocol,
    /// Shared by the rules that have the same, which in a list of a million are nearly all.
    ports: Arc<[PortRange]>,
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
            return Err(Invalid("ICMP has no ports; leave `ports` out, or write `tcp` or `udp`".into()));
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
        let in_ports = |range: &PortRange| (range.first()..=range.last()).contains(&flow.port);
        self.protocol.speaks_of(flow.class(), every_port) && (every_port || self.ports.iter().any(in_ports))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr.fmt(f)?;
        if self.protocol != RuleProtocol::Any || !self.ports.is_empty() {
            write!(f, " {}", self.protocol.name())?;
        }
        for (index, range) in self.ports.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { " " } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
