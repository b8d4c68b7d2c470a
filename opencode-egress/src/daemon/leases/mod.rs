//! Leases: which are in force, kept over restarts, and how one begins and ends.
//!
//! The kernel has each lease's time and ends it by itself, whether a daemon runs or not. What the daemon does at the end of one is to tidy up:
//! to tell of it, to have the resolver forget its name, and to end what began under it where that was asked for.

mod change;
mod store;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

pub(in crate::daemon) use self::change::{Change, LeaseOutcome};
use self::store::{InstanceLeases, LeaseStore};
use crate::{
    daemon::{
        error::DaemonError,
        policies::{AllLeased, InstancePolicies},
        state::Daemon,
    },
    kernel::maps::boottime,
    policy::{
        InstanceName,
        lease::{Grantor, Lease, LeaseKind, LeaseStatus, Leased},
    },
    report::{
        human::{local_time, now},
        journal::LEASE_ID,
    },
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
        Self { of, store, untold, again: None }
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

impl Daemon {
    /// The leases in force, by instance.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub(in crate::daemon) fn leases(
        &self,
        name: Option<&str>,
    ) -> Result<BTreeMap<String, Vec<LeaseStatus>>, DaemonError> {
        let names = match name {
            Some(name) => vec![self.known(name)?],
            None => self.instances.keys().cloned().collect(),
        };
        let status = |name: InstanceName| (name.to_string(), self.leases.status(&name));
        Ok(names.into_iter().map(status).filter(|(_, leases)| name.is_some() || !leases.is_empty()).collect())
    }

    /// An instance of which a lease is over.
    pub(in crate::daemon) fn next_over(&self) -> Option<InstanceName> {
        if self.leases.again.is_some_and(|again| Instant::now() < again) {
            return None;
        }
        let now = boottime();
        let over = self.leases.of.iter().find(|(name, leases)| {
            self.instances.contains_key(*name) && leases.active.iter().any(|lease| lease.is_over(now))
        });
        over.map(|(name, _)| name.clone())
    }

    /// Has leases that are over, and that could not be ended, tried again later: of these the kernel lets nothing new pass.
    pub(in crate::daemon) fn end_leases_later(&mut self) {
        self.leases.again = Some(Instant::now() + AGAIN);
    }

    /// Tells which leases of an earlier daemon are in force again, and which are over. What began under one that ended so, and was to be
    /// ended with it, is: it is in no policy.
    pub(in crate::daemon) fn tell_kept_leases(&mut self) {
        for (name, lease, what) in std::mem::take(&mut self.leases.untold) {
            tell(&name, &lease, what, &lease.by);
        }
        self.write_leases();
    }

    /// Forgets the leases of instances that the policy file does not have any more, and of those beside whose policies they have no room.
    pub(in crate::daemon) fn drop_leases(&mut self, policies: &InstancePolicies) {
        let leased = self.leases.leased();
        let has_room = |(name, leased): &(&InstanceName, &Leased)| {
            // A lease of audit mode takes none, and says nothing where the policy has that for good.
            let takes_none = leased.rules.is_empty() && leased.ended.is_empty();
            policies.get(*name).is_some_and(|policy| takes_none || !policy.leased.is_empty())
        };
        let gone: Vec<_> =
            leased.iter().filter(|entry| !has_room(entry)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            let Some(leases) = self.leases.of.remove(name) else { continue };
            let why = match policies.contains_key(name) {
                true => "beside its policy there is no room in the kernel's maps for them",
                false => "the policy file does not have the instance any more",
            };
            if !leases.active.is_empty() {
                warn!("{name}: its leases are over: {why}");
            }
            leases.active.iter().for_each(|lease| tell(name, lease, "dropped", &lease.by));
        }
        if !gone.is_empty() {
            self.write_leases();
        }
    }

    fn write_leases(&mut self) {
        let Leases { of, store, .. } = &mut self.leases;
        of.retain(|_, leases| *leases != InstanceLeases::default());
        // What `status` says of it; a grant asks for more.
        let _ = store.write(of);
    }
}

/// Logs what became of a lease, and by whom.
fn tell(name: &InstanceName, lease: &Lease, what: &'static str, by: &Grantor) {
    let status = LeaseStatus::of(lease, boottime(), now());
    let Lease { kind, hard, reason, from, .. } = lease;
    let reason = reason.as_ref().map_or("", |reason| reason.as_str());
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let optional = |uid: Option<u32>| uid.map(|uid| uid.to_string()).unwrap_or_default();
    let (from, until) = (local_time(*from), local_time(status.until));
    let next = match (kind, what) {
        (LeaseKind::Audit, "granted" | "replaced" | "kept") => "; nothing is refused until then".to_owned(),
        (LeaseKind::Audit, _) => format!("; {} says what its policy lacks", lease.suggestion(name)),
        _ => String::new(),
    };
    let time = match what {
        "granted" | "replaced" | "kept" => format!("until {until}"),
        _ => format!("granted {from}"),
    };
    info!(
        MESSAGE_ID = LEASE_ID,
        OPENCODE_INSTANCE = %name,
        EGRESS_LEASE = what,
        EGRESS_RULE = %kind,
        EGRESS_HARD = u8::from(*hard),
        EGRESS_UID = by.uid,
        EGRESS_LOGINUID = optional(by.login_uid),
        EGRESS_SUDO_USER = by.sudo_user.as_ref().map_or("", |user| user.as_str()),
        EGRESS_LEASE_REASON = reason,
        EGRESS_FROM = from,
        EGRESS_UNTIL = until,
        "{name}: lease {what}: {kind}, {time}, by {by}{why}{next}"
    );
}
