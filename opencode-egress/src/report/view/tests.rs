use super::*;
use crate::policy::{
    lease::{Grantor, Lease, LeaseKind},
    suggest::{Program, Tried},
};
use crate::report::{
    caller::Caller,
    denial::{Asker, LoggedDenial},
    status::{CountersStatus, QuestionsStatus},
};

fn unit(name: &str, running: bool, links: usize) -> UnitStatus {
    UnitStatus {
        unit: format!("{name}.service"),
        running,
        unlisted: false,
        links,
        hooks: 10,
        late: false,
        users: vec![],
    }
}

pub(crate) fn instance(units: Vec<UnitStatus>) -> InstanceStatus {
    let counters = CountersStatus {
        allowed_packets: 12_345,
        allowed_bytes: 5_000_000,
        denied_packets: 3,
        lines: 2,
        ..CountersStatus::default()
    };
    InstanceStatus {
        mode: "enforce".to_owned(),
        mode_of_file: "enforce".to_owned(),
        generation: 2,
        rules: [3, 1, 1],
        entries: 9,
        units,
        removed: false,
        detached: false,
        lost_lately: false,
        sockets: SocketsStatus { open: 12, limit: 4096, denied_lately: false },
        limits: LimitsStatus::default(),
        outlived: 0,
        outlived_denials: 0,
        failed_attach: None,
        counters,
        names: None,
        steady: vec![],
        leases: vec![],
        last_denial: None,
    }
}

pub(crate) fn lease() -> LeaseStatus {
    let kind = LeaseKind::Rule("192.0.2.0/24:443/tcp".parse().expect("a rule"));
    let lease = Lease { kind, hard: false, reason: None, by: Grantor::default(), from: 900, deadline: 100 };
    LeaseStatus { lease, until: 2640, seconds: 1640 }
}

pub(crate) fn event(time: u64) -> LoggedDenial {
    let line = DenialLine {
        proto: "tcp".to_owned(),
        dst: [203, 0, 113, 9].into(),
        dport: 443,
        asked: None,
        lport: None,
        hook: "connect4".to_owned(),
        reason: "not-allowed".to_owned(),
        pid: 42,
        comm: "node".to_owned(),
        uid: 987,
        suppressed: 0,
        generation: 2,
        audit: false,
        hint: None,
        name: None,
        caller: Caller::default(),
    };
    LoggedDenial { time, instance: "b".to_owned(), line: Line::Flow(line) }
}

#[test]
fn a_program_is_named_with_those_that_ran_it() {
    let mut event = event(940);
    let Line::Flow(line) = &mut event.line else { panic!("a flow") };
    line.caller.exe = Some("/usr/bin/curl".to_owned());
    line.caller.via = ["curl", "bash", "opencode"].map(str::to_owned).to_vec();
    assert_eq!(caller(&event.line), "/usr/bin/curl, run by bash, run by opencode");
    let Line::Flow(line) = &mut event.line else { panic!("a flow") };
    (line.caller.via, line.caller.cgroup) = (vec!["curl".to_owned()], Some("payload".to_owned()));
    assert_eq!(caller(&event.line), "/usr/bin/curl, in the cgroup payload");
}

/// `a` is as it should be; everything that can be the matter is the matter with the others.
pub(crate) fn status() -> Status {
    let full = 10;
    let a = instance(vec![unit("a", true, full), unit("a-setup", false, 0)]);
    let mut b = instance(vec![unit("b", true, full)]);
    b.units[0].late = true;
    b.last_denial = Some(event(940));
    b.counters.lost = 7;
    b.lost_lately = true;
    let mut c = instance(vec![unit("c", true, 0)]);
    c.detached = true;
    let mut d = instance(vec![unit("d", true, 9), unit("d2", true, full)]);
    d.mode = "audit".to_owned();
    d.last_denial = Some(event(940));
    if let Some(LoggedDenial { line: Line::Flow(line), .. }) = &mut d.last_denial {
        line.audit = true;
    }
    let e = instance(vec![unit("e", false, 0)]);
    let mut f = instance(vec![unit("f", true, full)]);
    f.removed = true;
    f.units[0].unlisted = true;
    let mut g = instance(vec![unit("g", true, full), unit("g2", true, full)]);
    g.units[1].unlisted = true;
    let instances = [("a", a), ("b", b), ("c", c), ("d", d), ("e", e), ("f", f), ("g", g)];
    Status {
        version: "0.1.0".to_owned(),
        config: "policy.json".to_owned(),
        reload_error: Some("policy.json:3:1: an error".to_owned()),
        applied: 0,
        not_reset: vec![],
        troubles: vec![],
        instances: instances.map(|(name, instance)| (name.to_owned(), instance)).into(),
    }
}

