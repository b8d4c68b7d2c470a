//! The layouts that cross the kernel boundary.
//!
//! Every type here is `repr(C)` without padding, so that no uninitialised byte leaves the kernel.
//! Numbers are in host byte order unless their name or comment says otherwise.

mod caller;
mod counters;
mod learned;
mod records;
mod sockets;
mod tls;

pub use caller::{
    CGROUP_BYTES, CalledEvent, Caller, CallerLayout, EXE_BYTES, LONGEST_FILE_NAME, VIA_NAMES, WORK_WORDS,
};
pub use counters::{Counter, Counters, Denied};
pub use learned::{Asker, AskerKey, Learned, LearnedKey, MAX_ASKERS, MAX_LEARNED, NameRuleId};
pub use records::{DestinationDenials, DestinationKey, Event, Limits, Reset, Taken};
pub use sockets::{CountedSocket, SocketCount, SocketSlot};
pub use tls::{GreetedEvent, NAMED_SOCKET_BYTES};

use crate::flow::{Address, Class, Family};

/// The version of everything in this module. A change of any layout, map or program name raises it, and gives the map
/// that it is in another size or another name: of another version's pins, a daemon takes over what it finds under a name that
/// it knows and in the shape that it knows.
pub const ABI_VERSION: u32 = 6;

/// How many instances the maps can hold. Index 0 means "no instance".
pub const MAX_INSTANCES: u32 = 2048;

/// Two policy slots for an instance: the current one, and the one that the next change fills.
pub const MAX_POLICIES: u32 = MAX_INSTANCES * 2;

/// How many listeners one policy can have.
pub const MAX_LISTENERS: usize = 16;

/// How many cgroups can be confined: an instance has one for each unit, and those of earlier starts that have sockets left.
pub const MAX_CONFINED: u32 = 1 << 14;

/// How many ports the listeners of all policies can have.
pub const MAX_LISTED_PORTS: u32 = 1 << 15;
const _: () = assert!(MAX_LISTED_PORTS as usize == MAX_INSTANCES as usize * MAX_LISTENERS);

/// Verdicts that one cgroup remembers. With [`ConfinedCgroup::instance`] they stay below a page, which is what
/// Linux before 5.11 allows for a cgroup storage value.
pub const CACHE_SLOTS: usize = 256;

/// Room for drop reasons in [`Denied`]; reasons' numbers are below it.
pub const REASON_SLOTS: usize = 32;

/// Denials that are remembered and whose repeats are folded, over all instances.
pub const MAX_DESTINATIONS: u32 = 128 * MAX_INSTANCES;

/// How many of them one instance may have.
pub const DESTINATIONS_SHARE: u64 = 1024;

/// Sockets that an instance may have open where nothing else is said: enough for a server with its language servers, and a small
/// part of the 28,232 ephemeral ports that a host has by default (`ip_local_port_range`, ip(7)).
pub const DEFAULT_MAX_SOCKETS: u32 = 4096;

/// Slots for sockets that are counted; a power of two.
/// One of a socket that is closed while no program is attached to its cgroup (`detach`) stays taken; a socket that finds its slot so has
/// its own storage say what a slot would.
pub const SOCKET_SLOTS: u32 = 16 * 1024;

/// Size of the ring buffer of denied flows, in bytes.
pub const RING_BYTES: u32 = 2 * 1024 * 1024;

/// Size of the ring buffer of sockets to be reset, in bytes.
pub const RESET_RING_BYTES: u32 = 64 * 1024;

/// A key of a policy's trie: an address of a family, or a port of a port set.
///
/// The `space` comes first in the prefix, so the families and the port sets are separate subtrees.
/// The kernel wants `prefix_len` in host byte order and the rest as bytes in order of significance:
/// <https://docs.kernel.org/bpf/map_lpm_trie.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TrieKey {
    /// Significant bits of `space` and `data` together.
    pub prefix_len: u32,
    /// Family number, or [`PORT_SPACE`] and the set's number; network byte order.
    pub space: u32,
    /// The address, or the port in the first two bytes; network byte order.
    pub data: [u32; 4],
}

/// Set in [`TrieKey::space`] for a port set.
pub const PORT_SPACE: u32 = 0x1_0000;

/// [`TrieKey::space`] of the grants of name rules.
pub const NAME_GRANT_SPACE: u32 = 0x2_0000;

/// [`TrieKey::space`] of name rules.
pub const NAME_RULE_SPACE: u32 = 0x3_0000;

/// Set in [`TrieKey::space`], beside the family, for the networks of leases.
pub const LEASE_SPACE: u32 = 0x4_0000;

/// How many different combinations of protocol and ports the name rules of one policy can have. Each costs a flow that no network
/// rule allows two look-ups, at its first packet.
pub const MAX_NAME_GRANTS: u32 = 8;

/// The ports of the instances' resolvers, on loopback, both included. Each instance reaches its own and no other's, whatever its rules
/// say of loopback.
pub const RESOLVER_PORTS: (u16, u16) = (22528, 24575);

const SPACE_BITS: u32 = 32;

