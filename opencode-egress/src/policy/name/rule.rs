//! A rule for a name.

use std::fmt;

use opencode_egress_common::{
    abi::NameRuleId,
    flow::{Class, Flow},
};

use crate::policy::{Invalid, PortRange, RuleProtocol, name::NamePattern};

/// A rule for a name, or for every name below one: what may be reached at the addresses that it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameRule {
    pattern: NamePattern,
    protocol: RuleProtocol,
    /// Ascending and apart; empty for all.
    ports: Vec<PortRange>,
    tls: bool,
    private: bool,
}

impl NameRule {
    /// A rule. Without a protocol it is for TCP, and without ports then for 443; with a protocol and without ports for all of
    /// its ports. [`RuleProtocol::Any`] is TCP and UDP. Without `tls`, connections must open TLS to a listed server where it is for TCP
    /// 443 alone.
    ///
    /// # Errors
    ///
    /// For ICMP: what passes by name is found out where a program connects or sends, and the hooks there see TCP and UDP alone. With `tls`
    /// for anything but TCP: by UDP the same servers are reached without.
    pub fn new(
        pattern: NamePattern,
        protocol: Option<RuleProtocol>,
        ports: Vec<PortRange>,
        tls: Option<bool>,
        private: bool,
    ) -> Result<Self, Invalid> {
        let (protocol, ports) = match (protocol, ports) {
            (Some(RuleProtocol::Icmp), _) => {
                return Err(Invalid(format!(
                    "a rule for a name is for TCP and UDP; for ICMP to `{pattern}` list its network, as in `192.0.2.0/24/icmp`"
                )));
            }
            (None, ports) if ports.is_empty() => (RuleProtocol::Tcp, Self::DEFAULT_PORTS.to_vec()),
            (protocol, ports) => (protocol.unwrap_or(RuleProtocol::Tcp), PortRange::joined(ports)),
        };
        let tls = match tls {
            Some(true) if protocol != RuleProtocol::Tcp => {
                return Err(Invalid(format!(
                    "`{TLS}` is for TCP, and by UDP (QUIC) the same servers are reached without; write a rule for `{pattern}` with `tcp`, and leave the one for UDP out or let it stand alone"
                )));
            }
            Some(tls) => tls,
            None => Self::is_tls_where_unsaid(protocol, &ports),
        };
        Ok(Self { pattern, protocol, ports, tls, private })
    }

    fn is_tls_where_unsaid(protocol: RuleProtocol, ports: &[PortRange]) -> bool {
        protocol == RuleProtocol::Tcp && ports == Self::DEFAULT_PORTS
    }

    const DEFAULT_PORTS: [PortRange; 1] = [PortRange::one(443)];

    /// Which names it is for.
    pub fn pattern(&self) -> &NamePattern {
        &self.pattern
    }

    /// The protocol: TCP, UDP, or both.
    pub fn protocol(&self) -> RuleProtocol {
        self.protocol
    }

    /// The ports, ascending; empty for all.
    pub fn ports(&self) -> &[PortRange] {
        &self.ports
    }

    /// Whether a connection must open TLS to a server that such a rule lists.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Whether [`Self::tls`] is what the protocol and the ports make it where nothing is said.
    pub fn has_usual_tls(&self) -> bool {
        self.tls == Self::is_tls_where_unsaid(self.protocol, &self.ports)
    }

    /// Whether the name may bring private addresses, too.
    pub fn private(&self) -> bool {
        self.private
    }

    /// Whether it is for TCP 443 alone, which is what a name alone means.
    pub fn is_plain(&self) -> bool {
        self.protocol == RuleProtocol::Tcp && self.ports == Self::DEFAULT_PORTS && self.tls && !self.private
    }

    /// Whether it speaks of a class of packets.
    pub fn speaks_of_class(&self, class: Class) -> bool {
        self.protocol.speaks_of(class, false)
    }

    /// Whether it speaks of a flow's protocol and port, wherever the flow goes.
    pub fn speaks_of(&self, flow: &Flow) -> bool {
        let in_ports = self.ports.is_empty() || self.ports.iter().any(|range| range.contains(flow.port));
        self.speaks_of_class(flow.class()) && in_ports
    }

    /// Whether all that another one for one name lets pass passes by this one, too.
    pub fn covers(&self, other: &Self) -> bool {
        let NamePattern::Exact(name) = &other.pattern else { return self == other };
        let has = |range: &PortRange| {
            self.ports.iter().any(|own| own.contains(range.first()) && own.contains(range.last()))
        };
        self.pattern.matches(name)
            && [RuleProtocol::Any, other.protocol].contains(&self.protocol)
            && (self.ports.is_empty() || !other.ports.is_empty() && other.ports.iter().all(has))
            && (other.tls || !self.tls)
            && (self.private || !other.private)
    }

    /// What the kernel knows it by: FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>) of its text, but for one bit.
    pub fn id(&self) -> NameRuleId {
        let hash = self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        NameRuleId::of_rule(hash, self.tls)
    }
}

impl fmt::Display for NameRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, protocol, ports, tls, private } = self;
        pattern.fmt(f)?;
        let tcp = *protocol == RuleProtocol::Tcp;
        if !(tcp && *ports == Self::DEFAULT_PORTS) {
            PortRange::fmt_list(ports, f)?;
            if !tcp || ports.is_empty() {
                write!(f, "/{}", protocol.name())?;
            }
        }
        if !self.has_usual_tls() {
            write!(f, "/{}", if *tls { TLS } else { NO_TLS })?;
        }
        if *private { write!(f, "/{PRIVATE}") } else { Ok(()) }
    }
}

/// The word of a rule as text by which a connection must open TLS to a listed server, and the one by which it need not.
pub(in crate::policy) const TLS: &str = "tls";
pub(in crate::policy) const NO_TLS: &str = "notls";

/// The last word of a rule as text whose name may bring private addresses, too.
pub(in crate::policy) const PRIVATE: &str = "private";
