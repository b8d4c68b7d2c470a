//! What becomes of a flow, and which rule or reason is behind it.

use std::{fmt, net::IpAddr, str::FromStr};

use opencode_egress_common::{
    abi::{Head, Mode},
    decide::{Rules, Verdict, decide},
    flow::{Address, Flow, Protocol},
    reason::DropReason,
};
use serde::{Deserialize, Serialize};

use crate::{
    events::protocol_name,
    policy::{Invalid, Policy, Rule, RuleProtocol},
};

/// A flow as an operator writes it: `DEST[:PORT][/PROTO]`. Without a protocol: TCP with a port, ICMP without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 for none.
    pub port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}

impl Destination {
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
            (Some("tcp"), _) => Protocol::TCP,
            (Some("udp"), _) => Protocol::UDP,
            (Some("icmp"), _) => icmp,
            (Some(other), _) => match other.parse() {
                Ok(number) => Protocol(number),
                Err(_) => return wrong("no protocol (tcp, udp, icmp or its number)"),
            },
            (None, 0) => icmp,
            (None, _) => Protocol::TCP,
        };
        let has_ports = matches!(protocol, Protocol::TCP | Protocol::UDP);
        match (has_ports, port) {
            (true, 0) => wrong("no port"),
            (false, 1..) => wrong("a port, which this protocol does not have,"),
            _ => Ok(Self { address, port, protocol: protocol.0 }),
        }
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

/// An explained verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked.
    pub destination: Destination,
    /// Whether the rules let it pass.
    pub allowed: bool,
    /// The drop reason's name, when they do not.
    pub reason: Option<String>,
    /// The rules behind the verdict, as text; for a denial without a deny rule, those that cover the
    /// address but not the flow.
    pub rules: Vec<String>,
    /// The mode; in audit mode a denied flow passes all the same.
    pub audit: bool,
}

/// Judges a flow by the rules that are in the kernel, and finds the rules of the policy behind that.
pub fn explain(destination: Destination, head: &Head, rules: &impl Rules, policy: &Policy) -> Explanation {
    let flow = destination.flow();
    let verdict = decide(rules, &flow);
    let covering = |list: &[Rule], flow_too: bool| {
        let covering = list.iter().filter(|rule| {
            rule.cidr().net().contains(&destination.address) && (!flow_too || covers(rule, &flow))
        });
        covering.map(ToString::to_string).collect::<Vec<_>>()
    };
    let labelled = |label: &str, rules: Vec<String>| {
        rules.into_iter().map(|rule| format!("{label} {rule}")).collect::<Vec<_>>()
    };
    let denying = labelled("deny", covering(&policy.deny, true));
    let listener = policy.listen.iter().find(|listen| {
        flow.port == listen.port && (listen.address == destination.address || listen.address.is_unspecified())
    });
    let (allowed, reason, rules) = match verdict {
        Verdict::Allow => {
            let mut rules = labelled("allow", covering(&policy.allow, true));
            if let (Some(listen), true) = (listener, rules.is_empty() || !denying.is_empty()) {
                rules = vec![format!("listen {listen}: the instance's own listener is no egress")];
            }
            (true, None, rules)
        }
        Verdict::Deny(reason) if !denying.is_empty() => (false, Some(reason.name().to_owned()), denying),
        Verdict::Deny(reason) => {
            (false, Some(reason.name().to_owned()), labelled("allow", covering(&policy.allow, false)))
        }
    };
    Explanation { destination, allowed, reason, rules, audit: head.mode == Mode::Audit as u32 }
}

fn covers(rule: &Rule, flow: &Flow) -> bool {
    let protocol = match rule.protocol() {
        RuleProtocol::Tcp => flow.protocol == Protocol::TCP,
        RuleProtocol::Udp => flow.protocol == Protocol::UDP,
        RuleProtocol::Icmp => matches!(flow.protocol, Protocol::ICMP | Protocol::ICMPV6),
        RuleProtocol::Any => {
            rule.ports().is_empty() || matches!(flow.protocol, Protocol::TCP | Protocol::UDP)
        }
    };
    let in_ports = |range: &crate::policy::PortRange| (range.first()..=range.last()).contains(&flow.port);
    protocol && (rule.ports().is_empty() || rule.ports().iter().any(in_ports))
}

impl Explanation {
    /// The verdict on everything where no policy is in force.
    pub fn without_policy(destination: Destination) -> Self {
        let reason = Some(DropReason::NoPolicy.name().to_owned());
        Self { destination, allowed: false, reason, rules: vec![], audit: false }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, allowed, reason, rules, audit } = self;
        match (allowed, audit) {
            (true, _) => write!(f, "{destination}: allowed")?,
            (false, false) => write!(f, "{destination}: denied")?,
            (false, true) => write!(f, "{destination}: denied, but mode audit lets it pass")?,
        }
        if let Some(reason) = reason {
            write!(f, " ({reason})")?;
        }
        match (rules.is_empty(), allowed, reason.as_deref()) {
            (true, false, _) => write!(f, "\n  no rule covers {}", destination.address)?,
            (false, false, Some("deny-rule")) | (_, true, _) => {}
            _ => write!(f, "\n  the address is covered, but not this flow, by")?,
        }
        rules.iter().try_for_each(|rule| write!(f, "\n  {rule}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_written() {
        let check = |text: &str, expect: &str| {
            let shown = match text.parse::<Destination>() {
                Ok(destination) => destination.to_string(),
                Err(invalid) => invalid.to_string(),
            };
            assert!(shown.starts_with(expect), "{text}: {shown}");
        };
        check("10.10.0.1:443", "10.10.0.1:443/tcp");
        check("10.10.0.1:53/udp", "10.10.0.1:53/udp");
        check("10.10.0.1", "10.10.0.1/icmp");
        check("2001:db8::1", "2001:db8::1/icmpv6");
        check("[2001:db8::1]:443", "[2001:db8::1]:443/tcp");
        check("[::ffff:10.10.0.1]:443", "10.10.0.1:443/tcp");
        check("10.10.0.1/132", "10.10.0.1/sctp");
        check("10.10.0.1/tcp", "no port in");
        check("10.10.0.1:80/icmp", "a port, which this protocol does not have, in");
        check("example.com:443", "no address");
        check("10.10.0.1:80/foo", "no protocol");
    }
}
