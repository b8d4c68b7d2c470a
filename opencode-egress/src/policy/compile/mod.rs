//! From a policy to the map entries that it becomes.
//!
//! A longest-prefix match finds one entry, yet every rule that covers an address counts: deny over
//! allow, and the ports of a covering prefix under a longer one. So each prefix's entry already holds
//! what its covering prefixes say, merged here. An entry that would say the same as the one above it
//! is left out.

mod leases;
mod names;
mod ports;
mod prefix;
mod rules;

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;
use opencode_egress_common::{
    abi::{Entry, Grant, Listener, MAX_LISTENERS, MAX_NAME_GRANTS, PolicyHeader, TrieKey},
    flow::{Address, Class},
};

pub use names::CompiledName;
use ports::{PortSpan, Ports, Said, prefixes_of};
pub(crate) use prefix::Prefix;
pub use rules::CompiledRules;

use crate::policy::{
    Cidr, Errno, Listen, Loopback, Mode, Policy, PortRange, Rule, RuleProtocol, lease::kernel_seconds,
};

/// Why a policy does not fit the maps.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// Too many different port lists.
    #[error(
        "the policy has more than {MAX_PORT_SETS} different combinations of ports; use fewer, or wider ranges"
    )]
    PortSets,
    /// Too many listeners.
    #[error("the policy has {0} listeners; at most {MAX_LISTENERS} are possible")]
    Listeners(usize),
    /// Too many different combinations in rules for names.
    #[error(
        "the policy's rules for names have more than {MAX_NAME_GRANTS} different combinations of protocol, ports and `tls`; let names share them, as in `github.com:22,443` and `gitlab.com:22,443`"
    )]
    NameGrants,
}

/// How many different port lists one policy can have.
pub const MAX_PORT_SETS: usize = (u16::MAX - Grant::FIRST_SET) as usize + 1;

/// What a policy becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// The part outside the trie.
    pub header: PolicyHeader,
    /// The trie's entries; no key comes twice.
    pub entries: Vec<(TrieKey, Entry)>,
    /// How many different port lists are among them.
    pub port_sets: usize,
    /// The rules for names.
    pub names: Vec<CompiledName>,
}

/// Compiles a policy.
///
/// # Errors
///
/// When it does not fit the maps.
pub fn compile(policy: &Policy) -> Result<CompiledPolicy, CompileError> {
    let own: Vec<_> = policy.listen.iter().flat_map(own_rules).collect();
    let by = |kind| move |rule| (rule, kind);
    let allow = policy.allow.iter().map(by(Said::ALLOW));
    let deny = policy.deny.iter().map(by(Said::DENY));
    let mut said: Vec<(&Rule, Said)> = allow.chain(deny).chain(own.iter().map(by(Said::OWN))).collect();
    let prefix_of = |(rule, _): &(&Rule, Said)| Prefix::of(rule.cidr().net());
    // A prefix sorts right before everything that it covers.
    said.sort_by_key(prefix_of);
    let mut compiler = Compiler::default();
    let mut covering: Vec<(Prefix, usize)> = vec![];
    let mut entries = vec![];
    for said in said.chunk_by(|one, next| prefix_of(one) == prefix_of(next)) {
        let prefix = prefix_of(&said[0]);
        let bodies = said.iter().map(|(rule, kind)| RuleBody::of(rule, *kind)).collect();
        while covering.last().is_some_and(|(above, _)| !above.covers(&prefix)) {
            covering.pop();
        }
        let above = covering.last().map(|(_, effect)| *effect);
        let effect = compiler.merge(above, bodies)?;
        if above.is_none_or(|above| compiler.effects[above].entry != compiler.effects[effect].entry) {
            entries.push((prefix.key(), compiler.effects[effect].entry));
        }
        covering.push((prefix, effect));
    }
    let (names, name_grants) = compiler.names(policy.all_names(), &mut entries)?;
    compiler.leases(&policy.leased, &names, &mut entries)?;
    let port_sets = compiler.sets.len();
    entries.extend(compiler.port_entries());
    let header = PolicyHeader { name_grants, ..header(policy)? };
    Ok(CompiledPolicy { header, entries, port_sets, names })
}

/// What a listener says of the instance's own connections to it.
fn own_rules(listen: &Listen) -> impl Iterator<Item = Rule> {
    let ports: Arc<[_]> = [PortRange::one(listen.port)].into();
    let own =
        move |net| Rule::new(Cidr::from(net), RuleProtocol::Tcp, Arc::clone(&ports)).expect("TCP has ports");
    listen.own_networks().map(own)
}

