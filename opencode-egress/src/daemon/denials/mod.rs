//! Denials: taken out of the ring buffer, logged, and kept for clients that ask for `events`.

mod seen;

use std::{collections::BTreeMap, time::Instant};

use tracing::{error, warn};

use crate::{
    daemon::{
        error::DaemonError,
        predecessor::Predecessor,
        state::{Daemon, Denials, InstanceState, RECENT_EVENTS},
    },
    kernel::{instance::InstanceIndex, registry::InstanceNumbers},
    policy::InstanceName,
    report::{
        denial::{DenialLine, LoggedDenial},
        human::{error_chain, now},
        journal,
    },
};
use opencode_egress_common::event::{DecodeError, Denial};

/// How many events are taken in one turn, so that nobody who asks waits long for it.
const EVENTS: usize = 512;

impl Daemon {
    /// Has the kernel forget the oldest denials of instances that soon have no room for new ones; a step of it.
    pub fn forget_oldest(&mut self) {
        let Self { loaded, instances, .. } = self;
        if let Err(error) = loaded.maps.make_room(instances.values().map(|instance| instance.index)) {
            warn!("what the kernel remembers of denials stays: {}", error_chain(&error));
        }
    }

    /// The last denied flows, the oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub fn recent(&self, name: Option<&str>) -> Result<Vec<LoggedDenial>, DaemonError> {
        let mut events: Vec<_> = match name {
            Some(name) => self.instance(&self.known(name)?)?.recent.iter().cloned().collect(),
            None => self.instances.values().flat_map(|instance| instance.recent.iter().cloned()).collect(),
        };
        events.sort_by_key(|event| event.time);
        Ok(events)
    }

    /// Takes some of the events that are there, and logs and returns them; also those for which the daemons of other
    /// versions left no reader. The second value says whether there may be more.
    pub fn take_events(&mut self) -> (Vec<LoggedDenial>, bool) {
        let Self { loaded, numbers, instances, confinement, policies, denials, .. } = self;
        let (folds, predecessors) = (&mut denials.folds, &mut confinement.predecessors);
        let interval = policies.set.log.interval;
        let mut logged = vec![];
        let mut take = |denial: Result<Denial, DecodeError>| match denial {
            Ok(denial) => {
                let suppressed = folds.event(&denial, Instant::now(), interval);
                logged.extend(log(numbers, instances, &denial, suppressed));
            }
            Err(error) => error!("{error}"),
        };
        for predecessor in predecessors.iter_mut() {
            predecessor.take(numbers, EVENTS, &mut take);
        }
        let more = loaded.events.take(EVENTS, &mut take);
        predecessors.retain(Predecessor::is_there);
        (logged, more)
    }

    /// Passes on the programs' debug messages, where the object has them.
    pub fn flush_debug_log(&mut self) {
        self.loaded.debug_log.flush();
    }

    /// Logs what was folded or left out and has no event of its own.
    pub fn take_folded(&mut self) -> Vec<LoggedDenial> {
        let Self { loaded, denials: Denials { folds, .. }, .. } = self;
        let due = folds.due(Instant::now(), |key| loaded.maps.attempts(key));
        let mut logged = std::mem::take(&mut self.denials.unpublished);
        logged.extend(self.log_folded(due));
        logged
    }

    /// Logs the repeats that were folded into an instance's lines so far, before its mode changes: a line is of one mode.
    pub(in crate::daemon) fn end_folds(&mut self, index: InstanceIndex) {
        let Self { loaded, denials: Denials { folds, .. }, .. } = self;
        let folded = folds.of(index, |key| loaded.maps.attempts(key));
        let logged = self.log_folded(folded);
        self.denials.unpublished.extend(logged);
    }

    fn log_folded(&mut self, folded: Vec<(Denial, u64)>) -> Vec<LoggedDenial> {
        let Self { numbers, instances, .. } = self;
        // The line itself stands for one of them.
        let lines =
            folded.into_iter().map(|(denial, attempts)| log(numbers, instances, &denial, attempts - 1));
        lines.flatten().collect()
    }

    /// Logs how many denials had no line, of the instances where that is more than last time.
    pub fn log_left_out(&mut self) {
        for (name, instance) in &mut self.instances {
            let Ok(counters) = self.loaded.maps.counters(instance.index) else { continue };
            let counted = (counters.denied.limited, counters.denied.lost);
            if counted != instance.left_out {
                let (limited, lost) = (counted.0 - instance.left_out.0, counted.1 - instance.left_out.1);
                journal::log_left_out(name, instance.mode(), limited, lost);
                instance.left_out = counted;
                if lost > 0 {
                    instance.lost_at = Some(Instant::now());
                }
            }
        }
    }
}

fn log(
    numbers: &InstanceNumbers,
    instances: &mut BTreeMap<InstanceName, InstanceState>,
    denial: &Denial,
    suppressed: u64,
) -> Option<LoggedDenial> {
    let line = DenialLine::of(denial, suppressed);
    // Also one that the policy file does not have any more.
    let Some(name) = InstanceIndex::new(denial.event.instance).and_then(|index| numbers.name_of(index))
    else {
        warn!("denied to a cgroup of nobody: {line}");
        return None;
    };
    let line = match instances.get(name).and_then(|instance| instance.policy.as_ref()) {
        Some(policy) => line.with_hint(policy),
        None => line,
    };
    let event = LoggedDenial { time: now(), instance: name.to_string(), line };
    journal::log_denial(&event);
    if let Some(instance) = instances.get_mut(name) {
        if instance.recent.len() == RECENT_EVENTS {
            instance.recent.pop_front();
        }
        instance.recent.push_back(event.clone());
    }
    Some(event)
}
