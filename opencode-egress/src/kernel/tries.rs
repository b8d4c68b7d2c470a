//! The tries that hold instances' rules, and the servers that these list: making one with its entries, and putting tries into the map of tries, many in one
//! system call.
//!
//! aya writes one entry a call. A policy can have 100,000 of them, and every call that changes a map of maps
//! waits until all programs that are running have ended, so a thousand policies would wait a thousand times.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use crate::kernel::{
    elements::{Element, Partial, fill, update},
    syscall::{bpf, number, owned},
};

// Commands of bpf(2).
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_BTF_LOAD: i32 = 18;

/// Entries that are written in one system call.
const CHUNK: usize = 16 * 1024;

/// A trie that this process made. It outlives this descriptor where the map of tries has it.
pub(crate) struct NewTrie(OwnedFd);

impl NewTrie {
    /// A trie of these entries; no key comes twice. A key is the length of a prefix, in 32 bits, and its bytes.
    pub(crate) fn of<K: Copy, V: Copy>(entries: &[(K, V)]) -> io::Result<Self> {
        let trie = Self::create::<K, V>(entries.len())?;
        for chunk in entries.chunks(CHUNK) {
            let (keys, values): (Vec<_>, Vec<_>) = chunk.iter().copied().unzip();
            fill(trie.0.as_fd(), &keys, &values)?;
        }
        Ok(trie)
    }

    /// Another descriptor of the same trie.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    fn create<K, V>(entries: usize) -> io::Result<Self> {
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
            interface: u32,
            btf: u32,
            key_type: u32,
            value_type: u32,
        }
        const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
        /// The kernel makes no trie without this flag.
        const BPF_F_NO_PREALLOC: u32 = 1;
        let types = load_types::<K, V>()?;
        #[expect(clippy::cast_possible_truncation, reason = "some bytes")]
        let mut attr = Attr {
            map_type: BPF_MAP_TYPE_LPM_TRIE,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries: u32::try_from(entries.max(1)).unwrap_or(u32::MAX),
            flags: BPF_F_NO_PREALLOC,
            inner: 0,
            numa_node: 0,
            name: *b"RULES\0\0\0\0\0\0\0\0\0\0\0",
            interface: 0,
            btf: number(types.as_fd()),
            key_type: 1,
            value_type: 2,
        };
        // SAFETY: the layout of BPF_MAP_CREATE, which points to nothing and returns a new descriptor.
        Ok(Self(unsafe { owned(bpf(BPF_MAP_CREATE, &mut attr)?)? }))
    }
}

/// BTF with a type for the keys and one for the values: structs of their size that do not say what is in them.
///
/// aya makes the map of maps with a model that has types, and Linux 6.1 takes no map without any in its place:
/// it answers EINVAL.
fn load_types<K, V>() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Type {
        name: u32,
        info: u32,
        size: u32,
    }
    /// `struct btf_header` and what follows it.
    #[repr(C)]
    struct Types {
        magic: u16,
        version: u8,
        flags: u8,
        header_len: u32,
        types_offset: u32,
        types_len: u32,
        strings_offset: u32,
        strings_len: u32,
        types: [Type; 2],
        strings: [u8; 4],
    }
    #[repr(C)]
    struct Attr {
        btf: u64,
        log: u64,
        btf_size: u32,
        log_size: u32,
        log_level: u32,
        /// Kernels that do not know what is here want it to be zero.
        log_true_size: u32,
    }
    const STRUCT_WITHOUT_MEMBERS: u32 = 4 << 24;
    const fn opaque<T>() -> Type {
        #[expect(clippy::cast_possible_truncation, reason = "some bytes")]
        Type { name: 0, info: STRUCT_WITHOUT_MEMBERS, size: size_of::<T>() as u32 }
    }
    let types = Types {
        magic: 0xeb9f,
        version: 1,
        flags: 0,
        header_len: 24,
        types_offset: 0,
        types_len: 24,
        strings_offset: 24,
        strings_len: 4,
        types: [opaque::<K>(), opaque::<V>()],
        strings: [0; 4],
    };
    #[expect(clippy::cast_possible_truncation, reason = "52 bytes")]
    let btf_size = size_of::<Types>() as u32;
    let btf = (&raw const types).expose_provenance() as u64;
    let mut attr = Attr { btf, log: 0, btf_size, log_size: 0, log_level: 0, log_true_size: 0 };
    // SAFETY: the layout of BPF_BTF_LOAD, which returns a new descriptor; `types` is as long as `btf_size`
    // says and outlives the call.
    unsafe { owned(bpf(BPF_BTF_LOAD, &mut attr)?) }
}

/// Sets slots of the map of tries, and returns when every program that was running before has ended: the
/// kernel waits for them (`maybe_wait_bpf_programs`,
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c#L150>).
pub(crate) fn set(tries: BorrowedFd<'_>, slots: &[u32], values: &[&NewTrie]) -> io::Result<()> {
    let values: Vec<_> = values.iter().map(|trie| trie.0.as_raw_fd()).collect();
    update(tries, slots, &values).map_err(|Partial { error, .. }| error)
}

/// The kernel's id of the trie in a slot.
pub(crate) fn id(tries: BorrowedFd<'_>, slot: u32) -> io::Result<u32> {
    let mut id = 0_u32;
    let mut attr = Element::of(tries, &slot, (&raw mut id).expose_provenance());
    // SAFETY: the layout of BPF_MAP_LOOKUP_ELEM; key and value of a map of maps are 32 bits wide, and outlive the call.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)? };
    Ok(id)
}
