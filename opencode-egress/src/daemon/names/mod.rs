//! Names: what the resolver says is weighed, put in force and kept; only then may it tell its client.

mod questions;
mod resolver;
mod sockets;
mod store;
mod weigh;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use opencode_egress_common::{
    abi::{Entry, TrieKey},
    decide::Rules,
};
use tracing::{error, warn};

pub(in crate::daemon) use self::resolver::Told;
pub(crate) use self::{
    questions::{Question, Questions},
    sockets::ResolverSockets,
    weigh::{until, weigh},
};
use self::{
    resolver::Resolvers,
    store::{NameStore, Record},
};
use crate::{
    control::{
        learned::MAX_TTL,
        request::{AddressTime, NameAddresses},
    },
    daemon::{error::DaemonError, state::Daemon},
    kernel::{
        addresses::own_addresses,
        instance::InstanceIndex,
        maps::{LearnedAddress, boottime},
    },
    policy::{
        InstanceName, Mode, Resolver,
        compile::CompiledName,
        known::{KnownName, KnownNames},
        name::{DnsName, LearnedName},
    },
    report::{human::error_chain, status::NamesStatus},
};

/// How long the machine's own addresses are believed to be what they were.
const OWN_ADDRESSES: Duration = Duration::from_secs(5);
/// Addresses of one instance that are in force at a time.
const MAX_ADDRESSES: usize = 8192;
/// For how long after its time an address is known to `names` and named in lines, in seconds.
const KEPT: u64 = 600;

/// What the daemon knows of names.
pub(in crate::daemon) struct Names {
    /// How names are looked up.
    pub(in crate::daemon) settings: Resolver,
    /// Of the instances whose policy in force has name rules.
    pub(in crate::daemon) of: BTreeMap<InstanceIndex, InstanceNames>,
    store: NameStore,
    /// What an earlier daemon left, by instance, until that has a policy.
    left: BTreeMap<String, KnownNames>,
    left_sockets: BTreeMap<String, ResolverSockets>,
    own: Option<(Instant, Vec<IpAddr>)>,
    pub(in crate::daemon) resolvers: Resolvers,
    /// Why something could not be learned, as it was logged last.
    trouble: Option<String>,
    /// Whether the file has what a policy does not list any more.
    stale: bool,
}

/// What is known of one instance's names.
pub(in crate::daemon) struct InstanceNames {
    pub(in crate::daemon) name: InstanceName,
    /// The rules in force.
    pub(in crate::daemon) rules: Arc<[CompiledName]>,
    pub(in crate::daemon) mode: Mode,
    pub(in crate::daemon) known: KnownNames,
    pub(in crate::daemon) sockets: ResolverSockets,
    pub(in crate::daemon) questions: Questions,
    /// Addresses that only names brought which the last change of the policy dropped.
    dropped: BTreeSet<IpAddr>,
}

impl InstanceNames {
    /// What `status` shows.
    pub(in crate::daemon) fn status(&self) -> NamesStatus {
        let (known, addresses) = self.known.count();
        NamesStatus {
            rules: self.rules.len(),
            known,
            addresses,
            port: self.sockets.port(),
            questions: self.questions.status(),
        }
    }

    /// Every address that is known of a name, and of every name without one, with how many seconds new flows may begin.
    pub(in crate::daemon) fn learned(&self, name: Option<&DnsName>) -> Vec<LearnedName> {
        let now = boottime();
        let asked = self.known.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
        asked
            .flat_map(|(name, known)| {
                known.addresses().map(move |(address, until)| LearnedName {
                    name: name.clone(),
                    address,
                    seconds: until.saturating_sub(now),
                })
            })
            .collect()
    }

    /// Whether a rule lists a name.
    fn lists(&self, name: &DnsName) -> bool {
        self.rules.iter().any(|compiled| compiled.rule.pattern().matches(name))
    }
}

/// No rules for networks: what is in force for them is the kernel's to say.
struct NoRules;

impl Rules for NoRules {
    fn entry(&self, _: &TrieKey) -> Option<Entry> {
        None
    }
}

impl Names {
    /// Takes over what an earlier daemon left in a file, and its sockets.
    pub(in crate::daemon) fn open(file: &Path) -> Self {
        let (store, records) = NameStore::open(file);
        let mut left: BTreeMap<String, KnownNames> = BTreeMap::new();
        for Record { instance, name, addresses, until } in records {
            if let Ok(name) = name.parse() {
                left.entry(instance).or_default().learn(&name, &addresses, until, 0);
            }
        }
        Self {
            settings: Resolver::default(),
            of: BTreeMap::new(),
            store,
            left,
            left_sockets: ResolverSockets::passed(),
            own: None,
            resolvers: Resolvers::default(),
            trouble: None,
            stale: false,
        }
    }

