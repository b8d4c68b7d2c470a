use std::net::IpAddr;

use opencode_egress_common::abi::Event;

use super::*;
use crate::report::denial::{
    Asker,
    tests::{decode, event},
};

fn flow(reason: DropReason, change: impl FnOnce(&mut DenialLine)) -> Remedy {
    let event = Event { reason: reason as u8, ..event() };
    let mut line = DenialLine::of(&decode(&event).expect("an event"), 0);
    change(&mut line);
    Remedy::of(&Line::Flow(line))
}

fn question(query: &str, reason: &str, address: Option<&str>) -> Remedy {
    Remedy::of(&Line::Question(QuestionLine {
        query: query.to_owned(),
        qtype: "A".to_owned(),
        reason: reason.to_owned(),
        address: address.map(|address| address.parse().expect("an address")),
        asker: Asker::default(),
        suppressed: 0,
        audit: false,
    }))
}

#[track_caller]
fn asks(remedy: &Remedy, expect: &str) {
    assert_eq!(remedy.ask().as_deref(), Some(expect), "{remedy:?}");
    let Remedy::Rule(rule) = remedy else { panic!("a rule") };
    assert_eq!(expect.parse().as_ref(), Ok(rule), "what is asked for is the rule");
}

#[test]
fn a_destination_takes_the_narrowest_rule() {
    use DropReason::{NotAllowed, PortNotAllowed, ProtocolNotAllowed};
    asks(&flow(NotAllowed, |_| {}), "203.0.113.9/32:443/tcp");
    asks(&flow(PortNotAllowed, |line| line.proto = "udp".to_owned()), "203.0.113.9/32:443/udp");
    let v6: IpAddr = "2001:db8::9".parse().expect("an address");
    asks(&flow(NotAllowed, |line| line.dst = v6), "[2001:db8::9/128]:443/tcp");
    let icmp = |line: &mut DenialLine| (line.proto, line.dport) = ("icmp".to_owned(), 0);
    asks(&flow(ProtocolNotAllowed, icmp), "203.0.113.9/32/icmp");
    let gre = |line: &mut DenialLine| (line.proto, line.dport) = ("47".to_owned(), 0);
    asks(&flow(NotAllowed, gre), "203.0.113.9/32");
}

#[test]
fn what_came_by_a_name_takes_a_rule_for_the_name() {
    let named = |name: &str| {
        let name = name.to_owned();
        move |line: &mut DenialLine| line.name = Some(name)
    };
    asks(&flow(DropReason::NotAllowed, named("api.example.org")), "api.example.org:443");
    let ssh = |line: &mut DenialLine| (line.name, line.dport) = (Some("api.example.org".to_owned()), 22);
    asks(&flow(DropReason::PortNotAllowed, ssh), "api.example.org:22");
    asks(&flow(DropReason::TlsNameNotAllowed, named("cdn.example.org")), "cdn.example.org:443");
    asks(&flow(DropReason::NotTls, named("api.example.org")), "api.example.org/notls");
    let hello = |line: &mut DenialLine| (line.name, line.dport) = (Some("cdn.example.org".to_owned()), 8443);
    asks(&flow(DropReason::TlsNameNotAllowed, hello), "cdn.example.org:8443/tls");
}

/// What the name of a machine inside brought takes a rule by which it may; a hello may name any server.
#[test]
fn a_private_address_takes_a_rule_for_such() {
    let inside = |port| {
        move |line: &mut DenialLine| {
            (line.name, line.dport) = (Some("git.corp.example".to_owned()), port);
            line.dst = [10, 0, 0, 7].into();
        }
    };
    asks(&flow(DropReason::PortNotAllowed, inside(22)), "git.corp.example:22/private");
    asks(&flow(DropReason::NotTls, inside(443)), "git.corp.example/notls/private");
    asks(&flow(DropReason::TlsNameNotAllowed, inside(443)), "git.corp.example:443");
}

/// Who asks chooses the name; what an operator is shown, and grants by a key, must be no wider than that.
#[test]
fn a_name_that_an_agent_chose_widens_nothing() {
    for name in [
        "*.com",
        "*.evil.example",
        "evil.example:1-65535",
        "evil.example/any",
        "evil.example,0.0.0.0/0",
        "wpad",
        "localhost",
        "a.localhost",
        "10.0.0.1",
        "",
    ] {
        assert_eq!(question(name, "name-not-allowed", None).ask(), None, "{name}");
        let forged = |line: &mut DenialLine| line.name = Some(name.to_owned());
        assert_eq!(flow(DropReason::TlsNameNotAllowed, forged).ask(), None, "{name}");
    }
}

#[test]
fn a_question_takes_a_rule_for_its_name() {
    asks(&question("evil.example", "name-not-allowed", None), "evil.example:443");
    asks(&question("Git.Corp.Example", "forbidden-address", Some("10.0.0.7")), "git.corp.example/private");
    assert_eq!(question("meta.example", "forbidden-address", Some("169.254.169.254")).ask(), None);
    assert_eq!(question("api.example.org", "type-not-allowed", None).ask(), None);
}

#[test]
fn what_no_rule_lets_pass_says_what_does() {
    let told = |reason, part: &str| match flow(reason, |line| line.hint = Some("bind 127.0.0.1".to_owned())) {
        Remedy::Other(text) => assert!(text.contains(part), "{text}"),
        Remedy::Rule(rule) => panic!("{rule}"),
    };
    told(DropReason::DenyRule, "deny");
    told(DropReason::NameExpired, "resolve");
    told(DropReason::BindNotListed, "bind 127.0.0.1");
    told(DropReason::TooManySockets, "sockets");
    told(DropReason::NotAListener, "no rule");
}
