//! What a daemon of another ABI version left: counters and generations that go on, denied flows that wait in its ring.
//!
//! Its links judge until this version's are there, and go then. What they count meanwhile, a moment, stays behind. Cgroups
//! that are gone and of which there are sockets cannot get other links: they keep these, and their policies as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use opencode_egress_common::{
    abi::{ConfinedCgroup, Counter, Counters, Current, Denied},
    event::DecodeError,
};
use tracing::{info, warn};

use crate::{
    daemon::error::DaemonError,
    kernel::{
        instance::InstanceIndex,
        lines::LineCountsMap,
        maps::{self, CurrentWords, Maps, MapsError},
        pins::{PinError, Pins},
        registry::InstanceNumbers,
        ring::{self, Reported},
        shapes::is_as_ours,
    },
    policy::InstanceName,
    report::{human::error_chain, journal::LineCounts},
};

/// The storage of confined cgroups, by their ids.
type ConfinedCgroups = HashMap<MapData, u64, ConfinedCgroup>;

/// The pins of a daemon of another version.
pub(in crate::daemon) struct Predecessor {
    pins: Pins,
    names: BTreeMap<InstanceName, InstanceIndex>,
    /// Its ring of denials; `None` where this version cannot read it.
    events: Option<RingBuf<MapData>>,
    cgroups: Option<ConfinedCgroups>,
    current: Option<CurrentWords>,
}

impl Predecessor {
    /// Opens another version's pins, and goes on from what it counted for the instances of which nothing was counted here.
    ///
    /// # Errors
    ///
    /// When its instances cannot be read, or the kernel refuses to write.
    pub(in crate::daemon) fn take_over(
        pins: &Pins,
        maps: &mut Maps,
        lines: &mut LineCountsMap,
        numbers: &mut InstanceNumbers,
    ) -> Result<Self, DaemonError> {
        let directory = pins.maps();
        let names = InstanceNumbers::read(directory).unwrap_or_else(|error| {
            warn!("what {} has of instances starts again: {}", directory.display(), error_chain(&error));
            BTreeMap::new()
        });
        let counters = match Ledger::open(directory) {
            Ok(ledger) => Some(ledger),
            Err(why) => {
                warn!("what {} counted starts again: {why}", directory.display());
                None
            }
        };
        let cgroups =
            open("SCOPES", directory).and_then(|map| Ok(ConfinedCgroups::try_from(maps::as_hash_map(map))?));
        let current = open("CURRENT", directory).ok().and_then(|map| CurrentWords::map(map).ok());
        let mut predecessor =
            Self { pins: pins.clone(), names, events: None, cgroups: cgroups.ok(), current };
        let confining = predecessor.confining()?;
        numbers.claim(&confining.iter().collect())?;
        for (name, index) in &predecessor.names {
            // One without links has a number if there is one left.
            let _ = numbers.claim(&BTreeSet::from([name]));
            let Some(here) = numbers.known().get(name).copied() else { continue };
            let (before, counted) = (maps.current(here), maps.counters(here)?);
            let new =
                before.slot() == 0 && counted.denied == Denied::default() && counted.allowed.packets == 0;
            if let Some(ledger) = counters.as_ref().filter(|_| new) {
                match ledger.of(*index) {
                    Ok((generation, counters, told)) => {
                        maps.carry_over(here, generation.max(before.generation()), &counters)?;
                        lines.set(here.number(), &told)?;
                    }
                    Err(error) => warn!("what was counted for {name} starts again: {}", error_chain(&error)),
                }
            }
        }
        let events = open("EVENTS", directory).and_then(|map| Ok(RingBuf::try_from(map)?));
        if let Err(why) = &events {
            warn!("denied flows that wait in {} are not logged: {why}", directory.display());
        }
        predecessor.events = events.ok();
        info!("{} is of another version, and is taken over", directory.display());
        Ok(predecessor)
    }

    /// The instances that its links confine; all that it has, where it cannot be read which.
    ///
    /// # Errors
    ///
    /// When its links cannot be listed.
    pub(in crate::daemon) fn confining(&self) -> Result<BTreeSet<InstanceName>, PinError> {
        let links = self.pins.all_links()?;
        if self.cgroups.is_none() && !links.is_empty() {
            return Ok(self.names.keys().cloned().collect());
        }
        Ok(links.iter().filter_map(|links| self.name_of(links.cgroup)).cloned().collect())
    }

