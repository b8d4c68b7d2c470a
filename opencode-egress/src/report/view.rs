//! A status as an operator reads it: what needs attention, in words and the worst first, then a row for each
//! instance. `status` prints it once, `top` again and again.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use crate::report::{
    denial::{DenialLine, Line, QuestionLine},
    human::{ago, bytes, count, local_time},
    status::{FailedAttach, InstanceStatus, SocketsStatus, Status, UnitStatus},
};

/// How much something matters, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something passes that the policy denies.
    Open,
    /// Everything is enforced, and yet somebody should look.
    Look,
}

impl Severity {
    /// Its colour, where colours are shown.
    pub fn color(self) -> AnsiColor {
        match self {
            Self::Open => AnsiColor::Red,
            Self::Look => AnsiColor::Yellow,
        }
    }
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about, and what to do.
    pub text: String,
}

impl Status {
    /// What needs attention, the worst first.
    pub fn notices(&self) -> Vec<Notice> {
        let mut notices: Vec<_> =
            self.instances.iter().flat_map(|(name, instance)| instance.notices(name)).collect();
        let troubles = self.troubles.iter().cloned();
        notices.extend(troubles.map(|text| Notice { severity: Severity::Look, text }));
        if let Some(error) = &self.reload_error {
            let text = format!("the last reload was not applied: {error}");
            notices.push(Notice { severity: Severity::Look, text });
        }
        let not_reset = self.not_reset.iter().cloned();
        notices.extend(not_reset.map(|text| Notice { severity: Severity::Look, text }));
        notices.sort_by_key(|notice| notice.severity);
        notices
    }
}

/// The columns that [`InstanceStatus::cells`] fills.
pub const COLUMNS: [&str; 5] = ["INSTANCE", "MODE", "UNITS", "LINKS", "GEN"];

impl InstanceStatus {
    /// The cells of its row under [`COLUMNS`].
    pub fn cells(&self, name: &str) -> [String; 5] {
        let running: Vec<_> = self.units.iter().filter(|unit| unit.running).collect();
        let confined = running.iter().filter(|unit| unit.links == unit.hooks).count();
        let stopped = self.units.len() - running.len();
        let units = match (running.len(), stopped) {
            (0, _) => "stopped".to_owned(),
            (running, 0) => format!("{confined}/{running} confined"),
            (running, stopped) => format!("{confined}/{running} confined, {stopped} stopped"),
        };
        let links: usize = running.iter().map(|unit| unit.links).sum();
        let hooks: usize = running.iter().map(|unit| unit.hooks).sum();
        let links = if running.is_empty() { "-".to_owned() } else { format!("{links}/{hooks}") };
        [name.to_owned(), self.mode.clone(), units, links, self.generation.to_string()]
    }

    /// What needs attention, the worst first.
    pub fn notices(&self, name: &str) -> Vec<Notice> {
        let mut notices = vec![];
        let mut add = |severity, text: String| {
            notices.push(Notice { severity, text: format!("{name}: {text}") });
        };
        for UnitStatus { unit, links, hooks, late, unlisted, .. } in
            self.units.iter().filter(|unit| unit.running)
        {
            if self.detached {
                let remedy = "`opencode-egress reload` confines it again";
                add(Severity::Open, format!("{unit} is not confined, it was detached on request; {remedy}"));
            } else if links < hooks {
                add(Severity::Open, format!("{unit} runs with {links} of {hooks} hooks"));
            } else if self.removed {
                let why = "the policy file does not have this instance any more";
                add(Severity::Look, format!("{unit} runs, and {why}: everything is denied to it; stop it"));
            } else if *unlisted {
                add(
                    Severity::Look,
                    format!("{unit} is not listed any more; this policy holds it until it stops"),
                );
            } else if *late {
                add(Severity::Look, format!("{unit} was running before it was confined; restart it"));
            }
        }
        for UnitStatus { unit, users, .. } in &self.units {
            for user in users {
                let what = "which nothing confines; make it a system unit with User=";
                add(Severity::Look, format!("a {unit} runs in user {user}'s own systemd, {what}"));
            }
        }
        if let Some(FailedAttach { time, unit, why }) = &self.failed_attach {
            add(
                Severity::Look,
                format!("the last `attach` of {unit} failed, at {}: {why}", local_time(*time)),
            );
        }
        if self.outlived_denials > 0 {
            let denials = count(self.outlived_denials);
            let remedy = "`ss -tuanpe` shows who has them, with `cgroup:unreachable`";
            let text = format!("{denials} denials came from sockets of earlier starts; {remedy}");
            add(Severity::Look, text);
        }
        let SocketsStatus { open, limit, denied_lately } = self.sockets;
        if open >= limit || denied_lately {
            let denied = if denied_lately { ", and was lately denied more" } else { "" };
            let remedy =
                "`ss -tuanpe` shows who has them, and `limits` in the policy file is how many there may be";
            add(Severity::Look, format!("it has {open} of {limit} sockets{denied}; {remedy}"));
        }
        if self.mode == "audit" {
            add(Severity::Open, "mode audit: what the policy denies is told, and passes".to_owned());
        }
        if self.lost_lately {
            let lost = count(self.counters.lost);
            let text = format!(
                "{lost} denials never reached the log, some lately; counters and `suggest` have them"
            );
            add(Severity::Look, text);
        }
        notices.sort_by_key(|notice| notice.severity);
        notices
    }
}

