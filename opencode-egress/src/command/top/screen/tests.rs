use std::time::{Duration, Instant};

use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, style::Modifier};

use super::*;
use crate::{
    policy::lease::LeaseKind,
    report::{
        denial::{Line as DenialLine, LoggedDenial},
        status::InstanceStatus,
        view::tests::{event, instance, lease, status},
    },
};

fn drawn(top: &Top, colors: bool, width: u16, height: u16) -> (Vec<String>, TestBackend) {
    drawn_at(top, Instant::now(), colors, width, height)
}

fn drawn_at(top: &Top, now: Instant, colors: bool, width: u16, height: u16) -> (Vec<String>, TestBackend) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(top, now, colors, frame)).expect("it is drawn");
    let backend = terminal.backend().clone();
    let cells: Vec<_> = backend.buffer().content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(usize::from(width).max(1)).map(|line| line.concat().trim_end().to_owned());
    (lines.collect(), backend)
}

fn screen(top: &Top, width: u16, height: u16) -> (Vec<String>, TestBackend) {
    drawn(top, true, width, height)
}

fn press(top: &mut Top, code: KeyCode) {
    let _ = top.take(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
}

fn denied(port: u16, time: u64) -> LoggedDenial {
    let mut event = event(time);
    if let DenialLine::Flow(line) = &mut event.line {
        line.dport = port;
    }
    event
}

fn watched() -> Top {
    let mut top = Top::default();
    let start = Instant::now();
    top.update(start, status());
    let mut later = status();
    if let Some(b) = later.instances.get_mut("b") {
        b.counters.allowed_packets += 5000;
        b.counters.allowed_bytes += 3_000_000;
        b.counters.denied_packets += 3;
    }
    top.update(start + Duration::from_secs(2), later);
    for (port, time) in (440..452).zip(1_790_000_000..) {
        top.add_denial(denied(port, time));
    }
    top.add_denial(denied(451, 1_790_000_020));
    top
}

#[test]
fn rates_denials_and_what_needs_attention_are_shown() {
    let (lines, backend) = screen(&watched(), 120, 40);
    assert_eq!(lines[0], "opencode-egress 0.1.0, policy policy.json");
    assert!(lines[1].starts_with("! c: c.service is not confined"), "{lines:#?}");
    assert_eq!(backend.buffer()[(0, 1)].fg, Color::Red);
    let table = [
        "INSTANCE  MODE     UNITS                    LINKS  GEN  ALLOWED/s          DENIED/s       LOST",
        "c         enforce  0/1 confined             0/10   2    0          0 B     0         0 B  0",
        "d         audit    1/2 confined             19/20  2    0          0 B     0         0 B  0",
        "b         enforce  1/1 confined             10/10  2    2.5k       1.5 MB  2         0 B  7",
        "f         enforce  1/1 confined             10/10  2    0          0 B     0         0 B  0",
        "g         enforce  2/2 confined             20/20  2    0          0 B     0         0 B  0",
        "a         enforce  1/1 confined, 1 stopped  10/10  2    0          0 B     0         0 B  0",
        "e         enforce  stopped                  -      2    0          0 B     0         0 B  0",
    ];
    assert_eq!(&lines[9..17], table, "{lines:#?}");
    assert_eq!(lines[18], "Denied last");
    let last = format!("  {} b: ×2 tcp 203.0.113.9:451 not-allowed by node", time_of_day(1_790_000_020));
    assert_eq!(lines[19], last, "the last one comes first");
    assert_eq!(lines.iter().filter(|line| line.ends_with("by node")).count(), 12);
    assert_eq!(lines[39], texts::KEYS);
}

/// Eighty columns, and whatever there is to draw.
#[test]
fn a_small_terminal_without_colours_has_all_that_one_decides_by() {
    let mut top = watched();
    for _ in 0..10 {
        press(&mut top, KeyCode::Down);
    }
    let (lines, backend) = drawn(&top, false, 80, 24);
    assert!(lines.iter().any(|line| line.starts_with("c         enforce  0/1 confined")), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("INSTANCE  MODE     UNITS") && line.contains("DENIED/s")),
        "{lines:#?}"
    );
    let at = lines.iter().position(|line| line.starts_with("> ")).expect("the chosen one is in sight");
    assert!(lines[at].contains("203.0.113.9:442"), "{lines:#?}");
    let row = u16::try_from(at).expect("a row");
    assert!(backend.buffer()[(0, row)].modifier.contains(Modifier::REVERSED));
    assert!(lines.iter().any(|line| line.starts_with("Denied last (5 to 10 of 12)")), "{lines:#?}");
    assert_eq!(lines[23], texts::KEYS);
    let colored =
        backend.buffer().content().iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    assert_eq!(colored.count(), 0);
    assert!(backend.buffer()[(0, 1)].modifier.contains(Modifier::BOLD), "the worse is bold");
    for text in [texts::KEYS, texts::HELP] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

/// Of what is denied steadily the rule stands at the beginning, and who at the end.
#[test]
fn what_needs_attention_is_whole_where_there_is_room() {
    let mut top = Top::default();
    let mut status = status();
    status.instances.retain(|name, _| name == "c");
    top.update(Instant::now(), status);
    let (lines, _) = screen(&top, 80, 40);
    let text = lines[1..].iter().take_while(|line| !line.starts_with("INSTANCE"));
    let text = text.map(|line| line.trim_start()).collect::<Vec<_>>().join(" ");
    let notices = top.status.as_ref().expect("a status").1.notices();
    let whole: Vec<_> = notices.iter().map(|notice| format!("! {}", notice.text)).collect();
    assert!(whole.iter().any(|text| text.chars().count() > 80), "{whole:#?}");
    assert_eq!(text.trim_end(), whole.join(" "));
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
    let (lines, _) = screen(&top, 80, 8);
    assert!(lines[1].starts_with("! ") && lines[1].ends_with('…'), "{lines:#?}");
}

#[test]
fn a_panel_lies_over_the_rest_and_fits() {
    let mut top = watched();
    press(&mut top, KeyCode::Down);
    press(&mut top, KeyCode::Char('a'));
    let (lines, _) = drawn(&top, false, 80, 24);
    assert_eq!(lines[1], "Let b have it for an hour?");
    assert!(lines.iter().any(|line| line == "rule   203.0.113.9/32:451/tcp"), "{lines:#?}");
    assert!(lines.iter().any(|line| line == "y grants it, any other key does not"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("INSTANCE")), "{lines:#?}");
    press(&mut top, KeyCode::Char('x'));
    let (lines, _) = drawn(&top, false, 80, 24);
    assert_eq!(lines[23], "nothing was granted");
}

#[test]
fn a_daemon_that_is_gone_is_said_and_what_it_said_stays() {
    let mut top = Top::default();
    top.lose("no daemon answers".to_owned());
    let (lines, _) = screen(&top, 80, 10);
    assert_eq!(lines[1], "! no daemon answers");
    let mut top = watched();
    top.lose("no daemon answers".to_owned());
    let (lines, _) = screen(&top, 120, 40);
    assert_eq!(lines[1], "! this is from before: no daemon answers");
    let b = lines.iter().find(|line| line.starts_with("b ")).expect("an instance");
    assert!(b.contains("-          -"), "no rates: {b}");
    top.update(Instant::now(), status());
    assert!(!screen(&top, 120, 40).0[1].contains("no daemon answers"), "it is back");
}

#[test]
fn a_small_screen_says_that_there_is_more() {
    let (lines, _) = screen(&watched(), 100, 8);
    assert_eq!(
        lines[1],
        "! c: c.service is not confined, it was detached on request; `opencode-egress reload` confines it ag…"
    );
    assert!(lines[2].starts_with("and 7 more"), "{lines:#?}");
    assert_eq!(lines[5], "and 6 more instances", "{lines:#?}");
    for (width, height) in [(0, 0), (1, 1), (5, 3)] {
        screen(&watched(), width, height);
    }
}

#[test]
fn the_chosen_row_is_in_sight_wherever_there_is_a_line_for_it() {
    let mut top = watched();
    for _ in 0..5 {
        for (width, height) in
            [30, 80].into_iter().flat_map(|width| (0..=24).map(move |height| (width, height)))
        {
            let (lines, _) = drawn(&top, false, width, height);
            let chosen = lines.iter().position(|line| line.starts_with("> "));
            assert_eq!(
                chosen.is_some(),
                top.denied.position().is_some() && height > 2,
                "{height}: {lines:#?}"
            );
            let range =
                lines.iter().find_map(|line| line.strip_prefix("Denied last (")?.strip_suffix(" of 12)"));
            let Some((first, last)) = range.and_then(|range| range.split_once(" to ")) else { continue };
            let number = |text: &str| text.parse::<usize>().expect("a number");
            let shown = lines.iter().filter(|line| line.contains(" b: ") && !line.starts_with('!')).count();
            assert_eq!(number(first) + shown, number(last) + 1, "{height}: {lines:#?}");
            assert!(shown > 0, "{height}: {lines:#?}");
        }
        press(&mut top, KeyCode::Down);
    }
    top.denied.leave();
    let (lines, _) = screen(&top, 30, 8);
    assert_eq!(lines[6], "Denied last (12)", "{lines:#?}");
}

/// A lease with so many seconds left.
fn leased_for(rule: &str, seconds: u64) -> LeaseStatus {
    let mut lease = lease();
    lease.lease.kind = LeaseKind::Rule(rule.parse().expect("a rule"));
    LeaseStatus { seconds, ..lease }
}

/// One that watches instances with these leases, since the time that is returned, when they had the time left that they say.
fn watched_with_leases(instances: usize, leases: &[LeaseStatus]) -> (Top, Instant) {
    let mut top = watched();
    let (at, mut status) = top.status.take().expect("a status");
    status.reload_error = None;
    status.instances = (0..instances)
        .map(|number| {
            (format!("i{number:02}"), InstanceStatus { leases: leases.to_vec(), ..instance(vec![]) })
        })
        .collect();
    top.status = Some((at, status));
    (top, at)
}

#[test]
fn leases_are_shown_count_down_and_go_when_they_end() {
    let (top, at) =
        watched_with_leases(1, &[leased_for("192.0.2.20/32:8282/tcp", 1800), leased_for("github.com", 3600)]);
    let after = |seconds| {
        let (lines, _) = drawn_at(&top, at + Duration::from_secs(seconds), true, 80, 24);
        assert!(lines[2].starts_with("INSTANCE") && lines[3].starts_with("i00 "), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("Denied last")), "{lines:#?}");
        lines[4].clone()
    };
    assert_eq!(after(0), "i00: 2 leases; the first to end: 192.0.2.20/32:8282/tcp (30m left)");
    assert_eq!(after(12), "i00: 2 leases; the first to end: 192.0.2.20/32:8282/tcp (29m48s left)");
    assert_eq!(after(1799), "i00: 2 leases; the first to end: 192.0.2.20/32:8282/tcp (1s left)");
    assert_eq!(after(1800), "i00: 1 lease: github.com (30m left)");
    assert_eq!(after(3600), "");

    let ports = (1..40).map(|port| (port * 10).to_string()).collect::<Vec<_>>().join(",");
    let (top, at) = watched_with_leases(1, &[leased_for(&format!("192.0.2.20/32:{ports}/tcp"), 1788)]);
    let (lines, _) = drawn_at(&top, at, true, 80, 24);
    let line = &lines[4];
    assert!(line.starts_with("i00: 1 lease: 192.0.2.20/32:10,20,30,"), "{line}");
    assert!(line.ends_with("… (29m48s left)") && line.chars().count() == 80, "{line}");
}

