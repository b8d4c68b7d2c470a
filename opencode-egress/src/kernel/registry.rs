//! Which instance has which number in the maps. It is a pinned map itself, so that the next daemon finds the
//! numbers, and with them counters and generations, as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{Array, Map, MapData, MapError};
use opencode_egress_common::abi::{Current, MAX_INSTANCES, PolicyHeader};

use crate::{
    kernel::{instance::InstanceIndex, shapes::is_as_ours},
    policy::InstanceName,
};

/// The name of its pin.
const PIN: &str = "NAMES";

/// Room for a name; shorter ones are padded with NUL.
type NameBytes = [u8; 64];

/// What can go wrong with the registry.
#[derive(Debug, thiserror::Error)]
pub enum InstanceNumbersError {
    /// The kernel refused.
    #[error("cannot {action} the map NAMES")]
    Map {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// A map beside it is of another layout.
    #[error("the map {0} is of another layout")]
    Layout(&'static str),
    /// It could not be pinned.
    #[error("cannot pin the map NAMES")]
    Pin(#[source] aya::pin::PinError),
    /// No number is left.
    #[error(
        "there is no number for instance `{name}`: each of {} has an instance, in the policy file or removed from it while units or sockets of it are left; stop those units, which `opencode-egress status` shows, or leave instances out",
        MAX_INSTANCES - 1
    )]
    Full {
        /// The first one too many.
        name: InstanceName,
    },
}

fn map_error(action: &'static str) -> impl FnOnce(MapError) -> InstanceNumbersError {
    move |source| InstanceNumbersError::Map { action, source: Box::new(source) }
}

/// The names and their numbers.
pub struct InstanceNumbers {
    map: Array<MapData, NameBytes>,
    known: BTreeMap<InstanceName, InstanceIndex>,
}

impl InstanceNumbers {
    /// Opens the pinned registry, or makes one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the pin is something else.
    pub fn open(directory: &Path) -> Result<Self, InstanceNumbersError> {
        let path = directory.join(PIN);
        let map = if path.exists() {
            let data = MapData::from_pin(&path).map_err(map_error("open"))?;
            Array::try_from(Map::Array(data)).map_err(map_error("open"))?
        } else {
            let made = Array::<MapData, NameBytes>::create(MAX_INSTANCES, 0).map_err(map_error("create"))?;
            made.pin(&path).map_err(InstanceNumbersError::Pin)?;
            let data = MapData::from_pin(&path).map_err(map_error("open"))?;
            Array::try_from(Map::Array(data)).map_err(map_error("open"))?
        };
        let known = names_in(&map)?;
        Ok(Self { map, known })
    }

    /// The names in the pinned registry of another version; none if it has none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(directory: &Path) -> Result<BTreeMap<InstanceName, InstanceIndex>, InstanceNumbersError> {
        let path = directory.join(PIN);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let data = MapData::from_pin(&path).map_err(map_error("open"))?;
        names_in(&Array::try_from(Map::Array(data)).map_err(map_error("open"))?)
    }

    /// The instances whose policies are in force by the maps that are pinned in a directory, of this version or of another
    /// with the same layout, and the parts of these outside their rules; none where nothing is pinned.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn in_force(directory: &Path) -> Result<BTreeMap<InstanceName, PolicyHeader>, InstanceNumbersError> {
        let open = |name| match is_as_ours(name, &directory.join(name)) {
            true => Ok(Map::Array(MapData::from_pin(directory.join(name)).map_err(map_error("open"))?)),
            false => Err(InstanceNumbersError::Layout(name)),
        };
        let names = Self::read(directory)?;
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let current: Array<_, u64> = open("CURRENT")?.try_into().map_err(map_error("read"))?;
        let headers: Array<_, PolicyHeader> = open("HEADS")?.try_into().map_err(map_error("read"))?;
        let mut in_force = BTreeMap::new();
        for (name, index) in names {
            let slot = Current(current.get(&index.number(), 0).map_err(map_error("read"))?).slot();
            if slot != 0 {
                in_force.insert(name, headers.get(&slot, 0).map_err(map_error("read"))?);
            }
        }
        Ok(in_force)
    }

    /// The instances that have a number.
    pub fn known(&self) -> &BTreeMap<InstanceName, InstanceIndex> {
        &self.known
    }

    /// The name of the instance with a number.
    pub fn name_of(&self, index: InstanceIndex) -> Option<&InstanceName> {
        self.known.iter().find_map(|(name, known)| (*known == index).then_some(name))
    }

    /// Gives each of these instances a number, if it has none.
    ///
    /// # Errors
    ///
    /// When there are too few, and then none of them has a new one; or the kernel refuses.
    pub fn claim(&mut self, names: &BTreeSet<&InstanceName>) -> Result<(), InstanceNumbersError> {
        let taken: BTreeSet<_> = self.known.values().copied().collect();
        let mut free =
            (1..MAX_INSTANCES).filter_map(InstanceIndex::new).filter(|index| !taken.contains(index));
        let mut claims = vec![];
        for name in names.iter().filter(|name| !self.known.contains_key(**name)) {
            let index = free.next().ok_or_else(|| InstanceNumbersError::Full { name: (*name).clone() })?;
            claims.push(((*name).clone(), index));
        }
        for (name, index) in claims {
            let mut bytes: NameBytes = [0; 64];
            bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
            self.map.set(index.number(), bytes, 0).map_err(map_error("write to"))?;
            self.known.insert(name, index);
        }
        Ok(())
    }

    /// Takes an instance's number away, for another one to have. Nothing may be left that carries it: no policy, no cgroup,
    /// no count, no event.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn release(&mut self, name: &InstanceName) -> Result<(), InstanceNumbersError> {
        if let Some(index) = self.known.get(name) {
            self.map.set(index.number(), [0; 64], 0).map_err(map_error("write to"))?;
            self.known.remove(name);
        }
        Ok(())
    }
}

fn names_in(
    map: &Array<MapData, NameBytes>,
) -> Result<BTreeMap<InstanceName, InstanceIndex>, InstanceNumbersError> {
    let mut known = BTreeMap::new();
    for index in (1..MAX_INSTANCES).filter_map(InstanceIndex::new) {
        let bytes: NameBytes = map.get(&index.number(), 0).map_err(map_error("read"))?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some(name) = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            known.insert(name, index);
        }
    }
    Ok(known)
}
