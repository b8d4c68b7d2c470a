//! Everything that the daemon knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use opencode_egress_common::reason::DropReason;

use super::{
    DaemonError,
    asked::Asked,
    confinement::{gone::Outlived, limits::Limits},
    connections::places::Connections,
    fold,
    leases::Leases,
    names::Names,
    predecessor,
    watched::Watched,
};
use crate::{
    cgroups::{Hierarchy, watch},
    kernel::{
        hooks::Needs,
        instance::InstanceIndex,
        loader::Loaded,
        pins::{MapPins, PinLock, Pins},
        registry::InstanceNumbers,
    },
    policy::{InstanceName, LogLimits, Mode, Policy, UnitName},
    report::{
        denial::LoggedDenial,
        journal::{Journal, LeftOut, LineCounts},
        status::{CountersStatus, FailedAttach},
        tried::DeniedLines,
    },
};

/// How many denials of each instance are kept for clients that ask for `events`.
pub(super) const RECENT_EVENTS: usize = 256;

/// What the daemon knows of one instance.
pub(super) struct InstanceState {
    pub(super) index: InstanceIndex,
    /// `None`: the policy file does not have it any more, and units or sockets of it are left. Everything is denied to them.
    pub(super) policy: Option<Arc<Policy>>,
    pub(super) entries: usize,
    /// Units that are confined by it and that it does not list any more; each until it stops.
    pub(super) unlisted: BTreeSet<UnitName>,
    /// Units that were confined before they asked, and when.
    pub(super) unasked: BTreeMap<UnitName, Instant>,
    /// Its links were taken away on purpose, and stay away until a unit starts or a reload.
    pub(super) detached: bool,
    pub(super) recent: VecDeque<LoggedDenial>,
    /// What its lines say was denied: when, and to whom.
    pub(super) denied: DeniedLines,
    /// The counters of flows without lines as the journal was last told of them.
    pub(super) left_out: LeftOut,
    /// When this daemon last saw `lost` grow. What was lost while no daemon ran may have been lost just before its start.
    pub(super) lost_at: Option<Instant>,
    /// How many sockets were denied to it for it had too many.
    pub(super) sockets_denied: Watched,
    /// How often it was denied an address of a listed name whose time was over.
    pub(super) names_expired: Watched,
    /// How often its units reached limits of theirs.
    pub(super) limits: Limits,
    /// How often its processes asked what they may reach.
    pub(super) asked: Asked,
    /// The last start that was not let go on; `None` once one was.
    pub(super) failed_attach: Option<FailedAttach>,
}

impl InstanceState {
    /// An instance without a policy, of which this was counted and logged until now.
    pub(super) fn new(index: InstanceIndex, counters: &CountersStatus, lines: &LineCounts) -> Self {
        Self {
            index,
            policy: None,
            entries: 0,
            unlisted: BTreeSet::new(),
            unasked: BTreeMap::new(),
            detached: false,
            recent: VecDeque::new(),
            denied: DeniedLines::default(),
            left_out: LeftOut { limited: lines.limited_told, lost: lines.lost_told },
            lost_at: (counters.lost > 0).then(Instant::now),
            sockets_denied: Watched::new(counters.denied_for(DropReason::TooManySockets)),
            names_expired: Watched::new(counters.denied_for(DropReason::NameExpired)),
            limits: Limits::default(),
            asked: Asked::default(),
            failed_attach: None,
        }
    }

    /// The units that its policy lists.
    pub(super) fn listed(&self) -> impl Iterator<Item = &UnitName> {
        self.policy.iter().flat_map(|policy| &policy.units)
    }

    /// The units that it confines.
    pub(super) fn units(&self) -> impl Iterator<Item = &UnitName> {
        self.listed().chain(&self.unlisted)
    }

    /// Whether what its policy denies is stopped, or only reported.
    pub(super) fn mode(&self) -> Mode {
        self.policy.as_ref().map_or(Mode::Enforce, |policy| policy.mode)
    }
}

