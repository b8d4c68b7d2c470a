//! Leases: which are in force, kept over restarts, and how one begins and ends.
//!
//! The kernel has each lease's time and ends it by itself, whether a daemon runs or not. What the daemon does at the end of one is to tidy up:
//! to tell of it, to have the resolver forget its name, and to end what began under it where that was asked for.

mod change;
mod store;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::broadcast::{Sender, channel};

pub(in crate::daemon) use self::change::{Change, LeaseOutcome};
use self::store::{Ending, InstanceLeases, LeaseStore, Told, by_itself};
use crate::{
    kernel::maps::boottime,
    policy::{
        InstanceName,
        lease::{AllLeased, Lease, LeaseStatus, LeaseTime, Leased},
    },
    report::{human::now, lease::LeaseEvent},
};

/// When the end of a lease is tried again that could not be tidied up.
const AGAIN: Duration = Duration::from_secs(60);

/// The leases of all instances.
pub(in crate::daemon) struct Leases {
    of: BTreeMap<InstanceName, InstanceLeases>,
    store: LeaseStore,
    /// What became of leases before this daemon put policies in force, still to be told.
    untold: Vec<(InstanceName, Told)>,
    /// When what is over is looked at again, of instances where it could not be tidied up.
    again: BTreeMap<InstanceName, Instant>,
    /// What became of leases, for clients that ask for `events`, and those that follow these.
    recent: VecDeque<LeaseEvent>,
    followers: Sender<LeaseEvent>,
}

/// When a lease ends that begins at a time since boot: in whole seconds since boot, as the kernel has it. So it is up to a second shorter than what
/// was asked for, and never longer.
fn deadline(now: Duration, time: LeaseTime) -> u64 {
    now.as_secs() + time.seconds()
}

impl Leases {
    /// Takes over the leases of an earlier daemon, of this boot.
    pub(in crate::daemon) fn open(file: &Path) -> Self {
        let (store, mut of) = LeaseStore::open(file);
        let (now, mut untold) = (boottime(), vec![]);
        for (name, leases) in &mut of {
            let ending: Vec<_> = leases.ending.drain(..).map(Ending::told).collect();
            let over = leases.end(now).into_iter().map(|lease| by_itself(lease, "ended"));
            let kept = leases.active.iter().map(|lease| by_itself(lease.clone(), "kept"));
            untold.extend(ending.into_iter().chain(over).chain(kept).map(|told| (name.clone(), told)));
        }
        Self { of, store, untold, again: BTreeMap::new(), recent: VecDeque::new(), followers: channel(64).0 }
    }

    /// What policies are compiled with.
    pub(in crate::daemon) fn leased(&self) -> AllLeased {
        let of = self.of.iter();
        of.map(|(name, leases)| (name.clone(), Leased::of(&leases.active, &leases.ended))).collect()
    }

    /// An instance's leases in force, those that end first in front.
    pub(in crate::daemon) fn status(&self, name: &InstanceName) -> Vec<LeaseStatus> {
        let (boottime, now) = (boottime(), now());
        let active = self.of.get(name).into_iter().flat_map(|leases| &leases.active);
        let mut active: Vec<_> = active.filter(|lease| !lease.is_over(boottime)).collect();
        active.sort_by_key(|lease| lease.deadline);
        active.into_iter().map(|lease| LeaseStatus::of(lease, boottime, now)).collect()
    }

    /// The instances with leases that an earlier daemon had, and that are over with what began under them. To be asked before they are told.
    pub(in crate::daemon) fn cut_short(&self) -> BTreeSet<InstanceName> {
        let cut = self.untold.iter().filter(|(_, (lease, what, _))| match *what {
            "revoked" => true,
            "ended" => lease.hard,
            _ => false,
        });
        cut.map(|(name, _)| name.clone()).collect()
    }

    /// The first instance `of` which a lease is over at a second since boot, and which is to be looked at by now.
    fn next_over(&self, now: u64, of: impl Fn(&InstanceName) -> bool) -> Option<&InstanceName> {
        let waits = |name| self.again.get(name).is_some_and(|again| Instant::now() < *again);
        let mut over =
            self.of.iter().filter(|(_, leases)| leases.active.iter().any(|lease| lease.is_over(now)));
        over.find(|(name, _)| of(name) && !waits(*name)).map(|(name, _)| name)
    }

    /// Has an instance looked at again later.
    fn wait(&mut self, name: &InstanceName) {
        self.again.retain(|_, again| Instant::now() < *again);
        self.again.insert(name.clone(), Instant::now() + AGAIN);
    }

