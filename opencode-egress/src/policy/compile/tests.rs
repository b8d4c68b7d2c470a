mod leases;
pub(crate) mod names;
mod reference;
pub(crate) mod strategies;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use opencode_egress_common::{
    decide::{Rules as _, Verdict, decide},
    flow::{Family, Flow, Protocol},
    names::NamedFlow,
    reason::DropReason,
};
use proptest::prelude::*;

use super::*;
use crate::policy::{
    Cidr, Leased,
    compile::tests::{
        names::name_rules,
        reference::{judge, passes_by_name},
        strategies::{flows, policies},
    },
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn compiled_policies_decide_like_the_rules(policy in policies(), flows in prop::collection::vec(flows(), 32)) {
        let rules = compile(&policy).expect("it fits").rules();
        for flow in flows {
            prop_assert_eq!(decide(&rules, &flow), judge(&policy, &flow), "{:?}", flow);
        }
    }

    /// Under its grant, which rules with the same ports share, and under its own number.
    #[test]
    fn what_a_name_rule_lets_pass_is_in_two_entries(
        names in prop::collection::vec(name_rules(), 0..12), flows in prop::collection::vec(flows(), 32),
    ) {
        let policy = Policy { names: names.clone(), ..Policy::default() };
        let Ok(compiled) = compile(&policy) else {
            let different: BTreeSet<_> = names.iter().map(|rule| (rule.protocol(), rule.ports(), rule.tls())).collect();
            prop_assert!(different.len() > MAX_NAME_GRANTS as usize);
            return Ok(());
        };
        prop_assert_eq!(compiled.names.iter().map(|name| &name.rule).collect::<BTreeSet<_>>(), names.iter().collect());
        let rules = compiled.rules();
        for CompiledName { rule, id, grant, .. } in &compiled.names {
            prop_assert_eq!((*id, id.opens_tls()), (rule.id(), rule.tls()));
            prop_assert!(*grant < compiled.header.name_grants);
            // The first grant that allows a flow leaves it most freedom.
            prop_assert!(compiled.names.iter().all(|other| other.grant <= *grant || rule.tls() <= other.rule.tls()));
            for flow in &flows {
                for key in [TrieKey::name_grant(*grant), TrieKey::name_rule(*id)] {
                    let entry = rules.entry(&key).expect("an entry");
                    prop_assert_eq!(entry.is_tls(), rule.tls());
                    let passes = match entry.grant(flow.class()) {
                        _ if NamedFlow::of(flow).is_none() => false,
                        Grant::ALLOW => true,
                        Grant::NONE => false,
                        set => rules.entry(&TrieKey::port(set, flow.port)).is_some_and(|port| port.grants[0] == Grant::ALLOW),
                    };
                    prop_assert_eq!(passes, passes_by_name(rule, flow), "{} {:?}", rule, flow);
                    prop_assert_eq!(passes, rule.speaks_of(flow), "{} {:?}", rule, flow);
                }
            }
        }
        prop_assert_eq!(rules.entry(&TrieKey::name_grant(compiled.header.name_grants)), None);
    }

    #[test]
    fn no_key_comes_twice(policy in policies(), names in prop::collection::vec(name_rules(), 0..6)) {
        let policy = Policy { names, ..policy };
        let entries = compile(&policy).expect("it fits").entries;
        let keys: std::collections::HashSet<_> = entries.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!(keys.len(), entries.len());
    }

    #[test]
    fn merged_ports_have_all_that_is_said_of_each_port(
        ranges in prop::collection::vec(((any::<u16>(), prop_oneof![0..8_u16, any::<u16>()]), 0..3_usize), 0..12),
    ) {
        let each = [Said::ALLOW, Said::DENY, Said::OWN];
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|((first, more), at)| ((first, first.saturating_add(more)), each[at]))
            .collect();
        let merged = ports::merge(ranges.iter().copied());
        for pair in merged.windows(2) {
            let [(one, said), (two, said_next)] = [pair[0], pair[1]];
            prop_assert!(one.1 < two.0 && (one.1 + 1 < two.0 || said != said_next), "{:?}", merged);
        }
        for port in 0..=u16::MAX {
            let has = |((first, last), _): &&(PortSpan, Said)| *first <= port && port <= *last;
            let expect = ranges.iter().filter(has).map(|(_, said)| *said).fold(BTreeSet::new(), |mut all, said| {
                all.insert(said);
                all
            });
            let expect = match [Said::OWN, Said::DENY, Said::ALLOW].map(|one| expect.contains(&one)) {
                [true, true, _] => Grant::OWN_OVER_DENY,
                [true, false, false] => Grant::OWN,
                [false, true, _] => Grant::DENY,
                [_, false, true] => Grant::ALLOW,
                [false, false, false] => Grant::NONE,
            };
            let found = merged.iter().find(has).map_or(Grant::NONE, |(_, said)| said.grant());
            prop_assert_eq!(found, expect, "{}", port);
        }
    }

    #[test]
    fn prefixes_make_up_exactly_the_range(first: u16, last: u16) {
        let (first, last) = (first.min(last), first.max(last));
        let mut next = u32::from(first);
        for (port, len) in prefixes_of((first, last)) {
            prop_assert_eq!(u32::from(port), next);
            next += 1 << (16 - len);
        }
        prop_assert_eq!(next, u32::from(last) + 1);
    }
}

