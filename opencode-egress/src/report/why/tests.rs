use super::*;
use crate::{
    policy::Rule,
    report::denial::{
        Asker, DenialLine, QuestionLine,
        tests::{decode, event},
    },
    report::view::tests::lease,
};

fn flow(time: u64, change: impl FnOnce(&mut DenialLine)) -> LoggedDenial {
    let mut line = DenialLine::of(&decode(&event()).expect("an event"), 0);
    change(&mut line);
    LoggedDenial { time, instance: "a".to_owned(), line: Line::Flow(line) }
}

fn question(time: u64, query: &str, qtype: &str, suppressed: u64) -> LoggedDenial {
    let line = QuestionLine {
        query: query.to_owned(),
        qtype: qtype.to_owned(),
        reason: "name-not-allowed".to_owned(),
        address: None,
        asker: Asker::default(),
        suppressed,
        audit: false,
    };
    LoggedDenial { time, instance: "a".to_owned(), line: Line::Question(line) }
}

fn policy() -> Policy {
    let mut policy = Policy::default();
    for rule in ["registry.npmjs.org", "api.example.org", "10.10.0.0/16"] {
        policy.allow(rule.parse().expect("a rule"));
    }
    policy.deny.push("10.10.9.0/24".parse().expect("a rule"));
    policy
}

fn why(policy: &Policy, lately: &[LoggedDenial]) -> Why {
    Why::of(&"a".parse().expect("a name"), policy, &[], lately.iter())
}

#[test]
fn what_is_the_same_is_told_once_with_how_often_and_when_last() {
    let lately = [
        question(100, "evil.example", "A", 0),
        question(100, "evil.example", "AAAA", 0),
        flow(150, |_| {}),
        question(200, "evil.example", "A", 7),
        flow(300, |line| line.dst = [10, 10, 9, 1].into()),
        flow(300, |line| line.reason = "deny-rule".to_owned()),
    ];
    let refused = why(&policy(), &lately).refused;
    let shown: Vec<_> = refused
        .iter()
        .map(|refused| {
            (&*refused.what, refused.times, refused.last, refused.ask.as_deref(), refused.instead.is_some())
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("203.0.113.9:443/tcp", 1, 300, None, true),
            ("10.10.9.1:443/tcp", 1, 300, Some("10.10.9.1/32:443/tcp"), false),
            ("evil.example", 10, 200, Some("evil.example:443"), false),
            ("203.0.113.9:443/tcp", 1, 150, Some("203.0.113.9/32:443/tcp"), false),
        ]
    );
}

#[test]
fn it_is_bounded_whatever_the_policy_and_the_denials() {
    let mut policy = policy();
    let rule: Rule = "192.0.2.0/24".parse().expect("a rule");
    policy.allow = vec![rule; 100_000];
    let long = "a".repeat(1020);
    let lately: Vec<_> = (0..256).map(|n| question(n, &format!("{n}.{long}"), "A", u64::MAX)).collect();
    let why = why(&policy, &lately);
    assert_eq!((why.networks.rules.len(), why.networks.more), (RULES, 100_000 - RULES));
    assert_eq!((why.refused.len(), why.more_refused), (REFUSED, 256 - REFUSED));
    let bytes = serde_json::to_string(&why).expect("JSON").len();
    assert!(bytes < 100_000, "{bytes}: it should fit into a socket's buffer");
}

