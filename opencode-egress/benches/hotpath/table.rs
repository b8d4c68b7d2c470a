//! Medians, and the table of them.

use std::fmt::Write as _;

use crate::{subject::Subject, worker::Operation};

/// What was measured: nanoseconds for each set-up, subject and operation.
pub(crate) struct Table {
    subjects: Vec<Subject>,
    setups: Vec<Vec<(Subject, Operation, f64)>>,
}

impl Table {
    pub(crate) fn new(subjects: &[Subject]) -> Self {
        Self { subjects: subjects.to_vec(), setups: vec![] }
    }

    pub(crate) fn new_setup(&mut self) {
        self.setups.push(vec![]);
    }

    pub(crate) fn add(&mut self, subject: Subject, operation: Operation, nanoseconds: f64) {
        if let Some(setup) = self.setups.last_mut() {
            setup.push((subject, operation, nanoseconds));
        }
    }

    /// The median over set-ups of what `of` says of one.
    fn over_setups(&self, of: impl Fn(&[(Subject, Operation, f64)]) -> Option<f64>) -> Option<f64> {
        median(self.setups.iter().filter_map(|setup| of(setup)).collect())
    }

    fn nanoseconds(&self, subject: Subject, operation: Operation) -> Option<f64> {
        self.over_setups(|setup| in_setup(setup, subject, operation))
    }

    /// The time relative to that without any policy, each in the same set-up.
    fn ratio(&self, subject: Subject, operation: Operation) -> Option<f64> {
        self.over_setups(|setup| {
            Some(in_setup(setup, subject, operation)? / in_setup(setup, Subject::None, operation)?)
        })
    }
}

fn in_setup(setup: &[(Subject, Operation, f64)], subject: Subject, operation: Operation) -> Option<f64> {
    let of = setup.iter().filter(|one| one.0 == subject && one.1 == operation);
    median(of.map(|one| one.2).collect())
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The report's first part.
pub(crate) fn of(table: &Table) -> String {
    let operations =
        [Operation::Connect, Operation::Hello, Operation::Stream, Operation::Sendto, Operation::Send];
    let mut text = String::from(
        "| | rules | TCP connect | TCP connect, TLS hello | TCP send, open, 64 B | UDP sendto, 64 B | UDP send, connected, 64 B | denied TCP connect |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for subject in &table.subjects {
        let (name, rules) = match subject {
            Subject::None => ("no policy", None),
            Subject::NoneAgain => ("no policy, again", None),
            Subject::Floor => ("programs that return 1", None),
            Subject::FloorOfCalls => ("programs that return 1, at calls too", None),
            Subject::Ours(rules) => ("opencode-egress", Some(rules)),
            Subject::Named => ("opencode-egress, by name", None),
            Subject::NamedTls => ("opencode-egress, by name with TLS", None),
            Subject::BesideNames => ("opencode-egress, by network beside names", None),
            Subject::Own => ("opencode-egress, own loopback", None),
            Subject::OwnListed => ("opencode-egress, the same with a rule", None),
            Subject::Systemd(rules) => ("systemd `IPAddressAllow`", Some(rules)),
            Subject::Nftables(rules) => ("nftables by cgroup", Some(rules)),
        };
        let rules = rules.map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "| {name} | {rules} |");
        for operation in operations {
            let cell = match subject {
                Subject::None => table.nanoseconds(*subject, operation).map(time),
                _ => table.ratio(*subject, operation).map(|ratio| format!("{ratio:.3}")),
            };
            let _ = write!(text, " {} |", cell.unwrap_or_else(|| "skipped".into()));
        }
        let denied = table.nanoseconds(*subject, Operation::Denied).map(time).unwrap_or_default();
        let _ = writeln!(text, " {denied} |");
    }
    text
}

/// A time with three digits.
pub(crate) fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}
