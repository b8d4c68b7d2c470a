//! The maps by name and type: filling policies, putting them in force, reading counters.

mod confined;
mod error;
mod learned;
mod listed;
mod policies;
mod seen;
mod servers;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use opencode_egress_common::abi::{
    Asker, AskerKey, ConfinedCgroup, Counter, Counters, Current, Denied, DestinationDenials, DestinationKey,
    Entry, Limits, PolicyHeader, SocketCount, TrieKey,
};

pub(crate) use self::words::{CurrentWords, TakenKind, TakenWords};
use self::{
    confined::ConfinedCgroups, learned::LearnedMap, listed::ListedPorts, seen::Seen, servers::Servers,
};
pub use self::{
    learned::{LearnedAddress, boottime, since_boot},
    policies::{KernelRules, LoadedPolicy},
};
use crate::{
    kernel::{instance::InstanceIndex, tries::NewTrie},
    policy::LogLimits,
};

pub use error::MapsError;

/// The kernel's maps.
pub struct Maps {
    current: CurrentWords,
    heads: Array<MapData, PolicyHeader>,
    /// The map of tries. Its calls are not aya's: see [`tries`].
    tries: OwnedFd,
    /// The tries in force that this process made. The kernel gives an entry of a map of maps out by its
    /// number only, and turning that into a descriptor takes CAP_SYS_ADMIN.
    in_force: BTreeMap<InstanceIndex, NewTrie>,
    allowed: PerCpuArray<MapData, Counter>,
    denied: Array<MapData, Denied>,
    taken: Arc<TakenWords>,
    seen: Seen,
    learned: LearnedMap,
    listed: ListedPorts,
    askers: HashMap<MapData, AskerKey, Asker>,
    limits: Array<MapData, Limits>,
    sockets: Array<MapData, SocketCount>,
    scopes: HashMap<MapData, u64, ConfinedCgroup>,
    confined: ConfinedCgroups,
    /// Takes the place of a trie that is no longer in force, so that its memory is freed.
    empty: NewTrie,
    /// The servers that rules with `tls` list.
    servers: Servers,
}

/// Takes a map out of the object as what it is.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, MapsError> {
    let map = ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|source| MapsError::Other { name, source: Box::new(source) })
}

/// The map SCOPES as one that can be read and written: aya's own type for it knows only the key of before Linux 5.9. Lookup
/// and update are the same system calls for both.
pub(crate) fn as_hash_map(map: Map) -> Map {
    match map {
        Map::CgroupStorage(data) => Map::HashMap(data),
        other => other,
    }
}

impl Maps {
    pub(crate) fn open(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let scopes = as_hash_map(ebpf.take_map("SCOPES").ok_or(MapsError::Missing("SCOPES"))?);
        let scopes = HashMap::try_from(scopes)
            .map_err(|source| MapsError::Other { name: "SCOPES", source: Box::new(source) })?;
        let tries = ebpf.take_map("TRIES").ok_or(MapsError::Missing("TRIES"))?;
        let Map::ArrayOfMaps(data) = &tries else { return Err(MapsError::Missing("TRIES")) };
        let tries = data.fd().as_fd().try_clone_to_owned().map_err(MapsError::tries("open"))?;
        let mut maps = Self {
            current: CurrentWords::map(ebpf.take_map("CURRENT").ok_or(MapsError::Missing("CURRENT"))?)?,
            heads: take(ebpf, "HEADS")?,
            tries,
            in_force: BTreeMap::new(),
            allowed: take(ebpf, "ALLOWED")?,
            denied: take(ebpf, "DENIED")?,
            taken: Arc::new(TakenWords::map(ebpf.take_map("TAKEN").ok_or(MapsError::Missing("TAKEN"))?)?),
            seen: Seen::open(ebpf)?,
            learned: LearnedMap::open(ebpf)?,
            listed: ListedPorts::of(take(ebpf, "LISTED_PORTS")?),
            askers: take(ebpf, "ASKERS")?,
            limits: take(ebpf, "LIMITS")?,
            sockets: take(ebpf, "SOCKETS")?,
            confined: ConfinedCgroups::of(take(ebpf, "CONFINED")?)?,
            scopes,
            empty: NewTrie::of::<TrieKey, Entry>(&[]).map_err(MapsError::tries("create"))?,
            servers: Servers::open(ebpf)?,
        };
        maps.know_listed()?;
        Ok(maps)
    }

