//! Remembering an `Allow`: a cgroup's verdict cache.
//!
//! A slot holds one 64-bit tag of a flow that the current generation allows. It is written and read
//! as one word, so two contexts cannot tear it, and it needs no allocation. `Deny` is never
//! remembered: a wrong match could then only refuse, but so could a stale one, and denials are rare.
//!
//! The tag is a keyed hash of everything that the verdict depends on, the generation included, so a
//! policy change empties the cache by itself. A tag of one flow must not match another: the hash is
//! two independent multilinear hashes of 32-bit words, each strongly universal in its upper 32 bits
//! (Lemire and Kaser, "Strongly universal string hashing is fast", 2014,
//! <https://arxiv.org/abs/1202.4961>), so for any two flows the chance is 2^-64 over the keys. The keys
//! are random, made when the programs are loaded, and never leave the kernel's read-only data. Which
//! slot a tag goes to depends on the flow alone, not on the keys, so timing tells nothing of them.

use crate::{
    abi::CACHE_SLOTS,
    flow::{Family, Flow},
};

/// Words hashed at most: generation, protocol and port, four of address.
const WORDS: usize = 6;

/// Keys that [`tag`] needs: a constant and a factor for each word, twice.
pub const TAG_KEYS: usize = 2 * (1 + WORDS);

/// The tag of a flow under a generation; `key` gives the random keys, by index below [`TAG_KEYS`].
///
/// 0 stands for an empty slot and must not be stored.
#[inline(always)]
pub fn tag(flow: &Flow, generation: u32, key: impl Fn(usize) -> u64) -> u64 {
    let address = flow.address.words();
    // One word with the family, so that an IPv4 address and an IPv6 one with the same first word differ.
    let shape = (flow.address.family() as u32) << 24 | (flow.protocol.0 as u32) << 16 | flow.port as u32;
    let half = |base: usize| {
        let mut sum = key(base)
            .wrapping_add(key(base + 1).wrapping_mul(generation as u64))
            .wrapping_add(key(base + 2).wrapping_mul(shape as u64))
            .wrapping_add(key(base + 3).wrapping_mul(address[0] as u64));
        if let Family::V6 = flow.address.family() {
            sum = sum
                .wrapping_add(key(base + 4).wrapping_mul(address[1] as u64))
                .wrapping_add(key(base + 5).wrapping_mul(address[2] as u64))
                .wrapping_add(key(base + 6).wrapping_mul(address[3] as u64));
        }
        sum
    };
    (half(0) & 0xffff_ffff_0000_0000) | (half(1 + WORDS) >> 32)
}

/// The slot of a flow, below [`CACHE_SLOTS`].
#[inline(always)]
pub fn slot(flow: &Flow) -> usize {
    let words = flow.address.words();
    // Fibonacci hashing: the upper bits of a product with 2^32 divided by the golden ratio.
    const GOLDEN: u32 = 0x9e37_79b1;
    let folded = words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3];
    let mixed = (folded ^ (flow.port as u32) << 8 ^ flow.protocol.0 as u32).wrapping_mul(GOLDEN);
    (mixed >> (32 - CACHE_SLOTS.ilog2())) as usize & (CACHE_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{Address, Protocol};

    /// Keys of a fixed, odd-looking sequence (SplitMix64).
    fn key(index: usize) -> u64 {
        let mut z = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn flows() -> impl Strategy<Value = (Flow, u32)> {
        let address = prop_oneof![
            any::<u32>().prop_map(Address::v4),
            any::<[u32; 4]>().prop_map(Address::v6),
            (0..4_u32).prop_map(Address::v4),
            (0..4_u32).prop_map(|word| Address::v6([word, 0, 0, 0])),
        ];
        (address, any::<u8>(), 0..4_u16, 0..4_u32).prop_map(|(address, protocol, port, generation)| {
            let protocol = Protocol(protocol);
            (Flow { address, protocol, port }, generation)
        })
    }

    proptest! {
        #[test]
        fn different_flows_have_different_tags(a in flows(), b in flows()) {
            prop_assert_eq!(a == b, tag(&a.0, a.1, key) == tag(&b.0, b.1, key));
        }
    }

    /// How often each slot is that of one of so many neighbours.
    fn hits(neighbours: u16) -> [usize; CACHE_SLOTS] {
        let mut hits = [0; CACHE_SLOTS];
        for neighbour in 0..neighbours {
            let [upper, lower] = neighbour.to_be_bytes();
            let address = IpAddr::from([10, 1, upper, lower]).into();
            hits[slot(&Flow { address, protocol: Protocol::TCP, port: 443 })] += 1;
        }
        hits
    }

    #[test]
    fn neighbours_spread_over_the_slots() {
        let used = hits(256).into_iter().filter(|hits| *hits > 0).count();
        assert!(used > CACHE_SLOTS / 2, "{used} slots for 256 neighbours");
    }

    /// [`slot`] masks its result for the verifier, so a wrong shift cannot leave the range; it leaves slots unused.
    #[test]
    fn no_slot_is_left_unused() {
        assert_eq!(hits(u16::MAX).iter().position(|hits| *hits == 0), None, "a slot that no flow goes to");
    }
}
