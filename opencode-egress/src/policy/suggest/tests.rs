use opencode_egress_common::flow::Protocol;
use proptest::prelude::*;

use super::*;
use crate::policy::{
    Loopback,
    compile::tests::{
        names::name_rules,
        rule,
        strategies::{flows, policies},
    },
    destination::Destination,
};

mod apart;
mod names;

const WIDEST: Widest = Widest { v4: 24, v6: 64, wildcards: false };

/// For an instance that is the only one.
fn suggest(
    policy: &Policy,
    denied: &[DeniedDestination],
    names: &[DeniedName],
    widest: Widest,
) -> Result<Suggestion, CompileError> {
    super::suggest(policy, &BTreeSet::new(), denied, names, &[], widest)
}

fn denied(flow: &Flow, reason: DropReason) -> DeniedDestination {
    DeniedDestination {
        destination: Destination::of(flow).expect("`Requirement::of` and the strategies leave port 0 out"),
        reason: reason.name().to_owned(),
        attempts: 1,
        name: None,
        tried: Tried::default(),
    }
}

/// The flows that a policy denies and a rule could allow, as they would be told.
fn denials(policy: &Policy, flows: &[Flow]) -> Vec<(Flow, DeniedDestination)> {
    let rules = compile(policy).expect("it fits").rules();
    let mut denials = vec![];
    for flow in flows {
        match decide(&rules, flow).settle(|| true) {
            Verdict::Deny(reason) if reason != DropReason::DenyRule && Requirement::of(flow).is_some() => {
                denials.push((*flow, denied(flow, reason)));
            }
            _ => {}
        }
    }
    denials
}

fn suggested(policy: &Policy, denials: &[(Flow, DeniedDestination)], widest: Widest) -> Vec<SuggestedRule> {
    let denied: Vec<_> = denials.iter().map(|(_, denied)| denied.clone()).collect();
    let suggestion = suggest(policy, &denied, &[], widest).expect("it fits");
    assert_eq!((suggestion.by_deny_rule.len(), suggestion.beyond_rules.len()), (0, 0));
    suggestion.rules
}

fn with<'a>(policy: &Policy, rules: impl IntoIterator<Item = &'a SuggestedRule>) -> Policy {
    let mut policy = policy.clone();
    rules.into_iter().for_each(|suggested| policy.allow(suggested.rule.clone()));
    policy
}

/// The first of the denied flows that a policy still denies.
fn still_denied<'a>(policy: &Policy, denials: &'a [(Flow, DeniedDestination)]) -> Option<&'a Flow> {
    let rules = compile(policy).expect("it fits").rules();
    denials.iter().map(|(flow, _)| flow).find(|flow| decide(&rules, flow).settle(|| true) != Verdict::Allow)
}

/// Every flow of the narrow space that the strategies make, by protocol and port.
fn spoken_of(rule: &Rule, address: IpAddr) -> BTreeSet<(u8, u16)> {
    let ports = (0..20).map(|port| (6, port)).chain((0..20).map(|port| (17, port)));
    let all = ports.chain([(1, 0), (58, 0), (132, 0)]);
    let flow = |protocol, port| Destination { address, port, protocol }.flow();
    all.filter(|(protocol, port)| rule.speaks_of(&flow(*protocol, *port))).collect()
}

