//! What `status` and `top` show, as data. [`crate::report::view`] puts it into words.

use std::{collections::BTreeMap, time::Duration};

use opencode_egress_common::{
    abi::{Counter, Counters},
    reason::DropReason,
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroups::limits::{Limit, OpenFiles},
    policy::{lease::LeaseStatus, suggest::Tried},
    report::{denial::LoggedDenial, journal::LineCounts},
};

/// For how long after it happened something needs attention.
pub(crate) const NEWS: Duration = Duration::from_secs(60 * 60);

/// What the daemon says of itself and of every instance.
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
    /// What of the connections that it denies was not reset, and what to do, a line each.
    #[serde(default)]
    pub not_reset: Vec<String>,
    /// What the daemon itself cannot do as it should, and what that means; a line each.
    pub troubles: Vec<String>,
    /// The instances.
    pub instances: BTreeMap<String, InstanceStatus>,
}

/// What the daemon says of one instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// `enforce` or `audit`.
    pub mode: String,
    /// What the policy file says; a lease may make audit mode of `enforce` for a time.
    #[serde(default)]
    pub mode_of_file: String,
    /// The number of the current policy.
    pub generation: u32,
    /// How many rules its policy has: allow, deny, listen.
    pub rules: [usize; 3],
    /// How many map entries they compiled to.
    pub entries: usize,
    /// The units that its policy lists, and others that it still confines.
    pub units: Vec<UnitStatus>,
    /// The policy file does not have it any more; everything is denied to the units of it that still run.
    pub removed: bool,
    /// Its links were taken away on request.
    pub detached: bool,
    /// Denials found no room in the ring buffer within the last hour, or perhaps while no daemon ran.
    pub lost_lately: bool,
    /// Its sockets.
    pub sockets: SocketsStatus,
    /// The limits that systemd holds its units to.
    #[serde(default)]
    pub limits: LimitsStatus,
    /// Its cgroups of earlier starts that are gone and of which sockets are still open. They stay confined.
    pub outlived: usize,
    /// What was denied to such sockets, since the daemon knows of them.
    pub outlived_denials: u64,
    /// The last start that `attach` did not let go on; `None` once one did.
    pub failed_attach: Option<FailedAttach>,
    /// What passed and what did not.
    pub counters: CountersStatus,
    /// Its names; `None`: its policy has no rules for names.
    #[serde(default)]
    pub names: Option<NamesStatus>,
    /// What is denied to it steadily, and a rule would let pass. Nothing in audit mode.
    #[serde(default)]
    pub steady: Vec<SteadyDenial>,
    /// Its leases in force, those that end first in front.
    #[serde(default)]
    pub leases: Vec<LeaseStatus>,
    /// The last denied flow, or refused question.
    pub last_denial: Option<LoggedDenial>,
}

/// Something that is denied again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteadyDenial {
    /// The rule that would let it pass, as `allow` takes it.
    pub rule: String,
    /// How often it was denied, as far as lines tell.
    pub attempts: u64,
    /// When, and by whom.
    #[serde(flatten)]
    pub tried: Tried,
}

/// What the daemon says of an instance's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// How many rules for names its policy has.
    pub rules: usize,
    /// Names that answers are known of.
    pub known: usize,
    /// Their addresses.
    pub addresses: usize,
    /// The port of its resolver on loopback.
    pub port: u16,
    /// Its questions.
    pub questions: QuestionsStatus,
    /// It was denied an address whose time was over within the last hour, or perhaps while no daemon ran.
    #[serde(default)]
    pub expired_lately: bool,
}

/// Questions of an instance, since the daemon knows of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionsStatus {
    /// All that came to the resolver.
    pub questions: u64,
    /// Answered from memory.
    pub cached: u64,
    /// Answered after a server was asked.
    pub answered: u64,
    /// Refused.
    pub refused: u64,
    /// Neither: no server answered, or too many waited.
    pub failed: u64,
    /// Some of those failed within the last hour.
    #[serde(default)]
    pub failed_lately: bool,
    /// Refused ones that the resolver did not tell of, for want of room.
    pub lost: u64,
    /// Refused ones that the rate limit left out of the log.
    pub limited: u64,
    /// Refused ones that it told of, by reason.
    pub refused_by_reason: BTreeMap<String, u64>,
}

/// The sockets of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketsStatus {
    /// How many are open, of those that it made itself: accepted ones are not among them.
    pub open: u32,
    /// How many may be.
    pub limit: u32,
    /// It was denied one within the last hour, or perhaps while no daemon ran.
    pub denied_lately: bool,
}

/// What the daemon says of the limits that systemd holds an instance's units to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Those that the kernel counts reaching of. One that is not there is not known.
    pub reached: BTreeMap<Limit, ReachedLimit>,
    /// The process that may open the fewest more files; `None`: none runs, or it is not known (before Linux 6.2).
    pub files: Option<OpenFiles>,
}

/// How often a limit was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedLimit {
    /// In all starts of the units that the daemon knows of.
    pub count: u64,
    /// Once within the last hour, or perhaps while no daemon ran.
    pub lately: bool,
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

/// What the daemon says of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// The unit's name.
    pub unit: String,
    /// Whether it has processes.
    pub running: bool,
    /// The instance does not list it any more; it is confined until it stops.
    pub unlisted: bool,
    /// How many hooks are attached to its cgroup.
    pub links: usize,
    /// How many are when it is confined; that depends on the kernel.
    pub hooks: usize,
    /// It was running before it was confined, so what it did until then was not judged.
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
    /// Packets and calls that the policy denied. In audit mode they passed.
    pub denied_packets: u64,
    /// Bytes of the denied packets.
    pub denied_bytes: u64,
    /// Denied packets and calls, by drop reason.
    pub denied_by_reason: BTreeMap<String, u64>,
    /// Bytes of the denied packets, by drop reason.
    pub denied_bytes_by_reason: BTreeMap<String, u64>,
    /// Denials with a line of their own in the log.
    pub lines: u64,
    /// Those whose line is yet to be written.
    pub waiting: u64,
    /// Those whose event found no room in the ring buffer, or whose line found none on its way to the log.
    pub lost: u64,
    /// Denials folded into the line of an earlier one.
    pub folded: u64,
    /// Denials that the rate limit left out of the log.
    pub limited: u64,
}

impl CountersStatus {
    /// The kernel's counters, and what became of the lines.
    pub fn new(Counters { allowed, denied }: Counters, lines: &LineCounts) -> Self {
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
            lines: lines.lines,
            waiting: lines.waiting(),
            lost: denied.lost + lines.lost,
            folded: denied.folded.saturating_sub(lines.unfolded),
            limited: denied.limited,
        }
    }

    /// How much was denied for a reason.
    pub fn denied_for(&self, reason: DropReason) -> u64 {
        self.denied_by_reason.get(reason.name()).copied().unwrap_or(0)
    }
}
