//! Rules for the names that were asked for.

use std::collections::{BTreeMap, BTreeSet};

use opencode_egress_common::flow::{Class, Flow, Protocol};

use crate::policy::{
    AnyRule, NameRule, Policy, PortRange, RuleProtocol,
    name::{DnsName, NamePattern},
    special::AddressKind,
    suggest::suggestion::{Denials, DeniedDestination, DeniedName, SuggestedRule, Suggestion, count_to},
};

/// Tells names that were meant from those that a search domain made of them: before or after a name with dots, a program's resolver asks
/// for it below each of these. Left out is what is below one, of a name that the policy lists or that was asked for itself, unless it brought an
/// address.
pub(super) fn without_searched(
    policy: &Policy,
    search: &[DnsName],
    denied: &[DeniedDestination],
    names: &[DeniedName],
) -> (Vec<DeniedName>, BTreeSet<DnsName>) {
    let parsed = |text: &str| text.parse::<DnsName>().ok();
    let brought: BTreeSet<_> = denied.iter().filter_map(|denied| parsed(denied.name.as_deref()?)).collect();
    let asked: BTreeSet<_> = names.iter().filter_map(|denied| parsed(&denied.name)).collect();
    let is_meant = |name: &DnsName| {
        asked.contains(name)
            || brought.contains(name)
            || policy.names.iter().any(|rule| rule.pattern().matches(name))
    };
    let is_made = |name: &DnsName| {
        let mut made_of = search.iter().filter_map(|domain| name.before(domain));
        // A name without a dot is nothing without a search domain.
        !brought.contains(name) && made_of.any(|of| of.as_str().contains('.') && is_meant(&of))
    };
    let (mut meant, mut searched) = (vec![], BTreeSet::new());
    for denied in names {
        match parsed(&denied.name).filter(is_made) {
            Some(name) => _ = searched.insert(name),
            None => meant.push(denied.clone()),
        }
    }
    (meant, searched)
}

/// What was tried by name.
#[derive(Default)]
pub(super) struct WantedNames(BTreeMap<String, Wanted>);

#[derive(Default)]
struct Wanted {
    /// How often, by protocol and port.
    flows: BTreeMap<(RuleProtocol, u16), (Denials, Private)>,
    /// How often a hello named it, by port.
    hellos: BTreeMap<u16, Denials>,
    questions: Denials,
}

impl WantedNames {
    /// A flow, of TCP or UDP, to an address that the name brought.
    pub(super) fn add_flow(&mut self, name: &str, flow: &Flow, denials: &Denials) {
        let protocol = if flow.class() == Class::Udp { RuleProtocol::Udp } else { RuleProtocol::Tcp };
        let wanted = self.0.entry(name.to_owned()).or_default();
        let (of_port, private) = wanted.flows.entry((protocol, flow.port)).or_default();
        of_port.join(denials);
        *private |= AddressKind::of(flow.address.into()) == AddressKind::Private;
    }

    /// A hello that names the name, on a port of TCP.
    pub(super) fn add_server(&mut self, name: &str, port: u16, denials: &Denials) {
        self.0.entry(name.to_owned()).or_default().hellos.entry(port).or_default().join(denials);
    }

    pub(super) fn add_question(&mut self, DeniedName { name, attempts, tried }: &DeniedName) {
        self.0.entry(name.clone()).or_default().questions.join(&Denials::of(*attempts, tried));
    }