/// Everything that the daemon knows.
pub struct Daemon {
    pub(super) loaded: Loaded,
    pub(super) numbers: InstanceNumbers,
    /// Those in the policy file, and those that it lost while units or sockets of theirs are left.
    pub(super) instances: BTreeMap<InstanceName, InstanceState>,
    pub(super) confinement: Confinement,
    pub(super) policies: Policies,
    pub(super) denials: Denials,
    pub(super) connections: Connections,
    pub(super) names: Names,
    pub(super) leases: Leases,
}

/// What is pinned and which cgroups are confined by it.
pub(super) struct Confinement {
    pub(super) pins: Pins,
    /// Held for as long as this lives: nobody else changes what is pinned.
    pub(super) lock: PinLock,
    pub(super) map_pins: MapPins,
    /// Daemons of other ABI versions whose pins are still there.
    pub(super) predecessors: Vec<predecessor::Predecessor>,
    pub(super) hierarchy: Hierarchy,
    pub(super) watch: watch::Watch,
    /// Units that run and cannot be confined, and the reason that was logged last, so that it is logged once.
    pub(super) failing: BTreeMap<UnitName, String>,
    /// The reason that was logged last why cgroups that come and go are not watched.
    pub(super) watch_trouble: Option<String>,
    /// The reason that was logged last why units could not be looked after.
    pub(super) upkeep_trouble: Option<String>,
    /// The ids of cgroups that this daemon confined.
    pub(super) confined: HashSet<u64>,
    /// The ids of cgroups that `detach` made it let go.
    pub(super) let_go: HashSet<u64>,
    /// What policies take that come into force once the links for it are there.
    pub(super) soon: BTreeMap<InstanceIndex, Needs>,
    /// Cgroups that are gone and of which there are sockets, by id.
    pub(super) outlived: BTreeMap<u64, Outlived>,
    /// The id from which the next turn looks at them.
    pub(super) next_look: u64,
    /// Units of users' own managers that have the name of a listed one, by user, and when that was looked at.
    pub(super) users_units: BTreeSet<(u32, UnitName)>,
    pub(super) users_looked: Option<Instant>,
}

/// The policy file and what of it is in force.
pub(super) struct Policies {
    pub(super) config: PathBuf,
    /// A copy of the policy file as it was last applied, for a start with one that has an error.
    pub(super) last_applied: PathBuf,
    /// How denials are logged.
    pub(super) log: LogLimits,
    /// Why the file was not applied when that was last tried.
    pub(super) reload_error: Option<String>,
    /// When the file was last applied; seconds since 1970.
    pub(super) applied: u64,
}

/// Denials between the kernel and those who are told of them.
pub(super) struct Denials {
    pub(super) journal: Journal,
    pub(super) folds: fold::Folds,
    /// Logged already, and still to be sent to the clients that follow events.
    pub(super) unpublished: Vec<LoggedDenial>,
    /// The daemon's own lines without room of which the log knows.
    pub(super) own_lost_told: u64,
}

impl Daemon {
    /// How often the journal is told how many denials had no line of their own.
    pub fn interval(&self) -> Duration {
        self.policies.log.interval
    }

    pub(super) fn known(&self, name: &str) -> Result<InstanceName, DaemonError> {
        let found = self.instances.keys().find(|known| known.as_str() == name);
        found.cloned().ok_or_else(|| self.unknown(name))
    }

    pub(super) fn instance(&self, name: &InstanceName) -> Result<&InstanceState, DaemonError> {
        self.instances.get(name).ok_or_else(|| self.unknown(name.as_str()))
    }

    pub(super) fn unknown(&self, name: &str) -> DaemonError {
        let there = self.instances.iter().filter(|(_, instance)| instance.policy.is_some());
        DaemonError::UnknownInstance {
            name: name.to_owned(),
            config: self.policies.config.clone(),
            known: there.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        }
    }
}
