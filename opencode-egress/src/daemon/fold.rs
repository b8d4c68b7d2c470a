//! What the kernel folded and nobody was told: when a destination is tried again and again and then no
//! more, the last repeats have no event of their own. They are asked for when their interval is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opencode_egress_common::{abi::DestinationKey, event::Denial};

use crate::kernel::instance::InstanceIndex;

/// Destinations remembered at most; as many as the kernel remembers.
const CAPACITY: usize = opencode_egress_common::abi::MAX_DESTINATIONS as usize;

struct LastLine {
    denial: Denial,
    /// Attempts of which lines were logged.
    attempts: u64,
    /// When to ask the kernel for more; `None` once that was done.
    due: Option<Instant>,
}

/// Destinations with a line in the log.
#[derive(Default)]
pub(in crate::daemon) struct Folds(HashMap<DestinationKey, LastLine>);

impl Folds {
    /// Takes note of an event, and returns how many denials were folded into it.
    pub(in crate::daemon) fn event(&mut self, denial: &Denial, now: Instant, interval: Duration) -> u64 {
        let suppressed = match self.0.get(&denial.destination_key()) {
            // Some may have been told of at the end of an interval, of which the kernel does not know.
            Some(told) if told.attempts < denial.event.attempts => denial.event.attempts - told.attempts - 1,
            _ => denial.event.suppressed,
        };
        if self.0.len() >= CAPACITY && !self.0.contains_key(&denial.destination_key()) {
            self.make_room();
        }
        let told = LastLine { denial: *denial, attempts: denial.event.attempts, due: Some(now + interval) };
        self.0.insert(denial.destination_key(), told);
        suppressed
    }

    /// Forgets what was asked for; if that is nothing, the half that is due first, whose repeats only the counters have then.
    fn make_room(&mut self) {
        self.0.retain(|_, told| told.due.is_some());
        if self.0.len() >= CAPACITY {
            let mut dues: Vec<_> = self.0.values().filter_map(|told| told.due).collect();
            let (_, median, _) = dues.select_nth_unstable(CAPACITY / 2);
            let median = *median;
            self.0.retain(|_, told| told.due > Some(median));
        }
    }

    /// The destinations whose interval is over and that were tried again in it, with how often. `attempts`
    /// asks the kernel.
    pub(in crate::daemon) fn due(
        &mut self,
        now: Instant,
        attempts: impl Fn(&DestinationKey) -> Option<u64>,
    ) -> Vec<(Denial, u64)> {
        self.take(|_, due| due <= now, attempts)
    }

    /// The same for an instance's destinations, before their time.
    pub(in crate::daemon) fn of(
        &mut self,
        instance: InstanceIndex,
        attempts: impl Fn(&DestinationKey) -> Option<u64>,
    ) -> Vec<(Denial, u64)> {
        self.take(|key, _| key.instance == instance.number(), attempts)
    }

    /// Forgets an instance's destinations: its number will be another's.
    pub(in crate::daemon) fn forget(&mut self, instance: InstanceIndex) {
        self.0.retain(|key, _| key.instance != instance.number());
    }

    fn take(
        &mut self,
        wanted: impl Fn(&DestinationKey, Instant) -> bool,
        attempts: impl Fn(&DestinationKey) -> Option<u64>,
    ) -> Vec<(Denial, u64)> {
        let mut folded = vec![];
        for (key, told) in &mut self.0 {
            if !told.due.is_some_and(|due| wanted(key, due)) {
                continue;
            }
            told.due = None;
            let more = attempts(key).map_or(0, |attempts| attempts.saturating_sub(told.attempts));
            if more > 0 {
                told.attempts += more;
                folded.push((told.denial, more));
            }
        }
        folded
    }
}