    /// What an instance has when a policy with these rules comes into force: its sockets, and what its names brought so far.
    ///
    /// # Errors
    ///
    /// When there can be no sockets; without a resolver there is no policy with names.
    pub(in crate::daemon) fn prepare(
        &mut self,
        index: InstanceIndex,
        name: &InstanceName,
        rules: &[CompiledName],
    ) -> Result<(u16, Vec<LearnedAddress>), DaemonError> {
        let left = self.left.remove(name.as_str());
        if !self.of.contains_key(&index) {
            let sockets = match self.left_sockets.remove(name.as_str()) {
                Some(sockets) => sockets,
                None => ResolverSockets::bind(index.number())
                    .map_err(|source| DaemonError::ResolverSockets { name: name.clone(), source })?,
            };
            sockets.leave_with_systemd(name);
            let names = InstanceNames {
                name: name.clone(),
                rules: [].into(),
                mode: Mode::Enforce,
                known: left.unwrap_or_default(),
                sockets,
                questions: Questions::default(),
                dropped: BTreeSet::new(),
            };
            self.of.insert(index, names);
        }
        let own = self.own_addresses();
        let names = &self.of[&index];
        let mut learned = vec![];
        let known = own.iter().flat_map(|_| names.known.iter());
        let own = own.as_deref().unwrap_or_default();
        for (known, addresses) in known {
            for (address, until) in addresses.addresses() {
                learned.extend(weigh(known, &[address], until, rules, &NoRules, own).learned);
            }
        }
        Ok((names.sockets.port(), learned))
    }

    /// Takes note of rules that came into force. What they do not list is forgotten.
    pub(in crate::daemon) fn in_force(&mut self, index: InstanceIndex, rules: Vec<CompiledName>, mode: Mode) {
        if let Some(names) = self.of.get_mut(&index) {
            names.rules = rules.into();
            names.mode = mode;
            let rules = Arc::clone(&names.rules);
            let listed = |name: &DnsName| rules.iter().any(|compiled| compiled.rule.pattern().matches(name));
            let addresses = |known: &KnownNames| -> BTreeSet<IpAddr> {
                known.iter().flat_map(|(_, known)| known.addresses().map(|(address, _)| address)).collect()
            };
            let (before, count) = (addresses(&names.known), names.known.count());
            names.known.retain(listed);
            self.stale |= names.known.count() != count;
            names.dropped = &before - &addresses(&names.known);
            self.resolvers.tell_instance(index, names);
        }
    }

    /// Lets go of an instance whose policy has no name rules, or none at all.
    pub(in crate::daemon) fn gone(&mut self, index: InstanceIndex) {
        if let Some(names) = self.of.remove(&index) {
            self.stale |= names.known.count().0 > 0;
            ResolverSockets::take_from_systemd(names.name.as_str());
            self.resolvers.tell_gone(index);
        }
    }

    /// Lets go of what an earlier daemon left for instances that are no more, once the policies are in force.
    pub(in crate::daemon) fn all_in_force(&mut self) {
        self.left.clear();
        for (instance, _) in std::mem::take(&mut self.left_sockets) {
            ResolverSockets::take_from_systemd(&instance);
        }
        self.rewrite();
    }

    /// Has the file forget what no policy lists any more: the next daemon would learn it again when one lists it anew.
    pub(in crate::daemon) fn forget_unlisted(&mut self) {
        if self.stale {
            self.rewrite();
        }
    }

    fn rewrite(&mut self) {
        self.stale = false;
        let now = boottime();
        let of = self.of.values().flat_map(|names| {
            names.known.iter().flat_map(move |(name, known)| {
                // One line for each time, of which there is mostly one.
                let mut by_time: BTreeMap<u64, Vec<IpAddr>> = BTreeMap::new();
                for (address, until) in known.addresses().filter(|(_, until)| until + KEPT > now) {
                    by_time.entry(until).or_default().push(address);
                }
                by_time.into_iter().map(move |(until, addresses)| Record {
                    instance: names.name.to_string(),
                    name: name.to_string(),
                    addresses,
                    until,
                })
            })
        });
        self.store.rewrite(of);
    }

    /// The machine's own addresses, which no name may bring. `None`: they are not known, so no name may bring any.
    fn own_addresses(&mut self) -> Option<Vec<IpAddr>> {
        match &self.own {
            Some((at, own)) if at.elapsed() < OWN_ADDRESSES => return Some(own.clone()),
            _ => {}
        }
        match own_addresses() {
            Ok(own) => self.own = Some((Instant::now(), own)),
            Err(error) => {
                self.trouble = Some(format!("this machine's own addresses cannot be found out: {error}"));
            }
        }
        self.own.as_ref().map(|(_, own)| own.clone())
    }

