//! Denied flows: out of the ring buffer, into the journal, kept for `events`.

use std::time::Instant;

use tracing::{error, warn};

use super::{Daemon, DaemonError, RECENT_EVENTS};
use crate::{
    control::LoggedEvent,
    events::{Record, drain},
    human::now,
    journal,
    maps::InstanceIndex,
};

impl Daemon {
    /// The last denied flows, the oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub fn recent(&self, name: Option<&str>) -> Result<Vec<LoggedEvent>, DaemonError> {
        let mut events: Vec<_> = match name {
            Some(name) => self.instance(&self.known(name)?)?.recent.iter().cloned().collect(),
            None => self.instances.values().flat_map(|instance| instance.recent.iter().cloned()).collect(),
        };
        events.sort_by_key(|event| event.time);
        Ok(events)
    }

    /// Takes the events that are there, and logs and returns them.
    pub fn take_events(&mut self) -> Vec<LoggedEvent> {
        let mut logged = vec![];
        for record in drain(&mut self.loaded.events) {
            match record {
                Ok(record) => {
                    let suppressed = self.folds.event(&record, Instant::now(), self.set.log.interval);
                    logged.extend(self.log(&record, suppressed));
                }
                Err(error) => error!("{error}"),
            }
        }
        logged
    }

    /// Passes on the programs' debug messages, where the object has them.
    pub fn flush_debug_log(&mut self) {
        self.loaded.debug_log.flush();
    }

    /// Logs what was folded or left out and has no event of its own.
    pub fn take_folded(&mut self) -> Vec<LoggedEvent> {
        let maps = &self.loaded.maps;
        let due = self.folds.due(Instant::now(), |key| maps.attempts(key));
        // The line itself stands for one of them.
        due.into_iter().filter_map(|(record, attempts)| self.log(&record, attempts - 1)).collect()
    }

    /// Logs how many denials had no line, of the instances where that is more than last time.
    pub fn log_left_out(&mut self) {
        for (name, instance) in &mut self.instances {
            let Ok(counters) = self.loaded.maps.counters(instance.index) else { continue };
            let counted = (counters.denied.limited, counters.denied.lost);
            if counted != instance.left_out {
                let (limited, lost) = (counted.0 - instance.left_out.0, counted.1 - instance.left_out.1);
                journal::log_left_out(name, instance.policy.mode, limited, lost);
                instance.left_out = counted;
                if lost > 0 {
                    instance.lost_at = Some(Instant::now());
                }
            }
        }
    }

    fn log(&mut self, record: &Record, suppressed: u64) -> Option<LoggedEvent> {
        let index = InstanceIndex::new(record.event.instance);
        let flow = record.denied_flow(suppressed);
        // Also one that the policy file does not have any more.
        let Some((name, _)) = self.registry.known().iter().find(|(_, known)| Some(**known) == index) else {
            warn!("denied to a cgroup of nobody: {flow}");
            return None;
        };
        let event = LoggedEvent { time: now(), instance: name.to_string(), flow };
        journal::log_denial(&event);
        if let Some(instance) = self.instances.get_mut(name) {
            if instance.recent.len() == RECENT_EVENTS {
                instance.recent.pop_front();
            }
            instance.recent.push_back(event.clone());
        }
        Some(event)
    }
}