    /// The cgroups of an instance that its links confine.
    ///
    /// # Errors
    ///
    /// When its links cannot be listed.
    pub(in crate::daemon) fn cgroups_of(&self, name: &InstanceName) -> Result<Vec<u64>, PinError> {
        let cgroups = self.pins.all_links()?.into_iter().map(|links| links.cgroup);
        Ok(cgroups.filter(|cgroup| self.name_of(*cgroup) == Some(name)).collect())
    }

    /// Whether everything is denied to what its links confine of an instance.
    pub(in crate::daemon) fn is_retired(&self, name: &InstanceName) -> bool {
        let (Some(current), Some(index)) = (&self.current, self.names.get(name)) else { return false };
        current.load(*index).slot() == 0
    }

    /// Takes the policies of such instances out of force there: everything is denied to what its links still confine.
    pub(in crate::daemon) fn retire(&self, which: impl Fn(&InstanceName) -> bool) {
        let Some(current) = &self.current else { return };
        for (_, index) in self.names.iter().filter(|(name, _)| which(name)) {
            current.store(*index, Current::new(current.load(*index).generation(), 0));
        }
    }

    /// Takes up to `most` of the denials that wait in its ring, and gives each this version's number for its instance.
    pub(in crate::daemon) fn take(
        &mut self,
        numbers: &InstanceNumbers,
        most: usize,
        mut each: impl FnMut(Result<Reported, DecodeError>),
    ) {
        let Some(events) = &mut self.events else { return };
        ring::take(events, most, |bytes| {
            each(Reported::decode(bytes).map(|mut reported| {
                let instance = &mut reported.denial.event.instance;
                let name = self.names.iter().find(|(_, index)| index.number() == *instance);
                let here = name.and_then(|(name, _)| numbers.known().get(name));
                *instance = here.map_or(0, |index| index.number());
                reported
            }));
        });
    }

    /// Where its links and maps are pinned.
    pub(in crate::daemon) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The name of the instance for which it confined this cgroup.
    pub(in crate::daemon) fn name_of(&self, cgroup: u64) -> Option<&InstanceName> {
        let confined = self.cgroups.as_ref()?.get(&cgroup, 0).ok()?;
        self.names.iter().find_map(|(name, index)| (index.number() == confined.instance).then_some(name))
    }

    /// Whether its pins are still there.
    pub(in crate::daemon) fn is_there(&self) -> bool {
        self.pins.maps().exists()
    }
}

/// Why a map of another version cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("its map {0} is of another layout")]
    Layout(&'static str),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Lines(#[from] MapsError),
}

fn open(name: &'static str, directory: &Path) -> Result<Map, Unreadable> {
    let path = directory.join(name);
    if !is_as_ours(name, &path) {
        return Err(Unreadable::Layout(name));
    }
    Ok(Map::from_map_data(MapData::from_pin(path)?)?)
}

/// The counters and generations in its maps.
struct Ledger {
    current: Array<MapData, u64>,
    allowed: PerCpuArray<MapData, Counter>,
    denied: Array<MapData, Denied>,
    /// A version that did not count lines has none.
    lines: Option<LineCountsMap>,
}

impl Ledger {
    fn open(directory: &Path) -> Result<Self, Unreadable> {
        Ok(Self {
            current: open("CURRENT", directory)?.try_into()?,
            allowed: open("ALLOWED", directory)?.try_into()?,
            denied: open("DENIED", directory)?.try_into()?,
            lines: LineCountsMap::read(directory)?,
        })
    }

    fn of(&self, instance: InstanceIndex) -> Result<(u32, Counters, LineCounts), Unreadable> {
        let index = instance.number();
        let allowed = Counter::sum(self.allowed.get(&index, 0)?.iter());
        // What is about the other version's rings and memory is not about this one's.
        let denied = Denied { bucket: 0, events: 0, remembered: 0, resets: 0, ..self.denied.get(&index, 0)? };
        let lines = self.lines.as_ref().map(|lines| lines.of(instance)).transpose()?;
        let generation = Current(self.current.get(&index, 0)?).generation();
        Ok((generation, Counters { allowed, denied }, lines.unwrap_or_default()))
    }
}
