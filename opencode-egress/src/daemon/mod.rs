//! The daemon: what is confined, by which policy, and what was refused.
//!
//! [`Daemon`] is plain and synchronous; [`server`] runs it.

mod fold;
mod server;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use opencode_egress_common::{
    decide::{Verdict, decide},
    reason::Hook,
};
pub use server::serve;
use tracing::{error, info, warn};

use crate::{
    cgroup::{Cgroup, CgroupError, Hierarchy, unit_of},
    compile::{CompileError, CompiledPolicy, compile},
    config::{self, ConfigError},
    confine::ConfineError,
    connections::{self, Connection},
    control::LoggedEvent,
    events::{Record, drain},
    explain::{Destination, Explanation, explain},
    journal,
    loader::{ATTACH_ORDER, AttachError, Lifetime, LoadError, Loaded, load},
    maps::{InstanceIndex, MapsError},
    pins::{LinkDirectory, PinError, Pins},
    policy::{InstanceName, Mode, Policy, PolicySet, UnitName, mode_name},
    registry::{Registry, RegistryError},
    status::{InstanceStatus, Status, UnitStatus},
};

/// Denied flows kept for `events`, by instance.
const RECENT_EVENTS: usize = 256;

/// Why the daemon did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The policy file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A policy does not fit.
    #[error("instance `{name}` cannot be compiled")]
    Compile {
        /// Whose.
        name: InstanceName,
        /// Why.
        #[source]
        source: CompileError,
    },
    /// The kernel side.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The instances' numbers.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A link.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel's socket diagnosis.
    #[error("cannot look at open connections")]
    Connections(#[source] std::io::Error),
    /// Somebody asks for an instance that is not there.
    #[error("no instance `{name}` in {}; it has: {known}", config.display())]
    UnknownInstance {
        /// The name asked for.
        name: String,
        /// The policy file.
        config: PathBuf,
        /// Those that are there.
        known: String,
    },
    /// `attach` from outside a unit.
    #[error("process {pid} is in {}, which is no service's cgroup; `attach` is for a unit's ExecStartPre=+", cgroup.display())]
    NoUnit {
        /// The caller.
        pid: u32,
        /// Its cgroup.
        cgroup: PathBuf,
    },
    /// `attach` from a unit of something else.
    #[error(
        "{unit} asks for instance `{name}`, which does not list it; add it to `units` of `{name}` and reload"
    )]
    NotListed {
        /// The caller's unit.
        unit: UnitName,
        /// The instance that it named.
        name: InstanceName,
    },
}

impl From<ConfineError> for DaemonError {
    fn from(error: ConfineError) -> Self {
        match error {
            ConfineError::Attach(error) => error.into(),
            ConfineError::Maps(error) => error.into(),
        }
    }
}

struct Instance {
    index: InstanceIndex,
    policy: Policy,
    entries: usize,
    /// Units that were running before they were confined.
    late: Vec<UnitName>,
    recent: VecDeque<LoggedEvent>,
    /// `limited` and `lost` of which the log knows.
    left_out: (u64, u64),
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
    instances: BTreeMap<InstanceName, Instance>,
    folds: fold::Folds,
}

