use std::net::IpAddr;

use opencode_egress_common::{
    abi::{NameRuleId, TrieKey},
    decide::Rules as _,
    flow::{Class, Flow},
    names::{NamedFlow, by_lease, covers},
};
use proptest::prelude::*;

use crate::policy::{
    AnyRule, Policy, Rule, RuleProtocol,
    compile::{
        compile,
        tests::strategies::{flows, policies, rules},
    },
    lease::{LeaseRule, Leased, LeasedRule},
};

/// Rules that can be leases, with times that are often the same.
fn leases() -> impl Strategy<Value = Vec<LeasedRule>> {
    let rule =
        rules().prop_filter_map("a lease is not for ICMP", |rule| AnyRule::Network(rule).try_into().ok());
    let lease = (rule, 1..5_u64).prop_map(|(rule, until): (LeaseRule, u64)| LeasedRule { rule, until });
    prop::collection::vec(lease, 0..12).prop_map(|mut leases| {
        // One lease for each rule.
        let mut known = std::collections::HashSet::new();
        leases.retain(|lease| known.insert(lease.rule.to_string()));
        leases
    })
}

fn network(rule: &LeaseRule) -> &Rule {
    match rule.rule() {
        AnyRule::Network(rule) => rule,
        AnyRule::Name(rule) => panic!("{rule} is for a name"),
    }
}

fn has_class_and_port(rule: &Rule, flow: &Flow) -> bool {
    let has_class = match flow.class() {
        Class::Tcp => rule.protocol() != RuleProtocol::Udp,
        Class::Udp => rule.protocol() != RuleProtocol::Tcp,
        Class::Icmp | Class::Other => false,
    };
    has_class && (rule.ports().is_empty() || rule.ports().iter().any(|range| range.contains(flow.port)))
}

/// Until when a flow may begin, lease by lease.
fn until(leases: &[LeasedRule], flow: &Flow) -> Option<u64> {
    let hits = leases.iter().filter(|lease| {
        let rule = network(&lease.rule);
        rule.cidr().net().contains(&IpAddr::from(flow.address)) && has_class_and_port(rule, flow)
    });
    hits.map(|lease| lease.until).max()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn leases_let_pass_what_their_rules_say_until_their_time(
        policy in policies(), leases in leases(), ended in leases(), flows in prop::collection::vec(flows(), 32), now in 0..5_u64,
    ) {
        let without = compile(&policy).expect("it fits").rules();
        let ended: Vec<_> = ended.into_iter().map(|lease| lease.rule).collect();
        let leased = Leased { rules: leases.clone(), ended: ended.clone(), audit: None };
        let any = !leases.is_empty() || !ended.is_empty();
        let compiled = compile(&policy.leased(leased)).expect("it fits");
        prop_assert_eq!(compiled.header.leased, u32::from(any));
        let keys: std::collections::HashSet<_> = compiled.entries.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!(keys.len(), compiled.entries.len(), "a key comes twice");
        let rules = compiled.rules();
        for flow in &flows {
            // What the policy file says is as it was.
            prop_assert_eq!(
                opencode_egress_common::decide::decide(&rules, flow),
                opencode_egress_common::decide::decide(&without, flow)
            );
            let Some(named) = NamedFlow::of(flow) else { continue };
            let lease = by_lease(&rules, &named, now);
            prop_assert_eq!(lease.is_some(), until(&leases, flow).is_some_and(|until| until > now), "{:?}", flow);
            // It is one by which the flow may go on, too.
            let by = lease.map(|id| leases.iter().find(|lease| lease.rule.id() == id).expect("a lease"));
            prop_assert!(by.is_none_or(|by| Some(by.until) == until(&leases, flow)));
            for rule in leases.iter().map(|lease| &lease.rule).chain(&ended) {
                let expected = has_class_and_port(network(rule), flow);
                prop_assert_eq!(covers(&rules, &TrieKey::name_rule(rule.id()), &named), expected, "{} {:?}", rule, flow);
            }
        }
        prop_assert_eq!(rules.entry(&TrieKey::name_rule(NameRuleId::of_lease(0))), None);
    }
}

#[test]
fn a_lease_of_a_name_is_a_rule_until_its_time() {
    let lease = |text: &str, until| LeasedRule { rule: text.parse().expect("a rule"), until };
    let mut policy = Policy::default();
    policy.allow("api.example.org".parse().expect("a rule"));
    let leased = Leased {
        rules: vec![lease("api.example.org", 5), lease("*.example.net:22", 7)],
        ended: vec![
            "old.example.org:80".parse().expect("a rule"),
            "*.example.net:22".parse().expect("a rule"),
        ],
        audit: None,
    };
    let compiled = compile(&policy.leased(leased)).expect("it fits");
    let names: Vec<_> = compiled.names.iter().map(|name| (name.rule.to_string(), name.until)).collect();
    // What the file lists has no end.
    assert_eq!(names, [("api.example.org".to_owned(), None), ("*.example.net:22".to_owned(), Some(7))]);
    let of_rules =
        compiled.entries.iter().filter(|(key, _)| key.space == TrieKey::name_rule(NameRuleId(0)).space);
    assert_eq!(of_rules.count(), 3);
}

#[test]
fn audit_by_a_lease_has_an_end_in_the_kernel() {
    let leased = Leased { audit: Some(9), ..Leased::default() };
    let header = compile(&Policy::default().leased(leased)).expect("it fits").header;
    assert_eq!((header.mode, header.audit_until, header.leased), (1, 9, 0));
}

/// The most leases there can be, each over the others, with as many ports as each can have.
#[test]
fn the_most_leases_are_compiled_at_once() {
    let ports = |first: u16| (0..64).map(|at| (first + 900 * at).to_string()).collect::<Vec<_>>().join(",");
    let rules = (0..256_u16).map(|index| LeasedRule {
        rule: format!("{}:{}", net(index), ports(1 + index)).parse().expect("a rule"),
        until: 1000 + u64::from(index),
    });
    let leased = Leased { rules: rules.collect(), ..Leased::default() };
    let begin = std::time::Instant::now();
    let compiled = compile(&Policy::default().leased(leased)).expect("it fits");
    let took = begin.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{} entries took {took:?}", compiled.entries.len());
}

/// Networks of which 31 of 32 cover one another.
fn net(index: u16) -> String {
    let len = u8::try_from(1 + index % 31).expect("a length");
    let base = u32::from(index / 31) << 23;
    ipnet::Ipv4Net::new_assert(base.into(), len).trunc().to_string()
}