    /// The name by which an instance knows an address.
    pub(in crate::daemon) fn name_of(&self, index: InstanceIndex, address: IpAddr) -> Option<&DnsName> {
        self.of.get(&index)?.known.name_of(address)
    }

    /// Addresses that only names brought to an instance which the last change of its policy dropped.
    pub(in crate::daemon) fn dropped(&self, index: InstanceIndex) -> BTreeSet<IpAddr> {
        self.of.get(&index).map(|names| names.dropped.clone()).unwrap_or_default()
    }

    /// What is not as it should be, for `status`.
    pub(in crate::daemon) fn troubles(&self) -> impl Iterator<Item = String> {
        let resolver = (!self.of.is_empty() && !self.resolvers.is_there()).then(|| {
            "no resolver is connected, so no question for a name is answered: see `systemctl status opencode-egress-resolver`".to_owned()
        });
        resolver.into_iter().chain(self.store.trouble.clone()).chain(self.trouble.clone())
    }
}

impl Daemon {
    /// Weighs an answer that the resolver has for an instance, and puts in force and keeps what may be told. Returns that.
    pub(in crate::daemon) fn learn(
        &mut self,
        number: u32,
        name: &str,
        addresses: &[IpAddr],
        ttl: u32,
    ) -> Vec<IpAddr> {
        let Self { loaded, names, .. } = self;
        let Some(index) = InstanceIndex::new(number) else { return vec![] };
        let Some(own) = names.own_addresses() else { return vec![] };
        let Names { of, store, trouble, .. } = names;
        let (Some(instance), Ok(name)) = (of.get_mut(&index), name.parse::<DnsName>()) else { return vec![] };
        let Ok(Some((_, rules))) = loaded.maps.policy(index) else { return vec![] };
        let now = boottime();
        let until = until(now, ttl, MAX_TTL);
        let mut weighed = weigh(&name, addresses, until, &instance.rules, &rules, &own);
        if instance.mode == Mode::Audit && !instance.lists(&name) {
            // It would be refused; the line says so.
            return addresses.to_vec();
        }
        if instance.known.count().1 + weighed.learned.len() > MAX_ADDRESSES {
            instance.known.forget(now);
            if instance.known.count().1 + weighed.learned.len() > MAX_ADDRESSES {
                *trouble = Some(format!(
                    "instance `{}` has {MAX_ADDRESSES} addresses by names, and an answer with more is refused until some are over",
                    instance.name
                ));
                return vec![];
            }
        }
        let mut learned: Vec<IpAddr> = weighed.learned.iter().map(|learned| learned.address).collect();
        learned.dedup();
        if !learned.is_empty() {
            // First: a daemon that ends here knows it when it starts again, and so does whoever was told.
            let record = Record {
                instance: instance.name.to_string(),
                name: name.to_string(),
                addresses: learned.clone(),
                until,
            };
            store.append(&record);
            instance.known.learn(&name, &learned, until, now.saturating_sub(KEPT));
        }
        for address in &weighed.learned {
            if let Err(why) = loaded.maps.learn(index, address) {
                let why = format!("an address that {name} brought is not in force: {}", error_chain(&why));
                if trouble.as_ref() != Some(&why) {
                    error!("{why}");
                }
                *trouble = Some(why);
                weighed.told.retain(|told| *told != address.address);
            }
        }
        self.refuse_addresses(index, &name, &weighed.forbidden);
        weighed.told
    }

    /// Takes a step to forget what is over. To be called every second.
    pub fn forget_names(&mut self) {
        let Self { loaded, names, .. } = self;
        if let Err(error) = loaded.maps.forget_expired() {
            warn!("addresses whose time is over stay in memory: {}", error_chain(&error));
        }
        let over = boottime().saturating_sub(KEPT);
        for instance in names.of.values_mut() {
            instance.known.forget(over);
        }
        if !names.of.is_empty() && names.store.is_long() {
            names.rewrite();
        }
    }

    /// The names that are known to an instance, and their addresses.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or its policy has no rules for names.
    pub(in crate::daemon) fn known_names(&self, name: &str) -> Result<Vec<NameAddresses>, DaemonError> {
        let name = self.known(name)?;
        let index = self.instance(&name)?.index;
        let names = self.names.of.get(&index).ok_or(DaemonError::NoNames { name })?;
        let now = boottime();
        let addresses = |known: &KnownName| {
            let time =
                |(address, until): (IpAddr, u64)| AddressTime { address, seconds: until.saturating_sub(now) };
            known.addresses().map(time).collect()
        };
        let known = names.known.iter();
        Ok(known
            .map(|(name, known)| NameAddresses { name: name.to_string(), addresses: addresses(known) })
            .collect())
    }
}
