//! Everything that the daemon knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::PathBuf,
    time::{Duration, Instant},
};

use opencode_egress_common::abi::Denied;

use super::{DaemonError, fold, predecessor};
use crate::{
    cgroups::{Hierarchy, watch},
    kernel::{
        instance::InstanceIndex,
        loader::Loaded,
        pins::{MapPins, PinLock, Pins},
        registry::InstanceNumbers,
    },
    policy::{InstanceName, Mode, Policy, PolicySet, UnitName},
    report::denial::LoggedDenial,
};

/// For how long it is news that denials were lost.
pub(super) const NEWS: Duration = Duration::from_secs(60 * 60);
/// Denied flows kept for `events`, by instance.
pub(super) const RECENT_EVENTS: usize = 256;

pub(super) struct InstanceState {
    pub(super) index: InstanceIndex,
    /// `None`: the policy file does not have it any more, and units of it still run. Everything is denied to them.
    pub(super) policy: Option<Policy>,
    pub(super) entries: usize,
    /// Units that are confined by it and that it does not list any more; each until it stops.
    pub(super) unlisted: BTreeSet<UnitName>,
    /// Units that were confined before they asked, and when.
    pub(super) unasked: BTreeMap<UnitName, Instant>,
    /// Its links were taken away on purpose, and stay away until a unit starts or a reload.
    pub(super) detached: bool,
    pub(super) recent: VecDeque<LoggedDenial>,
    /// `limited` and `lost` of which the log knows.
    pub(super) left_out: (u64, u64),
    /// When `lost` last grew, as far as this daemon knows; it may have while there was none.
    pub(super) lost_at: Option<Instant>,
}

impl InstanceState {
    /// One without a policy, of which this much was denied until now.
    pub(super) fn new(index: InstanceIndex, denied: &Denied) -> Self {
        Self {
            index,
            policy: None,
            entries: 0,
            unlisted: BTreeSet::new(),
            unasked: BTreeMap::new(),
            detached: false,
            recent: VecDeque::new(),
            left_out: (denied.limited, denied.lost),
            lost_at: (denied.lost > 0).then(Instant::now),
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

    /// Whether what is denied to it is refused.
    pub(super) fn mode(&self) -> Mode {
        self.policy.as_ref().map_or(Mode::Enforce, |policy| policy.mode)
    }
}

/// Everything that is confined.
pub struct Daemon {
    pub(super) loaded: Loaded,
    pub(super) pins: Pins,
    /// Held for as long as this lives: nobody else changes what is pinned.
    pub(super) lock: PinLock,
    pub(super) map_pins: MapPins,
    /// Those whose pins are still there.
    pub(super) predecessors: Vec<predecessor::Predecessor>,
    pub(super) registry: InstanceNumbers,
    pub(super) hierarchy: Hierarchy,
    pub(super) config: PathBuf,
    /// A copy of the policy file as it was last applied, for a start with one that has an error.
    pub(super) last_applied: PathBuf,
    pub(super) set: PolicySet,
    pub(super) reload_error: Option<String>,
    /// When the file was last applied; seconds since 1970.
    pub(super) applied: u64,
    pub(super) instances: BTreeMap<InstanceName, InstanceState>,
    pub(super) folds: fold::Folds,
    /// Logged already, and still to be told to those who follow.
    pub(super) unpublished: Vec<LoggedDenial>,
    pub(super) watch: watch::Watch,
    /// Units that run and cannot be confined, and why; told once.
    pub(super) failing: BTreeMap<UnitName, String>,
    /// Why changes are not followed, and why units are not looked after; told once.
    pub(super) watch_trouble: Option<String>,
    pub(super) upkeep_trouble: Option<String>,
    /// The ids of cgroups that this daemon confined.
    pub(super) confined: HashSet<u64>,
    /// And of those that it let go again, because it was asked to.
    pub(super) let_go: HashSet<u64>,
}

impl Daemon {
    /// How often it is told how many denials had no line.
    pub fn interval(&self) -> Duration {
        self.set.log.interval
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
            config: self.config.clone(),
            known: there.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        }
    }
}
