use super::*;
use crate::report::{
    caller::Caller,
    denial::{Asker, Line, QuestionLine},
    view::tests::{event, status},
};

fn press(top: &mut Top, code: KeyCode) -> Option<Action> {
    top.take(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn key(top: &mut Top, key: char) -> Option<Action> {
    press(top, KeyCode::Char(key))
}

fn question(query: &str) -> LoggedDenial {
    let line = QuestionLine {
        query: query.to_owned(),
        qtype: "A".to_owned(),
        reason: "name-not-allowed".to_owned(),
        address: None,
        asker: Asker { uid: Some(987), ..Asker::default() },
        suppressed: 0,
        audit: false,
    };
    LoggedDenial { time: 1_790_000_000, instance: "b".to_owned(), line: Line::Question(line) }
}

/// A name above a destination, which is chosen.
fn chosen() -> Top {
    let mut top = Top::default();
    top.update(Instant::now(), status());
    top.add_denial(event(1_790_000_000));
    top.add_denial(question("evil.example"));
    press(&mut top, KeyCode::Down);
    press(&mut top, KeyCode::Down);
    top
}

fn panel(top: &Top) -> String {
    let panel = top.panel.as_ref().expect("a panel");
    format!("{}\n{}", panel.title, panel.lines.join("\n"))
}

#[test]
fn what_takes_a_row_says_so_without_one() {
    let mut top = Top::default();
    assert_eq!(key(&mut top, 'a'), None);
    assert_eq!(top.said.as_deref(), Some("nothing was denied lately"));
    top.add_denial(event(1));
    for action in ['a', 'e', 'w', 'n'] {
        assert_eq!(key(&mut top, action), None);
        assert_eq!(top.said.as_deref(), Some("choose a row first, with the arrows"));
        assert!(top.panel.is_none());
    }
    press(&mut top, KeyCode::Down);
    assert_eq!(top.said, None, "it is said until the next key");
}

#[test]
fn a_rule_is_shown_and_granted_by_y_alone() {
    let mut top = chosen();
    assert_eq!(key(&mut top, 'a'), None);
    let shown = panel(&top);
    for part in [
        "Let b have it for an hour?",
        "rule   203.0.113.9/32:443/tcp",
        "It opens TCP to port 443 of 203.0.113.9/32",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    for other in [KeyCode::Char('a'), KeyCode::Enter, KeyCode::Esc, KeyCode::Char('q'), KeyCode::Char('n')] {
        assert_eq!(press(&mut top, other), None);
        assert_eq!(top.said.as_deref(), Some("nothing was granted"));
        assert_eq!(key(&mut top, 'y'), None, "there is nothing to say yes to");
        key(&mut top, 'a');
    }
    // What comes meanwhile changes nothing of what was asked.
    top.add_denial(question("other.example"));
    let rule = "203.0.113.9/32:443/tcp".parse().expect("a rule");
    assert_eq!(key(&mut top, 'y'), Some(Action::Grant(Grant { instance: "b".to_owned(), rule })));
    assert!(top.panel.is_none());
}

#[test]
fn a_name_is_granted_as_a_name() {
    let mut top = chosen();
    press(&mut top, KeyCode::Up);
    key(&mut top, 'a');
    let shown = panel(&top);
    assert!(
        shown.contains("rule   evil.example\n") && shown.contains("must open TLS to that name"),
        "{shown}"
    );
    let rule = "evil.example".parse().expect("a rule");
    assert_eq!(key(&mut top, 'y'), Some(Action::Grant(Grant { instance: "b".to_owned(), rule })));
}

#[test]
fn what_no_lease_lets_pass_is_said() {
    let said = |change: fn(&mut LoggedDenial)| {
        let mut top = Top::default();
        let mut event = event(1);
        change(&mut event);
        top.add_denial(event);
        press(&mut top, KeyCode::Down);
        assert_eq!(key(&mut top, 'a'), None);
        assert_eq!(top.panel, None);
        top.said.expect("why")
    };
    let said_of_deny = said(|event| {
        if let Line::Flow(line) = &mut event.line {
            line.reason = "deny-rule".to_owned();
        }
    });
    assert!(said_of_deny.contains("a `deny` rule covers it"), "{said_of_deny}");
    let said_of_icmp = said(|event| {
        if let Line::Flow(line) = &mut event.line {
            (line.proto, line.dport) = ("icmp".to_owned(), 0);
        }
    });
    assert!(said_of_icmp.contains("is for TCP and UDP"), "{said_of_icmp}");
    let said_of_gre = said(|event| {
        if let Line::Flow(line) = &mut event.line {
            (line.proto, line.dport) = ("47".to_owned(), 0);
        }
    });
    assert!(said_of_gre.contains("is for TCP and UDP"), "{said_of_gre}");
}

#[test]
fn the_other_keys_explain_say_who_and_copy() {
    let mut top = chosen();
    let mut from_curl = event(1_790_000_001);
    if let Line::Flow(line) = &mut from_curl.line {
        let via = ["curl", "bash"].map(str::to_owned).to_vec();
        line.caller = Caller { exe: Some("/usr/bin/curl".to_owned()), via, cgroup: None };
    }
    top.add_denial(from_curl);
    let target = "203.0.113.9:443/tcp".parse().expect("a target");
    assert_eq!(key(&mut top, 'e'), Some(Action::Explain { instance: "b".to_owned(), target }));
    assert_eq!(key(&mut top, 'w'), None);
    let shown = panel(&top);
    let known =
        "process   42\nname      node\nuser      987\nprogram   /usr/bin/curl\nvia       curl < bash\n";
    assert!(shown.contains(known), "{shown}");
    key(&mut top, ' ');
    let Some(Action::Copy(option)) = key(&mut top, 'n') else { panic!("an option") };
    assert!(
        option.starts_with("services.opencode.instances.b.networkIsolation.outboundAllow = [\n  { cidr = \"203.0.113.9/32\"; "),
        "{option}"
    );
    assert!(panel(&top).contains(option.trim_end()), "it is shown as well");
    key(&mut top, ' ');
    key(&mut top, '?');
    assert!(panel(&top).contains("let it pass for an hour"));
}

#[test]
fn a_panel_scrolls_and_ends_are_ends() {
    let mut top = Top::default();
    top.show("title", "1\n2\n3");
    for (code, from) in [(KeyCode::Up, 0), (KeyCode::Down, 1), (KeyCode::PageDown, 2), (KeyCode::Up, 1)] {
        press(&mut top, code);
        assert_eq!(top.panel.as_ref().map(|panel| panel.from), Some(from));
    }
    assert_eq!(key(&mut top, 'q'), None, "it closes the panel");
    assert_eq!(key(&mut top, 'q'), Some(Action::Leave));
    let interrupt = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    top.show("title", "text");
    assert_eq!(top.take(&interrupt), Some(Action::Leave), "wherever it is");
    assert_eq!(top.take(&Event::FocusLost), None);
}

#[test]
fn counters_that_start_again_are_no_rate() {
    let (full, empty) = (status().instances["a"].counters.clone(), CountersStatus::default());
    assert_eq!(Rates::between(&full, &empty, Duration::from_secs(1)), Rates::default());
    assert_eq!(Rates::between(&empty, &full, Duration::from_secs(10)).allowed_packets, 1235);
}
