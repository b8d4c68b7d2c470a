//! The daemon: what is confined, by which policy, and what was refused.
//!
//! [`Daemon`] is plain and synchronous; [`server`] runs it.

mod confinement;
mod denials;
mod error;
mod explain;
mod fold;
mod policies;
mod seen;
mod server;
mod watch;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use error::{DaemonError, error_chain};
pub use server::serve;

use crate::{
    cgroup::{Cgroup, Hierarchy, unit_of},
    control::LoggedEvent,
    loader::{Lifetime, Loaded, load},
    maps::InstanceIndex,
    pins::{LinkDirectory, Pins},
    policy::{InstanceName, Policy, PolicySet, UnitName, mode_name},
    registry::Registry,
    status::{InstanceStatus, Status, UnitStatus},
};

/// For how long it is news that denials were lost.
const NEWS: Duration = Duration::from_secs(60 * 60);
/// Denied flows kept for `events`, by instance.
const RECENT_EVENTS: usize = 256;

struct Instance {
    index: InstanceIndex,
    policy: Policy,
    entries: usize,
    /// Units that were confined before they asked, and when.
    unasked: BTreeMap<UnitName, Instant>,
    /// Units that never asked, so that nobody knows what they did before they were confined, and their cgroups.
    late: BTreeMap<UnitName, u64>,
    /// Its links were taken away on purpose, and stay away until a unit starts or a reload.
    detached: bool,
    recent: VecDeque<LoggedEvent>,
    /// `limited` and `lost` of which the log knows.
    left_out: (u64, u64),
    /// When `lost` last grew, as far as this daemon knows; it may have while there was none.
    lost_at: Option<Instant>,
}

/// Everything that is confined.
pub struct Daemon {
    loaded: Loaded,
    pins: Pins,
    registry: Registry,
    hierarchy: Hierarchy,
    config: PathBuf,
    set: PolicySet,
    reload_error: Option<String>,
    /// When the file was last applied; seconds since 1970.
    applied: u64,
    instances: BTreeMap<InstanceName, Instance>,
    folds: fold::Folds,
    watch: watch::Watch,
    /// Units that run and cannot be confined, and why; told once.
    failing: BTreeMap<UnitName, String>,
    /// Why changes are not followed; told once.
    not_followed: Option<String>,
    /// The ids of cgroups that this daemon confined.
    confined: HashSet<u64>,
    /// And of those that it let go again, because it was asked to.
    let_go: HashSet<u64>,
}

impl Daemon {
    /// Loads the programs, takes over what an earlier daemon pinned, puts the file's policies in force and
    /// confines the units that are running.
    ///
    /// # Errors
    ///
    /// When the file has an error, or the kernel lacks something; what was enforced before still is.
    pub fn start(config: &Path, pins: &Path) -> Result<Self, DaemonError> {
        let (set, compiled) = policies::read(config)?;
        let hierarchy = Hierarchy::find()?;
        let pins = Pins::below(pins);
        let loaded = load(&Lifetime::Pinned(pins.maps()))?;
        let registry = Registry::open(pins.maps())?;
        let mut daemon = Self {
            loaded,
            pins,
            registry,
            hierarchy,
            config: config.to_owned(),
            set: PolicySet { log: set.log, instances: BTreeMap::new() },
            reload_error: None,
            applied: 0,
            instances: BTreeMap::new(),
            folds: fold::Folds::default(),
            watch: watch::Watch::new().map_err(DaemonError::Watch)?,
            failing: BTreeMap::new(),
            not_followed: None,
            confined: HashSet::new(),
            let_go: HashSet::new(),
        };
        daemon.apply(set, compiled)?;
        Ok(daemon)
    }

    /// Everything that `status` shows.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub fn status(&self) -> Result<Status, DaemonError> {
        let (links, services) = (self.pins.all_links(), self.hierarchy.services()?);
        let mut instances = BTreeMap::new();
        for (name, instance) in &self.instances {
            let Instance { index, policy, entries, late, detached, recent, lost_at, .. } = instance;
            let units = policy
                .units
                .iter()
                .map(|unit| self.unit_status(unit, &links, services.get(unit), late))
                .collect();
            let status = InstanceStatus {
                mode: mode_name(policy.mode).to_owned(),
                generation: self.loaded.maps.current(*index).generation(),
                rules: [policy.allow.len(), policy.deny.len(), policy.listen.len()],
                entries: *entries,
                units,
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

    fn unit_status(
        &self,
        unit: &UnitName,
        links: &[LinkDirectory],
        path: Option<&PathBuf>,
        late: &BTreeMap<UnitName, u64>,
    ) -> UnitStatus {
        let cgroup = path.and_then(|path| self.hierarchy.open(path).ok());
        let of_unit = links.iter().find(|links| {
            links.unit == *unit && cgroup.as_ref().is_some_and(|cgroup| cgroup.id() == links.cgroup)
        });
        UnitStatus {
            unit: unit.to_string(),
            running: cgroup.as_ref().is_some_and(Cgroup::is_populated),
            links: of_unit.map_or(0, LinkDirectory::count),
            late: cgroup.is_some_and(|cgroup| late.get(unit) == Some(&cgroup.id())),
        }
    }

    /// Whether a process is in a confined unit. Such a one may ask for its own confinement and nothing else.
    pub fn is_confined(&self, pid: u32) -> bool {
        let Ok(path) = self.hierarchy.of_process(pid) else { return true };
        unit_of(&path).is_some_and(|(unit, _)| {
            self.instances.values().any(|instance| instance.policy.units.contains(&unit))
                || self.pins.all_links().iter().any(|links| links.unit == unit)
        })
    }

    /// How often it is told how many denials had no line.
    pub fn interval(&self) -> Duration {
        self.set.log.interval
    }

    fn known(&self, name: &str) -> Result<InstanceName, DaemonError> {
        let found = self.instances.keys().find(|known| known.as_str() == name);
        found.cloned().ok_or_else(|| DaemonError::UnknownInstance {
            name: name.to_owned(),
            config: self.config.clone(),
            known: self.instances.keys().map(InstanceName::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    fn instance(&self, name: &InstanceName) -> Result<&Instance, DaemonError> {
        self.instances.get(name).ok_or_else(|| DaemonError::UnknownInstance {
            name: name.to_string(),
            config: self.config.clone(),
            known: String::new(),
        })
    }
}
