//! From a policy to the map entries that it becomes.
//!
//! A longest-prefix match finds one entry, yet every rule that covers an address counts: deny over
//! allow, and the ports of a covering prefix under a longer one. So each prefix's entry already holds
//! what its covering prefixes say, merged here. An entry that would say the same as the one above it
//! is left out.

mod rules;

use std::{collections::HashMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use opencode_egress_common::{
    abi::{Entry, Grant, Head, Listener, MAX_LISTENERS, TrieKey},
    flow::{Address, Class},
};

pub use rules::CompiledRules;

use crate::policy::{Cidr, Listen, Policy, PortRange, Rule, RuleProtocol};

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
}

/// How many different port lists one policy can have.
pub const MAX_PORT_SETS: usize = (u16::MAX - Grant::FIRST_SET) as usize + 1;

/// What a policy becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// The part outside the trie.
    pub head: Head,
    /// The trie's entries; no key comes twice.
    pub entries: Vec<(TrieKey, Entry)>,
    /// How many different port lists are among them.
    pub port_sets: usize,
}

/// Compiles a policy.
///
/// # Errors
///
/// When it does not fit the maps.
pub fn compile(policy: &Policy) -> Result<CompiledPolicy, CompileError> {
    let mut compiler = Compiler::default();
    let mut prefixes: HashMap<Prefix, Vec<Shape>> = HashMap::new();
    let mut add = |net: IpNet, shape| prefixes.entry(Prefix::of(net)).or_default().push(shape);
    for (rules, kind) in [(&policy.allow, Kind::Allow), (&policy.deny, Kind::Deny)] {
        for rule in rules {
            add(rule.cidr().net(), Shape::of(rule, kind));
        }
    }
    for listen in &policy.listen {
        for net in own_networks(listen) {
            let ports = vec![PortRange::one(listen.port)];
            add(net, Shape { kind: Kind::Own, protocol: RuleProtocol::Tcp, ports });
        }
    }
    let mut prefixes: Vec<_> = prefixes.into_iter().collect();
    // A prefix sorts right before everything that it covers.
    prefixes.sort_unstable_by_key(|(prefix, _)| *prefix);
    let mut covering: Vec<(Prefix, usize)> = vec![];
    let mut entries = vec![];
    for (prefix, shapes) in prefixes {
        while covering.last().is_some_and(|(above, _)| !above.covers(&prefix)) {
            covering.pop();
        }
        let above = covering.last().map(|(_, effect)| *effect);
        let effect = compiler.merge(above, shapes)?;
        if above.is_none_or(|above| compiler.effects[above].entry != compiler.effects[effect].entry) {
            entries.push((prefix.key(), compiler.effects[effect].entry));
        }
        covering.push((prefix, effect));
    }
    let port_sets = compiler.sets.len();
    entries.extend(compiler.port_entries());
    Ok(CompiledPolicy { head: head(policy)?, entries, port_sets })
}

fn head(policy: &Policy) -> Result<Head, CompileError> {
    let mut head = Head { mode: policy.mode as u32, ..Head::default() };
    if policy.listen.len() > MAX_LISTENERS {
        return Err(CompileError::Listeners(policy.listen.len()));
    }
    for (slot, listen) in head.listeners.iter_mut().zip(&policy.listen) {
        let address = Address::from(listen.address);
        *slot = Listener {
            address: address.words(),
            family: address.family() as u16,
            port: listen.port,
            open: u32::from(listen.open),
        };
        head.listener_count += 1;
    }
    for rule in &policy.allow {
        let every = rule.protocol() == RuleProtocol::Any && rule.ports().is_empty();
        if every {
            head.other_can_speak = 1;
        }
        if (every || rule.protocol() == RuleProtocol::Icmp) && matches!(rule.cidr().net(), IpNet::V6(_)) {
            head.icmpv6_can_speak = 1;
        }
    }
    Ok(head)
}

/// The networks in which a connection to a listener's port is one to the instance itself. A wildcard
/// is reached by loopback; the host's other addresses take a rule.
fn own_networks(listen: &Listen) -> Vec<IpNet> {
    let loopback4 = IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
    let loopback6 = Cidr::host(std::net::Ipv6Addr::LOCALHOST.into()).net();
    match listen.address {
        IpAddr::V4(address) if address.is_unspecified() => vec![loopback4],
        IpAddr::V6(address) if address.is_unspecified() => vec![loopback4, loopback6],
        address => vec![Cidr::host(address).net()],
    }
}

/// A prefix, in the order in which covering ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    pub(crate) v6: bool,
    /// The address, in the upper bits.
    pub(crate) bits: u128,
    pub(crate) len: u8,
}

