//! What leases become. Those of networks are entries of their own, with their times: the kernel asks them where the rules deny, so that
//! each ends by itself. What names they let pass is compiled with the others; see `names`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use opencode_egress_common::{
    abi::{Entry, Grant, TrieKey},
    flow::Class,
};

use crate::policy::{
    AnyRule, PortRange, Rule,
    compile::{
        CompileError, CompiledName, Compiler,
        ports::{PortSpan, prefixes_of},
        prefix::Prefix,
    },
    lease::{Leased, LeasedRule, kernel_seconds},
};

/// Ports, and the lease that lasts longest there: its time and its number.
type LeasedPorts = Vec<(PortSpan, (u32, u32))>;

impl Compiler {
    /// Adds the entries of leases.
    pub(super) fn leases(
        &mut self,
        leased: &Leased,
        names: &[CompiledName],
        entries: &mut Vec<(TrieKey, Entry)>,
    ) -> Result<(), CompileError> {
        // By these a flow that began goes on, whatever its address; rules for names that are in force have theirs.
        let mut ids: BTreeSet<_> = names.iter().map(|name| name.id).collect();
        for rule in leased.all() {
            if ids.insert(rule.id()) {
                let entry = match rule.rule() {
                    AnyRule::Name(name) => self.entry_of_name(name)?,
                    AnyRule::Network(rule) => self.entry_for(rule.ports(), |class| is_leased(rule, class))?,
                };
                entries.push((TrieKey::name_rule(rule.id()), entry));
            }
        }
        let networks: Vec<_> = leased.rules.iter().filter_map(Network::of).collect();
        let prefixes: BTreeSet<_> = networks.iter().map(|network| network.prefix).collect();
        let mut sets: HashMap<LeasedPorts, Grant> = HashMap::new();
        for prefix in prefixes {
            let mut entry = Entry::default();
            for class in [Class::Tcp, Class::Udp] {
                let covering = networks
                    .iter()
                    .filter(|network| network.prefix.covers(&prefix) && is_leased(network.rule, class));
                let ports = merge(covering);
                if ports.is_empty() {
                    continue;
                }
                let next = usize::from(Grant::FIRST_SET) + self.sets.len() + sets.len();
                let next = Grant(u16::try_from(next).map_err(|_| CompileError::PortSets)?);
                let set = *sets.entry(ports).or_insert(next);
                entry.grants[class as usize] = set;
            }
            entries.push((prefix.lease_key(), entry));
        }
        for (ports, set) in sets {
            for (span, (until, number)) in ports {
                let entry = Entry::of_lease(until, number);
                entries.extend(
                    prefixes_of(span)
                        .into_iter()
                        .map(|(port, len)| (TrieKey::port_prefix(set, port, len), entry)),
                );
            }
        }
        Ok(())
    }
}

/// A lease of a network.
struct Network<'a> {
    rule: &'a Rule,
    prefix: Prefix,
    lease: (u32, u32),
}

impl<'a> Network<'a> {
    fn of(leased: &'a LeasedRule) -> Option<Self> {
        let AnyRule::Network(rule) = leased.rule.rule() else { return None };
        let net: IpNet = rule.cidr().net();
        Some(Self {
            rule,
            prefix: Prefix::of(net),
            lease: (kernel_seconds(leased.until), leased.rule.number()),
        })
    }
}

/// Whether a lease of a network is for a class of flows.
fn is_leased(rule: &Rule, class: Class) -> bool {
    matches!(class, Class::Tcp | Class::Udp) && rule.protocol().speaks_of(class, false)
}

/// Of each port the lease that lasts longest, by one pass over the sorted ends of their ranges.
fn merge<'a>(networks: impl Iterator<Item = &'a Network<'a>>) -> LeasedPorts {
    let mut ends = vec![];
    for network in networks {
        let ports = network.rule.ports();
        for range in if ports.is_empty() { &[PortRange::ALL][..] } else { ports } {
            ends.push((u32::from(range.first()), network.lease, true));
            ends.push((u32::from(range.last()) + 1, network.lease, false));
        }
    }
    ends.sort_unstable();
    let mut open: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    let (mut merged, mut from): (LeasedPorts, u32) = (vec![], 0);
    for (at, lease, begins) in ends {
        // Ports are below 2^16, and `at` is past the last of them.
        if let (Some((&longest, _)), Ok(first), Ok(last)) =
            (open.last_key_value(), u16::try_from(from), u16::try_from(i64::from(at) - 1))
            && first <= last
        {
            match merged.last_mut() {
                Some((span, lease)) if *lease == longest && span.1.checked_add(1) == Some(first) => {
                    span.1 = last
                }
                _ => merged.push(((first, last), longest)),
            }
        }
        let count = open.entry(lease).or_default();
        if begins {
            *count += 1;
        } else if *count > 1 {
            *count -= 1;
        } else {
            open.remove(&lease);
        }
        from = at;
    }
    merged
}
