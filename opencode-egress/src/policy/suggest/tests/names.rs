//! Rules for the names that were asked for.

use super::*;

/// A name that was asked for, and what was tried at an address of it.
type Asked = (DeniedName, Vec<DeniedDestination>);

fn asked_at(name: &str, ports: &[u16], attempts: u64) -> Asked {
    let tried = |port: &u16| DeniedDestination {
        name: Some(name.to_owned()),
        attempts: 0,
        ..denied(&destination(&format!("192.0.2.1:{port}")).flow(), DropReason::NotAllowed)
    };
    (
        DeniedName { name: name.to_owned(), attempts, tried: Tried::default() },
        ports.iter().map(tried).collect(),
    )
}

#[track_caller]
fn check_names(
    policy: &Policy,
    denied: &[DeniedDestination],
    asked: &[Asked],
    wildcards: bool,
    expect: &[(&str, u64)],
) -> Suggestion {
    let (names, tried): (Vec<_>, Vec<_>) = asked.iter().cloned().unzip();
    let denied = [denied, &tried.concat()].concat();
    let suggestion = suggest(policy, &denied, &names, Widest { wildcards, ..WIDEST }).expect("it fits");
    let rules = suggestion.rules.iter();
    let shown: Vec<_> =
        rules.map(|suggested| (suggested.rule.to_string(), suggested.denials.attempts)).collect();
    let shown: Vec<_> = shown.iter().map(|(rule, attempts)| (rule.as_str(), *attempts)).collect();
    assert_eq!(shown, expect);
    suggestion
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// With the rules, the policy lists every name that was asked for, with every port that was tried; and without one of
    /// them it does not.
    #[test]
    fn what_was_asked_for_is_listed_then(
        listed in prop::collection::vec(name_rules(), 0..3),
        asked in prop::collection::btree_map("(a|b|a\\.c)\\.example\\.(org|net)|example\\.org", prop::collection::vec(1..8_u16, 0..3), 0..8),
        wildcards: bool,
    ) {
        let policy = Policy { names: listed, ..Policy::default() };
        let (names, denied): (Vec<_>, Vec<_>) = asked.iter().map(|(name, ports)| asked_at(name, ports, 1)).unzip();
        let widest = Widest { wildcards, ..WIDEST };
        let Suggestion { rules, no_names, .. } = suggest(&policy, &denied.concat(), &names, widest).expect("few combinations");
        prop_assert!(no_names.is_empty());
        let missing = |policy: &Policy| {
            asked.iter().any(|(name, ports)| {
                let name = name.parse().expect("a name");
                let ports = if ports.is_empty() { &[443][..] } else { ports };
                ports.iter().any(|port| {
                    let flow = Flow { address: IpAddr::from([0, 0, 0, 0]).into(), protocol: Protocol::TCP, port: *port };
                    !policy.names.iter().any(|rule| rule.pattern().matches(&name) && rule.speaks_of(&flow))
                })
            })
        };
        prop_assert!(!missing(&with(&policy, &rules)), "{:?}", rules);
        for left_out in &rules {
            let fewer = with(&policy, rules.iter().filter(|suggested| *suggested != left_out));
            prop_assert!(missing(&fewer), "{}", left_out.rule);
        }
    }
}

#[test]
fn names_that_were_asked_for_become_rules() {
    let policy = &Policy::default();
    let names = [
        asked_at("api.example.org", &[], 3),
        asked_at("github.com", &[443, 22], 2),
        asked_at("a.example.net", &[8080], 1),
    ];
    let expect = [("a.example.net:8080", 1), ("api.example.org", 3), ("github.com:22,443", 2)];
    check_names(policy, &[], &names, false, &expect);
    check_names(policy, &[], &names, true, &expect);
    let listed = ["api.example.org", "github.com"].map(|text| text.parse().expect("a rule"));
    let mut policy = Policy::default();
    listed.into_iter().for_each(|rule| policy.allow(rule));
    let suggestion =
        check_names(&policy, &[], &names, false, &[("a.example.net:8080", 1), ("github.com:22", 2)]);
    assert_eq!(suggestion.allowed_by_now, 1);
}

#[test]
fn several_names_become_a_wildcard_only_when_that_is_asked_for() {
    let policy = &Policy::default();
    let names = [
        asked_at("a.example.org", &[], 1),
        asked_at("b.c.example.org", &[], 2),
        asked_at("example.org", &[], 4),
        asked_at("d.example.org", &[22], 8),
        asked_at("one.example.net", &[], 16),
        asked_at("a.github.io", &[], 1),
        asked_at("b.github.io", &[], 1),
    ];
    let exact = [
        ("a.example.org", 1),
        ("a.github.io", 1),
        ("b.c.example.org", 2),
        ("b.github.io", 1),
        ("d.example.org:22", 8),
        ("example.org", 4),
        ("one.example.net", 16),
    ];
    check_names(policy, &[], &names, false, &exact);
    // Each name that somebody registered stays one's own, and so does a port that only one was asked at.
    let wide = [
        ("a.github.io", 1),
        ("b.github.io", 1),
        ("d.example.org:22", 8),
        ("example.org", 4),
        ("one.example.net", 16),
        ("*.example.org", 3),
    ];
    check_names(policy, &[], &names, true, &wide);
}

