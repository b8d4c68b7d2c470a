//! The map CONFINED: which instance's a cgroup is, for those who have found a socket and ask for its cgroup.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData};

use super::MapsError;
use crate::kernel::instance::InstanceIndex;

/// The confined cgroups.
pub(super) struct ConfinedCgroups {
    map: HashMap<MapData, u64, u32>,
    /// Those in the map.
    there: BTreeSet<u64>,
}

impl ConfinedCgroups {
    pub(super) fn of(map: HashMap<MapData, u64, u32>) -> Result<Self, MapsError> {
        let there = map.keys().collect::<Result<_, _>>().map_err(MapsError::operation("read", "CONFINED"))?;
        Ok(Self { map, there })
    }

    pub(super) fn set(&mut self, cgroup: u64, instance: InstanceIndex) -> Result<(), MapsError> {
        let write = MapsError::operation("write to", "CONFINED");
        self.map.insert(cgroup, instance.number(), 0).map_err(write)?;
        self.there.insert(cgroup);
        Ok(())
    }

    pub(super) fn has(&self, cgroup: u64) -> bool {
        self.there.contains(&cgroup)
    }

    /// Removes all but some. The kernel never gives a number again, so what is late does no harm.
    pub(super) fn keep(&mut self, keep: impl Fn(u64) -> bool) -> Result<(), MapsError> {
        let over: Vec<_> = self.there.iter().copied().filter(|cgroup| !keep(*cgroup)).collect();
        for cgroup in over {
            self.map.remove(&cgroup).map_err(MapsError::operation("remove from", "CONFINED"))?;
            self.there.remove(&cgroup);
        }
        Ok(())
    }
}
