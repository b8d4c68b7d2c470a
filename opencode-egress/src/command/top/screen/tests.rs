use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::report::{
    human::local_time,
    view::tests::{event, status},
};

fn screen(top: &Top, width: u16, height: u16) -> (Vec<String>, TestBackend) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| top.draw(frame)).expect("it is drawn");
    let backend = terminal.backend().clone();
    let cells: Vec<_> = backend.buffer().content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(usize::from(width).max(1)).map(|line| line.concat().trim_end().to_owned());
    (lines.collect(), backend)
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
    for time in 1_790_000_000..1_790_000_012 {
        top.add_denial(event(time));
    }
    top
}

#[test]
fn rates_denials_and_what_needs_attention_are_shown() {
    let (lines, backend) = screen(&watched(), 120, 40);
    assert_eq!(lines[0], "opencode-egress 0.1.0, policy policy.json; q leaves");
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
    let last = format!("{} b: tcp 203.0.113.9:443 not-allowed by node", local_time(1_790_000_011));
    assert_eq!(lines[19], last, "the last one comes first");
    assert_eq!(lines.iter().filter(|line| line.ends_with("by node")).count(), 12);
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
        "! c: c.service is not confined, it was detached on request; `opencode-egress reload` confines it aga"
    );
    assert!(lines[2].starts_with("and 7 more"), "{lines:#?}");
    assert_eq!(lines[6], "and 5 more instances", "{lines:#?}");
    for (width, height) in [(0, 0), (1, 1), (5, 3)] {
        screen(&watched(), width, height);
    }
}

#[test]
fn counters_that_start_again_are_no_rate() {
    let (full, empty) = (status().instances["a"].counters.clone(), CountersStatus::default());
    assert_eq!(Rates::between(&full, &empty, Duration::from_secs(1)), Rates::default());
    assert_eq!(Rates::between(&empty, &full, Duration::from_secs(10)).allowed_packets, 1235);
}
