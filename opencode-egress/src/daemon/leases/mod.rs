//! Leases: which are in force, kept over restarts, and how one begins and ends.
//!
//! The kernel has each lease's time and ends it by itself, whether a daemon runs or not. What the daemon does at the end of one is to tidy up:
//! to tell of it, to have the resolver forget its name, and to end what began under it where that was asked for.

mod change;
mod store;
mod upkeep;

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::broadcast::{Sender, channel};

pub(in crate::daemon) use self::change::{Change, LeaseOutcome};
use self::store::{InstanceLeases, LeaseStore};
use crate::{
    kernel::maps::boottime,
    policy::{
        InstanceName,
        lease::{AllLeased, Lease, LeaseStatus, Leased},
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
    untold: Vec<(InstanceName, Lease, &'static str)>,
    /// When what is over is looked at again.
    again: Option<Instant>,
    /// What became of leases, for clients that ask for `events`, and those that follow these.
    recent: VecDeque<LeaseEvent>,
    followers: Sender<LeaseEvent>,
}

/// When a lease ends that begins now and is for so many seconds: in seconds since boot, to the nearest.
fn deadline(seconds: u64) -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    boottime() + seconds + u64::from(now.tv_nsec >= 500_000_000)
}

impl Leases {
    /// Takes over the leases of an earlier daemon, of this boot.
    pub(in crate::daemon) fn open(file: &Path) -> Self {
        let (store, mut of) = LeaseStore::open(file);
        let (now, mut untold) = (boottime(), vec![]);
        for (name, leases) in &mut of {
            let mut tell = |lease: &Lease, what| untold.push((name.clone(), lease.clone(), what));
            leases.ending.drain(..).for_each(|lease| tell(&lease, "revoked"));
            leases
                .active
                .iter()
                .for_each(|lease| tell(lease, if lease.is_over(now) { "ended" } else { "kept" }));
            leases.end(now);
        }
        Self { of, store, untold, again: None, recent: VecDeque::new(), followers: channel(64).0 }
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

    /// What is not as it should be, for `status`.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.store.trouble.clone()
    }
}
