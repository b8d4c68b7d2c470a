//! What the kernel folded and nobody was told: when a destination is tried again and again and then no
//! more, the last repeats have no event of their own. They are asked for when their interval is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opencode_egress_common::abi::SeenKey;

use crate::events::Record;

/// Destinations remembered at most; as many as the kernel remembers.
const CAPACITY: usize = opencode_egress_common::abi::SEEN_ENTRIES as usize;

struct Told {
    record: Record,
    /// Attempts of which lines were logged.
    attempts: u64,
    /// When to ask the kernel for more; `None` once that was done.
    due: Option<Instant>,
}

/// Destinations with a line in the log.
#[derive(Default)]
pub(super) struct Folds(HashMap<SeenKey, Told>);

impl Folds {
    /// Takes note of an event, and returns how many denials were folded into it.
    pub(super) fn event(&mut self, record: &Record, now: Instant, interval: Duration) -> u64 {
        let suppressed = match self.0.get(&record.seen_key()) {
            // Some may have been told of at the end of an interval, of which the kernel does not know.
            Some(told) if told.attempts < record.event.attempts => record.event.attempts - told.attempts - 1,
            _ => record.event.suppressed,
        };
        if self.0.len() >= CAPACITY {
            self.0.retain(|_, told| told.due.is_some());
        }
        let told = Told { record: *record, attempts: record.event.attempts, due: Some(now + interval) };
        self.0.insert(record.seen_key(), told);
        suppressed
    }

    /// The destinations whose interval is over and that were tried again in it, with how often. `attempts`
    /// asks the kernel.
    pub(super) fn due(
        &mut self,
        now: Instant,
        attempts: impl Fn(&SeenKey) -> Option<u64>,
    ) -> Vec<(Record, u64)> {
        let mut folded = vec![];
        for (key, told) in &mut self.0 {
            if told.due.is_none_or(|due| due > now) {
                continue;
            }
            told.due = None;
            let more = attempts(key).map_or(0, |attempts| attempts.saturating_sub(told.attempts));
            if more > 0 {
                told.attempts += more;
                folded.push((told.record, more));
            }
        }
        folded
    }
}
