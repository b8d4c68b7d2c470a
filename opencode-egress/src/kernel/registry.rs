//! Which instance has which number in the maps. It is a pinned map itself, so that the next daemon finds the
//! numbers, and with them counters and generations, as they were.

use std::{collections::BTreeMap, path::Path};

use aya::maps::{Array, Map, MapData, MapError};
use opencode_egress_common::abi::MAX_INSTANCES;

use crate::{kernel::instance::InstanceIndex, policy::InstanceName};

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
    /// It could not be pinned.
    #[error("cannot pin the map NAMES")]
    Pin(#[source] aya::pin::PinError),
    /// No number is left.
    #[error("{} names of instances have been used since the machine started, and there is no number for `{name}`; restart the machine", MAX_INSTANCES - 1)]
    Full {
        /// The one too many.
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

    /// The instances that have a number.
    pub fn known(&self) -> &BTreeMap<InstanceName, InstanceIndex> {
        &self.known
    }

    /// The name of the instance with a number.
    pub fn name_of(&self, index: InstanceIndex) -> Option<&InstanceName> {
        self.known.iter().find_map(|(name, known)| (*known == index).then_some(name))
    }

    /// The number of an instance, a new one if it has none.
    ///
    /// # Errors
    ///
    /// When none is left, or the kernel refuses.
    pub fn claim(&mut self, name: &InstanceName) -> Result<InstanceIndex, InstanceNumbersError> {
        if let Some(index) = self.known.get(name) {
            return Ok(*index);
        }
        let taken: std::collections::HashSet<_> = self.known.values().copied().collect();
        let free = (1..MAX_INSTANCES).filter_map(InstanceIndex::new).find(|index| !taken.contains(index));
        let index = free.ok_or_else(|| InstanceNumbersError::Full { name: name.clone() })?;
        let mut bytes: NameBytes = [0; 64];
        bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
        self.map.set(index.number(), bytes, 0).map_err(map_error("write to"))?;
        self.known.insert(name.clone(), index);
        Ok(index)
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