#[test]
fn an_agent_reads_what_it_may_and_what_to_ask_for() {
    let text = why(&policy(), &[question(now(), "evil.example", "A", 2)]).to_string();
    for part in [
        "instance a: what is not listed is refused with EPERM; other names do not exist\n",
        "\n  api.example.org\n",
        "\n  10.10.0.0/16\n",
        "everything of preset npm\n",
        "\nbut never\n  10.10.9.0/24\n",
        "own servers on loopback: yes",
        "\n  evil.example name-not-allowed, 3 times, 0s ago: ask for `evil.example:443`\n",
        "tell who gave you the task which rule to ask for",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    let leased = Why::of(&"a".parse().expect("a name"), &Policy::default(), &[lease()], [].iter());
    let text = leased.to_string();
    assert!(text.contains("\n  192.0.2.0/24:443/tcp, for 27m20s more\n"), "{text}");
    assert!(!serde_json::to_string(&leased).expect("JSON").contains("uid"), "who granted it is not told");
    let quiet = why(&Policy::default(), &[]).to_string();
    assert!(quiet.contains("\n  nothing\n") && quiet.ends_with("nothing was refused lately"), "{quiet}");
    let audit = Policy { mode: Mode::Audit, ..policy() };
    assert!(why(&audit, &[]).to_string().contains("mode audit: nothing is refused"));
    let mut learns = lease();
    learns.lease.kind = LeaseKind::Audit;
    let learns = Why::of(&"a".parse().expect("a name"), &policy(), &[learns], [].iter()).to_string();
    assert!(learns.starts_with("instance a, mode audit for 27m20s more: nothing is refused"), "{learns}");
    for part in ["  audit mode", "but never", "10.10.9.0/24"] {
        assert!(!learns.contains(part), "`{part}` is in\n{learns}");
    }
}

#[test]
fn what_passed_in_audit_mode_was_not_refused() {
    let mut passed = [question(100, "evil.example", "A", 0), flow(100, |line| line.audit = true)];
    if let Line::Question(line) = &mut passed[0].line {
        line.audit = true;
    }
    assert_eq!(why(&policy(), &passed).refused, []);
    let lately = [&passed[..], &[question(90, "evil.example", "A", 0)]].concat();
    let refused = why(&policy(), &lately).refused;
    assert_eq!(refused.iter().map(|refused| (refused.times, refused.last)).collect::<Vec<_>>(), [(1, 90)]);
}

#[test]
fn audit_mode_that_the_file_has_does_not_end_with_a_lease() {
    let mut learns = lease();
    learns.lease.kind = LeaseKind::Audit;
    let of = |policy: &Policy| Why::of(&"a".parse().expect("a name"), policy, &[learns.clone()], [].iter());
    let for_good = of(&Policy { mode: Mode::Audit, ..policy() });
    assert_eq!((&*for_good.mode, for_good.audit_seconds), ("audit", None));
    let by_lease = crate::policy::lease::Leased { audit: Some(7), ..Default::default() };
    let for_a_time = of(&policy().leased(by_lease));
    assert_eq!((&*for_a_time.mode, for_a_time.audit_seconds), ("audit", Some(1640)));
}

#[test]
fn what_a_rule_lets_pass_by_now_is_not_asked_for() {
    let group = |line: &mut DenialLine| {
        (line.dst, line.dport, line.proto) = ([239, 1, 2, 3].into(), 0, "udp".to_owned());
    };
    let lately = [
        question(100, "evil.example", "A", 0),
        flow(150, |_| {}),
        flow(160, |line| line.proto = "icmp".to_owned()),
        flow(170, group),
    ];
    let asks = |policy: &Policy, rules: &[&str]| -> Vec<String> {
        let leases = rules.iter().map(|rule| {
            let mut lease = lease();
            lease.lease.kind = LeaseKind::Rule(rule.parse().expect("a rule"));
            lease
        });
        let leases: Vec<_> = leases.collect();
        let why = Why::of(&"a".parse().expect("a name"), policy, &leases, lately.iter());
        why.refused.into_iter().filter_map(|refused| refused.ask).collect()
    };
    let (group, icmp) = ("239.1.2.3/32/udp", "203.0.113.9/32/icmp");
    let (tcp, name) = ("203.0.113.9/32:443/tcp", "evil.example:443");
    assert_eq!(asks(&policy(), &[]), [group, icmp, tcp, name]);
    assert_eq!(asks(&policy(), &[tcp]), [group, icmp, name]);
    assert_eq!(asks(&policy(), &["0.0.0.0/0"]), [group, icmp, name], "no lease is for these");
    assert_eq!(asks(&policy(), &[name]), [group, icmp, tcp]);
    assert_eq!(asks(&policy(), &["*.evil.example", "evil.example:80", "203.0.113.9/32:80"]).len(), 4);
    assert_eq!(asks(&policy(), &["evil.example:80,443"]), [group, icmp, tcp]);
    let mut wider = policy();
    for rule in ["203.0.113.0/24", "evil.example"] {
        wider.allow(rule.parse().expect("a rule"));
    }
    assert_eq!(asks(&wider, &[]), [group], "a reload brought them");
    let now = Why::of(&"a".parse().expect("a name"), &wider, &[], lately.iter()).to_string();
    assert!(
        now.contains("evil.example name-not-allowed, once, ") && now.contains("a rule lets it pass by now")
    );
}
