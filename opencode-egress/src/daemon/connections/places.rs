//! Where connections are looked for: network namespaces, and cgroups that may be gone.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::kernel::{connections::SocketDiagnosis, instance::InstanceIndex};

/// How many cgroups are remembered that were below confined ones.
const CHILDREN: usize = 16 * 1024;

/// By what open connections are found.
pub(in crate::daemon) struct Connections {
    /// The socket diagnosis of this process' network namespace.
    own: SocketDiagnosis,
    /// The number of that namespace.
    namespace: u64,
    /// Other network namespaces, by number, in which units attached.
    others: BTreeMap<u64, Namespace>,
    /// Cgroups that were seen below confined ones, and whose these are: sockets can outlive their cgroup.
    children: HashMap<u64, InstanceIndex>,
    /// Their ids, the oldest first.
    order: VecDeque<u64>,
    /// What of the connections that are denied was not reset when that was last tried, for people.
    pub(in crate::daemon) not_reset: Vec<String>,
}

/// A network namespace of units' own.
struct Namespace {
    /// Keeps the namespace alive.
    diagnosis: SocketDiagnosis,
    /// The confined cgroups whose units attached in it, and their instances.
    cgroups: BTreeMap<u64, InstanceIndex>,
}

impl Connections {
    pub(in crate::daemon) fn new() -> io::Result<Self> {
        let own = SocketDiagnosis::open()?;
        let namespace = own.namespace()?;
        let (others, children) = (BTreeMap::new(), HashMap::new());
        Ok(Self { own, namespace, others, children, order: VecDeque::new(), not_reset: vec![] })
    }

    /// The user of the socket that asked an instance's resolver at this port of loopback; `None`: it is gone, or the kernel does not say.
    pub(in crate::daemon) fn user_of(&self, source: SocketAddr, port: u16) -> Option<u32> {
        self.own.user_of(source, SocketAddr::new(loopback(source.ip()), port)).ok().flatten()
    }

    /// The diagnoses of every namespace.
    pub(super) fn diagnoses(&self) -> impl Iterator<Item = &SocketDiagnosis> {
        std::iter::once(&self.own).chain(self.others.values().map(|namespace| &namespace.diagnosis))
    }

    /// The diagnoses of the namespaces in which an instance has units.
    pub(super) fn diagnoses_of(&self, instance: u32) -> impl Iterator<Item = &SocketDiagnosis> {
        let its =
            move |namespace: &&Namespace| namespace.cgroups.values().any(|index| index.number() == instance);
        std::iter::once(&self.own)
            .chain(self.others.values().filter(its).map(|namespace| &namespace.diagnosis))
    }

    /// Keeps the diagnosis of the namespace in which a cgroup's unit attached. Returns whether that is another one than this
    /// process'.
    pub(super) fn keep(
        &mut self,
        namespace: u64,
        diagnosis: SocketDiagnosis,
        cgroup: u64,
        instance: InstanceIndex,
    ) -> bool {
        if namespace == self.namespace {
            return false;
        }
        let place = self.others.entry(namespace);
        place.or_insert(Namespace { diagnosis, cgroups: BTreeMap::new() }).cgroups.insert(cgroup, instance);
        true
    }

    /// Lets go of the namespaces of cgroups that are not `there`.
    pub(super) fn retain(&mut self, there: impl Fn(u64) -> bool) {
        self.others.retain(|_, namespace| {
            namespace.cgroups.retain(|cgroup, _| there(*cgroup));
            !namespace.cgroups.is_empty()
        });
    }

    /// The cgroups that were seen below an instance's.
    pub(super) fn children_of(&self, instance: InstanceIndex) -> impl Iterator<Item = u64> {
        self.children.iter().filter(move |(_, index)| **index == instance).map(|(id, _)| *id)
    }

    pub(super) fn knows_namespace_of(&self, cgroup: u64) -> bool {
        self.others.values().any(|namespace| namespace.cgroups.contains_key(&cgroup))
    }

    /// Remembers a cgroup below a confined one of an instance.
    pub(super) fn remember(&mut self, child: u64, instance: InstanceIndex) {
        if self.children.insert(child, instance).is_none() {
            self.order.push_back(child);
            if self.order.len() > CHILDREN
                && let Some(oldest) = self.order.pop_front()
            {
                self.children.remove(&oldest);
            }
        }
    }
}

/// The loopback address at which one of this family is reached.
fn loopback(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
