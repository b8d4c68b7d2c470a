//! What was denied lately, as `top` lists it: a row for each destination or name and reason, which keeps its place while it repeats.

use std::collections::VecDeque;

use crate::{
    policy::{AnyRule, Invalid, RuleProtocol, lease::LeaseRule},
    report::{
        denial::{Line, LoggedDenial},
        remedy::Remedy,
        view::place,
    },
};

/// Rows kept; more than a screen has lines.
const KEPT: usize = 256;

/// What makes two denials the same row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) instance: String,
    /// A destination as `explain` takes it, or a name.
    pub(super) what: String,
    reason: String,
}

impl Key {
    fn of(event: &LoggedDenial) -> Self {
        let (what, reason) = match &event.line {
            Line::Question(line) => (line.query.clone(), &line.reason),
            Line::Flow(line) => (format!("{}/{}", place(line), line.proto), &line.reason),
        };
        Self { instance: event.instance.clone(), what, reason: reason.clone() }
    }
}

/// A destination or name that was denied to an instance.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) key: Key,
    /// The last of its denials.
    pub(super) last: LoggedDenial,
    /// How often it was denied, as far as that was logged.
    pub(super) times: u64,
}

impl Row {
    /// What would let it pass.
    pub(super) fn remedy(&self) -> Remedy {
        Remedy::of(&self.last.line)
    }

    /// The rule that would let it pass.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn rule(&self) -> Result<AnyRule, String> {
        match self.remedy() {
            Remedy::Rule(rule) => Ok(rule),
            Remedy::Other(why) => Err(why),
        }
    }

    /// That rule as a lease.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn lease(&self) -> Result<LeaseRule, String> {
        let rule = self.rule()?;
        if matches!(&rule, AnyRule::Network(rule) if rule.protocol() == RuleProtocol::Any) {
            return Err(format!(
                "a lease is for TCP and UDP, and this is neither; `{rule}` in the policy file lets it pass"
            ));
        }
        rule.try_into().map_err(|invalid: Invalid| invalid.to_string())
    }
}

/// The rows, and which of them is chosen.
#[derive(Debug, Default)]
pub(super) struct Denied {
    /// Those that came last first.
    rows: VecDeque<Row>,
    chosen: Option<Key>,
}

impl Denied {
    /// Takes a denial. A new row comes first; one that is there keeps its place, so that nobody's choice moves away below the key.
    pub(super) fn add(&mut self, event: LoggedDenial) {
        let key = Key::of(&event);
        let times = event.line.suppressed().saturating_add(1);
        if let Some(row) = self.rows.iter_mut().find(|row| row.key == key) {
            row.times = row.times.saturating_add(times);
            row.last = event;
            return;
        }
        if self.rows.len() == KEPT {
            let oldest = self.rows.iter().rposition(|row| Some(&row.key) != self.chosen.as_ref());
            oldest.map(|oldest| self.rows.remove(oldest));
        }
        self.rows.push_front(Row { key, last: event, times });
    }

    /// Forgets how often they were: a daemon that is asked anew sends the last ones again.
    pub(super) fn forget(&mut self) {
        self.rows.clear();
    }

    /// The rows, those that came last first.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Where the chosen one is.
    pub(super) fn position(&self) -> Option<usize> {
        self.rows.iter().position(|row| Some(&row.key) == self.chosen.as_ref())
    }

    /// The chosen one, if it is still there.
    pub(super) fn chosen(&self) -> Option<&Row> {
        self.rows.get(self.position()?)
    }

    /// Chooses the one `by` rows below the chosen one, or above it; the first where none is.
    pub(super) fn choose(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        let place = self.position().map_or(0, |at| at.saturating_add_signed(by).min(last));
        self.chosen = self.rows.get(place).map(|row| row.key.clone());
    }

    /// Chooses none.
    pub(super) fn leave(&mut self) {
        self.chosen = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::view::tests::event;

    fn denied(port: u16, time: u64, suppressed: u64) -> LoggedDenial {
        let mut event = event(time);
        if let Line::Flow(line) = &mut event.line {
            (line.dport, line.suppressed) = (port, suppressed);
        }
        event
    }

    #[test]
    fn repeats_are_counted_where_they_are_and_the_choice_stays() {
        let mut rows = Denied::default();
        rows.choose(1);
        assert!(rows.chosen().is_none(), "there is nothing to choose");
        for port in 1..=3 {
            rows.add(denied(port, 10, 0));
        }
        rows.choose(1);
        rows.choose(1);
        assert_eq!(rows.chosen().map(|row| &*row.key.what), Some("203.0.113.9:2/tcp"));
        rows.add(denied(4, 11, 0));
        rows.add(denied(1, 12, 6));
        assert_eq!(rows.position(), Some(2), "a new one is above it");
        let shown: Vec<_> = rows.rows().map(|row| (&*row.key.what, row.times, row.last.time)).collect();
        assert_eq!(
            shown,
            [
                ("203.0.113.9:4/tcp", 1, 11),
                ("203.0.113.9:3/tcp", 1, 10),
                ("203.0.113.9:2/tcp", 1, 10),
                ("203.0.113.9:1/tcp", 8, 12),
            ]
        );
        rows.choose(100);
        assert_eq!(rows.position(), Some(3));
        rows.choose(-100);
        assert_eq!(rows.position(), Some(0));
        rows.leave();
        assert_eq!(rows.position(), None);
    }

    #[test]
    fn a_flood_is_bounded_and_takes_nobodys_choice() {
        let mut rows = Denied::default();
        rows.add(denied(1, 0, 0));
        rows.choose(0);
        for port in 2..=10_000 {
            rows.add(denied(port, 1, 0));
        }
        assert_eq!(rows.len(), KEPT);
        assert_eq!(rows.chosen().map(|row| &*row.key.what), Some("203.0.113.9:1/tcp"));
    }
}