    /// Adds the rules that the policy lacks, and those that are suggested already: for each name with the ports that were tried, 443 where
    /// none was.
    pub(super) fn suggest(
        self,
        policy: &Policy,
        suggested: &mut [SuggestedRule],
        wildcards: bool,
        suggestion: &mut Suggestion,
    ) {
        let mut wanted: BTreeMap<(RuleProtocol, u16, Tls, Private), BTreeMap<DnsName, Denials>> =
            BTreeMap::new();
        for (text, Wanted { mut flows, mut hellos, questions }) in self.0 {
            let Ok(NamePattern::Exact(name)) = text.parse() else {
                suggestion.no_names.insert(text);
                continue;
            };
            if flows.is_empty() && hellos.is_empty() {
                flows.insert((RuleProtocol::Tcp, 443), <(Denials, Private)>::default());
            }
            // Whether rules that are suggested already let some of it pass.
            let mut counted = false;
            let mut count = |denials: &Denials, lets_pass: &dyn Fn(&NameRule) -> bool| {
                let by_suggested = count_to_name(suggested, denials, lets_pass);
                counted |= by_suggested;
                by_suggested
            };
            flows.retain(|(protocol, port), (denials, private)| {
                !is_allowed(policy, &name, *protocol, *port, *private)
                    && !count(denials, &|rule| lets_pass(rule, &name, *protocol, *port, *private))
            });
            hellos.retain(|_, denials| {
                !is_listed_server(policy, &name) && !count(denials, &|rule| lists_server(rule, &name))
            });
            let mut all: BTreeMap<(RuleProtocol, u16, Tls, Private), Denials> = BTreeMap::new();
            for (port, mut denials) in hellos {
                // Where its address is, a hello does not say.
                let (of_flows, private) = flows.remove(&(RuleProtocol::Tcp, port)).unwrap_or_default();
                denials.join(&of_flows);
                all.insert((RuleProtocol::Tcp, port, Some(true), private), denials);
            }
            all.extend(
                flows
                    .into_iter()
                    .map(|((protocol, port), (denials, private))| ((protocol, port, None, private), denials)),
            );
            match all.first_entry() {
                Some(mut first) => first.get_mut().join(&questions),
                None if counted => {
                    count_to_name(suggested, &questions, |rule| rule.pattern().matches(&name));
                }
                None => suggestion.allowed_by_now += 1,
            }
            for (to, denials) in all {
                wanted.entry(to).or_default().entry(name.clone()).or_default().join(&denials);
            }
        }
        let mut rules: BTreeMap<(NamePattern, Kind), (BTreeSet<u16>, Denials)> = BTreeMap::new();
        for ((protocol, port, tls, private), names) in wanted {
            let several = if wildcards { below_one(names.keys()) } else { BTreeSet::new() };
            for (name, denials) in names {
                let pattern = match above(&name).filter(|above| several.contains(above)) {
                    Some(above) => NamePattern::Below(above),
                    None => NamePattern::Exact(name),
                };
                let (ports, total) = rules.entry((pattern, (protocol, tls, private))).or_default();
                ports.insert(port);
                total.join(&denials);
            }
        }
        for ((pattern, (protocol, tls, private)), (ports, denials)) in rules {
            let rule = NameRule::new(pattern, Some(protocol), PortRange::runs(ports), tls, private);
            let rule = AnyRule::Name(rule.expect("it is no ICMP, and TLS is TCP"));
            suggestion.rules.push(SuggestedRule { rule, denials });
        }
    }
}

/// Adds denials to those of the first rule for a name that would let them pass. `false`: none does.
fn count_to_name(
    rules: &mut [SuggestedRule],
    denials: &Denials,
    lets_pass: impl Fn(&NameRule) -> bool,
) -> bool {
    count_to(rules, denials, |rule| matches!(rule, AnyRule::Name(rule) if lets_pass(rule)))
}

/// What a rule says of TLS; nothing: what is usual.
type Tls = Option<bool>;

/// Whether an address was one inside, which not every rule for its name may bring.
type Private = bool;

/// What rules for a name differ in, beside their ports.
type Kind = (RuleProtocol, Tls, Private);

/// Whether a hello may name the server by now.
pub(super) fn is_listed_server(policy: &Policy, name: &DnsName) -> bool {
    policy.names.iter().any(|rule| lists_server(rule, name))
}

fn lists_server(rule: &NameRule, name: &DnsName) -> bool {
    rule.tls() && rule.pattern().matches(name)
}

/// Whether rules for names let flows by a name pass, to an address inside where it is `private`.
pub(super) fn is_allowed(
    policy: &Policy,
    name: &DnsName,
    protocol: RuleProtocol,
    port: u16,
    private: bool,
) -> bool {
    policy.names.iter().any(|rule| lets_pass(rule, name, protocol, port, private))
}

fn lets_pass(rule: &NameRule, name: &DnsName, protocol: RuleProtocol, port: u16, private: bool) -> bool {
    let protocol = if protocol == RuleProtocol::Udp { Protocol::UDP } else { Protocol::TCP };
    let flow = Flow { address: std::net::IpAddr::from([0, 0, 0, 0]).into(), protocol, port };
    rule.pattern().matches(name) && rule.speaks_of(&flow) && (rule.private() || !private)
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
