//! The type and sizes of each pinned map, by which maps that another version pinned are told from this version's.

use std::path::Path;

use aya::maps::{MapData, MapError, MapType};
use opencode_egress_common::abi::{
    Asker, AskerKey, ConfinedCgroup, CountedSocket, Counter, Denied, DestinationDenials, DestinationKey,
    Learned, LearnedKey, Limits, MAX_ASKERS, MAX_CONFINED, MAX_DESTINATIONS, MAX_INSTANCES, MAX_LEARNED,
    MAX_LISTED_PORTS, MAX_POLICIES, NAMED_SOCKET_BYTES, PolicyHeader, RESET_RING_BYTES, RING_BYTES,
    SOCKET_SLOTS, SocketCount, SocketSlot, Taken,
};

/// The maps that outlive the daemon, with what a pin must be to be one of them. The others belong to one
/// load of the programs.
#[rustfmt::skip]
pub(super) const PINNED_MAPS: [(&str, MapShape); 24] = [
    ("CURRENT", MapShape::of::<u32, u64>(MapType::Array, MAX_INSTANCES)),
    ("HEADS", MapShape::of::<u32, PolicyHeader>(MapType::Array, MAX_POLICIES)),
    ("TRIES", MapShape::of::<u32, u32>(MapType::ArrayOfMaps, MAX_POLICIES)),
    ("ALLOWED", MapShape::of::<u32, Counter>(MapType::PerCpuArray, MAX_INSTANCES)),
    ("DENIED", MapShape::of::<u32, Denied>(MapType::Array, MAX_INSTANCES)),
    ("TAKEN", MapShape::of::<u32, Taken>(MapType::Array, MAX_INSTANCES)),
    ("SEEN", MapShape::of::<DestinationKey, DestinationDenials>(MapType::Hash, MAX_DESTINATIONS)),
    ("LIMITS", MapShape::of::<u32, Limits>(MapType::Array, 1)),
    ("EVENTS", MapShape::of::<(), ()>(MapType::RingBuf, RING_BYTES)),
    ("RESETS", MapShape::of::<(), ()>(MapType::RingBuf, RESET_RING_BYTES)),
    ("LEARNED", MapShape::of::<LearnedKey, Learned>(MapType::Hash, MAX_LEARNED)),
    ("ASKERS", MapShape::of::<AskerKey, Asker>(MapType::LruHash, MAX_ASKERS)),
    ("NAMED_SOCKETS", MapShape::of::<u32, [u8; NAMED_SOCKET_BYTES]>(MapType::SkStorage, 0)),
    ("FOLLOWER", MapShape::of::<u32, u32>(MapType::ProgramArray, 1)),
    ("TLS_NAMES", MapShape::of::<u32, u32>(MapType::ArrayOfMaps, MAX_POLICIES)),
    ("ASKED_RESOLVERS", MapShape::of::<u32, [u32; 11]>(MapType::SkStorage, 0)),
    ("SOCKETS", MapShape::of::<u32, SocketCount>(MapType::Array, MAX_INSTANCES)),
    ("COUNTED_SLOTS", MapShape::of::<u32, SocketSlot>(MapType::Array, SOCKET_SLOTS)),
    ("COUNTED", MapShape::of::<u32, CountedSocket>(MapType::SkStorage, 0)),
    ("OWN_SOCKETS", MapShape::of::<u32, [u32; 2]>(MapType::SkStorage, 0)),
    ("OWN_PEERS", MapShape::of::<u32, [u32; 8]>(MapType::SkStorage, 0)),
    ("CONFINED", MapShape::of::<u64, u32>(MapType::Hash, MAX_CONFINED)),
    ("LISTED_PORTS", MapShape::of::<u32, u32>(MapType::Hash, MAX_LISTED_PORTS)),
    ("SCOPES", MapShape::of::<u64, ConfinedCgroup>(MapType::CgroupStorage, 0)),
];

/// The type and sizes of a map, as the kernel says them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MapShape {
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

impl MapShape {
    const fn of<K, V>(map_type: MapType, entries: u32) -> Self {
        Self { map_type, key: size_of::<K>(), value: size_of::<V>(), entries }
    }

    pub(super) fn of_pin(path: &Path) -> Result<Self, MapError> {
        let info = MapData::from_pin(path)?.info()?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { map_type: info.map_type()?, key, value, entries: info.max_entries() })
    }
}

/// Whether what is pinned at a path is a map as this version makes it under that name. A layout that changes gets another
/// size or another name, so of what another version made this is enough to know how to read it.
pub(crate) fn is_as_ours(name: &str, path: &Path) -> bool {
    let ours = PINNED_MAPS.iter().find(|(known, _)| *known == name);
    ours.is_some_and(|(_, shape)| MapShape::of_pin(path).ok() == Some(*shape))
}
