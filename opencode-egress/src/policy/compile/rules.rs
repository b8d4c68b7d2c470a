//! A compiled policy's rules in user space: what the kernel's trie would answer, without a kernel.

use std::collections::HashMap;

use opencode_egress_common::{
    abi::{Entry, TrieKey},
    decide::Rules,
};

use crate::policy::compile::CompiledPolicy;

/// The entries of a compiled policy, to judge by.
pub struct CompiledRules(HashMap<TrieKey, Entry>);

impl CompiledPolicy {
    /// The rules, to judge by.
    pub fn rules(&self) -> CompiledRules {
        CompiledRules(self.entries.iter().copied().collect())
    }
}

/// Bits of a key's `space`, which every entry has in full.
const SPACE_BITS: u32 = 32;

impl Rules for CompiledRules {
    fn entry(&self, key: &TrieKey) -> Option<Entry> {
        let data = key.data.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
        (SPACE_BITS..=key.prefix_len).rev().find_map(|prefix_len| {
            let kept = data & u128::MAX.checked_shl(128 + SPACE_BITS - prefix_len).unwrap_or(0);
            #[expect(clippy::cast_possible_truncation, reason = "a word of it")]
            let data = [96, 64, 32, 0].map(|shift| ((kept >> shift) as u32).to_be());
            self.0.get(&TrieKey { prefix_len, space: key.space, data }).copied()
        })
    }
}