impl TrieKey {
    /// The key of the first `len` bits of an address.
    #[inline(always)]
    pub const fn prefix(address: &Address, len: u8) -> Self {
        Self {
            prefix_len: SPACE_BITS + len as u32,
            space: (address.family() as u32).to_be(),
            data: address.words(),
        }
    }

    /// The key that looks up an address.
    #[inline(always)]
    pub const fn address(address: &Address) -> Self {
        let bits = match address.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        Self::prefix(address, bits)
    }

    /// The key of the first `len` bits of a port in a port set.
    #[inline(always)]
    pub const fn port_prefix(set: Grant, port: u16, len: u8) -> Self {
        Self {
            prefix_len: SPACE_BITS + len as u32,
            space: (PORT_SPACE | set.0 as u32).to_be(),
            data: [((port as u32) << 16).to_be(), 0, 0, 0],
        }
    }

    /// The key of what name rules with one combination of protocol and ports allow.
    #[inline(always)]
    pub const fn name_grant(number: u32) -> Self {
        Self { prefix_len: SPACE_BITS + 32, space: NAME_GRANT_SPACE.to_be(), data: [number.to_be(), 0, 0, 0] }
    }

    /// The key of what one name rule allows.
    #[inline(always)]
    pub const fn name_rule(rule: NameRuleId) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (upper, lower) = ((rule.0 >> 32) as u32, rule.0 as u32);
        Self {
            prefix_len: SPACE_BITS + 64,
            space: NAME_RULE_SPACE.to_be(),
            data: [upper.to_be(), lower.to_be(), 0, 0],
        }
    }

    /// The key of the first `len` bits of an address among the networks of leases.
    #[inline(always)]
    pub const fn lease_prefix(address: &Address, len: u8) -> Self {
        Self { space: (LEASE_SPACE | address.family() as u32).to_be(), ..Self::prefix(address, len) }
    }

    /// The key that looks up an address among the networks of leases.
    #[inline(always)]
    pub const fn lease(address: &Address) -> Self {
        Self { space: (LEASE_SPACE | address.family() as u32).to_be(), ..Self::address(address) }
    }

    /// The key that looks up a port in a port set.
    #[inline(always)]
    pub const fn port(set: Grant, port: u16) -> Self {
        Self::port_prefix(set, port, 16)
    }
}

/// What the rules that cover a prefix say to one class of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Grant(pub u16);

impl Grant {
    /// Nothing: no rule speaks of this class here.
    pub const NONE: Self = Self(0);
    /// Allowed, on every port.
    pub const ALLOW: Self = Self(1);
    /// Denied by a rule, on every port.
    pub const DENY: Self = Self(2);
    /// Of a port in a port set: a listener of the instance's has it, and no rule speaks of it. Allowed where the socket that would take
    /// the connection is the instance's own.
    pub const OWN: Self = Self(3);
    /// Like [`Grant::OWN`], and a rule denies it otherwise.
    pub const OWN_OVER_DENY: Self = Self(4);
    /// The first number that names a port set.
    pub const FIRST_SET: u16 = 5;
}

/// The value at a prefix: one [`Grant`] for each [`Class`], with everything that the covering
/// prefixes say already merged in, so that one lookup answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C, align(8))]
pub struct Entry {
    /// Indexed by [`Class`].
    pub grants: [Grant; 4],
}

impl Entry {
    /// The same grant for every class; what the entries of a port set have.
    pub const fn uniform(grant: Grant) -> Self {
        Self { grants: [grant; 4] }
    }

    /// What a port set has for the ports of which it says nothing: nothing, and whether it allows any.
    pub const fn rest_of_set(some_port_is_allowed: bool) -> Self {
        let some = if some_port_is_allowed { Grant::ALLOW } else { Grant::NONE };
        Self { grants: [Grant::NONE, some, Grant::NONE, Grant::NONE] }
    }

    /// This, of name rules by which a connection must open TLS to a listed server. They speak of TCP and UDP alone, so that there
    /// is room to say it in.
    pub const fn with_tls(mut self) -> Self {
        self.grants[Class::Other as usize] = Grant::ALLOW;
        self
    }

    /// Whether this is of such rules.
    #[inline(always)]
    pub const fn is_tls(&self) -> bool {
        self.grants[Class::Other as usize].0 == Grant::ALLOW.0
    }

    /// Whether this is of a port set that allows some port.
    #[inline(always)]
    pub const fn some_port_is_allowed(&self) -> bool {
        self.grants[1].0 == Grant::ALLOW.0
    }

    /// What the port set of a lease's networks has for a port: the number of the lease that lasts longest there, and the first second
    /// since boot (`CLOCK_BOOTTIME`) at which nothing new may begin by it.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub const fn of_lease(until: u32, number: u32) -> Self {
        let grants = [(until >> 16) as u16, until as u16, (number >> 16) as u16, number as u16];
        Self { grants: [Grant(grants[0]), Grant(grants[1]), Grant(grants[2]), Grant(grants[3])] }
    }

    /// The time and the number of [`Entry::of_lease`].
    #[inline(always)]
    pub const fn lease(&self) -> (u32, u32) {
        let [a, b, c, d] = self.grants;
        ((a.0 as u32) << 16 | b.0 as u32, (c.0 as u32) << 16 | d.0 as u32)
    }

    /// The grant for a class.
    #[inline(always)]
    pub const fn grant(&self, class: Class) -> Grant {
        self.grants[class as usize]
    }
}

