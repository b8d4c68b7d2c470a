use super::*;
use crate::policy::{
    Listen, Loopback,
    compile::{compile, tests::rule},
};

#[test]
fn destinations_are_read_as_they_are_written() {
    let check = |text: &str, expect: &str| {
        let shown = match text.parse::<Destination>() {
            Ok(destination) => destination.to_string(),
            Err(invalid) => invalid.to_string(),
        };
        assert!(shown.starts_with(expect), "{text}: {shown}");
    };
    check("10.10.0.1:443", "10.10.0.1:443/tcp");
    check("10.10.0.1:53/udp", "10.10.0.1:53/udp");
    check("10.10.0.1", "10.10.0.1/icmp");
    check("2001:db8::1", "2001:db8::1/icmpv6");
    check("[2001:db8::1]:443", "[2001:db8::1]:443/tcp");
    check("[::ffff:10.10.0.1]:443", "10.10.0.1:443/tcp");
    check("10.10.0.1/132", "10.10.0.1/sctp");
    check("10.10.0.1/sctp", "10.10.0.1/sctp");
    check("2001:db8::1/icmpv6", "2001:db8::1/icmpv6");
    check("10.10.0.1/tcp", "no port in");
    check("10.10.0.1:80/icmp", "a port, which this protocol does not have, in");
    check("example.com:443", "no address");
    check("10.10.0.1:80/foo", "no protocol");
}

