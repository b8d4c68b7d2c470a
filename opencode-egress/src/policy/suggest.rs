//! The fewest rules that would have let pass what was denied.
//!
//! What was asked for by name becomes a rule for the name. Of the rest, for each protocol and port, the addresses are joined
//! into the tightest prefixes that are no wider than allowed and touch no deny rule: a prefix that may not be is halved.
//! Then the ports of one network and protocol become one rule.

mod names;
mod suggestion;

use std::collections::{BTreeMap, BTreeSet};

use opencode_egress_common::{
    decide::{Verdict, decide},
    flow::{Class, Flow},
    reason::DropReason,
};
pub use suggestion::{DeniedDestination, DeniedName, SuggestedRule, Suggestion, Widest};

use crate::policy::{
    AnyRule, Cidr, Policy, PortRange, Rule, RuleProtocol,
    compile::{CompileError, Prefix, compile},
    suggest::names::WantedNames,
};

/// The reasons for which the rules deny a destination. Only what an instance sends is judged by the rules, so
/// these tell it from what it binds to and from what comes in.
const BY_RULES: [DropReason; 4] = [
    DropReason::NotAllowed,
    DropReason::DenyRule,
    DropReason::ProtocolNotAllowed,
    DropReason::PortNotAllowed,
];

/// What a rule must speak of to allow a flow, besides the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Requirement {
    /// Every protocol and port: nothing less allows a protocol that rules have no name for.
    Everything,
    Icmp,
    Tcp(u16),
    Udp(u16),
}

impl Requirement {
    /// `None`: nothing is ever at port 0, and no rule can be written for it alone.
    fn of(flow: &Flow) -> Option<Self> {
        match (flow.class(), flow.port) {
            (Class::Tcp | Class::Udp, 0) => None,
            (Class::Tcp, port) => Some(Self::Tcp(port)),
            (Class::Udp, port) => Some(Self::Udp(port)),
            (Class::Icmp, _) => Some(Self::Icmp),
            (Class::Other, _) => Some(Self::Everything),
        }
    }

    fn protocol(self) -> RuleProtocol {
        match self {
            Self::Everything => RuleProtocol::Any,
            Self::Icmp => RuleProtocol::Icmp,
            Self::Tcp(_) => RuleProtocol::Tcp,
            Self::Udp(_) => RuleProtocol::Udp,
        }
    }

    fn port(self) -> Option<u16> {
        match self {
            Self::Everything | Self::Icmp => None,
            Self::Tcp(port) | Self::Udp(port) => Some(port),
        }
    }
}