#[test]
fn what_needs_attention_comes_first_and_in_words() {
    let mut status = status();
    status.not_reset.push("parts of MPTCP connections that were reset: 1".to_owned());
    status.troubles.push("the log has taken no line for 7 s".to_owned());
    let plain = anstream::adapter::strip_str(&text(&status, 1000)).to_string();
    let expect = "\
opencode-egress 0.1.0, policy policy.json
! c: c.service is not confined, it was detached on request; `opencode-egress reload` confines it again
! d: d.service runs with 9 of 10 hooks
! d: mode audit: what the policy denies is told, and passes
! b: b.service was running before it was confined; restart it
! b: 7 denials never reached the log, some lately; counters and `suggest` have them
! f: f.service runs, and the policy file does not have this instance any more: everything is denied to it; stop it
! g: g2.service is not listed any more; this policy holds it until it stops
! the log has taken no line for 7 s
! the last reload was not applied: policy.json:3:1: an error
! parts of MPTCP connections that were reset: 1

INSTANCE  MODE     UNITS                    LINKS  GEN  RULES  SOCKETS     ALLOWED         DENIED  LOGGED  LOST  LAST DENIAL
a         enforce  1/1 confined, 1 stopped  10/10  2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     -
b         enforce  1/1 confined             10/10  2    5      12 of 4096  12.3k (5.0 MB)  3       2       7     tcp 203.0.113.9:443 not-allowed, 1m ago
c         enforce  0/1 confined             0/10   2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     -
d         audit    1/2 confined             19/20  2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     tcp 203.0.113.9:443 not-allowed (audit: it passed), 1m ago
e         enforce  stopped                  -      2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     -
f         enforce  1/1 confined             10/10  2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     -
g         enforce  2/2 confined             20/20  2    5      12 of 4096  12.3k (5.0 MB)  3       2       0     -
b: the last denial was of node
d: the last denial was of node
";
    assert_eq!(plain, expect);
}

#[test]
fn what_outlived_its_unit_needs_attention_when_something_is_denied_to_it() {
    let mut status = status();
    status.reload_error = None;
    status.instances.retain(|name, _| name == "a");
    let a = status.instances.get_mut("a").expect("a");
    a.outlived = 2;
    let quiet = text(&status, 1000);
    assert!(quiet.contains("\nnothing needs attention\n"), "{quiet}");
    assert!(quiet.ends_with("a: sockets of 2 earlier starts are open; they stay confined\n"), "{quiet}");
    status.instances.get_mut("a").expect("a").outlived_denials = 3;
    let loud = text(&status, 1000);
    assert!(loud.contains("! a: 3 denials came from sockets of earlier starts"), "{loud}");
}

#[test]
fn a_start_that_failed_needs_attention() {
    let mut status = status();
    status.reload_error = None;
    status.instances.retain(|name, _| name == "a");
    let a = status.instances.get_mut("a").expect("a");
    let why = "the kernel refuses".to_owned();
    a.failed_attach = Some(FailedAttach { time: 990, unit: "a.service".to_owned(), why });
    a.units[1].users = vec![1000];
    let text = text(&status, 1000);
    assert!(text.contains("! a: a a-setup.service runs in user 1000's own systemd, which nothing"), "{text}");
    assert!(text.contains("! a: the last `attach` of a.service failed, at 19"), "{text}");
    assert!(text.contains(": the kernel refuses"), "{text}");
}

#[test]
fn a_limit_that_is_reached_needs_attention() {
    let notices = |open, denied_lately| {
        let mut a = instance(vec![unit("a", true, 10)]);
        a.sockets = SocketsStatus { open, limit: 64, denied_lately };
        a.notices("a").into_iter().map(|notice| notice.text).collect::<Vec<_>>().join("\n")
    };
    let remedy = "`ss -tuanpe` shows who has them, and `limits` in the policy file is how many there may be";
    assert_eq!(notices(63, false), "");
    assert_eq!(notices(64, false), format!("a: it has 64 of 64 sockets; {remedy}"));
    let lately = format!("a: it has 3 of 64 sockets, and was lately denied more; {remedy}");
    assert_eq!(notices(3, true), lately);
}

#[test]
fn each_limit_of_systemds_that_is_reached_needs_attention() {
    let notices = |limits| {
        let mut a = instance(vec![unit("a", true, 10)]);
        a.limits = limits;
        a.notices("a").into_iter().map(|notice| notice.text).collect::<Vec<_>>().join("\n")
    };
    let files = |open| Some(OpenFiles { pid: 42, open, limit: 2048 });
    let all = [Limit::MemoryHigh, Limit::MemoryMax, Limit::OomKill, Limit::Tasks];
    let reached = |lately| all.map(|limit| (limit, ReachedLimit { count: 1234, lately })).into();
    assert_eq!(notices(LimitsStatus { reached: reached(false), files: files(2047) }), "");
    let text = notices(LimitsStatus { reached: reached(true), files: files(2048) });
    for says in [
        "a: it was slowed down at MemoryHigh=: 1.2k times",
        "a: it reached MemoryMax=: 1.2k times",
        "a: processes of it were killed for want of memory: 1.2k",
        "a: processes or threads more than TasksMax= were refused to it: 1.2k",
        "a: its process 42 has 2048 of 2048 files open (LimitNOFILE=)",
    ] {
        assert!(text.contains(says), "{says} in {text}");
    }
}

