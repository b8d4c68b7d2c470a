//! Tries of rules: made full, and set into the map of them, many in one system call.
//!
//! aya writes one entry a call. A policy can have 100,000 of them, and every call that changes a map of maps
//! waits until all programs that are running have ended, so a thousand policies would wait a thousand times.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use opencode_egress_common::abi::{Entry, TrieKey};

use crate::links::{bpf, number, owned};

// Commands of bpf(2).
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_UPDATE_BATCH: i32 = 26;

/// What a kernel says whose map of this type takes no batches: tries do since Linux 5.13, maps of maps since
/// 5.19.
const ENOTSUPP: i32 = 524;

/// A trie that no program sees yet.
pub(crate) struct NewTrie(OwnedFd);

impl NewTrie {
    /// A trie of these entries; no key comes twice.
    pub(crate) fn of(entries: &[(TrieKey, Entry)]) -> io::Result<Self> {
        let trie = Self::create(entries.len())?;
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        update(trie.0.as_fd(), &keys, &values)?;
        Ok(trie)
    }

    fn create(entries: usize) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            inner: u32,
            numa_node: u32,
            name: [u8; 16],
        }
        const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
        /// Tries must have it.
        const BPF_F_NO_PREALLOC: u32 = 1;
        #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
        let mut attr = Attr {
            map_type: BPF_MAP_TYPE_LPM_TRIE,
            key_size: size_of::<TrieKey>() as u32,
            value_size: size_of::<Entry>() as u32,
            max_entries: u32::try_from(entries.max(1)).unwrap_or(u32::MAX),
            flags: BPF_F_NO_PREALLOC,
            inner: 0,
            numa_node: 0,
            name: *b"RULES\0\0\0\0\0\0\0\0\0\0\0",
        };
        // SAFETY: the layout of BPF_MAP_CREATE, which points to nothing and returns a new descriptor.
        Ok(Self(unsafe { owned(bpf(BPF_MAP_CREATE, &mut attr)?)? }))
    }
}

/// Sets slots of the map of tries, and returns when every program that was running before has ended: the
/// kernel waits for them (`maybe_wait_bpf_programs`,
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c#L150>).
pub(crate) fn set(tries: BorrowedFd<'_>, slots: &[u32], values: &[&NewTrie]) -> io::Result<()> {
    let values: Vec<_> = values.iter().map(|trie| trie.0.as_raw_fd()).collect();
    update(tries, slots, &values)
}

/// Writes all pairs. When it fails some may be written.
fn update<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a value for every key");
    match update_batch(map, keys, values) {
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => {
            keys.iter().zip(values).try_for_each(|(key, value)| update_one(map, key, value))
        }
        result => result,
    }
}

fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        elem_flags: u64,
        flags: u64,
    }
    let mut attr = Attr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().addr() as u64,
        values: values.as_ptr().addr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map: number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the layout of BPF_MAP_UPDATE_BATCH; both arrays have `count` elements of the map's sizes, which
    // every caller's types are, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr)? };
    Ok(())
}

fn update_one<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Attr {
        map: number(map),
        padding: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value: std::ptr::from_ref(value).addr() as u64,
        flags: 0,
    };
    // SAFETY: the layout of BPF_MAP_UPDATE_ELEM; key and value are of the map's sizes, which every caller's
    // types are, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr)? };
    Ok(())
}
