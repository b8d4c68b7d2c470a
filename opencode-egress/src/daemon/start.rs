//! Starting: taking over what an earlier daemon pinned, and putting the policy file in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use tracing::error;

use super::{
    DaemonError,
    connections::places::Connections,
    fold, last_applied,
    leases::Leases,
    names::Names,
    policies, predecessor,
    state::{Confinement, Daemon, Denials, Policies},
};
use crate::{
    cgroups::{Hierarchy, watch},
    kernel::{
        lines::LineCountsMap,
        loader::{Lifetime, load},
        pins::{MapPins, Pins},
        registry::InstanceNumbers,
    },
    policy::{InstanceName, file},
    report::journal::{Journal, RELOAD_REFUSED_ID},
};

impl Daemon {
    /// Loads the programs, takes over what an earlier daemon pinned, puts the file's policies in force and
    /// confines the units that are running. A copy of the file goes to the directory `copies`; when the file has an error, and
    /// there is such a copy, that is what is in force.
    ///
    /// # Errors
    ///
    /// When the file has an error and was never applied, another daemon has the pins, or the kernel lacks something; what
    /// was enforced before still is.
    pub fn start(config: &Path, pins: &Path, copies: &Path, journal: Journal) -> Result<Self, DaemonError> {
        let pins = Pins::below(pins)?;
        let lock = pins.lock()?;
        let last_applied = last_applied::place(copies, &pins);
        let leases = Leases::open(&last_applied.with_extension("leases"));
        let (read, bad_file) = policies::read_or_last(config, &last_applied, &leases.leased())?;
        // For the predecessors; the file may have been edited since.
        let before = match &pins.of_other_versions()?[..] {
            [] => None,
            _ => file::load(&last_applied).ok(),
        };
        let hierarchy = Hierarchy::find()?;
        let mut loaded = load(&Lifetime::Pinned(pins.maps()))?;
        let mut numbers = InstanceNumbers::open(pins.maps())?;
        let mut lines = LineCountsMap::open(pins.maps())?;
        let mut predecessors = vec![];
        for version in pins.of_other_versions()? {
            let taken_over =
                predecessor::Predecessor::take_over(&version, &mut loaded.maps, &mut lines, &mut numbers)?;
            predecessors.push(taken_over);
        }
        journal.keep_counts(lines.all()?, Box::new(lines));
        let confinement = Confinement {
            map_pins: MapPins::open(&pins)?,
            pins,
            lock,
            predecessors,
            hierarchy,
            watch: watch::Watch::new(),
            failing: BTreeMap::new(),
            watch_trouble: None,
            upkeep_trouble: None,
            confined: HashSet::new(),
            let_go: HashSet::new(),
            soon: BTreeMap::new(),
            outlived: BTreeMap::new(),
            next_look: 0,
            users_units: BTreeSet::new(),
            users_looked: None,
        };
        let policies = Policies {
            config: config.to_owned(),
            last_applied: last_applied.clone(),
            log: read.log,
            reload_error: bad_file,
            applied: 0,
        };
        let denials =
            Denials { journal, folds: fold::Folds::default(), unpublished: vec![], own_lost_told: 0 };
        let instances = BTreeMap::new();
        let connections = Connections::new().map_err(DaemonError::Connections)?;
        let names = Names::open(&last_applied.with_extension("names"));
        let mut daemon =
            Self { loaded, numbers, instances, confinement, policies, denials, connections, names, leases };
        daemon.apply(read.prepare(&last_applied)?)?;
        daemon.names.all_in_force();
        let cut_short = daemon.leases.cut_short();
        daemon.tell_kept_leases();
        if !daemon.confinement.predecessors.is_empty() {
            let before = |name: &InstanceName| before.as_ref().and_then(|set| set.instances.get(name));
            let now = |name: &InstanceName| daemon.instances.get(name)?.policy.as_deref();
            let leased = daemon.leases.leased();
            // They were in force under the same leases, and those that are over with what began under them.
            let is_other = |name: &InstanceName| {
                let leased = leased.get(name).cloned().unwrap_or_default();
                cut_short.contains(name)
                    || before(name).map(|policy| policy.clone().leased(leased)).as_ref() != now(name)
            };
            let other: BTreeSet<_> =
                daemon.numbers.known().keys().filter(|name| is_other(name)).cloned().collect();
            daemon.retire_predecessors(|name| other.contains(name));
            // What could not be is logged there.
            let names: Vec<_> = daemon.instances.keys().cloned().collect();
            daemon.reset_denied(&names.iter().collect::<Vec<_>>());
        }
        if let Some(why) = &daemon.policies.reload_error {
            error!(
                MESSAGE_ID = RELOAD_REFUSED_ID,
                "the policies that were applied last are in force again: {why}"
            );
        }
        Ok(daemon)
    }
}
