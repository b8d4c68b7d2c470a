use super::*;
use crate::policy::{Mode, Policy, compile::tests::rule};

fn lease_rule(text: &str) -> LeaseRule {
    text.parse().expect("a rule")
}

#[test]
fn times_are_numbers_with_units() {
    let seconds = |text: &str| text.parse::<LeaseTime>().map(LeaseTime::seconds).ok();
    assert_eq!(seconds("30m"), Some(1800));
    assert_eq!(seconds("1h30m5s"), Some(5405));
    assert_eq!(seconds("1d"), Some(86_400));
    assert_eq!(seconds("24h"), Some(86_400));
    for bad in [
        "",
        "30",
        "m",
        "-1m",
        "+5m",
        "1.5h",
        "30 m",
        "1m1h",
        "5m5m",
        "0s",
        "0h0m",
        "24h1s",
        "2d",
        "1w",
        "99999999999999999999d",
        "18446744073709551615h",
        "٣m",
    ] {
        assert_eq!(seconds(bad), None, "{bad}");
    }
}

#[test]
fn a_reason_is_a_line_that_can_be_read() {
    let reason = |text: &str| text.parse::<Reason>().is_ok();
    assert!(reason("ticket 4711: das Lager für Bücher"));
    for bad in
        ["", "  ", "two\nlines", "a\rb", "\u{1b}[2Jgone", "nul\0", "txt\u{202e}exe", &"x".repeat(10_000)]
    {
        assert!(!reason(bad), "{bad:?}");
    }
    // What comes over the socket is held to the same.
    assert!(serde_json::from_str::<Reason>(r#""two\nlines""#).is_err());
    assert!(serde_json::from_str::<LeaseTime>("86401").is_err());
    assert!(serde_json::from_str::<LeaseRule>(r#""192.0.2.0/24/icmp""#).is_err());
}

#[test]
fn what_deny_rules_cover_wholly_is_known() {
    let deny = ["10.0.0.0/8", "192.0.2.0/24:1-99/tcp", "192.0.2.0/24:100-200/tcp", "198.51.100.0/24/udp"];
    let deny = deny.map(rule);
    let covered = |text: &str| lease_rule(text).is_denied_by(&deny);
    assert!(covered("10.1.0.0/16") && covered("10.0.0.0/8:443/tcp") && covered("192.0.2.1/32:50-150/tcp"));
    for open in [
        "10.0.0.0/7",
        "192.0.2.1/32:50-150",
        "192.0.2.1/32:200,201/tcp",
        "198.51.100.1/32",
        "api.example.org",
    ] {
        assert!(!covered(open), "{open}");
    }
    let part =
        |text: &str| lease_rule(text).denied_in_part(&deny).map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(part("0.0.0.0/0:443/tcp"), ["10.0.0.0/8"]);
    assert_eq!(part("198.51.100.0/25"), ["198.51.100.0/24/udp"]);
    assert_eq!(part("203.0.113.0/24"), [""; 0]);
}

#[test]
fn a_lease_is_for_what_sockets_remember() {
    let refused = |text: &str| text.parse::<LeaseRule>().expect_err("no lease").0;
    assert!(refused("192.0.2.0/24/icmp").contains("TCP and UDP"));
    let ports: Vec<_> = (1..=65).map(|port| (2 * port).to_string()).collect();
    assert!(refused(&format!("192.0.2.0/24:{}", ports.join(","))).contains("64 ranges"));
    for groups in
        ["239.1.2.3/32:5000/udp", "224.0.0.0/4", "224.0.0.0/3/udp", "[ff02::fb/128]:5353/udp", "ff00::/8"]
    {
        let said = refused(groups);
        assert!(
            said.contains("for multicast groups") && said.contains("the policy file"),
            "{groups}: {said}"
        );
    }
    for more in ["0.0.0.0/0", "128.0.0.0/1", "240.0.0.0/4", "fe00::/7", "::/0"] {
        lease_rule(more);
    }
}

#[test]
fn audit_mode_by_a_lease_ends_with_it() {
    let audit = Leased { audit: Some(7), ..Leased::default() };
    let policy = Policy::default().leased(audit.clone());
    assert_eq!((policy.mode, policy.leased.audit), (Mode::Audit, Some(7)));
    assert_eq!(policy.mode_of_file(), Mode::Enforce);
    assert_eq!(policy.leased(Leased::default()), Policy::default());
    let for_good = Policy { mode: Mode::Audit, ..Policy::default() };
    let leased = for_good.clone().leased(audit);
    assert_eq!((leased.mode, leased.leased.audit), (Mode::Audit, None));
    assert_eq!(leased.mode_of_file(), Mode::Audit);
    assert_eq!(leased.leased(Leased::default()), for_good);
}

#[test]
fn what_may_have_begun_by_something_that_lasts_is_known() {
    let leased = |text: &str| LeasedRule { rule: lease_rule(text), until: 7 };
    let network = Policy { allow: vec![rule("10.0.0.0/8")], ..Policy::default() };
    assert!(!network.may_allow_by_name_or_lease());
    let mut name = network.clone();
    name.allow("api.example.org".parse().expect("a rule"));
    assert!(name.may_allow_by_name_or_lease());
    for text in ["192.0.2.0/24", "api.example.org"] {
        let lasts = Leased { rules: vec![leased(text)], ..Leased::default() };
        assert!(network.clone().leased(lasts).may_allow_by_name_or_lease(), "{text}");
        let ended = Leased { ended: vec![lease_rule(text)], ..Leased::default() };
        assert!(network.clone().leased(ended).may_allow_by_name_or_lease(), "{text}");
    }
}

#[test]
fn the_same_rule_is_the_same_lease() {
    let id = |text: &str| lease_rule(text).id();
    assert_eq!(id("10.0.0.0/8:443,80/tcp"), id("10.0.0.0/8:443,80/tcp"));
    assert_ne!(id("10.0.0.0/8:443/tcp"), id("10.0.0.0/8:80/tcp"));
    let AnyRule::Name(name) = lease_rule("api.example.org").rule().clone() else { panic!("a name") };
    assert_eq!(id("api.example.org"), name.id());
}

#[test]
fn leases_are_written_as_documented() {
    let lease = Lease {
        kind: LeaseKind::Rule(lease_rule("github.com:22,443")),
        hard: true,
        reason: Some("ticket 4711".parse().expect("a reason")),
        by: Grantor { uid: 0, login_uid: Some(1000), sudo_user: None },
        from: 1_000_000,
        deadline: 200,
    };
    let text = serde_json::to_string(&LeaseStatus::of(&lease, 140, 1_000_040)).expect("JSON");
    assert_eq!(
        text,
        r#"{"grants":{"rule":"github.com:22,443"},"hard":true,"reason":"ticket 4711","by":{"uid":0,"login_uid":1000,"sudo_user":null},"from":1000000,"deadline":200,"until":1000100,"seconds":60}"#
    );
    let audit: LeaseKind = serde_json::from_str("\"audit\"").expect("a kind");
    assert_eq!(audit, LeaseKind::Audit);
}
