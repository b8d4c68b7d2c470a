//! What became of a lease, for the journal and for those who follow events.

use std::fmt;

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::{
    policy::lease::{Grantor, Lease, LeaseKind, LeaseStatus},
    report::{human::local_time, journal::LEASE_ID},
};

/// A lease began or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEvent {
    /// When; seconds since 1970.
    pub time: u64,
    /// The instance.
    pub instance: String,
    /// What became of it: `granted`, `replaced`, `revoked`, `ended`, `kept` or `dropped`.
    pub lease: String,
    /// By whom: of one that ended by itself, who had granted it.
    pub who: Grantor,
    /// The lease.
    #[serde(flatten)]
    pub of: LeaseStatus,
}

impl LeaseEvent {
    /// Logs it, among the daemon's own lines.
    pub fn log(&self) {
        let Self { instance, lease: what, who, of, .. } = self;
        let LeaseStatus { lease: Lease { kind, hard, reason, from, .. }, until, .. } = of;
        let optional = |uid: Option<u32>| uid.map(|uid| uid.to_string()).unwrap_or_default();
        info!(
            MESSAGE_ID = LEASE_ID,
            OPENCODE_INSTANCE = %instance,
            EGRESS_LEASE = %what,
            EGRESS_RULE = %kind,
            EGRESS_HARD = u8::from(*hard),
            EGRESS_UID = who.uid,
            EGRESS_LOGINUID = optional(who.login_uid),
            EGRESS_SUDO_USER = who.sudo_user.as_ref().map_or("", |user| user.as_str()),
            EGRESS_LEASE_REASON = reason.as_ref().map_or("", |reason| reason.as_str()),
            EGRESS_FROM = local_time(*from),
            EGRESS_UNTIL = local_time(*until),
            "{instance}: {self}"
        );
    }
}

impl fmt::Display for LeaseEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, lease: what, who, of: LeaseStatus { lease, until, .. }, .. } = self;
        write!(f, "lease {what}: {}, ", lease.kind)?;
        match what.as_str() {
            "granted" | "replaced" | "kept" => write!(f, "until {}", local_time(*until))?,
            _ => write!(f, "granted {}", local_time(lease.from))?,
        }
        write!(f, ", by {who}")?;
        lease.reason.iter().try_for_each(|reason| write!(f, ": {reason}"))?;
        match (&lease.kind, what.as_str()) {
            (LeaseKind::Rule(_), _) => Ok(()),
            (LeaseKind::Audit, "granted" | "replaced" | "kept") => {
                f.write_str("; nothing is refused until then")
            }
            (LeaseKind::Audit, _) => write!(f, "; {} says what its policy lacks", lease.suggestion(instance)),
        }
    }
}