fn header(policy: &Policy) -> Result<PolicyHeader, CompileError> {
    let mut header = PolicyHeader {
        mode: policy.mode as u32,
        own_loopback: u32::from(policy.loopback == Loopback::Own),
        own_mark: if policy.loopback == Loopback::Own { policy.loopback_mark } else { 0 },
        max_sockets: policy.max_sockets,
        leased: u32::from(!policy.leased.rules.is_empty() || !policy.leased.ended.is_empty()),
        audit_until: policy.leased.audit.map_or(0, kernel_seconds),
        ..PolicyHeader::default()
    };
    // What passes in audit mode gets no error.
    if policy.errno != Errno::default() && (policy.mode == Mode::Enforce || policy.leased.audit.is_some()) {
        header.errno = policy.errno.number().unsigned_abs();
    }
    if policy.listen.len() > MAX_LISTENERS {
        return Err(CompileError::Listeners(policy.listen.len()));
    }
    for (slot, listen) in header.listeners.iter_mut().zip(&policy.listen) {
        let address = Address::from(listen.address);
        *slot = Listener {
            address: address.words(),
            family: address.family() as u16,
            port: listen.port,
            open: u32::from(listen.open),
        };
        header.listener_count += 1;
    }
    for rule in &policy.allow {
        let every = rule.protocol() == RuleProtocol::Any && rule.ports().is_empty();
        if every {
            header.other_can_speak = 1;
        }
        if (every || rule.protocol() == RuleProtocol::Icmp) && matches!(rule.cidr().net(), IpNet::V6(_)) {
            header.icmpv6_can_speak = 1;
        }
    }
    Ok(header)
}

/// A rule without its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RuleBody {
    said: Said,
    protocol: RuleProtocol,
    ports: Arc<[PortRange]>,
}

impl RuleBody {
    fn of(rule: &Rule, said: Said) -> Self {
        Self { said, protocol: rule.protocol(), ports: Arc::clone(&rule.ports) }
    }
}

/// Everything that is said at a prefix.
struct Effect {
    classes: [Ports; 4],
    entry: Entry,
}

#[derive(Default)]
struct Compiler {
    effects: Vec<Effect>,
    /// Prefixes with the same rules under the same covering rules share an effect.
    known: HashMap<(Option<usize>, Vec<RuleBody>), usize>,
    sets: HashMap<Vec<(PortSpan, Grant)>, Grant>,
}

impl Compiler {
    fn merge(&mut self, above: Option<usize>, bodies: Vec<RuleBody>) -> Result<usize, CompileError> {
        let key = (above, bodies);
        if let Some(&effect) = self.known.get(&key) {
            return Ok(effect);
        }
        let classes = Class::ALL.map(|class| {
            let inherited =
                above.iter().flat_map(|above| &self.effects[*above].classes[class as usize]).copied();
            let spoken_of = |body: &&RuleBody| body.protocol.speaks_of(class, body.ports.is_empty());
            let own = key.1.iter().filter(spoken_of).flat_map(|body| {
                let ranges = if body.ports.is_empty() { &[PortRange::ALL][..] } else { &body.ports };
                ranges.iter().map(|range| ((range.first(), range.last()), body.said))
            });
            ports::merge(inherited.chain(own))
        });
        let entry = self.entry(&classes)?;
        let effect = self.effects.len();
        self.effects.push(Effect { classes, entry });
        self.known.insert(key, effect);
        Ok(effect)
    }

    fn entry(&mut self, classes: &[Ports; 4]) -> Result<Entry, CompileError> {
        let mut entry = Entry::default();
        for class in Class::ALL {
            entry.grants[class as usize] = self.grant(&classes[class as usize])?;
        }
        Ok(entry)
    }

    fn grant(&mut self, ports: &Ports) -> Result<Grant, CompileError> {
        let mut set: Vec<(PortSpan, Grant)> = vec![];
        for &(span, said) in ports {
            match set.last_mut() {
                Some((last, grant)) if *grant == said.grant() && last.1.checked_add(1) == Some(span.0) => {
                    last.1 = span.1;
                }
                _ => set.push((span, said.grant())),
            }
        }
        match set[..] {
            [] => Ok(Grant::NONE),
            [((0, u16::MAX), grant)] => Ok(grant),
            _ => {
                let next = u16::try_from(usize::from(Grant::FIRST_SET) + self.sets.len())
                    .map_err(|_| CompileError::PortSets)?;
                Ok(*self.sets.entry(set).or_insert(Grant(next)))
            }
        }
    }

    /// The port sets, each range as the prefixes that make it up.
    fn port_entries(&self) -> Vec<(TrieKey, Entry)> {
        let mut entries = vec![];
        for (set, number) in &self.sets {
            let some_port_is_allowed = set.iter().any(|(_, grant)| *grant == Grant::ALLOW);
            entries.push((TrieKey::port_prefix(*number, 0, 0), Entry::rest_of_set(some_port_is_allowed)));
            for &(span, grant) in set {
                for (port, len) in prefixes_of(span) {
                    entries.push((TrieKey::port_prefix(*number, port, len), Entry::uniform(grant)));
                }
            }
        }
        entries
    }
}

#[cfg(test)]
pub(crate) mod tests;
