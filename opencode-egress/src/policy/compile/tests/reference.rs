//! What a policy says of a flow, rule by rule, without tries and merging: what compiled policies and the kernel are
//! compared with.
//!
//! The hook tests and the fuzz targets include this file too, so it names the crate's modules by `crate`.

use std::net::{IpAddr, Ipv6Addr};

use opencode_egress_common::{
    decide::{Decision, Verdict},
    flow::{Class, Flow},
    reason::DropReason,
};

use crate::policy::{Listen, NameRule, Policy, Rule, RuleProtocol};

/// The verdict of the rules, and of the instance's own listeners, on a flow.
pub(crate) fn judge(policy: &Policy, flow: &Flow) -> Decision {
    let address = IpAddr::from(flow.address);
    let tcp = flow.class() == Class::Tcp;
    let own: Vec<_> = policy.listen.iter().filter(|listen| is_own(listen, address)).collect();
    let listener = tcp && own.iter().any(|listen| listen.port == flow.port);
    let hits = |rules: &[Rule]| {
        let mut covering = rules.iter().filter(|rule| rule.cidr().net().contains(&address));
        covering.any(|rule| speaks_of(rule, flow.class()) && has_port(rule, flow.port))
    };
    match (hits(&policy.deny), hits(&policy.allow), listener) {
        (true, _, true) => return Decision::OwnOnly(DropReason::DenyRule),
        (true, _, false) => return Decision::Settled(Verdict::Deny(DropReason::DenyRule)),
        (false, true, _) => return Decision::Settled(Verdict::Allow),
        (false, false, true) => return Decision::OwnOnly(DropReason::PortNotAllowed),
        (false, false, false) => {}
    }
    let rules = policy.allow.iter().chain(&policy.deny);
    let covering: Vec<_> = rules.filter(|rule| rule.cidr().net().contains(&address)).collect();
    Decision::Settled(Verdict::Deny(if covering.is_empty() && own.is_empty() {
        DropReason::NotAllowed
    } else if covering.iter().any(|rule| speaks_of(rule, flow.class())) || tcp && !own.is_empty() {
        DropReason::PortNotAllowed
    } else {
        DropReason::ProtocolNotAllowed
    }))
}

/// Whether a rule for a name lets a flow pass to an address that the name has.
pub(crate) fn passes_by_name(rule: &NameRule, flow: &Flow) -> bool {
    let protocol = match flow.class() {
        Class::Tcp => matches!(rule.protocol(), RuleProtocol::Tcp | RuleProtocol::Any),
        Class::Udp => matches!(rule.protocol(), RuleProtocol::Udp | RuleProtocol::Any),
        Class::Icmp | Class::Other => false,
    };
    let mut ranges = rule.ports().iter();
    protocol
        && (rule.ports().is_empty()
            || ranges.any(|range| range.first() <= flow.port && flow.port <= range.last()))
}

/// Whether a connection to this address can be one to the instance's own listener.
fn is_own(listen: &Listen, address: IpAddr) -> bool {
    let own6 = address == Ipv6Addr::LOCALHOST;
    let own4 = matches!(address, IpAddr::V4(v4) if v4.is_loopback());
    match listen.address {
        IpAddr::V4(at) if at.is_unspecified() => own4,
        IpAddr::V6(at) if at.is_unspecified() => own4 || own6,
        at => at == address && (own4 || own6),
    }
}

fn speaks_of(rule: &Rule, class: Class) -> bool {
    match (rule.protocol(), class) {
        (RuleProtocol::Tcp, Class::Tcp) | (RuleProtocol::Udp, Class::Udp) => true,
        (RuleProtocol::Icmp, Class::Icmp) => true,
        (RuleProtocol::Any, Class::Tcp | Class::Udp) => true,
        (RuleProtocol::Any, _) => rule.ports().is_empty(),
        _ => false,
    }
}

fn has_port(rule: &Rule, port: u16) -> bool {
    rule.ports().is_empty() || rule.ports().iter().any(|range| range.first() <= port && port <= range.last())
}