/// Port lists are as long as the file has them: the ports of 4,000 services, or every other one there is. Also as rules of
/// one port each.
#[test]
fn many_separate_ports_are_compiled_at_once() {
    let separate = |count: u16| (0..count).map(|index| PortRange::one(2 * index + 1)).collect::<Vec<_>>();
    let network: Cidr = "10.0.0.0/8".parse().expect("a network");
    let rule = |ports| Rule::new(network, RuleProtocol::Tcp, ports).expect("a rule");
    let of_one_port = |ports: Vec<_>| ports.into_iter().map(|port| rule(vec![port])).collect();
    for (name, allow) in [
        ("4,000 ports", vec![rule(separate(4_000))]),
        ("every other port", vec![rule(separate(32_768))]),
        ("every port", vec![rule((1..=u16::MAX).map(PortRange::one).collect())]),
        ("4,000 rules", of_one_port(separate(4_000))),
    ] {
        let policy = Policy { allow, ..Policy::default() };
        let begin = Instant::now();
        compile(&policy).expect("it fits");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(1), "{name} took {took:?}");
    }
}

pub(crate) fn rule(text: &str) -> Rule {
    text.parse().expect("a rule")
}

fn verdict(allow: &[&str], deny: &[&str], flow: (&str, Protocol, u16)) -> Verdict {
    let policy = Policy {
        allow: allow.iter().map(|text| rule(text)).collect(),
        deny: deny.iter().map(|text| rule(text)).collect(),
        ..Policy::default()
    };
    let address = flow.0.parse::<IpAddr>().expect("an address").into();
    let rules = compile(&policy).expect("it fits").rules();
    decide(&rules, &Flow { address, protocol: flow.1, port: flow.2 }).settle(|| false)
}

/// The reason says which step of the rules ended it.
#[test]
fn denials_have_their_reasons() {
    use DropReason as R;
    let allow = &["10.0.0.0/8:443/tcp", "10.1.0.0/16/udp", "192.0.2.0/24/icmp"];
    let deny = &["10.9.0.0/16", "10.8.0.0/16:440-450/tcp"];
    let check = |dst, protocol, port, expect| {
        assert_eq!(verdict(allow, deny, (dst, protocol, port)), expect, "{dst} {protocol:?} {port}");
    };
    check("10.2.3.4", Protocol::TCP, 443, Verdict::Allow);
    check("10.2.3.4", Protocol::TCP, 80, Verdict::Deny(R::PortNotAllowed));
    check("10.2.3.4", Protocol::UDP, 443, Verdict::Deny(R::ProtocolNotAllowed));
    // The ports of the covering prefix still count under the longer one.
    check("10.1.3.4", Protocol::TCP, 443, Verdict::Allow);
    check("10.1.3.4", Protocol::UDP, 53, Verdict::Allow);
    check("10.9.3.4", Protocol::TCP, 443, Verdict::Deny(R::DenyRule));
    check("10.8.3.4", Protocol::TCP, 443, Verdict::Deny(R::DenyRule));
    check("10.8.3.4", Protocol::TCP, 80, Verdict::Deny(R::PortNotAllowed));
    check("192.0.2.1", Protocol::ICMP, 0, Verdict::Allow);
    check("203.0.113.1", Protocol::TCP, 443, Verdict::Deny(R::NotAllowed));
}

