//! Looking after leases: what is told of them, and when they end.

use std::{collections::BTreeMap, time::Instant};

use tracing::{info, warn};

use super::{AGAIN, Leases, store::InstanceLeases};
use crate::{
    daemon::{error::DaemonError, policies::InstancePolicies, state::Daemon},
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

    pub(super) fn write_leases(&mut self) {
        let Leases { of, store, .. } = &mut self.leases;
        of.retain(|_, leases| *leases != InstanceLeases::default());
        // What `status` says of it; a grant asks for more.
        let _ = store.write(of);
    }
}

/// Logs what became of a lease, and by whom.
pub(super) fn tell(name: &InstanceName, lease: &Lease, what: &'static str, by: &Grantor) {
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
