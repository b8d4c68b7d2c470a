//! The maps by name and type: filling policies, putting them in force, reading counters.

mod error;
mod learned;
mod seen;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key},
};
use opencode_egress_common::{
    abi::{
        ConfinedCgroup, Counter, Counters, Current, Denied, DestinationDenials, DestinationKey, Entry,
        Limits, PolicyHeader, SocketCount, TrieKey,
    },
    decide::Rules,
};

pub use self::learned::{LearnedAddress, boottime};
pub(crate) use self::words::{CurrentWords, TakenKind, TakenWords};
use self::{learned::LearnedMap, seen::Seen};
use crate::{
    kernel::{
        instance::InstanceIndex,
        tries::{self, NewTrie},
    },
    policy::{LogLimits, compile::CompiledPolicy},
};

pub use error::MapsError;

type TrieData = [u32; 5];
type Trie = LpmTrie<MapData, TrieData, Entry>;

fn trie_key(key: &TrieKey) -> Key<TrieData> {
    let [a, b, c, d] = key.data;
    Key::new(key.prefix_len, [key.space, a, b, c, d])
}

/// A policy whose rules are in the kernel, where nobody is judged by them yet.
pub struct LoadedPolicy {
    header: PolicyHeader,
    rules: NewTrie,
    learned: Vec<LearnedAddress>,
}

impl LoadedPolicy {
    /// Brings a policy's rules into the kernel. A million of them take about a second.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn load(policy: &CompiledPolicy) -> Result<Self, MapsError> {
        let rules = NewTrie::of(&policy.entries).map_err(MapsError::tries("fill an entry of"))?;
        Ok(Self { header: policy.header, rules, learned: vec![] })
    }

    /// Gives a policy with name rules what the host has for it: the port of the instance's resolver, the bit of the mark by which the
    /// second lock lets its flows pass, and what its names brought so far.
    pub fn with_names(&mut self, port: u16, mark: u32, learned: Vec<LearnedAddress>) {
        (self.header.resolver_port, self.header.mark, self.learned) = (u32::from(port), mark, learned);
    }
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
    taken: Arc<TakenWords>,
    seen: Seen,
    learned: LearnedMap,
    limits: Array<MapData, Limits>,
    sockets: Array<MapData, SocketCount>,
    scopes: HashMap<MapData, u64, ConfinedCgroup>,
    /// Takes the place of a trie that is no longer in force, so that its memory is freed.
    empty: NewTrie,
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
        Ok(Self {
            current: CurrentWords::map(ebpf.take_map("CURRENT").ok_or(MapsError::Missing("CURRENT"))?)?,
            heads: take(ebpf, "HEADS")?,
            tries,
            in_force: BTreeMap::new(),
            allowed: take(ebpf, "ALLOWED")?,
            denied: take(ebpf, "DENIED")?,
            taken: Arc::new(TakenWords::map(ebpf.take_map("TAKEN").ok_or(MapsError::Missing("TAKEN"))?)?),
            seen: Seen::open(ebpf)?,
            learned: LearnedMap::open(ebpf)?,
            limits: take(ebpf, "LIMITS")?,
            sockets: take(ebpf, "SOCKETS")?,
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
        let load = |(instance, policy): &(InstanceIndex, &CompiledPolicy)| {
            Ok((*instance, LoadedPolicy::load(policy)?))
        };
        self.put_in_force(policies.iter().map(load).collect::<Result<_, _>>()?)
    }

    /// The same with policies whose rules are in the kernel already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then the old policies are in force.
    pub fn put_in_force(&mut self, policies: Vec<(InstanceIndex, LoadedPolicy)>) -> Result<(), MapsError> {
        let next = |instance: InstanceIndex, before: Current| {
            let first = instance.number() * 2;
            let slot = if before.slot() == first { first + 1 } else { first };
            Current::new(before.generation().wrapping_add(1).max(1), slot)
        };
        let (mut slots, mut tries) = (vec![], vec![]);
        for (instance, policy) in &policies {
            let next = next(*instance, self.current(*instance));
            let slot = next.slot();
            for address in &policy.learned {
                self.learned.write(*instance, next.generation(), address)?;
            }
            self.heads.set(slot, policy.header, 0).map_err(MapsError::operation("write to", "HEADS"))?;
            slots.push(slot);
            tries.push(&policy.rules);
        }
        if !slots.is_empty() {
            self.set_tries(&slots, &tries)?;
        }
        let mut old = vec![];
        for (instance, policy) in policies {
            let before = self.current(instance);
            self.current.store(instance, next(instance, before));
            self.in_force.insert(instance, policy.rules);
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

    /// Has an address that a name brought in force for new flows, before this returns.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as it does when there are [`MAX_LEARNED`](opencode_egress_common::abi::MAX_LEARNED).
    pub fn learn(&mut self, instance: InstanceIndex, address: &LearnedAddress) -> Result<(), MapsError> {
        self.learned.write(instance, self.current(instance).generation(), address)
    }

    /// Takes one bounded step to remove learned addresses that are over. To be called every second.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_expired(&mut self) -> Result<(), MapsError> {
        let current = &self.current;
        self.learned.sweep(|instance| {
            let word = current.load(instance);
            (word.slot() != 0).then(|| word.generation())
        })
    }

    /// Whether the policy in force for an instance has name rules.
    pub fn has_names(&self, instance: InstanceIndex) -> bool {
        match self.current.load(instance).slot() {
            0 => false,
            slot => self.heads.get(&slot, 0).is_ok_and(|header| header.has_names()),
        }
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

    /// How often something was denied to a cgroup; see [`ConfinedCgroup::denials`].
    pub fn denials_of(&self, cgroup: u64) -> u32 {
        self.scopes.get(&cgroup, 0).map_or(0, |scope| scope.denials)
    }

    /// Writes into a cgroup's storage which instance it belongs to. The storage must be there: the first link makes it.
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
