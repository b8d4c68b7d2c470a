//! Everything that the daemon knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use opencode_egress_common::abi::Denied;
use tracing::error;

use super::{DaemonError, fold, policies, predecessor};
use crate::{
    cgroups::{Cgroup, Hierarchy, unit_of, watch},
    control::request::LoggedEvent,
    kernel::{
        loader::{Lifetime, Loaded, load},
        maps::InstanceIndex,
        pins::{LinkDirectory, MapPins, PinLock, Pins},
        registry::Registry,
    },
    policy::{InstanceName, Mode, Policy, PolicySet, UnitName, mode_name},
    report::{
        journal::RELOAD_REFUSED_ID,
        status::{InstanceStatus, Status, UnitStatus},
    },
};

/// For how long it is news that denials were lost.
const NEWS: Duration = Duration::from_secs(60 * 60);
/// Denied flows kept for `events`, by instance.
pub(super) const RECENT_EVENTS: usize = 256;

pub(super) struct Instance {
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
    pub(super) recent: VecDeque<LoggedEvent>,
    /// `limited` and `lost` of which the log knows.
    pub(super) left_out: (u64, u64),
    /// When `lost` last grew, as far as this daemon knows; it may have while there was none.
    pub(super) lost_at: Option<Instant>,
}

impl Instance {
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
    pub(super) registry: Registry,
    pub(super) hierarchy: Hierarchy,
    pub(super) config: PathBuf,
    /// A copy of the policy file as it was last applied, for a start with one that has an error.
    pub(super) last_applied: PathBuf,
    pub(super) set: PolicySet,
    pub(super) reload_error: Option<String>,
    /// When the file was last applied; seconds since 1970.
    pub(super) applied: u64,
    pub(super) instances: BTreeMap<InstanceName, Instance>,
    pub(super) folds: fold::Folds,
    /// Logged already, and still to be told to those who follow.
    pub(super) unpublished: Vec<LoggedEvent>,
    pub(super) watch: watch::Watch,
    /// Units that run and cannot be confined, and why; told once.
    pub(super) failing: BTreeMap<UnitName, String>,
    /// Why changes are not followed, and why units are not looked after; told once.
    pub(super) not_followed: Option<String>,
    pub(super) not_looked: Option<String>,
    /// The ids of cgroups that this daemon confined.
    pub(super) confined: HashSet<u64>,
    /// And of those that it let go again, because it was asked to.
    pub(super) let_go: HashSet<u64>,
}

impl Daemon {
    /// Loads the programs, takes over what an earlier daemon pinned, puts the file's policies in force and
    /// confines the units that are running. A copy of the file goes to `last_applied`; when the file has an error, and
    /// there is such a copy, that is what is in force.
    ///
    /// # Errors
    ///
    /// When the file has an error and was never applied, another daemon has the pins, or the kernel lacks something; what
    /// was enforced before still is.
    pub fn start(config: &Path, pins: &Path, last_applied: &Path) -> Result<Self, DaemonError> {
        let (read, bad_file) = policies::read_or_last(config, last_applied)?;
        let hierarchy = Hierarchy::find()?;
        let pins = Pins::below(pins);
        let lock = pins.lock()?;
        let mut loaded = load(&Lifetime::Pinned(pins.maps()))?;
        let mut registry = Registry::open(pins.maps())?;
        let mut predecessors = vec![];
        for version in pins.of_other_versions()? {
            predecessors.push(predecessor::Predecessor::take_over(
                &version,
                &mut loaded.maps,
                &mut registry,
            )?);
        }
        let mut daemon = Self {
            loaded,
            map_pins: MapPins::open(&pins)?,
            pins,
            lock,
            predecessors,
            registry,
            hierarchy,
            config: config.to_owned(),
            last_applied: last_applied.to_owned(),
            set: PolicySet { log: read.set.log, instances: BTreeMap::new() },
            reload_error: bad_file,
            applied: 0,
            instances: BTreeMap::new(),
            folds: fold::Folds::default(),
            unpublished: vec![],
            watch: watch::Watch::new().map_err(DaemonError::Watch)?,
            failing: BTreeMap::new(),
            not_followed: None,
            not_looked: None,
            confined: HashSet::new(),
            let_go: HashSet::new(),
        };
        daemon.apply(read)?;
        if let Some(why) = &daemon.reload_error {
            error!(
                MESSAGE_ID = RELOAD_REFUSED_ID,
                "the policies that were applied last are in force again: {why}"
            );
        }
        Ok(daemon)
    }