/// A denial in the fewest words: `tcp 192.0.2.30:80 not-allowed`, and whether the mode let it pass.
pub fn denial(line: &Line) -> String {
    match line {
        Line::Flow(line) => denied_flow(line),
        Line::Question(QuestionLine { query, qtype, reason, audit, .. }) => {
            let audit = if *audit { " (audit: it was answered)" } else { "" };
            format!("{qtype} {query} {reason}{audit}")
        }
    }
}

fn denied_flow(line: &DenialLine) -> String {
    let place = match line.dport {
        0 => line.dst.to_string(),
        port => std::net::SocketAddr::new(line.dst, port).to_string(),
    };
    let audit = if line.audit { " (audit: it passed)" } else { "" };
    let name = line.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{} {place}{name} {}{audit}", line.proto, line.reason)
}

/// The whole status as text, with colours; `now` is seconds since 1970.
pub fn text(status: &Status, now: u64) -> String {
    let Status { version, config, instances, .. } = status;
    let mut text = format!("opencode-egress {version}, policy {config}\n");
    let notices = status.notices();
    for Notice { severity, text: notice } in &notices {
        line(&mut text, &paint(&format!("! {notice}"), severity.color().on_default()));
    }
    if notices.is_empty() {
        line(&mut text, "nothing needs attention");
    }
    line(&mut text, "");
    let more = ["RULES", "SOCKETS", "ALLOWED", "DENIED", "LOGGED", "LOST", "LAST DENIAL"];
    let mut rows = vec![COLUMNS.iter().chain(&more).map(|title| (*title).to_owned()).collect::<Vec<_>>()];
    for (name, instance) in instances {
        let counters = &instance.counters;
        let last = instance.last_denial.as_ref();
        let mut row = instance.cells(name).to_vec();
        row.extend([
            count(instance.rules.iter().map(|rules| *rules as u64).sum()),
            format!("{} of {}", instance.sockets.open, instance.sockets.limit),
            format!("{} ({})", count(counters.allowed_packets), bytes(counters.allowed_bytes)),
            count(counters.denied_packets),
            count(counters.lines),
            count(counters.lost),
            last.map_or("-".to_owned(), |event| format!("{}, {}", denial(&event.line), ago(event.time, now))),
        ]);
        rows.push(row);
    }
    let styles = instances.iter().map(|(name, instance)| {
        instance.notices(name).first().map_or(Style::new(), |notice| notice.severity.color().on_default())
    });
    let widths = widths(&rows);
    for (row, style) in rows.iter().zip(std::iter::once(Style::new().bold()).chain(styles)) {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(&mut text, &paint(cells.join("  ").trim_end(), style));
    }
    for (name, InstanceStatus { outlived, .. }) in instances.iter().filter(|(_, status)| status.outlived > 0)
    {
        let starts = if *outlived == 1 { "start" } else { "starts" };
        line(
            &mut text,
            &format!("{name}: sockets of {outlived} earlier {starts} are open; they stay confined"),
        );
    }
    text
}

/// The width of each column of rows of equal length.
pub fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect()
}

fn paint(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::{denial::LoggedDenial, status::CountersStatus};

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
            generation: 2,
            rules: [3, 1, 1],
            entries: 9,
            units,
            removed: false,
            detached: false,
            lost_lately: false,
            sockets: SocketsStatus { open: 12, limit: 4096, denied_lately: false },
            outlived: 0,
            outlived_denials: 0,
            failed_attach: None,
            counters,
            names: None,
            last_denial: None,
        }
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
        };
        LoggedDenial { time, instance: "b".to_owned(), line: Line::Flow(line) }
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
        assert!(
            text.contains("! a: a a-setup.service runs in user 1000's own systemd, which nothing"),
            "{text}"
        );
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
        let remedy =
            "`ss -tuanpe` shows who has them, and `limits` in the policy file is how many there may be";
        assert_eq!(notices(63, false), "");
        assert_eq!(notices(64, false), format!("a: it has 64 of 64 sockets; {remedy}"));
        let lately = format!("a: it has 3 of 64 sockets, and was lately denied more; {remedy}");
        assert_eq!(notices(3, true), lately);
    }

    #[test]
    fn all_well_is_said() {
        let mut status = status();
        status.reload_error = None;
        status.instances.retain(|name, _| name == "a");
        let text = text(&status, 1000);
        assert!(text.contains("\nnothing needs attention\n") && !text.contains('!'), "{text}");
    }
}