#[test]
fn an_address_that_a_name_brought_becomes_a_rule_for_the_name() {
    let by_name = |text: &str, name: &str, reason| {
        let name = Some(name.to_owned());
        DeniedDestination { name, ..denied(&destination(text).flow(), reason) }
    };
    let policy = Policy { deny: vec![rule("203.0.113.0/24")], ..Policy::default() };
    let denied = [
        by_name("192.0.2.9:8443", "api.example.org", DropReason::NotAllowed),
        by_name("192.0.2.10:8443", "api.example.org", DropReason::NotAllowed),
        by_name("192.0.2.9:443/udp", "api.example.org", DropReason::NotAllowed),
        by_name("192.0.2.9", "api.example.org", DropReason::NotAllowed),
        by_name("203.0.113.9:443", "api.example.org", DropReason::DenyRule),
    ];
    let expect = [("192.0.2.9/32/icmp", 1), ("api.example.org:8443", 2), ("api.example.org:443/udp", 1)];
    let suggestion = check_names(&policy, &denied, &[], false, &expect);
    assert_eq!(suggestion.by_deny_rule, [destination("203.0.113.9:443")]);
    // That the name was asked for adds no port, where some were tried.
    let names = [asked_at("api.example.org", &[], 5)];
    let expect = [("192.0.2.9/32/icmp", 1), ("api.example.org:8443", 7), ("api.example.org:443/udp", 1)];
    check_names(&policy, &denied, &names, false, &expect);
}

/// What an agent asks for may be anything.
#[test]
fn what_is_no_name_for_a_rule_is_left_out() {
    let names = ["wpad", "a b.example.org", "192.0.2.1", "*.com", "localhost", "\u{1b}[2K.example.org"];
    let asked = names.map(|name| asked_at(name, &[], 1));
    let suggestion = check_names(&Policy::default(), &[], &asked, true, &[]);
    assert_eq!(suggestion.no_names, names.map(str::to_owned).into());
}

/// One rule of the name may bring addresses inside, and does not speak of what was tried there.
#[test]
fn an_address_inside_takes_a_rule_that_may_bring_it() {
    let by_name = |text: &str| DeniedDestination {
        name: Some("git.corp.example".to_owned()),
        ..denied(&destination(text).flow(), DropReason::PortNotAllowed)
    };
    let mut policy = Policy::default();
    for rule in ["git.corp.example/private", "git.corp.example:22"] {
        policy.allow(rule.parse().expect("a rule"));
    }
    let tried = [by_name("10.0.0.7:22"), by_name("192.0.2.9:8022"), by_name("10.0.0.7:443")];
    let expect = [("git.corp.example:8022", 1), ("git.corp.example:22/private", 1)];
    check_names(&policy, &tried, &[], false, &expect);
}

/// What a resolver asks for with `search corp.test lan.test`, before (`ndots:5`) or after the name itself.
#[test]
fn what_a_search_domain_made_of_a_name_that_was_meant_is_left_out() {
    let search = ["corp.test", "lan.test"].map(|domain| domain.parse().expect("a name"));
    let check = |asked: &[&str], denied: &[DeniedDestination], expect: &str| {
        let mut policy = Policy::default();
        ["api.example.org", "*.example.net"]
            .iter()
            .for_each(|rule| policy.allow(rule.parse().expect("a rule")));
        let names: Vec<_> = asked.iter().map(|name| asked_at(name, &[], 1).0).collect();
        let widest = Widest { wildcards: true, ..WIDEST };
        let suggestion = super::super::suggest(&policy, &BTreeSet::new(), denied, &names, &search, widest);
        let Suggestion { rules, searched, .. } = suggestion.expect("it fits");
        let rules: Vec<_> = rules.iter().map(|suggested| suggested.rule.to_string()).collect();
        let searched: Vec<_> = searched.iter().map(ToString::to_string).collect();
        assert_eq!(format!("{}; {}", rules.join(" "), searched.join(" ")), expect, "{asked:?}");
    };
    // Of names that the policy lists, which were not refused.
    let asked = ["api.example.org.corp.test", "API.example.org.LAN.test", "a.example.net.corp.test"];
    let left_out = "a.example.net.corp.test api.example.org.corp.test api.example.org.lan.test";
    check(&asked, &[], &format!("; {left_out}"));
    // Of one that was refused, too; and of what a search domain made of it.
    let asked = ["one.provider.test", "one.provider.test.corp.test", "one.provider.test.corp.test.lan.test"];
    let left_out = "one.provider.test.corp.test one.provider.test.corp.test.lan.test";
    check(&asked, &[], &format!("one.provider.test; {left_out}"));
    // Who wants `git` or `db.prod` means these; and this one is of another zone.
    let asked = ["git", "git.corp.test", "db.prod.corp.test", "api.example.org.other.test"];
    check(&asked, &[], "api.example.org.other.test *.corp.test; ");
    // It has an address.
    let address = destination("192.0.2.1:80").flow();
    let name = Some("api.example.org.corp.test".to_owned());
    let brought = DeniedDestination { name, ..denied(&address, DropReason::NotAllowed) };
    check(&["api.example.org.corp.test"], &[brought], "api.example.org.corp.test:80; ");
}