#[test]
fn names_have_a_line_and_their_troubles_need_attention() {
    let mut status = status();
    status.reload_error = None;
    status.instances.retain(|name, _| name == "a");
    let questions = QuestionsStatus { questions: 5100, refused: 12, failed: 1, ..QuestionsStatus::default() };
    let names = NamesStatus { known: 3, addresses: 7, questions, ..NamesStatus::default() };
    status.instances.get_mut("a").expect("a").names = Some(names);
    let quiet = text(&status, 1000);
    assert!(quiet.contains("\nnothing needs attention\n"), "{quiet}");
    let line = "\na: known names: 3, with addresses: 7; questions: 5.1k, refused: 12, failed: 1\n";
    assert!(quiet.ends_with(line), "{quiet}");
    let names = status.instances.get_mut("a").and_then(|a| a.names.as_mut()).expect("names");
    (names.expired_lately, names.questions.failed_lately) = (true, true);
    let loud = text(&status, 1000);
    assert!(
        loud.contains("! a: flows to addresses whose time was over were denied lately: a client"),
        "{loud}"
    );
    assert!(loud.contains("! a: questions for names failed: 1, some lately; no server"), "{loud}");
}

#[test]
fn a_long_name_leaves_room_for_the_reason() {
    let question = |query: String| {
        let (qtype, reason) = ("A".to_owned(), "name-not-allowed".to_owned());
        Line::Question(QuestionLine {
            query,
            qtype,
            reason,
            address: None,
            asker: Asker::default(),
            suppressed: 0,
            audit: false,
        })
    };
    assert_eq!(denial(&question("evil.example".to_owned())), "A evil.example name-not-allowed");
    let long = denial(&question("x".repeat(1000) + ".evil.example"));
    assert_eq!(long, format!("A …{}.evil.example name-not-allowed", "x".repeat(51)));
}

#[test]
fn all_well_is_said() {
    let mut status = status();
    status.reload_error = None;
    status.instances.retain(|name, _| name == "a");
    let text = text(&status, 1000);
    assert!(text.contains("\nnothing needs attention\n") && !text.contains('!'), "{text}");
}

#[test]
fn what_is_denied_steadily_is_told_with_the_rule_that_is_missing() {
    let steady = |rule: &str| {
        let mut tried = Tried::default();
        tried.add(0, Program::of("opencode", &[]));
        SteadyDenial { rule: rule.to_owned(), attempts: 14, tried }
    };
    let mut b = instance(vec![]);
    b.steady = vec![steady("api.example.org")];
    let at = local_time(0);
    let expect = format!(
        "b: `api.example.org` is denied steadily, 14 times since {at}, by opencode; add \"api.example.org\" to `allow` if it should pass"
    );
    assert_eq!(b.notices("b"), [Notice { severity: Severity::Look, text: expect }]);
    let json = serde_json::to_value(&b.steady).expect("JSON");
    assert_eq!((&json[0]["rule"], &json[0]["first"]), (&"api.example.org".into(), &0.into()));
    b.steady = ["a", "b", "c", "d", "e"].map(|name| steady(&format!("{name}.example.org"))).into();
    let notices = b.notices("b");
    assert_eq!(notices.len(), 4);
    assert_eq!(notices[3].text, "b: 2 more are denied steadily; `opencode-egress suggest b` has them");
}

#[test]
fn audit_mode_for_a_time_says_until_when() {
    let mut b = instance(vec![]);
    b.mode = "audit".to_owned();
    b.leases = vec![LeaseStatus { lease: Lease { kind: LeaseKind::Audit, ..lease().lease }, ..lease() }];
    let until = local_time(2640);
    let expect = format!(
        "b: mode audit: what the policy denies is told, and passes until {until}; `opencode-egress learn b --stop` ends it"
    );
    assert_eq!(b.notices("b"), [Notice { severity: Severity::Open, text: expect }]);
    // The policy file has it by now: no lease ends that.
    b.mode_of_file = "audit".to_owned();
    let text = "b: mode audit: what the policy denies is told, and passes".to_owned();
    assert_eq!(b.notices("b"), [Notice { severity: Severity::Open, text }]);
}
