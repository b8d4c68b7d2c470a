//! What answers for names brought to a policy.

use crate::flow::Address;

/// A name rule, by a hash of its text: the same in every policy that has the rule, and after a restart of the daemon. The uppermost bit is
/// not the hash's: it says whether what passes by the rule must open TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct NameRuleId(pub u64);

impl NameRuleId {
    /// The bit of a rule with `tls`.
    pub const TLS: u64 = 1 << 63;

    /// A rule with this hash.
    pub const fn of_rule(hash: u64, tls: bool) -> Self {
        Self(if tls { hash | Self::TLS } else { hash & !Self::TLS })
    }

    /// A lease of a network, by its number. Of a name's hash the upper half would have to be 1 to be the same.
    #[inline(always)]
    pub const fn of_lease(number: u32) -> Self {
        Self(1 << 32 | number as u64)
    }

    /// Whether a connection that passes by the rule must open TLS.
    #[inline(always)]
    pub const fn opens_tls(self) -> bool {
        self.0 & Self::TLS != 0
    }
}

/// An address that a name brought to a policy, as the key of [`Learned`]. It is of one generation: what the next policy still lists, it
/// has under its own before it is in force, and what it does not list is gone with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LearnedKey {
    /// The policy's generation.
    pub generation: u32,
    /// The instance's number in the upper half; below that the address's family, 4 or 6, and the number of the grant, a byte each.
    pub place: u32,
    /// Network byte order.
    pub address: [u32; 4],
}

impl LearnedKey {
    /// The key of an address under a grant's number, which is below [`MAX_NAME_GRANTS`].
    #[inline(always)]
    pub const fn new(instance: u32, generation: u32, grant: u32, address: &Address) -> Self {
        let place = instance << 16 | (address.family() as u32) << 8 | grant;
        Self { generation, place, address: address.words() }
    }

    /// The number of the instance.
    pub const fn instance(&self) -> u32 {
        self.place >> 16
    }
}

/// How long new flows to a learned address may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Learned {
    /// Seconds since boot, with the time that the machine was suspended (`CLOCK_BOOTTIME`): the first at which none may.
    pub until: u64,
    /// The rule by which it was learned, the last one where there are several.
    pub rule: NameRuleId,
}

/// Where a question for an instance's resolver came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AskerKey {
    /// The instance's number in the upper half, the port in the lower one.
    pub place: u32,
    /// 4 or 6.
    pub family: u32,
    /// Network byte order.
    pub address: [u32; 4],
}

impl AskerKey {
    /// The key of an address and port from which an instance asked.
    #[inline(always)]
    pub const fn new(instance: u32, address: &Address, port: u16) -> Self {
        Self {
            place: instance << 16 | port as u32,
            family: address.family() as u32,
            address: address.words(),
        }
    }
}

/// Who sent a question to an instance's resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Asker {
    /// The user id of its socket.
    pub user: u32,
    /// The process that gave the socket the address of a server; 0: unknown.
    pub pid: u32,
    /// That process' name, which ends at the first zero.
    pub comm: [u8; 16],
}

/// Of how many places that questions came from the kernel remembers who asked.
pub const MAX_ASKERS: u32 = 4096;

/// Learned addresses of all instances together.
pub const MAX_LEARNED: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_number_says_whether_it_has_tls() {
        for hash in [0, 1, u64::MAX >> 1, u64::MAX] {
            assert!(NameRuleId::of_rule(hash, true).opens_tls());
            assert!(!NameRuleId::of_rule(hash, false).opens_tls());
        }
        assert!(!NameRuleId::of_lease(u32::MAX).opens_tls());
    }

    /// A size that is the sum of the fields' sizes has no padding.
    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<LearnedKey>(), 4 + 4 + 16);
        assert_eq!(size_of::<Learned>(), 8 + 8);
        assert_eq!(size_of::<AskerKey>(), 4 + 4 + 16);
        assert_eq!(size_of::<Asker>(), 4 + 4 + 16);
    }
}
