//! What became of the lines of each instance's denials, in a pinned map, so that it outlives the daemon as the kernel's
//! own counters do.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use opencode_egress_common::abi::MAX_INSTANCES;

use crate::{
    kernel::{instance::InstanceIndex, maps::MapsError},
    report::journal::{KeepCounts, LineCounts},
};

/// The name of its pin.
const PIN: &str = "LINES";

/// [`LineCounts`] in the order of its fields.
type Words = [u64; 6];

/// The counts of every instance, by its number.
pub struct LineCountsMap(Array<MapData, Words>);

impl LineCountsMap {
    /// Opens the pinned map, or makes one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the pin is something else.
    pub fn open(directory: &Path) -> Result<Self, MapsError> {
        if let Some(there) = Self::read(directory)? {
            return Ok(there);
        }
        let made = Array::<MapData, Words>::create(MAX_INSTANCES, 0);
        let pinned = made.map_err(MapsError::operation("create", PIN))?.pin(directory.join(PIN));
        let pinned = pinned.map_err(|error| MapError::PinError { name: Some(PIN.to_owned()), error });
        pinned.map_err(MapsError::operation("pin", PIN))?;
        Self::read(directory)?.ok_or(MapsError::Missing(PIN))
    }

    /// Opens the pinned map of this or another version, if it has one.
    ///
    /// # Errors
    ///
    /// When the pin is something else.
    pub fn read(directory: &Path) -> Result<Option<Self>, MapsError> {
        let path = directory.join(PIN);
        if !path.exists() {
            return Ok(None);
        }
        let map = MapData::from_pin(path).and_then(|data| Array::try_from(Map::Array(data)));
        Ok(Some(Self(map.map_err(MapsError::operation("open", PIN))?)))
    }

    /// What became of an instance's lines until now.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn of(&self, instance: InstanceIndex) -> Result<LineCounts, MapsError> {
        let [offered, lines, lost, unfolded, limited_told, lost_told] =
            self.0.get(&instance.number(), 0).map_err(MapsError::operation("read", PIN))?;
        Ok(LineCounts { offered, lines, lost, unfolded, limited_told, lost_told })
    }

    /// What became of the lines of every instance that had any.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<(u32, LineCounts)>, MapsError> {
        let all = (1..MAX_INSTANCES).filter_map(InstanceIndex::new);
        let all = all.map(|instance| Ok((instance.number(), self.of(instance)?)));
        let some = |of: &Result<(u32, LineCounts), _>| !matches!(of, Ok((_, counts)) if *counts == LineCounts::default());
        all.filter(some).collect()
    }

    /// Sets what became of an instance's lines until now.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set(&mut self, instance: u32, counts: &LineCounts) -> Result<(), MapsError> {
        let LineCounts { offered, lines, lost, unfolded, limited_told, lost_told } = *counts;
        let set = self.0.set(instance, [offered, lines, lost, unfolded, limited_told, lost_told], 0);
        set.map_err(MapsError::operation("write to", PIN))
    }
}

impl KeepCounts for LineCountsMap {
    fn keep(&mut self, instance: u32, counts: &LineCounts) {
        // The process has them all the same; the next one would go on from older ones.
        let _ = self.set(instance, counts);
    }
}