    /// Everything that `status` shows.
    ///
    /// # Errors
    ///
    /// When a counter or the pins cannot be read.
    pub fn status(&self) -> Result<Status, DaemonError> {
        let (links, services) = (self.pins.all_links()?, self.hierarchy.services()?);
        let mut instances = BTreeMap::new();
        for (name, instance) in &self.instances {
            let units = instance.units().map(|unit| {
                let unlisted = instance.unlisted.contains(unit);
                self.unit_status(unit, unlisted, &links, services.get(unit))
            });
            let Instance { index, policy, entries, detached, recent, lost_at, .. } = instance;
            let rules =
                policy.as_ref().map(|policy| [policy.allow.len(), policy.deny.len(), policy.listen.len()]);
            let status = InstanceStatus {
                mode: mode_name(instance.mode()).to_owned(),
                generation: self.loaded.maps.current(*index).generation(),
                rules: rules.unwrap_or_default(),
                entries: *entries,
                units: units.collect(),
                removed: policy.is_none(),
                detached: *detached,
                lost_lately: lost_at.is_some_and(|at| at.elapsed() < NEWS),
                counters: self.loaded.maps.counters(*index)?.into(),
                last_denial: recent.back().cloned(),
            };
            instances.insert(name.to_string(), status);
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.display().to_string(),
            reload_error: self.reload_error.clone(),
            applied: self.applied,
            instances,
        })
    }

    pub(super) fn unit_status(
        &self,
        unit: &UnitName,
        unlisted: bool,
        links: &[LinkDirectory],
        paths: Option<&Vec<PathBuf>>,
    ) -> UnitStatus {
        let cgroups = self.hierarchy.open_all(paths).unwrap_or_default();
        let (populated, empty): (Vec<_>, Vec<_>) = cgroups.into_iter().partition(Cgroup::is_populated);
        let running = !populated.is_empty();
        let of =
            |cgroup: &Cgroup| links.iter().find(|links| links.unit == *unit && links.cgroup == cgroup.id());
        let judged = if running { populated } else { empty };
        let confined = judged.iter().map(|cgroup| of(cgroup).map_or(0, |links| self.ours(links)));
        UnitStatus {
            unit: unit.to_string(),
            running,
            unlisted,
            links: confined.min().unwrap_or(0),
            late: judged.iter().filter_map(of).any(LinkDirectory::is_late),
        }
    }

    /// Whether a process is in a confined unit. Such a one may ask for its own confinement and nothing else.
    pub fn is_confined(&self, pid: u32) -> bool {
        let (Ok(path), Ok(links)) = (self.hierarchy.of_process(pid), self.pins.all_links()) else {
            return true;
        };
        unit_of(&path).is_some_and(|(unit, _)| {
            self.instances.values().any(|instance| instance.units().any(|known| *known == unit))
                || links.iter().any(|links| links.unit == unit)
        })
    }

    /// How often it is told how many denials had no line.
    pub fn interval(&self) -> Duration {
        self.set.log.interval
    }

    pub(super) fn known(&self, name: &str) -> Result<InstanceName, DaemonError> {
        let found = self.instances.keys().find(|known| known.as_str() == name);
        found.cloned().ok_or_else(|| self.unknown(name))
    }

    pub(super) fn instance(&self, name: &InstanceName) -> Result<&Instance, DaemonError> {
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