    /// Goes on from the generation and the counters that an instance had elsewhere. It has had no policy here, and no cgroup
    /// has it, so nobody else counts.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn carry_over(
        &mut self,
        instance: InstanceIndex,
        generation: u32,
        counters: &Counters,
    ) -> Result<(), MapsError> {
        let (index, write) = (instance.number(), || MapsError::operation("write to", "ALLOWED"));
        let before = self.allowed.get(&index, 0).map_err(MapsError::operation("read", "ALLOWED"))?;
        // All on one processor: it is their sum that is read.
        let first = std::iter::once(counters.allowed).chain(std::iter::repeat(Counter::default()));
        let allowed = PerCpuValues::try_from(first.take(before.len()).collect::<Vec<_>>());
        let allowed = allowed.map_err(|error| write()(error.into()))?;
        self.allowed.set(index, allowed, 0).map_err(write())?;
        // Nothing of it waits here, whatever did of an instance that had the number before.
        let denied = Denied {
            events: self.taken.get(instance, TakenKind::Event),
            remembered: self.taken.get(instance, TakenKind::Forgotten),
            resets: self.taken.get(instance, TakenKind::Reset),
            ..counters.denied
        };
        let write = MapsError::operation("write to", "DENIED");
        self.denied.set(index, denied, 0).map_err(write)?;
        self.current.store(instance, Current::new(generation, 0));
        Ok(())
    }

    /// Forgets what these instances sent and were denied, so that their numbers can be others'. They have no policy and no
    /// cgroup, so nobody counts. Their generations stay: the next ones' go on from there, and repeat none that a verdict is
    /// remembered with.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget(&mut self, instances: &BTreeSet<InstanceIndex>) -> Result<(), MapsError> {
        for index in instances {
            let remembered = self.counters(*index)?.denied.remembered;
            if remembered != self.taken.get(*index, TakenKind::Forgotten) {
                self.seen.forget(*index, &self.taken)?;
            }
            self.carry_over(*index, self.current(*index).generation(), &Counters::default())?;
            self.count_sockets_anew(*index)?;
        }
        Ok(())
    }

    /// The policy in force for an instance.
    pub fn current(&self, instance: InstanceIndex) -> Current {
        self.current.load(instance)
    }

    /// Sets how events are limited.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_limits(&mut self, log: &LogLimits) -> Result<(), MapsError> {
        let per_event = 1_000_000_000 / u64::from(log.per_sec.max(1));
        let interval = u64::try_from(log.interval.as_nanos()).unwrap_or(u64::MAX);
        let limits = Limits { interval, per_event, burst: per_event * u64::from(log.burst) };
        self.limits.set(0, limits, 0).map_err(MapsError::operation("write to", "LIMITS"))
    }

    /// An instance's counters.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn counters(&self, instance: InstanceIndex) -> Result<Counters, MapsError> {
        let index = instance.number();
        let allowed = self.allowed.get(&index, 0).map_err(MapsError::operation("read", "ALLOWED"))?;
        let allowed = Counter::sum(allowed.iter());
        let denied = self.denied.get(&index, 0).map_err(MapsError::operation("read", "DENIED"))?;
        Ok(Counters { allowed, denied })
    }

    /// Who asked an instance's resolver from here lately, whether or not the socket is still there; `None`: nobody did, or too many have since.
    pub fn asker(&self, instance: InstanceIndex, source: SocketAddr) -> Option<Asker> {
        self.askers.get(&AskerKey::new(instance.number(), &source.ip().into(), source.port()), 0).ok()
    }

    /// How many sockets an instance has open, of those that it made itself.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn open_sockets(&self, instance: InstanceIndex) -> Result<u32, MapsError> {
        Ok(self.socket_count(instance)?.open)
    }

    fn socket_count(&self, instance: InstanceIndex) -> Result<SocketCount, MapsError> {
        self.sockets.get(&instance.number(), 0).map_err(MapsError::operation("read", "SOCKETS"))
    }

    /// Counts an instance's sockets from 0 again; those that are open are not counted any more. No cgroup of it has links, so
    /// nobody else counts.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn count_sockets_anew(&mut self, instance: InstanceIndex) -> Result<(), MapsError> {
        let epoch = self.socket_count(instance)?.epoch.wrapping_add(1);
        let write = MapsError::operation("write to", "SOCKETS");
        self.sockets.set(instance.number(), SocketCount { open: 0, epoch }, 0).map_err(write)
    }

    /// Has the next repeat of each denial of an instance told at once, as if it were the first.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn report_repeats_at_once(&mut self, instance: InstanceIndex) -> Result<(), MapsError> {
        self.seen.report_repeats_at_once(instance)
    }

    /// How often something was denied so far; `None` when it is not remembered.
    pub fn attempts(&self, key: &DestinationKey) -> Option<u64> {
        self.seen.attempts(key)
    }

    /// Every denial of an instance that the kernel remembers, each once. Another hook or reason is another denial.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn seen(
        &self,
        instance: InstanceIndex,
    ) -> Result<Vec<(DestinationKey, DestinationDenials)>, MapsError> {
        self.seen.of(instance)
    }

    /// Forgets every denial of an instance.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_denials(&mut self, instance: InstanceIndex) -> Result<(), MapsError> {
        self.seen.forget(instance, &self.taken)
    }

    /// What this process took of what the programs left it.
    pub(super) fn taken(&self) -> Arc<TakenWords> {
        Arc::clone(&self.taken)
    }

    /// Takes one bounded step to forget the oldest denials of those of `instances` for which the kernel soon has no room: an
    /// instance may have [`DESTINATIONS_SHARE`](opencode_egress_common::abi::DESTINATIONS_SHARE). To be called every second.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn make_room(&mut self, instances: impl Iterator<Item = InstanceIndex>) -> Result<(), MapsError> {
        let mut near = vec![];
        if !self.seen.is_busy() {
            for instance in instances {
                let remembered = self.counters(instance)?.denied.remembered;
                let forgotten = self.taken.get(instance, TakenKind::Forgotten);
                if seen::is_near_its_share(remembered.saturating_sub(forgotten)) {
                    near.push(instance);
                }
            }
        }
        self.seen.make_room(&near, &self.taken)
    }

    /// The instance that a cgroup's storage names. `None`: it has no storage, for no link was ever made to it.
    pub fn instance_of(&self, cgroup: u64) -> Option<InstanceIndex> {
        self.scopes.get(&cgroup, 0).ok().and_then(|scope| InstanceIndex::new(scope.instance))
    }

    /// Whether everything that says whose a cgroup is says that it is this instance's.
    pub fn is_confined_to(&self, cgroup: u64, instance: InstanceIndex) -> bool {
        self.instance_of(cgroup) == Some(instance) && self.confined.has(cgroup)
    }

    /// How often something was denied to a cgroup; see [`ConfinedCgroup::denials`].
    pub fn denials_of(&self, cgroup: u64) -> u32 {
        self.scopes.get(&cgroup, 0).map_or(0, |scope| scope.denials)
    }

    /// Forgets whose the cgroups are of which there are no links any more. Own loopback asks for it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn keep_confined(&mut self, has_links: impl Fn(u64) -> bool) -> Result<(), MapsError> {
        self.confined.keep(has_links)
    }

    /// Writes into a cgroup's storage which instance it belongs to. The storage must be there: the first link makes it.
    ///
    /// # Errors
    ///
    /// When there is no link yet, or the cgroup is gone.
    pub fn set_instance_of(&mut self, cgroup: u64, instance: InstanceIndex) -> Result<(), MapsError> {
        self.confined.set(cgroup, instance)?;
        let scope = ConfinedCgroup::new(instance.number());
        self.scopes.insert(cgroup, scope, 0).map_err(MapsError::operation("write to", "SCOPES"))
    }
}
