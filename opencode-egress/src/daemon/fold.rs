//! What the kernel folded and nobody was told: when a destination is tried again and again and then no
//! more, the last repeats have no event of their own. They are asked for when their interval is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opencode_egress_common::abi::DestinationKey;

use crate::kernel::{instance::InstanceIndex, ring::Reported};

/// Destinations remembered at most, of all instances together.
const CAPACITY: usize = 8192;

struct LastLine {
    of: Reported,
    /// Attempts of which lines were logged.
    attempts: u64,
    /// When to ask the kernel for more; `None` once that was done.
    due: Option<Instant>,
}

/// Destinations with a line in the log, by instance; none is empty.
#[derive(Default)]
pub(in crate::daemon) struct Folds {
    of: HashMap<u32, HashMap<DestinationKey, LastLine>>,
    len: usize,
}

impl Folds {
    /// Takes note of an event, and returns how many denials were folded into it.
    pub(in crate::daemon) fn event(&mut self, reported: &Reported, now: Instant, interval: Duration) -> u64 {
        let Reported { denial, .. } = reported;
        let key = denial.destination_key();
        let attempts = denial.event.attempts;
        let told = LastLine { of: reported.clone(), attempts, due: Some(now + interval) };
        if let Some(before) = self.of.get_mut(&key.instance).and_then(|of| of.get_mut(&key)) {
            // Some may have been told of at the end of an interval, of which the kernel does not know.
            let known = before.attempts;
            *before = told;
            return if known < attempts { attempts - known - 1 } else { denial.event.suppressed };
        }
        if !self.has_room(key.instance) {
            self.make_room(key.instance);
        }
        self.of.entry(key.instance).or_default().insert(key, told);
        self.len += 1;
        denial.event.suppressed
    }

    /// As everywhere: an instance has at most half of what is free.
    fn has_room(&self, instance: u32) -> bool {
        self.of.get(&instance).map_or(0, HashMap::len) < (CAPACITY - self.len) / 2
    }

    /// Forgets what was asked for, and if that is not enough, the half of the instance's own that is due first, whose repeats
    /// only the counters have then.
    fn make_room(&mut self, instance: u32) {
        for of in self.of.values_mut() {
            of.retain(|_, told| told.due.is_some());
        }
        self.of.retain(|_, of| !of.is_empty());
        self.len = self.of.values().map(HashMap::len).sum();
        if !self.has_room(instance)
            && let Some(of) = self.of.get_mut(&instance)
        {
            let mut dues: Vec<_> = of.values().filter_map(|told| told.due).collect();
            let middle = dues.len() / 2;
            let median = *dues.select_nth_unstable(middle).1;
            self.len -= of.len();
            of.retain(|_, told| told.due > Some(median));
            self.len += of.len();
        }
    }

    /// Tells of the destinations whose interval is over and that were tried again in it, with how often. `attempts`
    /// asks the kernel. What `tell` does not take is told of later.
    pub(in crate::daemon) fn due(
        &mut self,
        now: Instant,
        attempts: impl Fn(&DestinationKey) -> Option<u64>,
        mut tell: impl FnMut(&Reported, u64) -> bool,
    ) {
        for of in self.of.values_mut() {
            tell_of(of, |due| due <= now, &attempts, &mut tell);
        }
    }

    /// Forgets an instance's destinations: its number will be another's.
    pub(in crate::daemon) fn forget(&mut self, instance: InstanceIndex) {
        if let Some(of) = self.of.remove(&instance.number()) {
            self.len -= of.len();
        }
    }

    /// The same for an instance's destinations, before their time.
    pub(in crate::daemon) fn of(
        &mut self,
        instance: InstanceIndex,
        attempts: impl Fn(&DestinationKey) -> Option<u64>,
        tell: impl FnMut(&Reported, u64) -> bool,
    ) {
        if let Some(of) = self.of.get_mut(&instance.number()) {
            tell_of(of, |_| true, attempts, tell);
        }
    }
}

fn tell_of(
    of: &mut HashMap<DestinationKey, LastLine>,
    is_due: impl Fn(Instant) -> bool,
    attempts: impl Fn(&DestinationKey) -> Option<u64>,
    mut tell: impl FnMut(&Reported, u64) -> bool,
) {
    for (key, told) in of {
        if !told.due.is_some_and(&is_due) {
            continue;
        }
        let more = attempts(key).map_or(0, |attempts| attempts.saturating_sub(told.attempts));
        if more > 0 {
            if !tell(&told.of, more) {
                continue;
            }
            told.attempts += more;
        }
        told.due = None;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use opencode_egress_common::{abi::Event, flow::Address};

    use super::*;
    use crate::report::{
        caller::Caller,
        denial::tests::{decode, event},
    };

    const INTERVAL: Duration = Duration::from_secs(10);

    fn denial(instance: u32, destination: u32, attempts: u64) -> Reported {
        let address = Address::from(IpAddr::from(destination.to_be_bytes()));
        let event = Event { address: address.words(), attempts, instance, ..event() };
        Reported { denial: decode(&event).expect("an event"), caller: Caller::default() }
    }

    fn told(folds: &mut Folds, now: Instant, room: bool) -> Vec<(u32, u64)> {
        let mut told = vec![];
        folds.due(
            now,
            |_| Some(5),
            |reported, more| {
                if room {
                    told.push((reported.denial.event.instance, more));
                }
                room
            },
        );
        told
    }

    #[test]
    fn repeats_are_told_once_when_their_interval_is_over_and_there_is_room() {
        let (mut folds, begin) = (Folds::default(), Instant::now());
        assert_eq!(folds.event(&denial(1, 1, 1), begin, INTERVAL), 0);
        assert_eq!(told(&mut folds, begin, true), []);
        assert_eq!(told(&mut folds, begin + INTERVAL, false), []);
        assert_eq!(told(&mut folds, begin + INTERVAL, true), [(1, 4)]);
        assert_eq!(told(&mut folds, begin + INTERVAL, true), []);
        // Five were told of; the kernel knows of one line.
        assert_eq!(folds.event(&denial(1, 1, 8), begin + INTERVAL, INTERVAL), 2);
    }

    #[test]
    fn what_a_noisy_instance_tries_makes_nobody_else_forgotten() {
        let (mut folds, begin) = (Folds::default(), Instant::now());
        folds.event(&denial(1, 1, 1), begin, INTERVAL);
        for destination in 0..3 * u32::try_from(CAPACITY).expect("a number") {
            folds.event(&denial(2, destination, 1), begin, INTERVAL);
            assert!(folds.len <= CAPACITY);
        }
        let told = told(&mut folds, begin + INTERVAL, true);
        assert!(told.contains(&(1, 4)), "the quiet one's was forgotten");
        assert_eq!(told.len(), folds.len);
    }
}
