//! The fewest rules that would have let pass what was denied.
//!
//! What was asked for by name becomes a rule for the name, and a preset where that fits. Of the rest, for each protocol and port, the addresses are joined
//! into the tightest prefixes that are no wider than allowed and touch no deny rule: a prefix that may not be is halved.
//! Then the ports of one network and protocol become one rule.

mod names;
mod presets;
mod suggestion;
mod tried;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use opencode_egress_common::{
    decide::{Rules, Verdict, decide},
    flow::{Class, Flow},
    reason::DropReason,
};
pub use suggestion::{
    Denials, DeniedDestination, DeniedName, SuggestedPreset, SuggestedRule, Suggestion, Widest,
};
pub use tried::{Program, Tried};

use crate::policy::{
    AnyRule, Cidr, Policy, PortRange, Rule, RuleProtocol,
    compile::{CompileError, Prefix, compile},
    may_bind,
    name::DnsName,
    suggest::{
        names::{WantedNames, without_searched},
        suggestion::count_to,
    },
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

/// Suggests what to add to `policy` so that it allows what was denied: presets and rules, and apart from them rules for what was tried once,
/// by programs of a shell. `others` are the ports that other instances list, `search` the search domains of those who asked for names.
///
/// # Errors
///
/// When the policy cannot be compiled.
pub fn suggest(
    policy: &Policy,
    others: &BTreeSet<u16>,
    denied: &[DeniedDestination],
    names: &[DeniedName],
    search: &[DnsName],
    widest: Widest,
) -> Result<Suggestion, CompileError> {
    let (names, searched) = without_searched(policy, search, denied, names);
    // All that is known of a name counts: who asked for it may be known of the flow that came after alone.
    let mut by_name: BTreeMap<&str, Tried> = BTreeMap::new();
    let named = denied.iter().filter_map(|denied| Some((denied.name.as_deref()?, &denied.tried)));
    for (name, tried) in named.chain(names.iter().map(|denied| (denied.name.as_str(), &denied.tried))) {
        by_name.entry(name).or_default().join(tried);
    }
    let is_once = |name: Option<&str>, tried: &Tried| {
        name.and_then(|name| by_name.get(name)).unwrap_or(tried).is_once_of_a_shell()
    };
    let (binds, denied): (Vec<_>, Vec<_>) =
        denied.iter().cloned().partition(|denied| denied.reason == DropReason::BindNotListed.name());
    let (once, denied): (Vec<_>, Vec<_>) = denied.into_iter().partition(|denied| {
        let by_rules = BY_RULES.iter().chain([&DropReason::TlsNameNotAllowed]);
        by_rules.into_iter().any(|reason| reason.name() == denied.reason)
            && is_once(denied.name.as_deref(), &denied.tried)
    });
    let (names_once, names): (Vec<_>, Vec<_>) =
        names.iter().cloned().partition(|denied| is_once(Some(&denied.name), &denied.tried));
    let compiled = compile(policy)?;
    let rules = compiled.rules();
    let mut suggestion = rules_for(policy, &rules, &mut [], &denied, &names, widest);
    for DeniedDestination { destination, attempts, .. } in binds {
        match may_bind(&compiled.header, destination, others) {
            true => suggestion.allowed_by_now += 1,
            false => suggestion.binds.push((destination, attempts)),
        }
    }
    let apart = rules_for(policy, &rules, &mut suggestion.rules, &once, &names_once, widest);
    suggestion.set_apart(apart);
    suggestion.searched = searched;
    presets::stand_for(policy, &mut suggestion);
    Ok(suggestion)
}

/// The rules that `policy` lacks to allow all of this, of which binds take none; `rules` are what it compiles to. `suggested` are rules that are
/// suggested already: what one of them would let pass is added to its denials.
pub fn rules_for(
    policy: &Policy,
    rules: &impl Rules,
    suggested: &mut [SuggestedRule],
    denied: &[DeniedDestination],
    names: &[DeniedName],
    widest: Widest,
) -> Suggestion {
    let mut suggestion = Suggestion::default();
    let mut wanted: BTreeMap<Requirement, Vec<(Flow, Denials)>> = BTreeMap::new();
    let mut wanted_names = WantedNames::default();
    for DeniedDestination { destination, reason, attempts, name, tried } in denied {
        let denials = Denials::of(*attempts, tried);
        if let (true, Some(name)) = (reason == DropReason::TlsNameNotAllowed.name(), name) {
            wanted_names.add_server(name, destination.port, &denials);
            continue;
        }
        if !BY_RULES.iter().any(|by_rules| by_rules.name() == reason) {
            *suggestion.beyond_rules.entry(reason.clone()).or_default() += attempts;
            continue;
        }
        let flow = destination.flow();
        // Its own server takes no rule.
        match (decide(rules, &flow).settle(|| true), Requirement::of(&flow)) {
            (Verdict::Allow, _) => suggestion.allowed_by_now += 1,
            (_, None) => {}
            (Verdict::Deny(DropReason::DenyRule), _) => suggestion.by_deny_rule.push(*destination),
            (Verdict::Deny(_), Some(_)) if count_to(suggested, &denials, |rule| lets_pass(rule, &flow)) => {}
            (Verdict::Deny(_), Some(requirement)) => match name {
                Some(name) if matches!(requirement, Requirement::Tcp(_) | Requirement::Udp(_)) => {
                    wanted_names.add_flow(name, &flow, &denials);
                }
                _ => wanted.entry(requirement).or_default().push((flow, denials)),
            },
        }
    }
    names.iter().for_each(|denied| wanted_names.add_question(denied));
    let mut networks: BTreeMap<(Prefix, RuleProtocol), (BTreeSet<u16>, Denials)> = BTreeMap::new();
    // Networks that are open to everything come first, so that no narrower rule is made below them.
    let mut open: Vec<(Prefix, Denials)> = vec![];
    for (requirement, flows) in wanted {
        let mut hosts: BTreeMap<Prefix, Denials> = BTreeMap::new();
        for (flow, denials) in &flows {
            let host = Prefix::of(Cidr::host(flow.address.into()).net());
            match open.iter_mut().find(|(prefix, _)| prefix.covers(&host)) {
                Some((_, total)) => total.join(denials),
                None => hosts.entry(host).or_default().join(denials),
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
        for (prefix, denials) in joined {
            let (ports, total) = networks.entry((prefix, requirement.protocol())).or_default();
            ports.extend(requirement.port());
            total.join(&denials);
        }
    }
    networks.extend(
        open.into_iter().map(|(prefix, denials)| ((prefix, RuleProtocol::Any), (BTreeSet::new(), denials))),
    );
    suggestion.rules = networks
        .into_iter()
        .map(|((prefix, protocol), (ports, denials))| SuggestedRule {
            rule: AnyRule::Network(
                Rule::new(prefix.net().into(), protocol, PortRange::runs(ports)).expect("ICMP needs no port"),
            ),
            denials,
        })
        .collect();
    wanted_names.suggest(policy, suggested, widest.wildcards, &mut suggestion);
    suggestion
}

/// Whether a rule for a network would let a flow pass.
fn lets_pass(rule: &AnyRule, flow: &Flow) -> bool {
    match rule {
        AnyRule::Network(rule) => {
            rule.cidr().net().contains(&IpAddr::from(flow.address)) && rule.speaks_of(flow)
        }
        AnyRule::Name(_) => false,
    }
}

/// The fewest and tightest prefixes that hold these hosts of one family, which ascend, with the sum of their
/// attempts. Wider ones than `widest`, and such as touch a network of `deny`, are halved.
fn join(hosts: &[(Prefix, Denials)], widest: u8, deny: &[Prefix], joined: &mut Vec<(Prefix, Denials)>) {
    let (Some((first, _)), Some((last, _))) = (hosts.first(), hosts.last()) else { return };
    let tightest = first.common(last);
    let touches = |network: &Prefix| network.covers(&tightest) || tightest.covers(network);
    // A single host is not denied, whatever rule for another protocol it has.
    if hosts.len() == 1 || tightest.len >= widest && !deny.iter().any(touches) {
        let mut all = Denials::default();
        hosts.iter().for_each(|(_, denials)| all.join(denials));
        joined.push((tightest, all));
        return;
    }
    let upper_half = 1 << (127 - tightest.len);
    let (lower, upper) = hosts.split_at(hosts.partition_point(|(host, _)| host.bits & upper_half == 0));
    join(lower, widest, deny, joined);
    join(upper, widest, deny, joined);
}

#[cfg(test)]
mod tests;
