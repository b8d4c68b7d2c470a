//! The maps, typed: filling policies, putting them in force, reading counters.

pub(crate) mod current;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf, lpm_trie::Key,
    },
};
use opencode_egress_common::{
    abi::{
        ConfinedCgroup, Counter, Counters, Current, Denied, DestinationDenials, DestinationKey, Entry,
        Limits, MAX_DESTINATIONS, PolicyHeader, TrieKey,
    },
    decide::Rules,
};

use crate::{
    kernel::{
        instance::InstanceIndex,
        maps::current::CurrentWords,
        tries::{self, NewTrie},
    },
    policy::{LogLimits, compile::CompiledPolicy},
};

/// What can go wrong with a map.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// It is not in the object.
    #[error("the eBPF object has no map {0}; it was built from other sources, build both again")]
    Missing(&'static str),
    /// It is there but of another kind: the object, or a pin, of another version.
    #[error(
        "the map {name} is of another kind than this program's; a pin of another version, or not ours: remove it, or its directory"
    )]
    Other {
        /// The map.
        name: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
    /// The kernel refused an operation.
    #[error("cannot {action} the map {name}")]
    Operation {
        /// What was tried.
        action: &'static str,
        /// The map.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// The kernel refused rules.
    #[error("cannot {action} the map TRIES")]
    Tries {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else wrote to the kernel's maps.
    #[error(
        "the rules in the kernel are not those that this daemon put there; somebody else wrote to the map TRIES. Restart the daemon, which puts the policy file in force"
    )]
    Replaced,
    /// The kernel does not let the map be mapped into memory.
    #[error("cannot map CURRENT into memory")]
    Mmap(#[source] io::Error),
}

impl MapsError {
    fn operation(action: &'static str, name: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Operation { action, name, source: Box::new(source) }
    }

    fn tries(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Tries { action, source }
    }
}

type TrieData = [u32; 5];
type Trie = LpmTrie<MapData, TrieData, Entry>;

fn trie_key(key: &TrieKey) -> Key<TrieData> {
    let [a, b, c, d] = key.data;
    Key::new(key.prefix_len, [key.space, a, b, c, d])
}

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
    seen: HashMap<MapData, DestinationKey, DestinationDenials>,
    limits: Array<MapData, Limits>,
    scopes: HashMap<MapData, u64, ConfinedCgroup>,
    /// Takes the place of a trie that is no longer in force, so that its memory is freed.
    empty: NewTrie,
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapsError> {
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
        Ok(Self {
            current: CurrentWords::map(ebpf.take_map("CURRENT").ok_or(MapsError::Missing("CURRENT"))?)?,
            heads: take(ebpf, "HEADS")?,
            tries,
            in_force: BTreeMap::new(),
            allowed: take(ebpf, "ALLOWED")?,
            denied: take(ebpf, "DENIED")?,
            seen: take(ebpf, "SEEN")?,
            limits: take(ebpf, "LIMITS")?,
            scopes,
            empty: NewTrie::of(&[]).map_err(MapsError::tries("create"))?,
        })
    }

    /// Puts a policy in force, and returns its generation.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then the old policy is in force, whole.
    pub fn install(&mut self, instance: InstanceIndex, policy: &CompiledPolicy) -> Result<u32, MapsError> {
        self.install_all(&[(instance, policy)])?;
        Ok(self.current(instance).generation())
    }

    /// Puts policies in force, each for another instance.
    ///
    /// Every packet is judged by the old policy or by the new one: the new one is filled where no reader
    /// looks, one 64-bit store puts it in force, and the old one stays until no reader can have it. The
    /// waiting for readers takes some hundredths of a second and is the same for one policy and for many.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then the old policies are in force.
    pub fn install_all(&mut self, policies: &[(InstanceIndex, &CompiledPolicy)]) -> Result<(), MapsError> {
        let next = |instance: InstanceIndex, before: Current| {
            let first = instance.number() * 2;
            let slot = if before.slot() == first { first + 1 } else { first };
            Current::new(before.generation().wrapping_add(1).max(1), slot)
        };
        let (mut slots, mut tries) = (vec![], vec![]);
        for (instance, policy) in policies {
            let slot = next(*instance, self.current(*instance)).slot();
            self.heads.set(slot, policy.header, 0).map_err(MapsError::operation("write to", "HEADS"))?;
            slots.push(slot);
            tries.push(NewTrie::of(&policy.entries).map_err(MapsError::tries("fill an entry of"))?);
        }
        if !slots.is_empty() {
            self.set_tries(&slots, &tries.iter().collect::<Vec<_>>())?;
        }
        let mut old = vec![];
        for ((instance, _), trie) in policies.iter().zip(tries) {
            let before = self.current(*instance);
            self.current.store(*instance, next(*instance, before));
            self.in_force.insert(*instance, trie);
            old.extend((before.slot() != 0).then_some(before.slot()));
        }
        // They are in force now. Old rules that cannot be freed take memory until their slots are filled again.
        let _ = self.free(&old);
        Ok(())
    }

    /// Sets slots' tries. Returns when every program that was running before has ended.
    fn set_tries(&self, slots: &[u32], tries: &[&NewTrie]) -> Result<(), MapsError> {
        tries::set(self.tries.as_fd(), slots, tries).map_err(MapsError::tries("write to"))
    }

    /// Frees the rules of slots that are out of force, once no reader can have them.
    fn free(&self, slots: &[u32]) -> Result<(), MapsError> {
        if slots.is_empty() {
            return Ok(());
        }
        // Slot 0 is nobody's. Setting it is a way to wait.
        self.set_tries(&[0], &[&self.empty])?;
        self.set_tries(slots, &vec![&self.empty; slots.len()])
    }

    /// Takes instances' policies out of force: everything is denied to them. Their generations stay, so that no later one
    /// repeats them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to free the old policies, which are out of force all the same.
    pub fn retire(&mut self, instances: &[InstanceIndex]) -> Result<(), MapsError> {
        for instance in instances {
            let before = self.current.load(*instance);
            self.current.store(*instance, Current::new(before.generation(), 0));
            self.in_force.remove(instance);
        }
        let slots = instances.iter().flat_map(|instance| [instance.number() * 2, instance.number() * 2 + 1]);
        self.free(&slots.collect::<Vec<_>>())
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
        let write = MapsError::operation("write to", "DENIED");
        self.denied.set(index, counters.denied, 0).map_err(write)?;
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
        let of_them = |key: &DestinationKey| {
            InstanceIndex::new(key.instance).is_some_and(|index| instances.contains(&index))
        };
        for key in self.seen()?.into_keys().filter(of_them) {
            // One that the kernel has forgotten meanwhile is as good.
            let _ = self.seen.remove(&key);
        }
        for index in instances {
            self.carry_over(*index, self.current(*index).generation(), &Counters::default())?;
        }
        Ok(())
    }

    /// The policy in force for an instance.
    pub fn current(&self, instance: InstanceIndex) -> Current {
        self.current.load(instance)
    }

    /// The part outside the trie of the policy in force, and its rules, read from the kernel. `None`: the
    /// instance has no policy, or none that this process installed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn policy(&self, instance: InstanceIndex) -> Result<Option<(PolicyHeader, KernelRules)>, MapsError> {
        let slot = self.current.load(instance).slot();
        let Some(trie) = self.in_force.get(&instance).filter(|_| slot != 0) else { return Ok(None) };
        let header = self.heads.get(&slot, 0).map_err(MapsError::operation("read", "HEADS"))?;
        let trie = trie.try_clone().map_err(MapsError::tries("open an entry of"))?;
        let inspect = MapsError::operation("inspect an entry of", "TRIES");
        let trie = MapData::from_fd(trie).map_err(inspect)?;
        let inspect = MapsError::operation("inspect an entry of", "TRIES");
        let ours = trie.info().map_err(inspect)?.id();
        if tries::id(self.tries.as_fd(), slot).map_err(MapsError::tries("read"))? != ours {
            return Err(MapsError::Replaced);
        }
        let trie = LpmTrie::try_from(Map::LpmTrie(trie))
            .map_err(|source| MapsError::Other { name: "TRIES", source: Box::new(source) })?;
        Ok(Some((header, KernelRules(trie))))
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

    /// Has the next denial of each destination of an instance told at once, as if it were the first.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn report_repeats_at_once(&mut self, instance: InstanceIndex) -> Result<(), MapsError> {
        for (key, seen) in self.seen()? {
            if key.instance == instance.number() {
                // An attempt that is counted meanwhile is not remembered; the counters have it.
                let seen = DestinationDenials { reported: 0, ..seen };
                self.seen.insert(key, seen, 0).map_err(MapsError::operation("write to", "SEEN"))?;
            }
        }
        Ok(())
    }

    /// How often a destination was denied so far; `None` when it was long ago.
    pub fn attempts(&self, key: &DestinationKey) -> Option<u64> {
        self.seen.get(key, 0).ok().map(|seen| seen.attempts)
    }

    /// Every destination that the kernel remembers as denied, of all instances. One that was forgotten
    /// while they are read makes the kernel start again, so a destination can come twice, and the reading ends
    /// after as many as there can be.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn seen(&self) -> Result<std::collections::HashMap<DestinationKey, DestinationDenials>, MapsError> {
        let entries = self.seen.iter().take(2 * MAX_DESTINATIONS as usize);
        entries.collect::<Result<_, _>>().map_err(MapsError::operation("read", "SEEN"))
    }

    /// The instance whose scope a cgroup has. `None`: no link was ever made to it.
    pub fn instance_of(&self, cgroup: u64) -> Option<InstanceIndex> {
        self.scopes.get(&cgroup, 0).ok().and_then(|scope| InstanceIndex::new(scope.instance))
    }

    /// How often something was denied to a cgroup; see [`ConfinedCgroup::denials`].
    pub fn denials_of(&self, cgroup: u64) -> u32 {
        self.scopes.get(&cgroup, 0).map_or(0, |scope| scope.denials)
    }

    /// Says whose a cgroup is. Its storage must be there: the first link makes it.
    ///
    /// # Errors
    ///
    /// When there is no link yet, or the cgroup is gone.
    pub fn set_instance_of(&mut self, cgroup: u64, instance: InstanceIndex) -> Result<(), MapsError> {
        let scope = ConfinedCgroup::new(instance.number());
        self.scopes.insert(cgroup, scope, 0).map_err(MapsError::operation("write to", "SCOPES"))
    }
}

/// A policy's rules as they are in the kernel.
pub struct KernelRules(Trie);

impl Rules for KernelRules {
    fn entry(&self, key: &TrieKey) -> Option<Entry> {
        self.0.get(&trie_key(key), 0).ok()
    }
}

/// Takes the ring buffer of denied flows.
pub(crate) fn open_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, MapsError> {
    take(ebpf, "EVENTS")
}
