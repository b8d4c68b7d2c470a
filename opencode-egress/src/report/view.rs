//! A status as an operator reads it: what needs attention, in words and the worst first, then a row for each
//! instance. `status` prints it once, `top` again and again.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use crate::{
    cgroups::limits::{Limit, OpenFiles},
    policy::lease::{LeaseKind, LeaseStatus},
    report::{
        caller::Caller,
        denial::{DenialLine, Line, QuestionLine},
        human::{ago, bytes, count, duration, local_time},
        status::{
            FailedAttach, InstanceStatus, LimitsStatus, NamesStatus, ReachedLimit, SocketsStatus, Status,
            SteadyDenial, UnitStatus,
        },
    },
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
        for text in self.limits.notices() {
            add(Severity::Look, text);
        }
        if let Some(NamesStatus { questions, expired_lately, .. }) = &self.names {
            if *expired_lately {
                let which = format!("`journalctl -t opencode-{name}-blocked EGRESS_REASON=name-expired`");
                let text = "flows to addresses whose time was over were denied lately";
                add(
                    Severity::Look,
                    format!(
                        "{text}: a client keeps addresses longer than it was told; {which} says which, restart it"
                    ),
                );
            }
            if questions.failed_lately {
                let failed = count(questions.failed);
                let why = "no server answered them, or too many waited";
                let remedy =
                    "`resolver` in the policy file, or else the host's resolv.conf, says who is asked";
                add(
                    Severity::Look,
                    format!("questions for names failed: {failed}, some lately; {why}; {remedy}"),
                );
            }
        }
        for steady in self.steady.iter().take(STEADY_SHOWN) {
            add(Severity::Look, steady.text());
        }
        if let Some(more @ 1..) = self.steady.len().checked_sub(STEADY_SHOWN) {
            let which = format!("`opencode-egress suggest {name}` has them");
            add(Severity::Look, format!("{more} more are denied steadily; {which}"));
        }
        if self.mode == "audit" {
            // Of a file that has it for good a lease is no end.
            let learning = self.leases.iter().find(|lease| lease.lease.kind == LeaseKind::Audit);
            let learning = learning.filter(|_| self.mode_of_file != self.mode);
            let until = learning.map(|LeaseStatus { until, .. }| {
                format!(" until {}; `opencode-egress learn {name} --stop` ends it", local_time(*until))
            });
            let until = until.unwrap_or_default();
            add(Severity::Open, format!("mode audit: what the policy denies is told, and passes{until}"));
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

/// What is denied steadily that is shown; the rest is counted.
const STEADY_SHOWN: usize = 3;

impl SteadyDenial {
    fn text(&self) -> String {
        let Self { rule, attempts, tried } = self;
        let denials = count(*attempts);
        let since = tried.first.map(|first| format!(" since {}", local_time(first))).unwrap_or_default();
        let by = tried.programs().map(|programs| format!(", by {programs}")).unwrap_or_default();
        format!(
            "`{rule}` is denied steadily, {denials} times{since}{by}; add \"{rule}\" to `allow` if it should pass"
        )
    }
}

impl LimitsStatus {
    /// The limits that were reached lately, and what that means.
    fn notices(&self) -> Vec<String> {
        let lately = self.reached.iter().filter(|(_, reached)| reached.lately);
        let reached = lately.map(|(limit, ReachedLimit { count: times, .. })| {
            let times = count(*times);
            match limit {
                Limit::OomKill => format!(
                    "processes of it were killed for want of memory: {times}, some lately; `journalctl -k -g oom` says which, and whether MemoryMax= or the machine had no more"
                ),
                Limit::MemoryMax => format!(
                    "it reached MemoryMax=: {times} times, some lately; cache counts, and is taken back first"
                ),
                Limit::MemoryHigh => format!("it was slowed down at MemoryHigh=: {times} times, some lately"),
                Limit::Tasks => format!(
                    "processes or threads more than TasksMax= were refused to it: {times}, some lately; `systemd-cgls` shows those that it has"
                ),
            }
        });
        let full = self.files.filter(|files| files.left() == 0);
        let full = full.map(|OpenFiles { pid, open, limit }| {
            format!("its process {pid} has {open} of {limit} files open (LimitNOFILE=), and gets no more; `ls -l /proc/{pid}/fd` shows which")
        });
        reached.chain(full).collect()
    }
}

/// A denial in the fewest words: `tcp 192.0.2.30:80 not-allowed`, and whether the mode let it pass.
pub fn denial(line: &Line) -> String {
    match line {
        Line::Flow(line) => denied_flow(line),
        Line::Question(QuestionLine { query, qtype, reason, audit, .. }) => {
            let audit = if *audit { " (audit: it was answered)" } else { "" };
            format!("{qtype} {} {reason}{audit}", short(query))
        }
    }
}

/// The end of a long name, which says whose it is; what stands before it may be an agent's.
fn short(name: &str) -> String {
    const LONGEST: usize = 64;
    match name.char_indices().rev().nth(LONGEST - 1) {
        Some((start, _)) if start > 0 => format!("…{}", &name[start..]),
        _ => name.to_owned(),
    }
}

/// Where a denied flow went: `192.0.2.30:80`, or the address where there is no port.
pub fn place(line: &DenialLine) -> String {
    match line.dport {
        0 => line.dst.to_string(),
        port => std::net::SocketAddr::new(line.dst, port).to_string(),
    }
}

fn denied_flow(line: &DenialLine) -> String {
    let place = place(line);
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
    for (name, instance) in instances {
        if let Some(last) = &instance.last_denial {
            line(&mut text, &format!("{name}: the last denial was of {}", caller(&last.line)));
        }
        if let Some(names) = &instance.names {
            line(&mut text, &format!("{name}: {}", names_text(names)));
        }
        if let Some(leases) = leases_text(&instance.leases, 0) {
            line(&mut text, &format!("{name}: {leases}; `opencode-egress leases {name}` has them"));
        }
    }
    text
}

/// Which program a denial is of.
pub fn caller(line: &Line) -> String {
    let (_, comm, Caller { exe, via, cgroup }) = line.process();
    let named = Some(comm).filter(|comm| !comm.is_empty());
    let program = exe.as_deref().or(named).unwrap_or("a program that is not known");
    // The first one is the process itself.
    let parents = via.get(1..).filter(|parents| !parents.is_empty());
    let parents = parents.map(|parents| format!(", run by {}", parents.join(", run by ")));
    let cgroup = cgroup.as_ref().map(|cgroup| format!(", in the cgroup {cgroup}"));
    format!("{program}{}{}", parents.unwrap_or_default(), cgroup.unwrap_or_default())
}

fn names_text(NamesStatus { known, addresses, questions, .. }: &NamesStatus) -> String {
    let number = |number: usize| count(number as u64);
    format!(
        "known names: {}, with addresses: {}; questions: {}, refused: {}, failed: {}",
        number(*known),
        number(*addresses),
        count(questions.questions),
        count(questions.refused),
        count(questions.failed)
    )
}

/// How many leases there are, and which ends first, so many seconds after they were asked for.
pub fn leases_text(leases: &[LeaseStatus], passed: u64) -> Option<String> {
    let LeaseStatus { lease, seconds, .. } = leases.first()?;
    let (first, left) = (&lease.kind, duration(seconds.saturating_sub(passed)));
    Some(match leases.len() {
        1 => format!("1 lease: {first} ({left} left)"),
        many => format!("{many} leases; the first to end: {first} ({left} left)"),
    })
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
pub(crate) mod tests;
