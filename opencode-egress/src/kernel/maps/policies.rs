//! Policies in the kernel: loading one, putting it in force, taking it out of force, reading it, and what its names bring meanwhile.

use std::os::fd::AsFd as _;

use aya::maps::{LpmTrie, Map, MapData, lpm_trie::Key};
use opencode_egress_common::{
    abi::{Current, Entry, PolicyHeader, TrieKey},
    decide::Rules,
};

use super::{LearnedAddress, Maps, MapsError, servers};
use crate::{
    kernel::{
        hooks::Needs,
        instance::InstanceIndex,
        tries::{self, NewTrie},
    },
    policy::compile::CompiledPolicy,
};

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
    servers: Option<NewTrie>,
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
        let servers = servers::load(&policy.names)?;
        let header = PolicyHeader { tls: u32::from(servers.is_some()), ..policy.header };
        Ok(Self { header, rules, servers, learned: vec![] })
    }

    /// What it takes, beside what every policy does.
    pub fn needs(&self) -> Needs {
        Needs::of(&self.header)
    }

    /// Gives a policy with name rules what the host has for it: the port of the instance's resolver, the bit of the mark by which the
    /// second lock lets its flows pass, and what its names brought so far.
    pub fn with_names(&mut self, port: u16, mark: u32, learned: Vec<LearnedAddress>) {
        (self.header.resolver_port, self.header.mark, self.learned) = (u32::from(port), mark, learned);
    }
}

impl Maps {
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
        let put = self.put_all_in_force(policies);
        if put.is_err() {
            // What was claimed for them. Ports that stay taken are denied to others.
            let _ = self.listed.correct();
        }
        put
    }

    fn put_all_in_force(&mut self, policies: Vec<(InstanceIndex, LoadedPolicy)>) -> Result<(), MapsError> {
        let next = |instance: InstanceIndex, before: Current| {
            let first = instance.number() * 2;
            let slot = if before.slot() == first { first + 1 } else { first };
            Current::new(before.generation().wrapping_add(1).max(1), slot)
        };
        for (instance, policy) in &policies {
            self.listed.claim(*instance, &policy.header)?;
        }
        let (mut slots, mut tries, mut servers) = (vec![], vec![], vec![]);
        let current = &self.current;
        let learned = policies.iter().flat_map(|(instance, policy)| {
            let generation = next(*instance, current.load(*instance)).generation();
            policy.learned.iter().map(move |address| (*instance, generation, address))
        });
        self.learned.write_all(learned)?;
        for (instance, policy) in &policies {
            let slot = next(*instance, self.current(*instance)).slot();
            self.heads.set(slot, policy.header, 0).map_err(MapsError::operation("write to", "HEADS"))?;
            slots.push(slot);
            tries.push(&policy.rules);
            servers.extend(policy.servers.as_ref().map(|servers| (slot, servers)));
        }
        self.servers.set(&servers)?;
        if !slots.is_empty() {
            self.set_tries(&slots, &tries)?;
        }
        let mut old = vec![];
        let headers: Vec<_> = policies.iter().map(|(instance, policy)| (*instance, policy.header)).collect();
        for (instance, policy) in policies {
            let before = self.current(instance);
            // What sockets remember of an earlier policy's names is to be looked at until they have forgotten it.
            let has_names = policy.header.has_names() || before.has_names();
            self.current.store(instance, next(instance, before).with_names(has_names));
            self.in_force.insert(instance, policy.rules);
            old.extend((before.slot() != 0).then_some(before.slot()));
        }
        // They are in force now. Old rules that cannot be freed take memory until their slots are filled again.
        let _ = self.free(&old);
        // Ports that stay taken are denied to others.
        let settled = self.listed.settle(headers.iter().map(|(instance, header)| (*instance, Some(header))));
        let _ = settled.or_else(|_| self.listed.correct());
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
        self.set_tries(slots, &vec![&self.empty; slots.len()])?;
        self.servers.free(slots)
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
            let retired = Current::new(before.generation(), 0).with_names(before.has_names());
            self.current.store(*instance, retired);
            self.in_force.remove(instance);
        }
        let given_back = self.listed.settle(instances.iter().map(|instance| (*instance, None)));
        let slots = instances.iter().flat_map(|instance| [instance.number() * 2, instance.number() * 2 + 1]);
        self.free(&slots.collect::<Vec<_>>())?;
        given_back
    }

    /// Reads whose listeners have which ports, of the policies in force.
    pub(super) fn know_listed(&mut self) -> Result<(), MapsError> {
        for number in 1..self.heads.len() / 2 {
            let Some(instance) = InstanceIndex::new(number) else { continue };
            let slot = self.current.load(instance).slot();
            if slot != 0 {
                let header = self.heads.get(&slot, 0).map_err(MapsError::operation("read", "HEADS"))?;
                self.listed.know(instance, &header);
            }
        }
        self.listed.correct()
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

    /// Takes one bounded step to remove learned addresses that are over. To be called now and then.
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
        self.header(instance).is_some_and(|header| header.name_grants > 0)
    }

    /// What the policy in force for an instance takes, beside what every policy does.
    pub fn needs(&self, instance: InstanceIndex) -> Needs {
        self.header(instance).map_or(Needs::NONE, |header| Needs::of(&header))
    }

    fn header(&self, instance: InstanceIndex) -> Option<PolicyHeader> {
        match self.current.load(instance).slot() {
            0 => None,
            slot => self.heads.get(&slot, 0).ok(),
        }
    }
}

/// A policy's rules as they are in the kernel.
pub struct KernelRules(Trie);

impl Rules for KernelRules {
    fn entry(&self, key: &TrieKey) -> Option<Entry> {
        self.0.get(&trie_key(key), 0).ok()
    }
}
