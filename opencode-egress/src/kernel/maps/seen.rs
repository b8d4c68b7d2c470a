//! The map SEEN: what the kernel remembers of denials.
//!
//! Each instance may have a share of it, which no other can take. The kernel remembers no more of an instance that has used up
//! its share; so the oldest of an instance that is near it are forgotten here, some at a time.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use opencode_egress_common::abi::{DESTINATIONS_SHARE, DestinationDenials, DestinationKey};

use super::{
    MapsError,
    error::was_there,
    words::{TakenKind, TakenWords},
};
use crate::kernel::{elements::read_batch, instance::InstanceIndex};

/// How many are looked at, and how many forgotten, in one step.
const STEP: usize = 8192;
/// An instance with so many has its oldest forgotten, until it has half its share.
const NEAR: u64 = DESTINATIONS_SHARE * 3 / 4;

/// The remembered denials.
pub(super) struct Seen {
    map: HashMap<MapData, DestinationKey, DestinationDenials>,
    /// The same map, for calls that aya has not.
    fd: OwnedFd,
    /// A look through all of them that is under way, for the instances that were near their share when it began.
    look: Option<Look>,
    /// To be forgotten.
    oldest: VecDeque<DestinationKey>,
}

struct Look {
    place: Option<u32>,
    /// By instance: when each was last told, and which.
    found: BTreeMap<u32, Vec<(u64, DestinationKey)>>,
}

impl Seen {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let map = ebpf.take_map("SEEN").ok_or(MapsError::Missing("SEEN"))?;
        let Map::HashMap(data) = &map else { return Err(MapsError::Missing("SEEN")) };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(read_error)?;
        let map = HashMap::try_from(map)
            .map_err(|source| MapsError::Other { name: "SEEN", source: Box::new(source) })?;
        Ok(Self { map, fd, look: None, oldest: VecDeque::new() })
    }

    /// How often something was denied so far; `None`: it is not remembered.
    pub(super) fn attempts(&self, key: &DestinationKey) -> Option<u64> {
        self.map.get(key, 0).ok().map(|denials| denials.attempts)
    }

    /// All that is remembered of an instance.
    pub(super) fn of(
        &self,
        instance: InstanceIndex,
    ) -> Result<Vec<(DestinationKey, DestinationDenials)>, MapsError> {
        let (mut own, mut place) = (vec![], None);
        loop {
            let batch = read_batch::<DestinationKey, DestinationDenials>(self.fd.as_fd(), place)
                .map_err(read_error)?;
            own.extend(batch.entries.into_iter().filter(|(key, _)| key.instance == instance.number()));
            place = batch.next;
            if place.is_none() {
                return Ok(own);
            }
        }
    }

    /// Has the next repeat of each denial of an instance told at once, as if it were the first.
    pub(super) fn report_repeats_at_once(&mut self, instance: InstanceIndex) -> Result<(), MapsError> {
        /// `BPF_EXIST`.
        const REPLACE: u64 = 2;
        for (key, denials) in self.of(instance)? {
            // An attempt that is counted meanwhile is not remembered; the counters have it.
            let denials = DestinationDenials { reported: 0, ..denials };
            was_there(self.map.insert(key, denials, REPLACE))
                .map_err(MapsError::operation("write to", "SEEN"))?;
        }
        Ok(())
    }

    /// Forgets all that is remembered of an instance.
    pub(super) fn forget(&mut self, instance: InstanceIndex, taken: &TakenWords) -> Result<(), MapsError> {
        for (key, _) in self.of(instance)? {
            self.forget_one(&key, taken)?;
        }
        Ok(())
    }

    fn forget_one(&mut self, key: &DestinationKey, taken: &TakenWords) -> Result<(), MapsError> {
        let removed = was_there(self.map.remove(key)).map_err(MapsError::operation("remove from", "SEEN"))?;
        if removed {
            taken.count(key.instance, TakenKind::Forgotten);
        }
        Ok(())
    }

    /// Whether a look is under way, or something is to be forgotten.
    pub(super) fn is_busy(&self) -> bool {
        self.look.is_some() || !self.oldest.is_empty()
    }

    /// One step of forgetting the oldest of those instances that are `near` their share.
    pub(super) fn make_room(&mut self, near: &[InstanceIndex], taken: &TakenWords) -> Result<(), MapsError> {
        for _ in 0..STEP {
            let Some(key) = self.oldest.pop_front() else { break };
            self.forget_one(&key, taken)?;
        }
        if !self.oldest.is_empty() {
            return Ok(());
        }
        let mut look = match self.look.take() {
            Some(look) => look,
            None if near.is_empty() => return Ok(()),
            None => {
                let found = near.iter().map(|instance| (instance.number(), vec![])).collect();
                Look { place: None, found }
            }
        };
        let mut looked_at = 0;
        while looked_at < STEP {
            let batch = read_batch::<DestinationKey, DestinationDenials>(self.fd.as_fd(), look.place)
                .map_err(read_error)?;
            looked_at += batch.entries.len();
            for (key, denials) in batch.entries {
                if let Some(found) = look.found.get_mut(&key.instance) {
                    found.push((denials.reported, key));
                }
            }
            look.place = batch.next;
            if look.place.is_none() {
                self.oldest = oldest(look.found).collect();
                return Ok(());
            }
        }
        self.look = Some(look);
        Ok(())
    }
}

/// Whether an instance of which so much is remembered is near its share.
pub(super) fn is_near_its_share(remembered: u64) -> bool {
    remembered >= NEAR
}

/// Of each instance, the oldest that are beyond half its share.
fn oldest(found: BTreeMap<u32, Vec<(u64, DestinationKey)>>) -> impl Iterator<Item = DestinationKey> {
    found.into_values().flat_map(|mut found| {
        found.sort_unstable_by_key(|(reported, _)| *reported);
        let keep = usize::try_from(DESTINATIONS_SHARE / 2).unwrap_or(usize::MAX);
        let beyond = found.len().saturating_sub(keep);
        found.into_iter().take(beyond).map(|(_, key)| key)
    })
}

fn read_error(source: io::Error) -> MapsError {
    MapsError::operation("read", "SEEN")(MapError::IoError(source))
}