    /// Forgets an instance's leases, and returns those that were in force. None of them is kept.
    fn drop(&mut self, name: &InstanceName) -> Vec<Lease> {
        self.untold.retain(|(of, (_, what, _))| of != name || *what != "kept");
        self.of.remove(name).unwrap_or_default().active
    }

    /// What is not as it should be, for `status`.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.store.trouble.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lease::{Grantor, LeaseKind};

    fn lease(rule: &str, hard: bool, deadline: u64) -> Lease {
        let kind = LeaseKind::Rule(rule.parse().expect("a rule"));
        Lease { kind, hard, reason: None, by: Grantor { uid: 1, ..Grantor::default() }, from: 7, deadline }
    }

    #[test]
    fn what_a_daemon_before_left_is_told_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("v6.leases");
        let revoked_by = Some(Grantor { uid: 2, ..Grantor::default() });
        let leases = InstanceLeases {
            active: vec![lease("10.0.0.0/8", false, u64::MAX), lease("10.1.0.0/16", true, 1)],
            ended: vec![lease("10.2.0.0/16", false, 1)],
            ending: vec![
                Ending { lease: lease("10.3.0.0/16", false, u64::MAX), revoked_by },
                Ending { lease: lease("10.4.0.0/16", true, 1), revoked_by: None },
            ],
        };
        let [name, other] = ["a", "b"].map(|name| name.parse::<InstanceName>().expect("a name"));
        let of_other = InstanceLeases {
            active: vec![lease("10.5.0.0/16", false, u64::MAX), lease("10.6.0.0/16", false, 1)],
            ..InstanceLeases::default()
        };
        let of = BTreeMap::from([(name.clone(), leases), (other, of_other)]);
        LeaseStore::open(&path).0.write(&of).expect("written");
        let mut leases = Leases::open(&path);
        let told = |leases: &Leases| -> Vec<String> {
            let told = leases.untold.iter();
            told.map(|(name, (lease, what, by))| format!("{name} {} {what} {}", lease.kind, by.uid)).collect()
        };
        let over = ["a 10.3.0.0/16 revoked 2", "a 10.4.0.0/16 ended 1", "a 10.1.0.0/16 ended 1"];
        let kept = ["a 10.0.0.0/8 kept 1", "b 10.6.0.0/16 ended 1", "b 10.5.0.0/16 kept 1"];
        assert_eq!(told(&leases), [&over[..], &kept].concat());
        assert_eq!(leases.cut_short(), [name.clone()].into());
        assert_eq!(leases.drop(&name), [lease("10.0.0.0/8", false, u64::MAX)]);
        assert_eq!(told(&leases), [&over[..], &kept[1..]].concat());
    }

    #[test]
    fn no_lease_is_longer_than_asked_for() {
        let longest = LeaseTime::try_from(LeaseTime::LONGEST).expect("a time");
        for begins in [7_000, 7_499, 7_500, 7_999].map(Duration::from_millis) {
            let until = Duration::from_secs(deadline(begins, longest));
            assert!(until - begins <= Duration::from_secs(LeaseTime::LONGEST), "{begins:?} to {until:?}");
            assert!(begins + Duration::from_secs(LeaseTime::LONGEST - 1) < until, "{begins:?} to {until:?}");
            let lease = lease("10.0.0.0/8", false, until.as_secs());
            assert_eq!(LeaseStatus::of(&lease, begins.as_secs(), 0).seconds, LeaseTime::LONGEST);
        }
    }

    #[test]
    fn an_end_that_fails_holds_up_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut leases = Leases::open(&directory.path().join("v6.leases"));
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<InstanceName>().expect("a name"));
        for (name, deadline) in [(&a, 5), (&b, 6), (&c, 5)] {
            let active = vec![lease("10.0.0.0/8", false, deadline)];
            leases.of.insert(name.clone(), InstanceLeases { active, ..InstanceLeases::default() });
        }
        assert_eq!(leases.next_over(4, |_| true), None);
        assert_eq!(leases.next_over(5, |_| true), Some(&a));
        assert_eq!(leases.next_over(5, |name| *name != a), Some(&c), "it has no policy");
        leases.wait(&a);
        assert_eq!(leases.next_over(5, |_| true), Some(&c));
        leases.wait(&c);
        assert_eq!(leases.next_over(5, |_| true), None);
        assert_eq!(leases.next_over(6, |_| true), Some(&b));
    }
}
