//! Which limits of systemd's the units of an instance reached: counted by the kernel in a cgroup, which goes with its unit.

use std::collections::BTreeMap;

use crate::{
    cgroups::limits::{Limit, OpenFiles, Reached},
    daemon::watched::Watched,
    report::status::{LimitsStatus, ReachedLimit},
};

/// How often an instance's units reached limits, over the starts that this daemon saw.
#[derive(Default)]
pub(in crate::daemon) struct Limits {
    /// What each cgroup that is there had counted at the last look, by its id.
    seen: BTreeMap<u64, Reached>,
    totals: BTreeMap<Limit, Watched>,
}

impl Limits {
    /// Takes note of what the cgroups that are there have counted.
    pub(in crate::daemon) fn see(&mut self, cgroups: impl IntoIterator<Item = (u64, Reached)>) {
        let now: BTreeMap<_, _> = cgroups.into_iter().collect();
        for (cgroup, reached) in &now {
            for (limit, count) in reached {
                let before = self.seen.get(cgroup).and_then(|seen| seen.get(limit)).copied();
                let more = count.saturating_sub(before.unwrap_or(0));
                self.totals.entry(*limit).or_insert_with(|| Watched::new(0)).add(more);
            }
        }
        self.seen = now;
    }

    /// What `status` shows.
    pub(in crate::daemon) fn status(&self, files: Option<OpenFiles>) -> LimitsStatus {
        let reached = self.totals.iter().map(|(limit, total)| {
            let count = total.count();
            (*limit, ReachedLimit { count, lately: total.is_news(count) })
        });
        LimitsStatus { reached: reached.collect(), files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_over_starts() {
        let mut limits = Limits::default();
        let reached = |count| Reached::from([(Limit::Tasks, count)]);
        let of = |limits: &Limits| limits.status(None).reached.get(&Limit::Tasks).copied();
        assert_eq!(of(&limits), None);
        limits.see([(1, reached(0))]);
        assert_eq!(of(&limits), Some(ReachedLimit { count: 0, lately: false }));
        limits.see([(1, reached(3))]);
        limits.see([(1, reached(3))]);
        // The next start, beside what is left of the one before.
        limits.see([(1, reached(4)), (2, reached(2))]);
        limits.see([(2, reached(2))]);
        limits.see([]);
        assert_eq!(of(&limits), Some(ReachedLimit { count: 6, lately: true }));
    }
}
