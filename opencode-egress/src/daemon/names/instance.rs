//! What is known of one instance's names.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    allowed::AllowedNames, denied::DeniedNames, questions::Questions, resolver::Told, servers::DeniedServers,
    sockets::ResolverSockets,
};
use crate::{
    control::learned::ToResolver,
    kernel::{instance::InstanceIndex, maps::boottime},
    policy::{
        InstanceName, Mode,
        compile::CompiledName,
        known::KnownNames,
        name::{DnsName, LearnedName},
    },
    report::status::NamesStatus,
};

/// What is known of one instance's names.
pub(in crate::daemon) struct InstanceNames {
    pub(in crate::daemon) name: InstanceName,
    /// The rules in force.
    pub(in crate::daemon) rules: Arc<[CompiledName]>,
    pub(in crate::daemon) mode: Mode,
    /// The second since boot at which that ends by itself.
    pub(super) audit_until: Option<u64>,
    pub(in crate::daemon) known: KnownNames,
    pub(in crate::daemon) sockets: ResolverSockets,
    pub(in crate::daemon) questions: Questions,
    pub(super) denied: DeniedNames,
    pub(super) allowed: AllowedNames,
    /// Servers that hellos named and that are not listed.
    pub(in crate::daemon) servers: DeniedServers,
    /// Addresses that only names brought which the last change of the policy dropped.
    pub(super) dropped: BTreeSet<IpAddr>,
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
            expired_lately: false,
        }
    }

    /// The name that brought an address, of those that were denied also where its time is long over.
    pub(in crate::daemon) fn name_of_denied(&self, address: IpAddr) -> Option<&DnsName> {
        self.denied.name_of(address).or_else(|| self.known.name_of(address))
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

    /// What the resolver is told of it, and the sockets that it is given.
    pub(super) fn told(&self, index: InstanceIndex) -> Told {
        let (mut names, mut leased) = (vec![], vec![]);
        for CompiledName { rule, until, .. } in self.rules.iter() {
            let pattern = rule.pattern().to_string();
            match until {
                Some(until) => leased.push((pattern, *until)),
                None => names.push(pattern),
            }
        }
        let message = ToResolver::Instance {
            number: index.number(),
            names,
            leased,
            audit: self.mode == Mode::Audit,
            audit_until: self.audit_until,
        };
        let sockets = self.sockets.descriptors().filter_map(|socket| socket.try_clone_to_owned().ok());
        Told { message, sockets: sockets.collect() }
    }

    /// Whether a rule lists a name.
    pub(super) fn lists(&self, name: &DnsName) -> bool {
        self.rules.iter().any(|compiled| compiled.rule.pattern().matches(name))
    }
}
