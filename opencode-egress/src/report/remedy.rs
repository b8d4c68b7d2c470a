//! What would let pass what was denied: a rule, or what to do where none would.

use opencode_egress_common::{
    flow::{Address, Class, Flow, Protocol},
    reason::DropReason,
};

use crate::{
    policy::{
        AnyRule, Cidr, NameRule, PortRange, Rule, RuleProtocol, destination::protocol_named,
        name::NamePattern, special::AddressKind,
    },
    report::denial::{DenialLine, Line, QuestionLine},
};

/// What would let pass what was denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// This rule, the narrowest that does.
    Rule(AnyRule),
    /// No rule, and why, or what to do instead.
    Other(String),
}

impl Remedy {
    /// What would let pass what a line tells of.
    pub fn of(line: &Line) -> Self {
        match line {
            Line::Flow(line) => of_flow(line),
            Line::Question(line) => of_question(line),
        }
    }

    /// The rule as one asks for it: a name always with its ports, for who reads it may not know what a name alone means.
    pub fn ask(&self) -> Option<String> {
        match self {
            Self::Rule(AnyRule::Name(rule)) if rule.is_plain() => Some(format!("{rule}:443")),
            Self::Rule(rule) => Some(rule.to_string()),
            Self::Other(_) => None,
        }
    }
}

fn other(text: &str) -> Remedy {
    Remedy::Other(text.to_owned())
}

fn of_flow(line: &DenialLine) -> Remedy {
    let reason = DropReason::ALL.iter().find(|reason| reason.name() == line.reason);
    match reason {
        Some(DropReason::NotAllowed | DropReason::ProtocolNotAllowed | DropReason::PortNotAllowed) => {
            by_name(line, None).unwrap_or_else(|| by_address(line))
        }
        // Of rules without `tls` no hello may name the server.
        Some(DropReason::TlsNameNotAllowed) => by_name(line, Some(true))
            .unwrap_or_else(|| other("the TLS hello names no server for which there can be a rule")),
        Some(DropReason::NotTls) => by_name(line, Some(false))
            .unwrap_or_else(|| other("what is sent there must begin with a TLS hello")),
        Some(DropReason::NameExpired) => other(
            "resolve the name again: the time of its address is over; or restart the client that keeps it",
        ),
        Some(DropReason::DenyRule) => other("a `deny` rule covers it, above every rule that allows"),
        Some(DropReason::BindNotListed) => Remedy::Other(
            line.hint
                .clone()
                .unwrap_or_else(|| "a bind takes a listener under `listen`, and no rule".to_owned()),
        ),
        Some(DropReason::TooManySockets) => other("no rule: it has as many sockets as it may; close some"),
        Some(DropReason::NoPolicy) => other("no rule: the instance is not in the policy file any more"),
        _ => other("no rule for a destination lets it pass"),
    }
}

fn of_question(line: &QuestionLine) -> Remedy {
    let rule = |private| match exact(&line.query) {
        Some(pattern) => name_rule(pattern, None, vec![], None, private),
        None => other("there can be no rule for such a name"),
    };
    match (line.reason.as_str(), line.address) {
        ("name-not-allowed", _) => rule(false),
        ("forbidden-address", Some(address)) if AddressKind::of(address) == AddressKind::Private => {
            rule(true)
        }
        ("forbidden-address", _) => {
            other("the name has an address that no name may bring; a rule for its network lets that pass")
        }
        ("type-not-allowed", _) => other("of a listed name, only its addresses are told"),
        _ => other("no rule lets such a question pass"),
    }
}

/// A rule for the name behind a flow's address, or for the server that its hello names.
fn by_name(line: &DenialLine, tls: Option<bool>) -> Option<Remedy> {
    let protocol = match class(line) {
        Class::Tcp => RuleProtocol::Tcp,
        Class::Udp => RuleProtocol::Udp,
        Class::Icmp | Class::Other => return None,
    };
    let port = Some(line.dport).filter(|port| *port != 0)?;
    let pattern = exact(line.name.as_deref()?)?;
    // That a hello names it says nothing of its addresses.
    let private = line.reason != DropReason::TlsNameNotAllowed.name()
        && AddressKind::of(line.dst) == AddressKind::Private;
    Some(name_rule(pattern, Some(protocol), vec![PortRange::one(port)], tls, private))
}

/// The flow that a line tells of.
pub(super) fn flow(line: &DenialLine) -> Flow {
    let protocol = protocol_named(&line.proto).unwrap_or(Protocol(u8::MAX));
    Flow { address: Address::from(line.dst), protocol, port: line.dport }
}

/// What rules take its protocol for.
fn class(line: &DenialLine) -> Class {
    flow(line).class()
}

/// A name that somebody else wrote, as a rule may have it: never as a wildcard.
fn exact(name: &str) -> Option<NamePattern> {
    name.parse().ok().filter(|pattern| matches!(pattern, NamePattern::Exact(_)))
}

fn name_rule(
    pattern: NamePattern,
    protocol: Option<RuleProtocol>,
    ports: Vec<PortRange>,
    tls: Option<bool>,
    private: bool,
) -> Remedy {
    match NameRule::new(pattern, protocol, ports, tls, private) {
        Ok(rule) => Remedy::Rule(AnyRule::Name(rule)),
        Err(invalid) => Remedy::Other(invalid.to_string()),
    }
}

/// A rule for a flow's address alone.
fn by_address(line: &DenialLine) -> Remedy {
    let protocol = match class(line) {
        Class::Tcp => RuleProtocol::Tcp,
        Class::Udp => RuleProtocol::Udp,
        Class::Icmp => RuleProtocol::Icmp,
        // Nothing less allows a protocol that rules have no name for.
        Class::Other => RuleProtocol::Any,
    };
    let has_port = line.dport != 0 && matches!(protocol, RuleProtocol::Tcp | RuleProtocol::Udp);
    let ports = if has_port { vec![PortRange::one(line.dport)] } else { vec![] };
    match Rule::new(Cidr::host(line.dst), protocol, ports) {
        Ok(rule) => Remedy::Rule(AnyRule::Network(rule)),
        Err(invalid) => Remedy::Other(invalid.to_string()),
    }
}

#[cfg(test)]
mod tests;
