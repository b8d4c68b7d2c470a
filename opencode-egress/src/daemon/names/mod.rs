//! Names: what is known of them, by instance, and who resolves them. [`learn`] is how it comes to be known.

mod allowed;
mod brought;
mod denied;
mod instance;
mod learn;
mod questions;
mod resolver;
mod servers;
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
    flow::Flow,
};
use tokio::sync::mpsc::Receiver;

pub use self::weigh::{Weighed, weigh};
use self::{
    allowed::AllowedNames,
    denied::DeniedNames,
    instance::InstanceNames,
    resolver::Resolvers,
    store::{NameStore, Record},
};
pub(in crate::daemon) use self::{brought::Brought, resolver::Told, servers::DeniedServers};
pub(crate) use self::{
    questions::{Question, Questions, Shown},
    sockets::ResolverSockets,
    weigh::until,
};
use crate::{
    control::learned::ToResolver,
    daemon::error::DaemonError,
    kernel::{
        addresses::own_addresses,
        instance::InstanceIndex,
        maps::{LearnedAddress, boottime},
    },
    policy::{
        InstanceName, Mode, Policy, Resolver, compile::CompiledName, destination::Destination,
        known::KnownNames, name::DnsName,
    },
};

/// How long the machine's own addresses are believed to be what they were.
const OWN_ADDRESSES: Duration = Duration::from_secs(5);
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
    /// What names ever brought, by instance: also by names that are listed no more.
    brought: BTreeMap<String, Brought>,
    own: Option<(Instant, Vec<IpAddr>)>,
    pub(in crate::daemon) resolvers: Resolvers,
    /// When what is over was last looked for in the kernel.
    swept: Instant,
    /// Why something could not be learned, as it was logged last.
    trouble: Option<String>,
    /// Whether the file has what a policy does not list any more.
    stale: bool,
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
        let mut brought: BTreeMap<String, Brought> = BTreeMap::new();
        for Record { instance, name, addresses, until } in records {
            brought.entry(instance.clone()).or_default().add(&addresses);
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
            brought,
            own: None,
            resolvers: Resolvers::default(),
            swept: Instant::now(),
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
                audit_until: None,
                known: left.unwrap_or_default(),
                sockets,
                questions: Questions::default(),
                denied: DeniedNames::default(),
                allowed: AllowedNames::default(),
                servers: DeniedServers::default(),
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

    /// Undoes [`Names::prepare`] for all but these instances, which had names before: the policies did not come into force.
    pub(in crate::daemon) fn forget_but(&mut self, before: &BTreeSet<InstanceIndex>) {
        let (of, new) =
            std::mem::take(&mut self.of).into_iter().partition(|(index, _)| before.contains(index));
        self.of = of;
        let new: BTreeMap<_, InstanceNames> = new;
        for InstanceNames { name, .. } in new.into_values() {
            ResolverSockets::take_from_systemd(name.as_str());
        }
    }

    /// Takes note of rules that came into force. What they do not list is forgotten.
    pub(in crate::daemon) fn in_force(
        &mut self,
        index: InstanceIndex,
        rules: Vec<CompiledName>,
        policy: &Policy,
    ) {
        if let Some(names) = self.of.get_mut(&index) {
            let mode = policy.mode;
            names.rules = rules.into();
            (names.mode, names.audit_until) = (mode, policy.leased.audit);
            let rules = Arc::clone(&names.rules);
            let listed = |name: &DnsName| rules.iter().any(|compiled| compiled.rule.pattern().matches(name));
            let mut goes_on = names.known.clone();
            goes_on.retain(|name| listed(name) || policy.leased.has_ended(name));
            names.dropped = &names.known.addresses() - &goes_on.addresses();
            let count = names.known.count();
            names.known.retain(listed);
            names.allowed.retain(listed);
            names.denied.retain(|name| mode == Mode::Audit && !listed(name));
            self.stale |= names.known.count() != count;
            self.resolvers.tell(names.told(index));
        }
    }

    /// Lets go of an instance whose policy has no name rules, or none at all.
    pub(in crate::daemon) fn gone(&mut self, index: InstanceIndex) {
        if let Some(names) = self.of.remove(&index) {
            self.stale |= names.known.count().0 > 0;
            ResolverSockets::take_from_systemd(names.name.as_str());
            self.resolvers.tell_alone(ToResolver::Gone { number: index.number() });
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
        // Of no name: nothing new may begin by them.
        let brought = self.brought.iter().map(|(instance, brought)| Record {
            instance: instance.clone(),
            name: String::new(),
            addresses: brought.addresses().collect(),
            until: 0,
        });
        self.store.rewrite(of.chain(brought));
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

    /// Takes note that an address was denied to an instance. Returns the name that brought it, if one did.
    pub(in crate::daemon) fn deny(&mut self, index: InstanceIndex, address: IpAddr) -> Option<String> {
        let InstanceNames { known, denied, .. } = self.of.get_mut(&index)?;
        denied.deny(known, address)
    }

    /// Takes note of a server that a hello named and that is not listed, of which the kernel has this number.
    pub(in crate::daemon) fn deny_server(
        &mut self,
        index: InstanceIndex,
        flow: &Flow,
        tag: u16,
        server: &str,
    ) {
        if let (Some(names), Some(destination)) = (self.of.get_mut(&index), Destination::of(flow)) {
            names.servers.deny(destination, tag, server);
        }
    }

    /// Addresses that only names brought to an instance which the last change of its policy dropped.
    pub(in crate::daemon) fn dropped(&self, index: InstanceIndex) -> BTreeSet<IpAddr> {
        self.of.get(&index).map(|names| names.dropped.clone()).unwrap_or_default()
    }

    /// Addresses that names ever brought to an instance.
    pub(in crate::daemon) fn brought(&self, name: &InstanceName) -> Brought {
        self.brought.get(name.as_str()).cloned().unwrap_or_default()
    }

    /// Forgets what names brought to instances that are not `listed`: nothing of these goes on.
    pub(in crate::daemon) fn forget_brought_but(&mut self, listed: impl Fn(&str) -> bool) {
        self.brought.retain(|name, _| listed(name));
    }

    /// Takes a resolver that connected in the place of the one before, and has it told everything.
    pub(in crate::daemon) fn connect(&mut self) -> Receiver<Told> {
        let receiver = self.resolvers.replace();
        self.tell_upstream();
        for (index, names) in &self.of {
            self.resolvers.tell(names.told(*index));
        }
        self.resolvers.tell_alone(ToResolver::AllTold);
        receiver
    }

    /// Has the resolver ask the servers that are set now.
    pub(in crate::daemon) fn tell_upstream(&mut self) {
        self.resolvers.tell_alone(ToResolver::Upstream { servers: self.settings.upstream.clone() });
    }

    /// What is not as it should be, for `status`.
    pub(in crate::daemon) fn troubles(&self) -> impl Iterator<Item = String> {
        let resolver = (!self.of.is_empty() && !self.resolvers.is_there()).then(|| {
            "no resolver is connected, so no question for a name is answered: see `systemctl status opencode-egress-resolver`".to_owned()
        });
        resolver.into_iter().chain(self.store.trouble.clone()).chain(self.trouble.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::policy::compile::compile;

    #[test]
    fn what_did_not_come_into_force_leaves_no_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut names = Names::open(&directory.path().join("names"));
        let [a, b] = ["a", "b"].map(|name| name.parse::<InstanceName>().expect("a name"));
        let (first, second) = (InstanceIndex::FIRST, InstanceIndex::new(2).expect("a number"));
        let (kept, _) = names.prepare(first, &a, &[]).expect("sockets");
        let before = names.of.keys().copied().collect();
        // It has names already, and is in the file that fails as well.
        names.prepare(first, &a, &[]).expect("sockets");
        let (port, _) = names.prepare(second, &b, &[]).expect("sockets");
        let is_taken = |port| UdpSocket::bind(("127.0.0.1", port)).is_err();
        assert!(is_taken(kept) && is_taken(port));
        names.forget_but(&before);
        assert_eq!(names.of.keys().collect::<Vec<_>>(), [&first]);
        assert!(is_taken(kept) && !is_taken(port));
    }

    #[test]
    fn what_names_ever_brought_is_known_to_the_next_daemon() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("names");
        let (name, address) = ("a".parse().expect("a name"), IpAddr::from([192, 0, 2, 1]));
        let mut names = Names::open(&path);
        names.brought.entry("a".to_owned()).or_default().add(&[address]);
        names.all_in_force();
        let mut names = Names::open(&path);
        assert!(names.brought(&name).may_have(address) && names.left.is_empty());
        names.forget_brought_but(|name| name != "a");
        assert!(!names.brought(&name).may_have(address));
    }

    #[test]
    fn an_address_that_a_name_brought_whose_lease_ended_is_not_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut names = Names::open(&directory.path().join("names"));
        let (index, instance) = (InstanceIndex::FIRST, "a".parse().expect("a name"));
        names.prepare(index, &instance, &[]).expect("sockets");
        let mut policy = Policy::default();
        policy.allow("kept.example:80".parse().expect("a rule"));
        policy.leased.ended = vec!["ended.example:80".parse().expect("a rule")];
        let rules = compile(&policy).expect("it fits").names;
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let known = &mut names.of.get_mut(&index).expect("it").known;
        for (name, lasts) in [("kept", &[1, 2][..]), ("ended", &[2, 3]), ("gone", &[1, 3, 4])] {
            let addresses: Vec<_> = lasts.iter().map(|last| address(*last)).collect();
            known.learn(&format!("{name}.example").parse().expect("a name"), &addresses, 100, 0);
        }
        names.in_force(index, rules, &policy);
        assert_eq!(names.dropped(index), [address(4)].into());
    }
}