#[test]
fn many_leases_leave_room_and_are_counted() {
    let leases: Vec<_> =
        (0..256).map(|port| leased_for(&format!("192.0.2.20/32:{}/tcp", port + 1), 1800)).collect();
    let (mut top, at) = watched_with_leases(30, &leases);
    press(&mut top, KeyCode::Down);
    let drawn = |top: &Top, height| drawn_at(top, at, false, 80, height).0;
    let lines = drawn(&top, 24);
    let below = lines.iter().position(|line| line == "and 21 more instances").expect("more");
    assert_eq!(lines[below + 3], "i02: 256 leases; the first to end: 192.0.2.20/32:1/tcp (30m left)");
    assert_eq!(lines[below + 4], "and 6912 leases of 27 more instances; `opencode-egress leases` has them");
    assert!(lines[below + 5].starts_with("Denied last (1 to 5 of"), "{lines:#?}");
    assert!(lines[below + 6].starts_with("> "), "{lines:#?}");
    let lines = drawn(&top, 80);
    let below = lines.iter().rposition(|line| line.starts_with('i')).expect("leases");
    assert_eq!(lines[below], "i23: 256 leases; the first to end: 192.0.2.20/32:1/tcp (30m left)");
    assert_eq!(lines[below + 1], "and 1536 leases of 6 more instances; `opencode-egress leases` has them");
    if let Some((_, status)) = &mut top.status {
        status.troubles = vec!["the log has taken no line for 7 s".to_owned(); 9];
    }
    for height in 0..40 {
        let lines = drawn(&top, height);
        assert_eq!(lines.iter().any(|line| line.starts_with("> ")), height > 2, "{lines:#?}");
        let told = lines.iter().any(|line| line.contains("leases of"));
        assert_eq!(told, height >= 16, "{lines:#?}");
    }
    let lines = drawn(&top, 24);
    let all = "7680 leases of 30 instances; `opencode-egress leases` has them";
    assert!(lines.iter().any(|line| line == all), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("Denied last (1 to 3 of")), "{lines:#?}");
}
