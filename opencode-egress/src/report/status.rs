//! What `status` and `top` show; [`view`] has how.

use std::collections::BTreeMap;

use opencode_egress_common::{
    abi::{Counter, Counters},
    reason::DropReason,
};
use serde::{Deserialize, Serialize};

use crate::report::denial::LoggedDenial;

/// The daemon and everything that it confines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The policy file.
    pub config: String,
    /// Why the file's last reload was not applied, if it was not.
    pub reload_error: Option<String>,
    /// When the policy file was last applied; seconds since 1970.
    pub applied: u64,
    /// The instances.
    pub instances: BTreeMap<String, InstanceStatus>,
}

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// `enforce` or `audit`.
    pub mode: String,
    /// The number of the current policy.
    pub generation: u32,
    /// Rules of the policy: allow, deny, listen.
    pub rules: [usize; 3],
    /// Map entries that they became.
    pub entries: usize,
    /// The units.
    pub units: Vec<UnitStatus>,
    /// The policy file does not have it any more; everything is denied to the units of it that still run.
    pub removed: bool,
    /// Its links were taken away on request.
    pub detached: bool,
    /// Denials found no room in the ring buffer within the last hour, or perhaps while no daemon ran.
    pub lost_lately: bool,
    /// Its cgroups of earlier starts that are gone and of which sockets are still open. They stay confined.
    pub outlived: usize,
    /// What was denied to such sockets, since the daemon knows of them.
    pub outlived_denials: u64,
    /// The last start that `attach` did not let go on; `None` once one did.
    pub failed_attach: Option<FailedAttach>,
    /// What passed and what did not.
    pub counters: CountersStatus,
    /// The last denied flow.
    pub last_denial: Option<LoggedDenial>,
}

/// A start that `attach` did not let go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttach {
    /// When; seconds since 1970.
    pub time: u64,
    /// The unit, or where the process was.
    pub unit: String,
    /// Why.
    pub why: String,
}

/// One unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub unit: String,
    /// Whether it has processes.
    pub running: bool,
    /// The instance does not list it any more; it is confined until it stops.
    pub unlisted: bool,
    /// How many hooks are attached to its cgroup.
    pub links: usize,
    /// It was running before it was confined.
    pub late: bool,
    /// The users in whose own systemd (`systemctl --user`) a unit of this name runs, confined by nobody.
    pub users: Vec<u32>,
}

/// Counters, since the instance's first policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersStatus {
    /// Packets that passed.
    pub allowed_packets: u64,
    /// Their bytes.
    pub allowed_bytes: u64,
    /// Refused packets and operations.
    pub denied_packets: u64,
    /// Bytes of the refused packets.
    pub denied_bytes: u64,
    /// Refused packets and operations, by drop reason.
    pub denied_by_reason: BTreeMap<String, u64>,
    /// Bytes of the refused packets, by drop reason.
    pub denied_bytes_by_reason: BTreeMap<String, u64>,
    /// Events that found no room.
    pub lost: u64,
    /// Denials folded into the line of an earlier one.
    pub folded: u64,
    /// Denials that the rate limit left out of the log.
    pub limited: u64,
}

impl From<Counters> for CountersStatus {
    fn from(Counters { allowed, denied }: Counters) -> Self {
        let by_reason = DropReason::ALL.iter().map(|reason| (*reason, denied.reasons[*reason as usize]));
        let by_reason: Vec<(DropReason, Counter)> =
            by_reason.filter(|(_, counter)| counter.packets > 0).collect();
        Self {
            allowed_packets: allowed.packets,
            allowed_bytes: allowed.bytes,
            denied_packets: by_reason.iter().map(|(_, counter)| counter.packets).sum(),
            denied_bytes: by_reason.iter().map(|(_, counter)| counter.bytes).sum(),
            denied_by_reason: by_reason
                .iter()
                .map(|(reason, counter)| (reason.name().to_owned(), counter.packets))
                .collect(),
            denied_bytes_by_reason: by_reason
                .iter()
                .map(|(reason, counter)| (reason.name().to_owned(), counter.bytes))
                .collect(),
            lost: denied.lost,
            folded: denied.folded,
            limited: denied.limited,
        }
    }
}