impl Prefix {
    pub(crate) fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(v4) => {
                Self { v6: false, bits: u128::from(v4.network().to_bits()) << 96, len: v4.prefix_len() }
            }
            IpNet::V6(v6) => Self { v6: true, bits: v6.network().to_bits(), len: v6.prefix_len() },
        }
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        self.v6 == other.v6 && self.len <= other.len && other.bits & mask == self.bits
    }

    /// The longest prefix that covers both, which are of one family.
    pub(crate) fn common(&self, other: &Self) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
        let equal = (self.bits ^ other.bits).leading_zeros() as u8;
        let len = equal.min(self.len).min(other.len);
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Self { v6: self.v6, bits: self.bits & mask, len }
    }

    /// The lowest address in it.
    fn address(&self) -> IpAddr {
        if self.v6 {
            IpAddr::V6(self.bits.into())
        } else {
            let [a, b, c, d, ..] = self.bits.to_be_bytes();
            IpAddr::from([a, b, c, d])
        }
    }

    pub(crate) fn net(&self) -> IpNet {
        IpNet::new_assert(self.address(), self.len)
    }

    fn key(&self) -> TrieKey {
        TrieKey::prefix(&self.address().into(), self.len)
    }
}

/// What says something about a port, the stronger later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Allow,
    Deny,
    /// The instance's own listener, which is no egress.
    Own,
}

/// A rule without its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    kind: Kind,
    protocol: RuleProtocol,
    ports: Vec<PortRange>,
}

impl Shape {
    fn of(rule: &Rule, kind: Kind) -> Self {
        Self { kind, protocol: rule.protocol(), ports: rule.ports().to_vec() }
    }
}

/// Ports and what is said of them: sorted, disjoint, neighbours different.
type Ports = Vec<(PortSpan, Kind)>;
/// First and last port.
type PortSpan = (u16, u16);

/// Everything that is said at a prefix.
struct Effect {
    classes: [Ports; 4],
    entry: Entry,
}

#[derive(Default)]
struct Compiler {
    effects: Vec<Effect>,
    /// Prefixes with the same rules under the same covering rules share an effect.
    known: HashMap<(Option<usize>, Vec<Shape>), usize>,
    sets: HashMap<Vec<(PortSpan, Grant)>, Grant>,
}

impl Compiler {
    fn merge(&mut self, above: Option<usize>, shapes: Vec<Shape>) -> Result<usize, CompileError> {
        let key = (above, shapes);
        if let Some(&effect) = self.known.get(&key) {
            return Ok(effect);
        }
        let mut classes = above.map_or_else(Default::default, |above| self.effects[above].classes.clone());
        for shape in &key.1 {
            let spoken_of = |class: &Class| shape.protocol.speaks_of(*class, shape.ports.is_empty());
            for class in Class::ALL.into_iter().filter(spoken_of) {
                let all = [PortRange::ALL];
                for range in if shape.ports.is_empty() { &all[..] } else { &shape.ports } {
                    let ports = &mut classes[class as usize];
                    *ports = overlay(ports, (range.first(), range.last()), shape.kind);
                }
            }
        }
        let mut entry = Entry::default();
        for class in Class::ALL {
            entry.grants[class as usize] = self.grant(&classes[class as usize])?;
        }
        let effect = self.effects.len();
        self.effects.push(Effect { classes, entry });
        self.known.insert(key, effect);
        Ok(effect)
    }

    fn grant(&mut self, ports: &Ports) -> Result<Grant, CompileError> {
        let granted = |kind| if kind == Kind::Deny { Grant::DENY } else { Grant::ALLOW };
        let mut set: Vec<(PortSpan, Grant)> = vec![];
        for &(span, kind) in ports {
            match set.last_mut() {
                Some((last, grant)) if *grant == granted(kind) && last.1.checked_add(1) == Some(span.0) => {
                    last.1 = span.1;
                }
                _ => set.push((span, granted(kind))),
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
            for &(span, grant) in set {
                for (port, len) in prefixes_of(span) {
                    entries.push((TrieKey::port_prefix(*number, port, len), Entry::uniform(grant)));
                }
            }
        }
        entries
    }
}

/// Lays a range over ports; where something is said already, the stronger kind stays.
fn overlay(ports: &Ports, (first, last): PortSpan, kind: Kind) -> Ports {
    // Cut points: every start, and one past every end.
    let spans = ports.iter().map(|(span, _)| *span).chain([(first, last)]);
    let mut cuts: Vec<u32> =
        spans.flat_map(|(first, last)| [u32::from(first), u32::from(last) + 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut result: Ports = vec![];
    for pair in cuts.windows(2) {
        let (Ok(from), Ok(to)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else { continue };
        let before = ports.iter().find(|((a, b), _)| *a <= from && from <= *b).map(|(_, kind)| *kind);
        let now = (first <= from && from <= last).then_some(kind);
        let Some(strongest) = before.max(now) else { continue };
        match result.last_mut() {
            Some((span, kind)) if *kind == strongest && span.1.checked_add(1) == Some(from) => span.1 = to,
            _ => result.push(((from, to), strongest)),
        }
    }
    result
}

/// The fewest prefixes that make up a port range.
fn prefixes_of((first, last): PortSpan) -> Vec<(u16, u8)> {
    let (mut from, end) = (u32::from(first), u32::from(last) + 1);
    let mut prefixes = vec![];
    while from < end {
        let mut bits = from.trailing_zeros().min(16);
        while from + (1 << bits) > end {
            bits -= 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 2^16, and at most 16")]
        prefixes.push((from as u16, 16 - bits as u8));
        from += 1 << bits;
    }
    prefixes
}

#[cfg(test)]
pub(crate) mod tests;