/// Suggests what to add to `policy` so that it allows what was denied.
///
/// # Errors
///
/// When the policy cannot be compiled.
pub fn suggest(
    policy: &Policy,
    denied: &[DeniedDestination],
    names: &[DeniedName],
    widest: Widest,
) -> Result<Suggestion, CompileError> {
    let rules = compile(policy)?.rules();
    let mut suggestion = Suggestion::default();
    let mut wanted: BTreeMap<Requirement, Vec<(Flow, u64)>> = BTreeMap::new();
    let mut wanted_names = WantedNames::default();
    for DeniedDestination { destination, reason, attempts, name } in denied {
        if reason == DropReason::BindNotListed.name() {
            let at = (destination.address, destination.port);
            match policy.listen.iter().any(|listen| (listen.address, listen.port) == at) {
                true => suggestion.allowed_by_now += 1,
                false => suggestion.binds.push((*destination, *attempts)),
            }
            continue;
        }
        if let (true, Some(name)) = (reason == DropReason::TlsNameNotAllowed.name(), name) {
            wanted_names.add_server(name, destination.port, *attempts);
            continue;
        }
        if !BY_RULES.iter().any(|by_rules| by_rules.name() == reason) {
            *suggestion.beyond_rules.entry(reason.clone()).or_default() += attempts;
            continue;
        }
        let flow = destination.flow();
        // Its own server takes no rule.
        match (decide(&rules, &flow).settle(|| true), Requirement::of(&flow)) {
            (Verdict::Allow, _) => suggestion.allowed_by_now += 1,
            (_, None) => {}
            (Verdict::Deny(DropReason::DenyRule), _) => suggestion.by_deny_rule.push(*destination),
            (Verdict::Deny(_), Some(requirement)) => match name {
                Some(name) if matches!(requirement, Requirement::Tcp(_) | Requirement::Udp(_)) => {
                    wanted_names.add_flow(name, &flow, *attempts);
                }
                _ => wanted.entry(requirement).or_default().push((flow, *attempts)),
            },
        }
    }
    names.iter().for_each(|denied| wanted_names.add_question(denied));
    let mut networks: BTreeMap<(Prefix, RuleProtocol), (BTreeSet<u16>, u64)> = BTreeMap::new();
    // Networks that are open to everything come first, so that no narrower rule is made below them.
    let mut open: Vec<(Prefix, u64)> = vec![];
    for (requirement, flows) in wanted {
        let mut hosts: BTreeMap<Prefix, u64> = BTreeMap::new();
        for (flow, attempts) in &flows {
            let host = Prefix::of(Cidr::host(flow.address.into()).net());
            match open.iter_mut().find(|(prefix, _)| prefix.covers(&host)) {
                Some((_, total)) => *total += attempts,
                None => *hosts.entry(host).or_default() += attempts,
            }
        }
        let deny: Vec<_> = policy
            .deny
            .iter()
            .filter(|rule| {
                requirement == Requirement::Everything
                    || flows.first().is_some_and(|(flow, _)| rule.speaks_of(flow))
            })
            .map(|rule| Prefix::of(rule.cidr().net()))
            .collect();
        let hosts: Vec<_> = hosts.into_iter().collect();
        let (v4, v6) = hosts.split_at(hosts.partition_point(|(host, _)| !host.v6));
        let mut joined = vec![];
        join(v4, widest.v4, &deny, &mut joined);
        join(v6, widest.v6, &deny, &mut joined);
        if requirement == Requirement::Everything {
            open = joined;
            continue;
        }
        for (prefix, attempts) in joined {
            let (ports, total) = networks.entry((prefix, requirement.protocol())).or_default();
            ports.extend(requirement.port());
            *total += attempts;
        }
    }
    networks.extend(
        open.into_iter().map(|(prefix, attempts)| ((prefix, RuleProtocol::Any), (BTreeSet::new(), attempts))),
    );
    suggestion.rules = networks
        .into_iter()
        .map(|((prefix, protocol), (ports, attempts))| SuggestedRule {
            rule: AnyRule::Network(
                Rule::new(prefix.net().into(), protocol, PortRange::runs(ports)).expect("ICMP needs no port"),
            ),
            attempts,
        })
        .collect();
    wanted_names.suggest(policy, widest.wildcards, &mut suggestion);
    Ok(suggestion)
}

/// The fewest and tightest prefixes that hold these hosts of one family, which ascend, with the sum of their
/// attempts. Wider ones than `widest`, and such as touch a network of `deny`, are halved.
fn join(hosts: &[(Prefix, u64)], widest: u8, deny: &[Prefix], joined: &mut Vec<(Prefix, u64)>) {
    let (Some((first, _)), Some((last, _))) = (hosts.first(), hosts.last()) else { return };
    let tightest = first.common(last);
    let touches = |network: &Prefix| network.covers(&tightest) || tightest.covers(network);
    // A single host is not denied, whatever rule for another protocol it has.
    if hosts.len() == 1 || tightest.len >= widest && !deny.iter().any(touches) {
        joined.push((tightest, hosts.iter().map(|(_, attempts)| attempts).sum()));
        return;
    }
    let upper_half = 1 << (127 - tightest.len);
    let (lower, upper) = hosts.split_at(hosts.partition_point(|(host, _)| host.bits & upper_half == 0));
    join(lower, widest, deny, joined);
    join(upper, widest, deny, joined);
}

#[cfg(test)]
mod tests;