/// The same name may have been asked for, and tried on another port.
#[test]
fn servers_that_hellos_named_get_rules_with_tls() {
    let policy: Policy = Policy {
        names: vec![match "listed.example.org".parse().expect("a rule") {
            AnyRule::Name(rule) => rule,
            AnyRule::Network(_) => unreachable!(),
        }],
        ..Policy::default()
    };
    let hello = |name: Option<&str>, port: u16, attempts| DeniedDestination {
        destination: format!("192.0.2.1:{port}").parse().expect("a destination"),
        reason: DropReason::TlsNameNotAllowed.name().to_owned(),
        attempts,
        name: name.map(str::to_owned),
        tried: Tried::default(),
    };
    let flow = DeniedDestination {
        reason: DropReason::NotAllowed.name().to_owned(),
        ..hello(Some("cdn.example.org"), 22, 3)
    };
    let denied = [
        hello(Some("cdn.example.org"), 443, 4),
        hello(Some("cdn.example.org"), 8443, 1),
        hello(Some("listed.example.org"), 443, 9),
        hello(Some("192.0.2.9"), 443, 1),
        hello(None, 443, 2),
        flow,
    ];
    let suggestion = suggest(&policy, &denied, &[], WIDEST).expect("it fits");
    let rules: Vec<_> =
        suggestion.rules.iter().map(|rule| (rule.rule.to_string(), rule.denials.attempts)).collect();
    let expected = [("cdn.example.org:22".to_owned(), 3), ("cdn.example.org:443,8443/tls".to_owned(), 5)];
    assert_eq!(rules, expected);
    assert_eq!(suggestion.allowed_by_now, 1);
    assert_eq!(suggestion.no_names, ["192.0.2.9".to_owned()].into());
    assert_eq!(suggestion.beyond_rules.get(DropReason::TlsNameNotAllowed.name()), Some(&2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_was_denied_is_allowed_then(
        policy in policies(), flows in prop::collection::vec(flows(), 24), v4 in 8..=32_u8, v6 in 32..=128_u8,
    ) {
        let denials = denials(&policy, &flows);
        let rules = suggested(&policy, &denials, Widest { v4, v6, wildcards: false });
        prop_assert_eq!(still_denied(&with(&policy, &rules), &denials), None, "{:?}", rules);
        let attempts: u64 = rules.iter().map(|suggested| suggested.denials.attempts).sum();
        prop_assert_eq!(attempts, denials.len() as u64);
    }

    #[test]
    fn no_network_is_too_wide_or_touches_a_deny_rule(
        policy in policies(), flows in prop::collection::vec(flows(), 24), v4 in 8..=32_u8, v6 in 32..=128_u8,
    ) {
        for SuggestedRule { rule, .. } in suggested(&policy, &denials(&policy, &flows), Widest { v4, v6, wildcards: false }) {
            let AnyRule::Network(rule) = rule else { panic!("{rule}") };
            let net = rule.cidr().net();
            prop_assert!(net.prefix_len() >= if net.addr().is_ipv4() { v4 } else { v6 }, "{rule}");
            for deny in &policy.deny {
                let other = deny.cidr().net();
                if !net.contains(&other) && !other.contains(&net) {
                    continue;
                }
                let both = [&rule, deny].map(|rule| spoken_of(rule, net.addr()));
                // A lone host may need a rule for every protocol beside a deny rule for one of them.
                let lone = net.prefix_len() == net.max_prefix_len() && rule.protocol() == RuleProtocol::Any;
                prop_assert!(both[0].is_disjoint(&both[1]) || lone, "{rule} and deny {deny}");
            }
        }
    }

    #[test]
    fn no_rule_is_idle(policy in policies(), flows in prop::collection::vec(flows(), 24)) {
        let denials = denials(&policy, &flows);
        let rules = suggested(&policy, &denials, WIDEST);
        for left_out in &rules {
            let fewer = with(&policy, rules.iter().filter(|suggested| *suggested != left_out));
            prop_assert!(still_denied(&fewer, &denials).is_some(), "{}", left_out.rule);
        }
    }
}

#[track_caller]
fn check(allow: &[&str], deny: &[&str], denied_to: &[&str], expect: &[&str]) {
    let policy = Policy {
        allow: allow.iter().map(|text| rule(text)).collect(),
        deny: deny.iter().map(|text| rule(text)).collect(),
        ..Policy::default()
    };
    let denied: Vec<_> =
        denied_to.iter().map(|text| denied(&destination(text).flow(), DropReason::NotAllowed)).collect();
    let rules = suggest(&policy, &denied, &[], WIDEST).expect("it fits").rules;
    let shown: Vec<_> = rules.iter().map(|suggested| suggested.rule.to_string()).collect();
    assert_eq!(shown, expect);
}

#[test]
fn hosts_of_a_network_are_one_tight_prefix() {
    check(&[], &[], &["192.0.2.9:443"], &["192.0.2.9/32:443/tcp"]);
    check(&[], &[], &["192.0.2.9:443", "192.0.2.10:443"], &["192.0.2.8/30:443/tcp"]);
    check(&[], &[], &["192.0.2.1:443", "192.0.2.200:443"], &["192.0.2.0/24:443/tcp"]);
    let far = ["192.0.2.1:443", "192.0.3.1:443"];
    check(&[], &[], &far, &["192.0.2.1/32:443/tcp", "192.0.3.1/32:443/tcp"]);
    check(&[], &[], &["[2001:db8::1]:53/udp", "[2001:db8::2]:53/udp"], &["[2001:db8::/126]:53/udp"]);
}

#[test]
fn ports_and_protocols_are_those_that_were_tried() {
    let ports = ["192.0.2.9:80", "192.0.2.9:443", "192.0.2.9:81", "192.0.2.9:82"];
    check(&[], &[], &ports, &["192.0.2.9/32:80-82,443/tcp"]);
    check(&[], &[], &["192.0.2.9:53", "192.0.2.9:53/udp"], &["192.0.2.9/32:53/tcp", "192.0.2.9/32:53/udp"]);
    // A port that only one of two hosts was asked for opens only that one.
    let uneven = ["192.0.2.8:443", "192.0.2.9:443", "192.0.2.9:80"];
    check(&[], &[], &uneven, &["192.0.2.8/31:443/tcp", "192.0.2.9/32:80/tcp"]);
    check(&[], &[], &["192.0.2.9", "2001:db8::9"], &["192.0.2.9/32/icmp", "2001:db8::9/128/icmp"]);
}

/// Rules have no name for SCTP, so only one for everything allows it, and that one takes the others along.
#[test]
fn a_protocol_without_a_name_takes_a_rule_for_everything() {
    check(
        &[],
        &[],
        &["192.0.2.9/132", "192.0.2.9:443", "192.0.2.1:80"],
        &["192.0.2.1/32:80/tcp", "192.0.2.9/32"],
    );
}

#[test]
fn deny_rules_stay_outside() {
    let hosts = ["192.0.2.1:443", "192.0.2.200:443"];
    check(&[], &["192.0.2.64/26"], &hosts, &["192.0.2.1/32:443/tcp", "192.0.2.200/32:443/tcp"]);
    // Of another port or protocol it does not matter.
    check(&[], &["192.0.2.64/26:80/tcp", "192.0.2.64/26/udp"], &hosts, &["192.0.2.0/24:443/tcp"]);
    let policy = Policy { deny: vec![rule("192.0.2.64/26")], ..Policy::default() };
    let destination = destination("192.0.2.65:443");
    let denied = [denied(&destination.flow(), DropReason::DenyRule)];
    let suggestion = suggest(&policy, &denied, &[], WIDEST).expect("it fits");
    assert_eq!(suggestion, Suggestion { by_deny_rule: vec![destination], ..Suggestion::default() });
}

#[test]
fn what_is_allowed_by_now_and_what_no_rule_allows_is_left_out() {
    check(&["192.0.2.0/24:443/tcp"], &[], &["192.0.2.9:443", "192.0.2.9:80"], &["192.0.2.9/32:80/tcp"]);
    let widest = WIDEST;
    let headers = denied(&destination("192.0.2.9:80").flow(), DropReason::Fragment);
    let suggestion = suggest(&Policy::default(), &[headers], &[], widest).expect("it fits");
    let beyond_rules = [("fragment".to_owned(), 1)].into();
    assert_eq!(suggestion, Suggestion { beyond_rules, ..Suggestion::default() });
}

fn destination(text: &str) -> Destination {
    text.parse().expect("a destination")
}

/// The port of a refused bind is no destination, also where a connection to the same place was refused.
#[test]
fn a_bind_takes_no_rule() {
    let widest = WIDEST;
    let (one, all) = (destination("127.0.0.1:19876"), destination("0.0.0.0:5173"));
    let binds = [one, all].map(|at| DeniedDestination { attempts: 3, ..bind(at) });
    let policy = Policy { loopback: Loopback::Listed, ..Policy::default() };
    let suggestion = suggest(&policy, &binds, &[], widest).expect("it fits");
    assert_eq!(suggestion, Suggestion { binds: vec![(one, 3), (all, 3)], ..Suggestion::default() });
    // For itself, where no other instance listens.
    let own = Policy::default();
    let suggestion = super::suggest(&own, &[all.port].into(), &binds, &[], &[], widest).expect("it fits");
    let binds = vec![(all, 3)];
    assert_eq!(suggestion, Suggestion { binds, allowed_by_now: 1, ..Suggestion::default() });
    let both = [bind(one), denied(&one.flow(), DropReason::NotAllowed)];
    let suggestion = suggest(&policy, &both, &[], widest).expect("it fits");
    assert_eq!(suggestion.binds, [(one, 1)]);
    assert_eq!(
        suggestion.rules,
        [SuggestedRule {
            rule: AnyRule::Network(rule("127.0.0.1/32:19876/tcp")),
            denials: Denials::of(1, &Tried::default())
        }]
    );
    // Listed by now.
    let listen = vec![crate::policy::Listen { address: one.address, port: one.port, open: false }];
    let suggestion = suggest(&Policy { listen, ..policy }, &both, &[], widest).expect("it fits");
    assert_eq!(suggestion, Suggestion { allowed_by_now: 2, ..Suggestion::default() });
}

fn bind(at: Destination) -> DeniedDestination {
    DeniedDestination {
        destination: at,
        reason: DropReason::BindNotListed.name().to_owned(),
        attempts: 1,
        name: None,
        tried: Tried::default(),
    }
}