/// Whether a verdict is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// A `Deny` refuses.
    Enforce = 0,
    /// A `Deny` is reported and passes.
    Audit = 1,
}

/// A listener of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Listener {
    /// The address, normalised; network byte order; all zeros is the family's wildcard.
    pub address: [u32; 4],
    /// 4 or 6.
    pub family: u16,
    /// The port.
    pub port: u16,
    /// 1 where peers beyond loopback may connect.
    pub open: u32,
}

/// The part of a compiled policy that is not in its trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyHeader {
    /// A [`Mode`].
    pub mode: u32,
    /// Some rule lets ICMPv6 pass: 1. Otherwise such sockets are refused at creation.
    pub icmpv6_can_speak: u32,
    /// Some rule lets [`Class::Other`] pass: 1. Otherwise such sockets are refused at creation.
    pub other_can_speak: u32,
    /// How many grants name rules have: numbers below this are keys of the trie. 0: the policy has no name rules.
    pub name_grants: u32,
    /// The port of the instance's resolver on loopback; 0 where there is none.
    pub resolver_port: u32,
    /// The bit of a socket's mark that the second lock lets flows by name pass by; 0 for none.
    pub mark: u32,
    /// 1: what the instance sends to itself over loopback needs no rule.
    pub own_loopback: u32,
    /// The bit of a socket's mark that the second lock lets own loopback pass by; 0 for none.
    pub own_mark: u32,
    /// How many of `listeners` count.
    pub listener_count: u32,
    /// How many sockets the instance may have open, of those that it made.
    pub max_sockets: u32,
    /// The policy has name rules by which TLS is followed: 1. Then it has a trie of the servers that they list.
    pub tls: u32,
    /// The listeners.
    pub listeners: [Listener; MAX_LISTENERS],
    /// The error that a denied call gets instead of `EPERM`; 0 for that.
    pub errno: u32,
    /// 1: something may pass, or go on, by a lease.
    pub leased: u32,
    /// With [`Mode::Audit`]: the first second since boot (`CLOCK_BOOTTIME`) at which verdicts are enforced all the same; 0 for never.
    pub audit_until: u32,
}

impl Default for PolicyHeader {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce as u32,
            icmpv6_can_speak: 0,
            other_can_speak: 0,
            name_grants: 0,
            resolver_port: 0,
            mark: 0,
            own_loopback: 0,
            own_mark: 0,
            listener_count: 0,
            max_sockets: DEFAULT_MAX_SOCKETS,
            tls: 0,
            listeners: [Listener::default(); MAX_LISTENERS],
            errno: 0,
            leased: 0,
            audit_until: 0,
        }
    }
}

/// Which policy is in force for an instance: one 64-bit word, so that a change is one store and a
/// reader sees the old policy or the new one, whole.
///
/// Upper half: the generation. Lower half: the policy slot, 0 for none, and whether the policy has names. All zeros: no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Current(pub u64);

impl Current {
    /// [`PolicyHeader::has_names`] of the policy, or of one before it: the programs know it before they look at that.
    const NAMES: u64 = 1 << 31;

    /// `generation` is in force, from `slot`, which is below 2^31.
    pub const fn new(generation: u32, slot: u32) -> Self {
        Self((generation as u64) << 32 | slot as u64)
    }

    /// The same of an instance that has names, or not.
    pub const fn with_names(self, has_names: bool) -> Self {
        Self(if has_names { self.0 | Self::NAMES } else { self.0 & !Self::NAMES })
    }

    /// Whether a flow that no rule for networks allows may pass, by a name rule or by a lease; or might under an earlier policy, so that a
    /// socket may remember one.
    #[inline(always)]
    pub const fn has_names(self) -> bool {
        self.0 & Self::NAMES != 0
    }

    /// The generation.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The policy slot; 0 when there is no policy.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the slot is in the lower half")]
        let slot = (self.0 & !Self::NAMES) as u32;
        slot
    }
}

/// What one confined cgroup has: its instance and the verdicts it remembers.
///
/// A new one is all zeros, which is "no instance": everything is denied.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConfinedCgroup {
    /// Index into the instances; 0 is none.
    pub instance: u32,
    /// Denials of this cgroup's sockets and processes. It may start again from 0; only that it grows says something.
    pub denials: u32,
    /// How deep below the root of its hierarchy the cgroup is, as the programs found out; 0 where they have not yet.
    pub level: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
    /// [`crate::cache`] tags; 0 is empty.
    pub cache: [u64; CACHE_SLOTS],
}

impl ConfinedCgroup {
    /// The scope of a cgroup of `instance`, with nothing remembered.
    pub const fn new(instance: u32) -> Self {
        Self { instance, denials: 0, level: 0, reserved: 0, cache: [0; CACHE_SLOTS] }
    }
}

#[cfg(test)]
mod tests;
