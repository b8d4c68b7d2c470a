//! A network as the bits that it fixes.

use std::net::IpAddr;

use ipnet::IpNet;
use opencode_egress_common::abi::TrieKey;

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
    pub(crate) fn address(&self) -> IpAddr {
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

    pub(super) fn lease_key(&self) -> TrieKey {
        TrieKey::lease_prefix(&self.address().into(), self.len)
    }

    pub(super) fn key(&self) -> TrieKey {
        TrieKey::prefix(&self.address().into(), self.len)
    }
}