#[test]
fn all_of_ipv6_is_not_ipv4() {
    let tcp = |dst| verdict(&["::/0"], &[], (dst, Protocol::TCP, 443));
    assert_eq!(tcp("2001:db8::1"), Verdict::Allow);
    assert_eq!(tcp("192.0.2.1"), Verdict::Deny(DropReason::NotAllowed));
    assert_eq!(tcp("::ffff:192.0.2.1"), Verdict::Deny(DropReason::NotAllowed));
}

#[test]
fn entries_that_add_nothing_are_left_out() {
    let policy = Policy {
        allow: vec![rule("10.0.0.0/8"), rule("10.1.0.0/16"), rule("10.1.2.0/24:443/tcp")],
        ..Policy::default()
    };
    assert_eq!(compile(&policy).expect("it fits").entries.len(), 1);
}

#[test]
fn sockets_that_could_never_speak_are_known() {
    let flags = |texts: &[&str]| {
        let allow = texts.iter().map(|text| rule(text)).collect();
        let header = compile(&Policy { allow, ..Policy::default() }).expect("it fits").header;
        (header.icmpv6_can_speak, header.other_can_speak)
    };
    assert_eq!(flags(&["10.0.0.0/8/tcp", "[2001:db8::/32]:443/tcp", "10.0.0.0/8/icmp"]), (0, 0));
    assert_eq!(flags(&["2001:db8::/32/icmp"]), (1, 0));
    assert_eq!(flags(&["10.0.0.0/8"]), (0, 1));
    assert_eq!(flags(&["2001:db8::/32"]), (1, 1));
}

#[test]
fn name_rules_share_their_grants_and_have_few() {
    let compiled = |texts: &[String]| {
        let mut policy = Policy::default();
        texts.iter().for_each(|text| policy.allow(text.parse().expect("a rule")));
        compile(&policy)
    };
    let texts = [
        "a.example.org",
        "b.example.org",
        "c.example.org:22,443",
        "d.example.org:443,22",
        "a.example.org/udp",
    ];
    let of_few = compiled(&texts.map(str::to_owned)).expect("it fits");
    let grants: Vec<_> = of_few.names.iter().map(|name| name.grant).collect();
    assert_eq!((grants, of_few.header.name_grants), (vec![2, 2, 0, 0, 1], 3));
    let ports: Vec<_> = (1..=9).map(|port| format!("a.example.org:{port}")).collect();
    assert!(compiled(&ports[..8]).is_ok());
    assert_eq!(compiled(&ports), Err(CompileError::NameGrants));
    assert_eq!(compiled(&[]).expect("it fits").header.name_grants, 0);
}

#[test]
fn a_prefix_covers_its_own_family_only() {
    let all4 = Prefix::of("0.0.0.0/0".parse().expect("a network"));
    let all6 = Prefix::of("::/0".parse().expect("a network"));
    let host = Prefix::of("192.0.2.1/32".parse().expect("a network"));
    assert!(all4.covers(&host) && !all6.covers(&host) && !host.covers(&all4));
    assert_eq!(Address::from(IpAddr::from([192, 0, 2, 1])).family(), Family::V4);
}

#[test]
fn the_limit_of_sockets_is_in_the_header() {
    let compiled = compile(&Policy { max_sockets: 64, ..Policy::default() }).expect("it fits");
    assert_eq!(compiled.header.max_sockets, 64);
}

#[test]
fn the_error_of_denied_calls_is_in_the_header_where_calls_are_denied() {
    let of =
        |errno, mode| compile(&Policy { errno, mode, ..Policy::default() }).expect("it fits").header.errno;
    assert_eq!(of(Errno::Eperm, Mode::Enforce), 0);
    assert_eq!(of(Errno::Enetunreach, Mode::Enforce), libc::ENETUNREACH.unsigned_abs());
    assert_eq!(of(Errno::Enetunreach, Mode::Audit), 0);
    // Of a lease: the kernel goes back to the policy file's mode by itself, when its time is over.
    let learning = Policy { errno: Errno::Enetunreach, ..Policy::default() }
        .leased(Leased { audit: Some(9), ..Leased::default() });
    let header = compile(&learning).expect("it fits").header;
    assert_eq!((header.mode, header.errno), (Mode::Audit as u32, libc::ENETUNREACH.unsigned_abs()));
}