impl Daemon {
    /// Loads the programs, takes over what an earlier daemon pinned, puts the file's policies in force and
    /// confines the units that are running.
    ///
    /// # Errors
    ///
    /// When the file has an error, or the kernel lacks something; what was enforced before still is.
    pub fn start(config: &Path, pins: &Path) -> Result<Self, DaemonError> {
        let (set, compiled) = read(config)?;
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
            instances: BTreeMap::new(),
            folds: fold::Folds::default(),
        };
        daemon.apply(set, compiled)?;
        Ok(daemon)
    }

    /// Applies the policy file again: all of it, or, when it has an error, nothing. Returns what changed.
    ///
    /// # Errors
    ///
    /// When the file has an error; the running policy stays.
    pub fn reload(&mut self) -> Result<Vec<String>, DaemonError> {
        let config = self.config.clone();
        let result = read(&config).and_then(|(set, compiled)| self.apply(set, compiled));
        self.reload_error = result.as_ref().err().map(|error| error_chain(error));
        match &result {
            Ok(changes) => info!("applied {}: {} changes", config.display(), changes.len()),
            Err(error) => error!("the running policy stays: {}", error_chain(error)),
        }
        result
    }

    fn apply(
        &mut self,
        set: PolicySet,
        compiled: BTreeMap<InstanceName, CompiledPolicy>,
    ) -> Result<Vec<String>, DaemonError> {
        let changes = changes(&self.set, &set);
        self.loaded.maps.set_limits(&set.log)?;
        // No instance of the old file that the new one does not have keeps a policy.
        let known: Vec<_> =
            self.registry.known().iter().map(|(name, index)| (name.clone(), *index)).collect();
        for (name, index) in known {
            if !set.instances.contains_key(&name) && self.loaded.maps.current(index).slot() != 0 {
                self.loaded.maps.retire(index)?;
                self.instances.remove(&name);
            }
        }
        let mut changed = vec![];
        for (name, compiled) in compiled {
            let policy = &set.instances[&name];
            let index = self.registry.claim(&name)?;
            let in_force = self.instances.get(&name).is_some_and(|instance| &instance.policy == policy);
            if !in_force {
                self.loaded.maps.install(index, &compiled)?;
                changed.push(name.clone());
            }
            let counters = self.loaded.maps.counters(index)?.denied;
            let instance = self.instances.entry(name).or_insert_with(|| Instance {
                index,
                policy: Policy::default(),
                entries: 0,
                late: vec![],
                recent: VecDeque::new(),
                left_out: (counters.limited, counters.lost),
            });
            instance.policy = policy.clone();
            instance.entries = compiled.entries.len();
        }
        self.set = set;
        self.reconcile();
        for name in changed {
            if let Err(error) = self.reset_denied(&name) {
                warn!("open connections of {name} are refused, but not reset: {}", error_chain(&error));
            }
        }
        Ok(changes)
    }

    /// Resets what an instance has open and its policy denies, so that no program waits for an answer.
    fn reset_denied(&self, name: &InstanceName) -> Result<(), DaemonError> {
        let instance = self.instance(name)?;
        if instance.policy.mode == Mode::Audit {
            return Ok(());
        }
        let cgroups = instance.policy.units.iter().filter_map(|unit| self.hierarchy.find_unit(unit));
        let cgroups: HashSet<u64> = cgroups
            .filter_map(|path| self.hierarchy.open(&path).ok())
            .flat_map(|cgroup| cgroup.ids())
            .collect();
        let Some((head, rules)) = self.loaded.maps.policy(instance.index)? else { return Ok(()) };
        let denied = |connection: &Connection| {
            !head.listens_on(connection.local_port) && decide(&rules, &connection.flow) != Verdict::Allow
        };
        let reset = connections::reset(&cgroups, denied).map_err(DaemonError::Connections)?;
        if !reset.is_empty() {
            info!("{name}: reset {} open connections that its policy denies", reset.len());
        }
        Ok(())
    }

    /// Confines the listed units that run without all links, and removes the pins of cgroups that are gone.
    /// What cannot be confined is logged and shown by `status`; the next call tries again.
    pub fn reconcile(&mut self) {
        self.remove_dead_pins();
        let units: Vec<_> = self
            .instances
            .iter()
            .flat_map(|(name, instance)| {
                instance.policy.units.iter().map(|unit| (name.clone(), unit.clone()))
            })
            .collect();
        for (name, unit) in units {
            let Some(path) = self.hierarchy.find_unit(&unit) else { continue };
            if let Err(error) = self.confine_late(&name, &unit, &path) {
                error!("{unit} is running and not confined: {}", error_chain(&error));
            }
        }
    }

    fn confine_late(&mut self, name: &InstanceName, unit: &UnitName, path: &Path) -> Result<(), DaemonError> {
        let cgroup = self.hierarchy.open(path)?;
        if !cgroup.is_populated() || !self.confine(name, unit, &cgroup)? {
            return Ok(());
        }
        warn!("{unit} was running before it was confined; what it had open is judged from now on");
        if let Some(instance) = self.instances.get_mut(name) {
            instance.late.push(unit.clone());
        }
        self.reset_denied(name)
    }

    /// Confines a cgroup of a unit; false when it was already.
    fn confine(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        cgroup: &Cgroup,
    ) -> Result<bool, DaemonError> {
        let index = self.instance(name)?.index;
        let directory = self.pins.links(unit, cgroup.id())?;
        let mut missing = vec![];
        for hook in ATTACH_ORDER {
            if !directory.has(hook)? {
                missing.push(hook);
            }
        }
        if missing.is_empty() && self.loaded.maps.scope_instance(cgroup.id()) == Some(index) {
            return Ok(false);
        }
        let attach = |loaded: &mut Loaded, hook: Hook, cgroup: &Cgroup| {
            missing.contains(&hook).then(|| loaded.programs.attach(hook, cgroup)).transpose()
        };
        for (hook, link) in self.loaded.confine(cgroup, index, attach)? {
            if let Some(link) = link {
                directory.pin(hook, &link)?;
            }
        }
        Ok(true)
    }

    /// Confines the unit of a process that says it belongs to `name`.
    ///
    /// # Errors
    ///
    /// When it does not, or the kernel refuses.
    pub fn attach(&mut self, name: &str, pid: u32) -> Result<(UnitName, u32), DaemonError> {
        let name = self.known(name)?;
        let path = self.hierarchy.of_process(pid)?;
        let Some((unit, unit_path)) = unit_of(&path) else {
            return Err(DaemonError::NoUnit { pid, cgroup: path });
        };
        if !self.instance(&name)?.policy.units.contains(&unit) {
            return Err(DaemonError::NotListed { unit, name });
        }
        let cgroup = self.hierarchy.open(&unit_path)?;
        self.remove_dead_pins_of(&unit);
        self.confine(&name, &unit, &cgroup)?;
        let generation = self.loaded.maps.current(self.instance(&name)?.index).generation();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.late.retain(|late| late != &unit);
        }
        info!("{unit} is confined, instance {name}, generation {generation}");
        Ok((unit, generation))
    }

    /// Takes the links of an instance's units away. They come back when a unit starts or at a reload.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn detach(&mut self, name: &str) -> Result<Vec<UnitName>, DaemonError> {
        let name = self.known(name)?;
        let units = self.instance(&name)?.policy.units.clone();
        let mut detached = vec![];
        for directory in self.pins.all_links().into_iter().filter(|links| units.contains(&links.unit)) {
            directory.remove()?;
            warn!("{} is no longer confined: detached on request", directory.unit);
            detached.push(directory.unit);
        }
        Ok(detached)
    }

    /// Judges a flow by what is in the kernel.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn explain(&self, name: &str, destination: Destination) -> Result<Explanation, DaemonError> {
        let instance = self.instance(&self.known(name)?)?;
        let Some((head, rules)) = self.loaded.maps.policy(instance.index)? else {
            return Ok(Explanation::without_policy(destination));
        };
        Ok(explain(destination, &head, &rules, &instance.policy))
    }

    /// Everything that `status` shows.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub fn status(&self) -> Result<Status, DaemonError> {
        let links = self.pins.all_links();
        let mut instances = BTreeMap::new();
        for (name, instance) in &self.instances {
            let Instance { index, policy, entries, late, recent, .. } = instance;
            let units = policy.units.iter().map(|unit| self.unit_status(unit, &links, late)).collect();
            let status = InstanceStatus {
                mode: mode_name(policy.mode).to_owned(),
                generation: self.loaded.maps.current(*index).generation(),
                rules: [policy.allow.len(), policy.deny.len(), policy.listen.len()],
                entries: *entries,
                units,
                counters: self.loaded.maps.counters(*index)?.into(),
                last_denial: recent.back().cloned(),
            };
            instances.insert(name.to_string(), status);
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.display().to_string(),
            reload_error: self.reload_error.clone(),
            instances,
        })
    }

    fn unit_status(&self, unit: &UnitName, links: &[LinkDirectory], late: &[UnitName]) -> UnitStatus {
        let cgroup = self.hierarchy.find_unit(unit).and_then(|path| self.hierarchy.open(&path).ok());
        let of_unit = links.iter().find(|links| {
            links.unit == *unit && cgroup.as_ref().is_some_and(|cgroup| cgroup.id() == links.cgroup)
        });
        UnitStatus {
            unit: unit.to_string(),
            running: cgroup.as_ref().is_some_and(Cgroup::is_populated),
            links: of_unit.map_or(0, LinkDirectory::count),
            late: late.contains(unit),
        }
    }

    /// The last denied flows, the oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub fn recent(&self, name: Option<&str>) -> Result<Vec<LoggedEvent>, DaemonError> {
        let mut events: Vec<_> = match name {
            Some(name) => self.instance(&self.known(name)?)?.recent.iter().cloned().collect(),
            None => self.instances.values().flat_map(|instance| instance.recent.iter().cloned()).collect(),
        };
        events.sort_by_key(|event| event.time);
        Ok(events)
    }

    /// Takes the events that are there, and logs and returns them.
    pub fn take_events(&mut self) -> Vec<LoggedEvent> {
        let mut logged = vec![];
        for record in drain(&mut self.loaded.events) {
            match record {
                Ok(record) => {
                    let suppressed = self.folds.event(&record, Instant::now(), self.set.log.interval);
                    logged.extend(self.log(&record, suppressed));
                }
                Err(error) => error!("{error}"),
            }
        }
        logged
    }

    /// Logs what was folded or left out and has no event of its own.
    pub fn take_folded(&mut self) -> Vec<LoggedEvent> {
        let maps = &self.loaded.maps;
        let due = self.folds.due(Instant::now(), |key| maps.attempts(key));
        // The line itself stands for one of them.
        due.into_iter().filter_map(|(record, attempts)| self.log(&record, attempts - 1)).collect()
    }

    /// Logs how many denials had no line, of the instances where that is more than last time.
    pub fn log_left_out(&mut self) {
        for (name, instance) in &mut self.instances {
            let Ok(counters) = self.loaded.maps.counters(instance.index) else { continue };
            let now = (counters.denied.limited, counters.denied.lost);
            if now != instance.left_out {
                let (limited, lost) = (now.0 - instance.left_out.0, now.1 - instance.left_out.1);
                journal::log_left_out(name, limited, lost);
                instance.left_out = now;
            }
        }
    }

    fn log(&mut self, record: &Record, suppressed: u64) -> Option<LoggedEvent> {
        let index = InstanceIndex::new(record.event.instance);
        let found = self.instances.iter_mut().find(|(_, instance)| Some(instance.index) == index);
        let flow = record.denied_flow(suppressed);
        let Some((name, instance)) = found else {
            warn!("denied to a cgroup whose instance has no policy: {flow}");
            return None;
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let event = LoggedEvent { time, instance: name.to_string(), flow };
        journal::log_denial(&event);
        if instance.recent.len() == RECENT_EVENTS {
            instance.recent.pop_front();
        }
        instance.recent.push_back(event.clone());
        Some(event)
    }

    /// Whether a process is in a confined unit. Such a one may ask for its own confinement and nothing else.
    pub fn is_confined(&self, pid: u32) -> bool {
        let Ok(path) = self.hierarchy.of_process(pid) else { return true };
        unit_of(&path).is_some_and(|(unit, _)| {
            self.instances.values().any(|instance| instance.policy.units.contains(&unit))
        })
    }

    /// How often the folded are looked for.
    pub fn interval(&self) -> std::time::Duration {
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

    fn remove_dead_pins(&self) {
        for links in self.pins.all_links() {
            self.remove_if_dead(&links);
        }
    }

    fn remove_dead_pins_of(&self, unit: &UnitName) {
        for links in self.pins.all_links().into_iter().filter(|links| links.unit == *unit) {
            self.remove_if_dead(&links);
        }
    }

    fn remove_if_dead(&self, links: &LinkDirectory) {
        let cgroup = self.hierarchy.find_unit(&links.unit).and_then(|path| self.hierarchy.open(&path).ok());
        if cgroup.is_none_or(|cgroup| cgroup.id() != links.cgroup)
            && let Err(error) = links.remove()
        {
            warn!("{}", error_chain(&error));
        }
    }
}

type Read = (PolicySet, BTreeMap<InstanceName, CompiledPolicy>);

fn read(config: &Path) -> Result<Read, DaemonError> {
    let set = config::load(config)?;
    let mut compiled = BTreeMap::new();
    for (name, policy) in &set.instances {
        let policy = compile(policy).map_err(|source| DaemonError::Compile { name: name.clone(), source })?;
        compiled.insert(name.clone(), policy);
    }
    Ok((set, compiled))
}

/// What differs between two policy sets, a line each.
fn changes(old: &PolicySet, new: &PolicySet) -> Vec<String> {
    fn lines(set: &PolicySet) -> std::collections::BTreeSet<(String, String)> {
        let mut lines = std::collections::BTreeSet::new();
        for (name, policy) in &set.instances {
            let units = policy.units.iter().map(|unit| format!("unit {unit}"));
            let allow = policy.allow.iter().map(|rule| format!("allow {rule}"));
            let deny = policy.deny.iter().map(|rule| format!("deny {rule}"));
            let listen = policy.listen.iter().map(|listen| format!("listen {listen}"));
            let mode = [format!("mode {}", mode_name(policy.mode))];
            let texts = units.chain(allow).chain(deny).chain(listen).chain(mode);
            lines.extend(texts.map(|text| (name.to_string(), text)));
        }
        lines
    }
    let (old, new) = (lines(old), lines(new));
    let removed = old.difference(&new).map(|(name, text)| (name, '-', text));
    let added = new.difference(&old).map(|(name, text)| (name, '+', text));
    let mut changes: Vec<_> = removed.chain(added).collect();
    changes.sort_by_key(|(name, ..)| *name);
    changes.into_iter().map(|(name, sign, text)| format!("{sign} {name}: {text}")).collect()
}

/// An error with everything behind it, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
