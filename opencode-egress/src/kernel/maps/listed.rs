//! The map LISTED_PORTS: whose listener has a port. No other instance may bind it, not even for itself.
//!
//! Before policies are in force, their ports are taken; after that, what nobody lists any more is given back. So at no moment a port
//! is free that the policy in force lists.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use opencode_egress_common::{abi::PolicyHeader, loopback::SEVERAL_OWNERS};

use super::{MapsError, error::was_there};
use crate::kernel::instance::InstanceIndex;

/// The ports of all instances' listeners.
pub(super) struct ListedPorts {
    map: HashMap<MapData, u32, u32>,
    ports: BTreeMap<InstanceIndex, BTreeSet<u16>>,
}

fn ports_of(header: &PolicyHeader) -> BTreeSet<u16> {
    header.listeners.iter().take(header.listener_count as usize).map(|listener| listener.port).collect()
}

impl ListedPorts {
    pub(super) fn of(map: HashMap<MapData, u32, u32>) -> Self {
        Self { map, ports: BTreeMap::new() }
    }

    /// An instance's policy that is in force already.
    pub(super) fn know(&mut self, instance: InstanceIndex, header: &PolicyHeader) {
        self.ports.insert(instance, ports_of(header));
    }

    /// Takes the ports of a policy that is about to be in force.
    pub(super) fn claim(&mut self, instance: InstanceIndex, header: &PolicyHeader) -> Result<(), MapsError> {
        for port in ports_of(header) {
            let owner = match self.map.get(&u32::from(port), 0) {
                Ok(owner) if owner == instance.number() => continue,
                Ok(_) => SEVERAL_OWNERS,
                Err(_) => instance.number(),
            };
            self.write(port, owner)?;
        }
        Ok(())
    }

    fn write(&mut self, port: u16, owner: u32) -> Result<(), MapsError> {
        let write = MapsError::operation("write to", "LISTED_PORTS");
        self.map.insert(u32::from(port), owner, 0).map_err(write)
    }

    /// Has the map say what is in force, after `changes`: an instance's policy, or that it has none.
    pub(super) fn settle<'a>(
        &mut self,
        changes: impl Iterator<Item = (InstanceIndex, Option<&'a PolicyHeader>)>,
    ) -> Result<(), MapsError> {
        let mut touched = BTreeSet::new();
        for (instance, header) in changes {
            let now = header.map(ports_of);
            touched.extend(now.iter().flatten().copied());
            let before = match now {
                Some(ports) => self.ports.insert(instance, ports),
                None => self.ports.remove(&instance),
            };
            touched.extend(before.into_iter().flatten());
        }
        self.rewrite(&touched)
    }

    /// Corrects what a process left that ended in the midst of a change.
    pub(super) fn correct(&mut self) -> Result<(), MapsError> {
        let keys = self.map.keys().collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(MapsError::operation("read", "LISTED_PORTS"))?;
        let there = keys.into_iter().filter_map(|port| u16::try_from(port).ok());
        self.rewrite(&there.chain(self.ports.values().flatten().copied()).collect())
    }

    fn rewrite(&mut self, touched: &BTreeSet<u16>) -> Result<(), MapsError> {
        let mut owners: BTreeMap<u16, u32> = BTreeMap::new();
        for (instance, ports) in &self.ports {
            for port in ports.intersection(touched) {
                let owner = owners.entry(*port).or_insert(instance.number());
                if *owner != instance.number() {
                    *owner = SEVERAL_OWNERS;
                }
            }
        }
        for port in touched {
            match owners.get(port) {
                Some(owner) => self.write(*port, *owner)?,
                None => was_there(self.map.remove(&u32::from(*port)))
                    .map(drop)
                    .map_err(MapsError::operation("remove from", "LISTED_PORTS"))?,
            }
        }
        Ok(())
    }
}