#[test]
fn a_request_has_no_other_destinations() {
    let read = |text: &str| serde_json::from_str::<Destination>(text).map_err(|error| error.to_string());
    let mapped = read(r#"{"address":"::ffff:10.10.0.1","port":443,"protocol":6}"#);
    assert_eq!(mapped.map(|destination| destination.to_string()), Ok("10.10.0.1:443/tcp".to_owned()));
    assert!(read(r#"{"address":"10.10.0.1","port":443,"protocol":1}"#).is_err());
    assert!(read(r#"{"address":"10.10.0.1","port":0,"protocol":6}"#).is_err());
}

fn judge(policy: &Policy, target: &Target) -> Judgement {
    judge_with(policy, target, &[])
}

fn judge_with(policy: &Policy, target: &Target, learned: &[LearnedName]) -> Judgement {
    let compiled = compile(policy).expect("it fits");
    explain(target, &compiled.header, &compiled.rules(), policy, learned, &[])
}

#[test]
fn the_file_is_compared_with_what_is_in_force() {
    let destination: Target = "10.10.0.1:443".parse().expect("a destination");
    let policy = |allow: &[&str], mode| {
        let allow = allow.iter().map(|text| rule(text)).collect();
        Policy { allow, mode, ..Policy::default() }
    };
    let in_force = policy(&["10.10.0.0/16:443/tcp"], Mode::Enforce);
    let check = |file: Option<&Policy>, expect: &str| {
        let judgement = judge(&in_force, &destination);
        let compiled = file.map(|policy| (policy, compile(policy).expect("it fits")));
        let file = compiled.as_ref().map(|(policy, compiled)| (*policy, compiled));
        let file = PolicyFile::compare(file, (&in_force, 0), &destination, &judgement, &[]);
        let shown = Explanation {
            destination: destination.clone(),
            judgement,
            detached: false,
            config: "FILE".into(),
            file,
            rewritten: None,
        };
        let shown = shown.to_string();
        let Some(shown) = shown.strip_prefix("10.10.0.1:443/tcp: allowed\n  allow 10.10.0.0/16:443/tcp")
        else {
            panic!("what is in force comes first: {shown}")
        };
        assert!(shown.starts_with(expect) && shown.is_empty() == expect.is_empty(), "{shown}");
    };
    check(Some(&in_force), "");
    check(Some(&policy(&["10.10.0.0/16"], Mode::Enforce)), "\n! FILE has another policy, with the same");
    check(Some(&policy(&["10.10.0.0/16"], Mode::Audit)), "\n! FILE has another policy, with the same");
    check(
        Some(&policy(&["10.10.0.0/16/udp"], Mode::Enforce)),
        "\n! FILE says otherwise; `opencode-egress reload` puts it in force:\n  denied (protocol-not-allowed)\n    the address is covered",
    );
    check(
        Some(&policy(&[], Mode::Audit)),
        "\n! FILE says otherwise; `opencode-egress reload` puts it in force:\n  denied, but mode audit lets it pass (not-allowed)",
    );
    check(None, "\n! FILE does not have this instance any more");
    // The same denial, but it would pass.
    let refused: Target = "10.10.0.1:80".parse().expect("a destination");
    let audited = policy(&["10.10.0.0/16:443/tcp"], Mode::Audit);
    let compiled = compile(&audited).expect("it fits");
    let judgement = judge(&in_force, &refused);
    let file = PolicyFile::compare(Some((&audited, &compiled)), (&in_force, 0), &refused, &judgement, &[]);
    assert_eq!(file, PolicyFile::OtherVerdict(Judgement { audit: true, ..judgement }));
}

fn shown(policy: &Policy, destination: &str) -> String {
    shown_with(policy, destination, &[])
}

fn shown_with(policy: &Policy, target: &str, learned: &[LearnedName]) -> String {
    let destination = target.parse().expect("a destination");
    let judgement = judge_with(policy, &destination, learned);
    let (config, file) = ("FILE".into(), PolicyFile::Same);
    Explanation { destination, judgement, detached: false, config, file, rewritten: None }.to_string()
}

#[test]
fn own_loopback_is_for_own_sockets_only() {
    let policy = Policy { deny: vec![rule("127.0.0.9/32")], ..Policy::default() };
    assert_eq!(
        shown(&policy, "127.0.0.1:3000"),
        "127.0.0.1:3000/tcp: own sockets only
  allowed where a socket of the instance's own takes it; where somebody else's does, denied (not-allowed); where nobody listens, a connection is refused
to bind there: allowed, and nobody but the instance reaches it until it is listed under `listen`"
    );
    assert!(shown(&policy, "[::1]:80/udp").contains("own sockets only"));
    assert!(shown(&policy, "[::1]:80/udp").contains("to bind there: denied (bind-not-listed)"));
    assert!(!shown(&policy, "127.0.0.9:3000").contains("own sockets only"), "a rule denies it");
    assert!(!shown(&policy, "127.0.0.1").contains("own sockets only"), "ICMP");
    let listed = Policy { loopback: Loopback::Listed, ..policy };
    assert!(!shown(&listed, "127.0.0.1:3000").contains("own sockets only"));
    let target = "127.0.0.1:3000".parse().expect("a destination");
    let mut judgement = judge_with(&Policy::default(), &target, &[]);
    judgement.place_is_taken(&"b".parse().expect("a name"));
    assert!(judgement.to_string().contains("instance `b` lists the port; bind another one"), "{judgement}");
}

#[test]
fn a_bind_is_told_what_is_listed() {
    let listen = Listen { address: [127, 0, 0, 1].into(), port: 5173, open: false };
    let policy = Policy { listen: vec![listen], loopback: Loopback::Listed, ..Policy::default() };
    assert_eq!(
        shown(&policy, "0.0.0.0:5173"),
        "0.0.0.0:5173/tcp: to bind there: denied (bind-not-listed)
  127.0.0.1:5173 is listed; bind that
to connect there, which reaches 127.0.0.1:5173/tcp: allowed
  listen 127.0.0.1:5173: the instance's own listener is no egress, as long as its own socket listens there"
    );
    assert_eq!(
        shown(&policy, "127.0.0.1:5173"),
        "127.0.0.1:5173/tcp: allowed
  listen 127.0.0.1:5173: the instance's own listener is no egress, as long as its own socket listens there
to bind there: allowed, it is listed under `listen`"
    );
    let elsewhere = shown(&policy, "192.0.2.1:5173");
    assert!(elsewhere.ends_with("(bind-not-listed)\n  127.0.0.1:5173 is listed; bind that"), "{elsewhere}");
    let other_port = shown(&policy, "[::1]:19876/udp");
    assert!(other_port.ends_with("\n  no listener with port 19876 is listed"), "{other_port}");
    assert!(!shown(&policy, "192.0.2.1:80").contains("bind"));
    assert!(!shown(&policy, "127.0.0.1").contains("bind"), "ICMP has no ports");
    let audit = Policy { mode: Mode::Audit, ..policy.clone() };
    assert!(
        shown(&audit, "0.0.0.0:5173").contains("denied, but mode audit lets it pass (bind-not-listed)\n")
    );
}

/// That a policy lists another machine's address makes it no rule.
#[test]
fn a_listener_beyond_loopback_allows_nothing() {
    let listen = Listen { address: [203, 0, 113, 2].into(), port: 80, open: true };
    let policy = Policy { listen: vec![listen], ..Policy::default() };
    let text = shown(&policy, "203.0.113.2:80");
    assert!(text.starts_with("203.0.113.2:80/tcp: denied (not-allowed)"), "{text}");
    let denied = Policy { deny: vec![rule("203.0.113.0/24")], ..policy };
    let text = shown(&denied, "203.0.113.2:80");
    assert!(text.starts_with("203.0.113.2:80/tcp: denied (deny-rule)\n  deny 203.0.113.0/24"), "{text}");
}

/// What scripts read: the verdict in force at the top, the file's below `file`.
#[test]
fn json_has_both_verdicts() {
    let destination: Target = "10.10.0.1:443".parse().expect("a destination");
    let (judgement, other) = (Judgement::without_policy(), judge(&Policy::default(), &destination));
    let explanation = Explanation {
        destination,
        judgement,
        detached: true,
        config: "FILE".into(),
        file: PolicyFile::OtherVerdict(other),
        rewritten: Some(Rewritten {
            to: "198.51.100.2:80".parse().expect("an address"),
            reason: "not-allowed".into(),
        }),
    };
    let json = serde_json::to_value(&explanation).expect("JSON");
    assert_eq!((json["allowed"].as_bool(), json["reason"].as_str()), (Some(false), Some("no-policy")));
    assert_eq!(json["file"]["state"].as_str(), Some("other_verdict"));
    assert_eq!(json["file"]["reason"].as_str(), Some("not-allowed"));
    assert_eq!(serde_json::from_value::<Explanation>(json).expect("an explanation"), explanation);
    let shown = explanation.to_string();
    assert!(shown.contains("\n! the instance was detached"), "{shown}");
    assert!(shown.contains("\n! the host sent such a flow to 198.51.100.2:80 instead"), "{shown}");
}

fn with_names(rules: &[&str]) -> Policy {
    let mut policy = Policy::default();
    rules.iter().for_each(|text| policy.allow(text.parse().expect("a rule")));
    policy
}

fn learned(name: &str, address: &str, seconds: u64) -> LearnedName {
    let (name, address) = (name.parse().expect("a name"), address.parse().expect("an address"));
    LearnedName { name, address, seconds }
}

#[test]
fn a_name_is_explained_by_the_rules_that_list_it() {
    let policy = with_names(&["*.example.org", "api.example.org:22,443", "dns.example.net:853/udp"]);
    let known = [
        learned("api.example.org", "203.0.113.9", 312),
        learned("api.example.org", "2001:db8::9", 12),
        learned("api.example.org", "203.0.113.8", 0),
        learned("a.example.org", "203.0.113.7", 60),
    ];
    assert_eq!(
        shown_with(&policy, "API.example.org", &known),
        "api.example.org:443/tcp: allowed
  allow *.example.org
  allow api.example.org:22,443
  its addresses: 203.0.113.9 (for 312 s), 2001:db8::9 (for 12 s)"
    );
    assert_eq!(
        shown(&policy, "b.example.org"),
        "b.example.org:443/tcp: allowed
  allow *.example.org
  what opens it must be a TLS hello to a server that a rule with `tls` lists; otherwise it is reset (tls-name-not-allowed, not-tls)
  no addresses are known: nothing asked for it yet, or what it was told is over"
    );
    assert_eq!(
        shown(&policy, "example.org"),
        "example.org:443/tcp: denied (name-not-allowed)
  no rule lists the name
  to allow it, add `example.org` to `allow`"
    );
    assert_eq!(
        shown(&policy, "a.example.org:8443"),
        "a.example.org:8443/tcp: denied (port-not-allowed)
  the name is listed, but not this flow, by
  allow *.example.org
  to allow it, add `a.example.org:8443` to `allow`"
    );
    let other_protocol = shown(&policy, "dns.example.net:853");
    assert!(
        other_protocol.starts_with("dns.example.net:853/tcp: denied (protocol-not-allowed)"),
        "{other_protocol}"
    );
    let single = shown(&policy, "localhost:80");
    assert!(
        single.ends_with(
            "is this machine, which no name may bring; write `127.0.0.1/32:PORT` or `[::1/128]:PORT`"
        ),
        "{single}"
    );
    let audit = Policy { mode: Mode::Audit, ..policy };
    let audited = shown(&audit, "example.org");
    assert!(
        audited.starts_with("example.org:443/tcp: denied, but mode audit lets it pass (name-not-allowed)"),
        "{audited}"
    );
    let networks = shown(&Policy { allow: vec![rule("10.0.0.0/8")], ..Policy::default() }, "example.org");
    assert!(
        networks.contains(
            "\n  nor is any rule of the policy for a name, so questions go where its networks allow"
        ),
        "{networks}"
    );
}

#[test]
fn an_address_that_a_name_brought_is_allowed_by_the_name() {
    let policy = Policy { deny: vec![rule("203.0.113.66/32")], ..with_names(&["api.example.org"]) };
    let known = [
        learned("api.example.org", "203.0.113.9", 312),
        learned("api.example.org", "203.0.113.8", 0),
        learned("api.example.org", "203.0.113.66", 312),
        learned("elsewhere.example.net", "203.0.113.7", 312),
    ];
    assert_eq!(
        shown_with(&policy, "203.0.113.9:443", &known),
        "203.0.113.9:443/tcp: allowed
  allow api.example.org: api.example.org has this address (for 312 s)
  what opens it must be a TLS hello to a server that a rule with `tls` lists; otherwise it is reset (tls-name-not-allowed, not-tls)"
    );
    assert_eq!(
        shown_with(&policy, "203.0.113.8:443", &known),
        "203.0.113.8:443/tcp: denied (name-expired)
  allow api.example.org: api.example.org had this address, and the time for which that was told is over; who asks for the name again gets what it has now"
    );
    for (target, reason) in [
        ("203.0.113.9:80", "not-allowed"),
        ("203.0.113.66:443", "deny-rule"),
        ("203.0.113.7:443", "not-allowed"),
        ("203.0.113.9", "not-allowed"),
    ] {
        let shown = shown_with(&policy, target, &known);
        assert!(shown.contains(&format!(": denied ({reason})\n")), "{shown}");
    }
}

/// What is told of a target, by a policy with these rules leased.
fn told_by_leases(policy: Policy, rules: &[&str], target: &str, learned: &[LearnedName]) -> String {
    use crate::policy::lease::{Grantor, Lease, LeaseKind, LeaseStatus, Leased, LeasedRule};
    let leased = |rule: &&str| LeasedRule { rule: rule.parse().expect("a rule"), until: 50 };
    let leased = Leased { rules: rules.iter().map(leased).collect(), ..Leased::default() };
    let mut judgement = judge_with(&policy.leased(leased), &target.parse().expect("a target"), learned);
    let lease = |(index, rule): (usize, &&str)| {
        let kind = LeaseKind::Rule(rule.parse().expect("a rule"));
        let reason = Some(format!("ticket {index}").parse().expect("a reason"));
        let lease = Lease { kind, hard: false, reason, by: Grantor::default(), from: 1, deadline: 50 };
        LeaseStatus { lease, until: 100, seconds: 10 }
    };
    let leases: Vec<_> = rules.iter().enumerate().map(lease).collect();
    tell_leases(&mut judgement, &leases, |until| format!("second {until}"));
    judgement.to_string()
}

#[test]
fn a_lease_is_behind_what_it_lets_pass() {
    let rules = ["203.0.113.0/24:443/tcp", "api.example.org:80", "api.example.org", "api.example.org:22"];
    let told = |target: &str| {
        let policy = Policy { deny: vec![rule("203.0.113.9/32")], ..Policy::default() };
        let learned = [learned("api.example.org", "198.51.100.7", 60)];
        told_by_leases(policy, &rules, target, &learned)
    };
    let by = |ticket: usize| {
        let rule = rules[ticket];
        format!("allowed\n  lease {rule} until second 100, granted by uid 0: ticket {ticket}")
    };
    assert_eq!(told("203.0.113.1:443"), by(0));
    // One is as the beginning of the others.
    for (target, ticket) in [("api.example.org:80", 1), ("api.example.org", 2), ("api.example.org:22", 3)] {
        let text = told(target);
        assert!(text.starts_with(&by(ticket)) && text.matches("ticket").count() == 1, "{text}");
    }
    assert_eq!(told("198.51.100.7:80"), by(1) + "; api.example.org has this address (for 60 s)");
    assert!(told("203.0.113.9:443").starts_with("denied (deny-rule)"), "{}", told("203.0.113.9:443"));
    assert!(
        told("203.0.113.1:443/udp").starts_with("denied (not-allowed)"),
        "{}",
        told("203.0.113.1:443/udp")
    );
}

/// Own loopback denies somebody else's socket, and a name with `tls` what opens no TLS: a lease of the network frees both.
#[test]
fn a_lease_of_a_network_is_beside_own_loopback_and_names() {
    let lease = "127.0.0.1/32:5432/tcp";
    let told = |policy: Policy, target: &str| told_by_leases(policy, &[lease], target, &[]);
    let by = |rule: &str| format!("lease {rule} until second 100, granted by uid 0: ticket 0");
    let text = told(Policy::default(), "127.0.0.1:5432");
    assert!(text.starts_with(&format!("allowed\n  {}\nto bind there: allowed", by(lease))), "{text}");
    assert!(told(Policy::default(), "127.0.0.1:5433").starts_with("own sockets only"));
    let listen = vec![Listen { address: [127, 0, 0, 1].into(), port: 5432, open: false }];
    let text = told(Policy { listen, loopback: Loopback::Listed, ..Policy::default() }, "127.0.0.1:5432");
    assert!(text.starts_with(&format!("allowed\n  {}\n", by(lease))), "{text}");
    let deny = vec![rule("127.0.0.0/8")];
    assert!(told(Policy { deny, ..Policy::default() }, "127.0.0.1:5432").starts_with("denied (deny-rule)"));

    let lease = "203.0.113.0/24:443/tcp";
    let known = |seconds| [learned("api.example.org", "203.0.113.9", seconds)];
    let told = |seconds| {
        told_by_leases(with_names(&["api.example.org"]), &[lease], "203.0.113.9:443", &known(seconds))
    };
    let name = "allow api.example.org: api.example.org has this address (for 60 s)";
    assert_eq!(told(60), format!("allowed\n  {name}\n  {}", by(lease)));
    assert_eq!(told(0), format!("allowed\n  {}", by(lease)));
}
