//! The map LEARNED: addresses that answers brought, each until its time is over.
//!
//! A key has the generation of the policy that it belongs to. So a policy's addresses are written before it is in force, and those of one
//! that is out of force are nobody's at once; they are removed some at a time.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use opencode_egress_common::abi::{Learned, LearnedKey};
use rustix::time::{ClockId, clock_gettime};

use super::{MapsError, error::was_there};
use crate::kernel::{
    elements::{fill, read_batch},
    instance::InstanceIndex,
};

/// How many are looked at in one step.
const STEP: usize = 64 * 1024;
/// For how long after its time an address is kept, in seconds: a flow to it is denied for that and not as if nobody had ever told it.
const KEPT: u64 = 600;

/// An address that a policy's names brought, as the map is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedAddress {
    /// The address.
    pub address: IpAddr,
    /// The number of the grant of the rule's protocol and ports.
    pub grant: u32,
    /// Until when, and by which rule.
    pub learned: Learned,
}

/// Seconds since boot, with the time that the machine was suspended: the clock of [`Learned::until`].
pub fn boottime() -> u64 {
    since_boot().as_secs()
}

/// The same clock's time to the nanosecond.
pub fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// The addresses of all policies.
pub(super) struct LearnedMap {
    map: HashMap<MapData, LearnedKey, Learned>,
    /// The same map, for calls that aya has not.
    fd: OwnedFd,
    /// Where the next step of removing what is over goes on.
    place: Option<u32>,
}

impl LearnedMap {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let map = ebpf.take_map("LEARNED").ok_or(MapsError::Missing("LEARNED"))?;
        let Map::HashMap(data) = &map else { return Err(MapsError::Missing("LEARNED")) };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| MapsError::operation("open", "LEARNED")(MapError::IoError(error)))?;
        let map = HashMap::try_from(map)
            .map_err(|source| MapsError::Other { name: "LEARNED", source: Box::new(source) })?;
        Ok(Self { map, fd, place: None })
    }

    /// Writes an address for a policy. One that is there already keeps the later time.
    pub(super) fn write(
        &mut self,
        instance: InstanceIndex,
        generation: u32,
        address: &LearnedAddress,
    ) -> Result<(), MapsError> {
        let LearnedAddress { address, grant, mut learned } = *address;
        let key = LearnedKey::new(instance.number(), generation, grant, &address.into());
        if let Ok(before) = self.map.get(&key, 0) {
            learned.until = learned.until.max(before.until);
        }
        self.map.insert(key, learned, 0).map_err(MapsError::operation("write to", "LEARNED"))
    }

    /// Writes all addresses of a generation that is not in force yet. Of one that comes twice the later time counts.
    pub(super) fn write_all<'a>(
        &mut self,
        addresses: impl Iterator<Item = (InstanceIndex, u32, &'a LearnedAddress)>,
    ) -> Result<(), MapsError> {
        let mut all: BTreeMap<(u32, u32, u32, IpAddr), Learned> = BTreeMap::new();
        for (instance, generation, LearnedAddress { address, grant, learned }) in addresses {
            let key = (instance.number(), generation, *grant, *address);
            let known = all.entry(key).or_insert(*learned);
            known.until = known.until.max(learned.until);
        }
        if all.is_empty() {
            return Ok(());
        }
        let key = |(instance, generation, grant, address): (u32, u32, u32, IpAddr)| {
            LearnedKey::new(instance, generation, grant, &address.into())
        };
        let (keys, values): (Vec<_>, Vec<_>) =
            all.into_iter().map(|(of, learned)| (key(of), learned)).unzip();
        fill(self.fd.as_fd(), &keys, &values)
            .map_err(|error| MapsError::operation("write to", "LEARNED")(MapError::IoError(error)))
    }

    /// Looks at some, and removes those whose time is long over and those that are of no policy in force. `generation` is that in force for
    /// an instance.
    pub(super) fn sweep(
        &mut self,
        generation: impl Fn(InstanceIndex) -> Option<u32>,
    ) -> Result<(), MapsError> {
        let now = boottime();
        let mut looked_at = 0;
        while looked_at < STEP {
            let batch = read_batch::<LearnedKey, Learned>(self.fd.as_fd(), self.place)
                .map_err(|error| MapsError::operation("read", "LEARNED")(MapError::IoError(error)))?;
            looked_at += batch.entries.len();
            for (key, learned) in batch.entries {
                let in_force = InstanceIndex::new(key.instance()).and_then(&generation);
                if in_force != Some(key.generation) || learned.until.saturating_add(KEPT) <= now {
                    was_there(self.map.remove(&key))
                        .map_err(MapsError::operation("remove from", "LEARNED"))?;
                }
            }
            self.place = batch.next;
            if self.place.is_none() {
                break;
            }
        }
        Ok(())
    }
}
