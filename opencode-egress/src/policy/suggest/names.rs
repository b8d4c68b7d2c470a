//! Rules for the names that were asked for.

use std::collections::{BTreeMap, BTreeSet};

use opencode_egress_common::flow::{Class, Flow, Protocol};

use crate::policy::{
    AnyRule, NameRule, Policy, PortRange, RuleProtocol,
    name::{DnsName, NamePattern},
    suggest::suggestion::{DeniedName, SuggestedRule, Suggestion},
};

/// What was tried by name.
#[derive(Default)]
pub(super) struct WantedNames(BTreeMap<String, Wanted>);

#[derive(Default)]
struct Wanted {
    /// How often, by protocol and port.
    flows: BTreeMap<(RuleProtocol, u16), u64>,
    /// How often a hello named it, by port.
    hellos: BTreeMap<u16, u64>,
    questions: u64,
}

impl WantedNames {
    /// A flow, of TCP or UDP, to an address that the name brought.
    pub(super) fn add_flow(&mut self, name: &str, flow: &Flow, attempts: u64) {
        let protocol = if flow.class() == Class::Udp { RuleProtocol::Udp } else { RuleProtocol::Tcp };
        let wanted = self.0.entry(name.to_owned()).or_default();
        *wanted.flows.entry((protocol, flow.port)).or_default() += attempts;
    }

    /// A hello that names the name, on a port of TCP.
    pub(super) fn add_server(&mut self, name: &str, port: u16, attempts: u64) {
        *self.0.entry(name.to_owned()).or_default().hellos.entry(port).or_default() += attempts;
    }

    pub(super) fn add_question(&mut self, DeniedName { name, attempts }: &DeniedName) {
        self.0.entry(name.clone()).or_default().questions += attempts;
    }

    /// Adds the rules that the policy lacks: for each name with the ports that were tried, 443 where none was.
    pub(super) fn suggest(self, policy: &Policy, wildcards: bool, suggestion: &mut Suggestion) {
        let mut wanted: BTreeMap<(RuleProtocol, u16, Tls), BTreeMap<DnsName, u64>> = BTreeMap::new();
        for (text, Wanted { mut flows, hellos, questions }) in self.0 {
            let Ok(NamePattern::Exact(name)) = text.parse() else {
                suggestion.no_names.insert(text);
                continue;
            };
            if flows.is_empty() && hellos.is_empty() {
                flows.insert((RuleProtocol::Tcp, 443), 0);
            }
            flows.retain(|(protocol, port), _| !is_allowed(policy, &name, *protocol, *port));
            let mut all: BTreeMap<(RuleProtocol, u16, Tls), u64> = BTreeMap::new();
            for (port, attempts) in hellos.into_iter().filter(|_| !is_listed_server(policy, &name)) {
                let flows = flows.remove(&(RuleProtocol::Tcp, port)).unwrap_or_default();
                all.insert((RuleProtocol::Tcp, port, Some(true)), attempts + flows);
            }
            all.extend(
                flows.into_iter().map(|((protocol, port), attempts)| ((protocol, port, None), attempts)),
            );
            match all.first_entry() {
                Some(mut first) => *first.get_mut() += questions,
                None => suggestion.allowed_by_now += 1,
            }
            for (to, attempts) in all {
                *wanted.entry(to).or_default().entry(name.clone()).or_default() += attempts;
            }
        }
        let mut rules: BTreeMap<(NamePattern, RuleProtocol, Tls), (BTreeSet<u16>, u64)> = BTreeMap::new();
        for ((protocol, port, tls), names) in wanted {
            let several = if wildcards { below_one(names.keys()) } else { BTreeSet::new() };
            for (name, attempts) in names {
                let pattern = match above(&name).filter(|above| several.contains(above)) {
                    Some(above) => NamePattern::Below(above),
                    None => NamePattern::Exact(name),
                };
                let (ports, total) = rules.entry((pattern, protocol, tls)).or_default();
                ports.insert(port);
                *total += attempts;
            }
        }
        suggestion.rules.extend(rules.into_iter().map(|((pattern, protocol, tls), (ports, attempts))| {
            let rule = NameRule::new(pattern, Some(protocol), PortRange::runs(ports), tls, false);
            SuggestedRule { rule: AnyRule::Name(rule.expect("it is no ICMP, and TLS is TCP")), attempts }
        }));
    }
}

/// What a rule says of TLS; nothing: what is usual.
type Tls = Option<bool>;

/// Whether a hello may name the server by now.
fn is_listed_server(policy: &Policy, name: &DnsName) -> bool {
    policy.names.iter().any(|rule| rule.tls() && rule.pattern().matches(name))
}

fn is_allowed(policy: &Policy, name: &DnsName, protocol: RuleProtocol, port: u16) -> bool {
    let protocol = if protocol == RuleProtocol::Udp { Protocol::UDP } else { Protocol::TCP };
    let flow = Flow { address: std::net::IpAddr::from([0, 0, 0, 0]).into(), protocol, port };
    policy.names.iter().any(|rule| rule.pattern().matches(name) && rule.speaks_of(&flow))
}

/// The name that somebody registered and that this one is below.
fn above(name: &DnsName) -> Option<DnsName> {
    name.registrable().filter(|registrable| registrable != name)
}

/// The registered names that several of these are below.
fn below_one<'a>(names: impl Iterator<Item = &'a DnsName>) -> BTreeSet<DnsName> {
    let (mut once, mut several) = (BTreeSet::new(), BTreeSet::new());
    for above in names.filter_map(above) {
        if !once.insert(above.clone()) {
            several.insert(above);
        }
    }
    several
}
