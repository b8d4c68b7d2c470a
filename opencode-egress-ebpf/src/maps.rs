//! The maps. Layouts are `opencode_egress_common::abi`'s.

use aya_ebpf::{
    bindings::bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED,
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage,
    },
    helpers::{bpf_get_local_storage, bpf_map_lookup_elem},
    macros::btf_map,
    programs::SkBuffContext,
};
use opencode_egress_common::{
    abi::{
        Asker, AskerKey, CalledEvent, CallerLayout, ConfinedCgroup, CountedSocket, Counter, Current, Denied,
        DestinationDenials, DestinationKey, Entry, Learned, LearnedKey, Limits, MAX_ASKERS, MAX_CONFINED,
        MAX_DESTINATIONS, MAX_INSTANCES, MAX_LEARNED, MAX_LISTED_PORTS, MAX_POLICIES, NAMED_SOCKET_BYTES,
        PolicyHeader, RESET_RING_BYTES, RING_BYTES, Reset, SOCKET_SLOTS, SocketCount, SocketSlot, Taken,
        TrieKey,
    },
    cache::TAG_KEYS,
    decide::Rules,
    hello::ServerName,
};

use crate::{
    storage::{Asked, AskedResolver, OwnPeer, OwnSocket},
    uapi::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
};

/// The policy in force, by instance. User space stores a [`Current`] as one atomic word.
#[btf_map]
pub(crate) static CURRENT: Array<u64, { MAX_INSTANCES as usize }, BPF_F_MMAPABLE> = Array::new();

/// Policies without their rules, by policy slot.
#[btf_map]
pub(crate) static HEADS: Array<PolicyHeader, { MAX_POLICIES as usize }> = Array::new();

/// The data of a [`TrieKey`] behind its prefix length.
type TrieData = [u32; 5];

/// Policies' rules, by policy slot.
#[btf_map]
static TRIES: ArrayOfMaps<LpmTrie<TrieData, Entry, 1>, { MAX_POLICIES as usize }> = ArrayOfMaps::new();

/// Addresses that names brought, by instance and generation.
#[btf_map]
pub(crate) static LEARNED: HashMap<LearnedKey, Learned, { MAX_LEARNED as usize }, BPF_F_NO_PREALLOC> =
    HashMap::new();

/// Flows that began by name, and how far their TLS was followed, by socket: a [`crate::storage::NamedSocket`].
#[btf_map]
pub(crate) static NAMED_SOCKETS: SkStorage<[u64; NAMED_SOCKET_BYTES / 8]> = SkStorage::new();

/// The program that follows TLS, at index 0: the one for what leaves calls it.
#[btf_map]
static FOLLOWER: ProgramArray<1> = ProgramArray::new();

/// Goes on with the program that follows TLS, and returns only where it is not there.
#[inline(always)]
pub(crate) fn follow(ctx: &SkBuffContext) {
    // SAFETY: what is in the map is a program of the same kind, for the same context.
    unsafe { FOLLOWER.tail_call(ctx, 0) };
}

/// The servers that rules with `tls` list, by policy slot: an [`opencode_egress_common::hello::ServerNameKey`] each. Of a policy without such rules the slot may have
/// what an earlier policy left.
#[btf_map]
static TLS_NAMES: ArrayOfMaps<LpmTrie<[u8; 256], IsListed, 1>, { MAX_POLICIES as usize }> =
    ArrayOfMaps::new();

/// What stands at the name of a listed server. Linux 6.1 takes no trie for another whose values are of another kind of type, and those that user
/// space makes have a struct.
#[repr(C)]
struct IsListed(u32);

/// Whether a policy lists a server.
#[inline(always)]
pub(crate) fn lists_server(slot: u32, name: &ServerName) -> bool {
    let Some(names) = TLS_NAMES.get(slot) else { return false };
    // SAFETY: the pointer is an inner map of TLS_NAMES, and the key, in a socket's storage, is one of its keys.
    let found =
        unsafe { bpf_map_lookup_elem(core::ptr::from_ref(names).cast_mut().cast(), name.key().cast()) };
    !found.is_null()
}

/// What a socket's last question was addressed to.
#[btf_map]
pub(crate) static ASKED_RESOLVERS: SkStorage<AskedResolver> = SkStorage::new();

/// Whose questions passed, by where those came from.
#[btf_map]
pub(crate) static ASKERS: LruHashMap<AskerKey, Asker, { MAX_ASKERS as usize }> = LruHashMap::new();

/// What passed, by instance. One copy a CPU, so that counting stays cheap.
#[btf_map]
pub(crate) static ALLOWED: PerCpuArray<Counter, { MAX_INSTANCES as usize }> = PerCpuArray::new();

/// What was denied, by instance.
#[btf_map]
pub(crate) static DENIED: Array<Denied, { MAX_INSTANCES as usize }> = Array::new();

/// What user space took of what the programs left it, by instance.
#[btf_map]
pub(crate) static TAKEN: Array<Taken, { MAX_INSTANCES as usize }, BPF_F_MMAPABLE> = Array::new();

/// Denials of before, so that repeats are folded. No instance's evicts another's: each has a share.
#[btf_map]
pub(crate) static SEEN: HashMap<
    DestinationKey,
    DestinationDenials,
    { MAX_DESTINATIONS as usize },
    BPF_F_NO_PREALLOC,
> = HashMap::new();

/// The limits on events, at index 0.
#[btf_map]
pub(crate) static LIMITS: Array<Limits, 1> = Array::new();

/// Denials for user space.
#[btf_map]
pub(crate) static EVENTS: RingBuf<CalledEvent, { RING_BYTES as usize }> = RingBuf::new();

/// Sockets for user space to reset.
#[btf_map]
pub(crate) static RESETS: RingBuf<Reset, { RESET_RING_BYTES as usize }> = RingBuf::new();

/// When a socket's reset was asked for; monotonic ns.
#[btf_map]
pub(crate) static RESET_ASKED: SkStorage<u64> = SkStorage::new();

/// Sockets that are known to be an instance's own, and those that may share their port.
#[btf_map]
pub(crate) static OWN_SOCKETS: SkStorage<OwnSocket> = SkStorage::new();

/// The instances of confined cgroups, by the kernel's number of the cgroup. A cgroup that is gone may still be here: no socket is its.
#[btf_map]
pub(crate) static CONFINED: HashMap<u64, u32, { MAX_CONFINED as usize }, BPF_F_NO_PREALLOC> = HashMap::new();

/// What was found out about where a socket sends over loopback.
#[btf_map]
pub(crate) static OWN_PEERS: SkStorage<OwnPeer> = SkStorage::new();

/// Whose listener has a port, over all policies in force: an instance, or that it is several ones'.
#[btf_map]
pub(crate) static LISTED_PORTS: HashMap<u32, u32, { MAX_LISTED_PORTS as usize }, BPF_F_NO_PREALLOC> =
    HashMap::new();

/// The sockets that are open, by instance.
#[btf_map]
pub(crate) static SOCKETS: Array<SocketCount, { MAX_INSTANCES as usize }> = Array::new();

/// Which sockets are counted, and where, by the kernel's number of each.
#[btf_map]
pub(crate) static COUNTED_SLOTS: Array<SocketSlot, { SOCKET_SLOTS as usize }> = Array::new();

/// In which count a socket is that found its slot taken; one that is in none has no value, or one of zeros.
#[btf_map]
pub(crate) static COUNTED: SkStorage<CountedSocket> = SkStorage::new();

/// What the last connect on this CPU asked for.
#[btf_map]
pub(crate) static ASKED: PerCpuArray<Asked, 1> = PerCpuArray::new();

/// Keys of the verdict cache, random, set by the loader. All zeros turns the cache off.
#[unsafe(no_mangle)]
static VERDICT_TAG_KEYS: [u64; TAG_KEYS] = [0; TAG_KEYS];

/// One of the verdict cache's keys.
#[inline(always)]
pub(crate) fn tag_key(index: usize) -> u64 {
    match VERDICT_TAG_KEYS.get(index) {
        // SAFETY: a reference to an element. Volatile, because the compiler must not take the zeros above
        // for the values at run time.
        Some(key) => unsafe { core::ptr::read_volatile(key) },
        None => 0,
    }
}

/// Whether the programs of sendmsg are attached, so that every datagram with an address of its own was judged
/// when it was sent; set by the loader.
#[unsafe(no_mangle)]
static SENDMSG_JUDGES: u32 = 0;

/// Whether the programs of sendmsg may set a socket's mark, which Linux 5.10 does not let them; set by the loader.
#[unsafe(no_mangle)]
static SENDMSG_MAY_MARK: u32 = 0;

/// Whether the kernel tells a packet's program which process runs; set by the loader.
#[unsafe(no_mangle)]
static PACKET_KNOWS_CALLER: u32 = 0;

/// Whether the kernel tells a setsockopt program which process calls, which Linux 5.10 does not; set by
/// the loader.
#[unsafe(no_mangle)]
static SETSOCKOPT_KNOWS_CALLER: u32 = 0;

/// Whether the programs of calls may choose the error that the caller gets; set by the loader.
#[unsafe(no_mangle)]
static CALL_MAY_SET_ERROR: u32 = 0;

/// Where the kernel has what says who asked; set by the loader. All zeros where it does not say where, or lets no program read it.
#[unsafe(no_mangle)]
pub(crate) static CALLER_LAYOUT: CallerLayout = CallerLayout {
    known: 0,
    task_mm: 0,
    task_real_parent: 0,
    task_group_leader: 0,
    task_comm: 0,
    task_fs: 0,
    task_cgroups: 0,
    mm_exe_file: 0,
    file_path_mnt: 0,
    file_path_dentry: 0,
    fs_root_mnt: 0,
    fs_root_dentry: 0,
    vfsmount_root: 0,
    mount_mnt: 0,
    mount_parent: 0,
    mount_mountpoint: 0,
    dentry_parent: 0,
    dentry_name: 0,
    dentry_hash_pprev: 0,
    css_set_dfl_cgrp: 0,
    cgroup_self: 0,
    cgroup_self_parent: 0,
    cgroup_kn: 0,
    kn_id: 0,
    kn_name: 0,
};

/// A member of [`CALLER_LAYOUT`].
#[inline(always)]
pub(crate) fn offset(member: *const u32) -> u32 {
    // SAFETY: of the static above. Volatile, because the compiler must not take the zero there for the value at run time.
    unsafe { core::ptr::read_volatile(member) }
}

/// The verifier knows the value, and does not look at what is never reached.
#[inline(always)]
fn is_set(flag: *const u32) -> bool {
    // SAFETY: one of the statics above. Volatile, because the compiler must not take the zero there for the value
    // at run time.
    unsafe { core::ptr::read_volatile(flag) != 0 }
}

/// See [`SENDMSG_JUDGES`].
#[inline(always)]
pub(crate) fn sendmsg_judges() -> bool {
    is_set(&raw const SENDMSG_JUDGES)
}

/// See [`SENDMSG_MAY_MARK`].
#[inline(always)]
pub(crate) fn sendmsg_may_mark() -> bool {
    is_set(&raw const SENDMSG_MAY_MARK)
}

/// See [`CALL_MAY_SET_ERROR`].
#[inline(always)]
pub(crate) fn call_may_set_error() -> bool {
    is_set(&raw const CALL_MAY_SET_ERROR)
}

/// See [`PACKET_KNOWS_CALLER`].
#[inline(always)]
pub(crate) fn packet_knows_caller() -> bool {
    is_set(&raw const PACKET_KNOWS_CALLER)
}

/// See [`SETSOCKOPT_KNOWS_CALLER`].
#[inline(always)]
pub(crate) fn setsockopt_knows_caller() -> bool {
    is_set(&raw const SETSOCKOPT_KNOWS_CALLER)
}

/// A cgroup storage keyed by the cgroup alone, so that all attach types share one value.
///
/// aya's own definition has the older key, with the attach type in it. A key of 8 bytes makes the
/// storage shared since Linux 5.9:
/// <https://docs.kernel.org/bpf/map_cgroup_storage.html>.
#[repr(C)]
struct ScopeMap {
    r#type: *const [i32; BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED as usize],
    key: *const u64,
    value: *const ConfinedCgroup,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; 0],
}

// SAFETY: the pointers only carry types to the loader through BTF; nothing ever follows them.
unsafe impl Sync for ScopeMap {}

/// The confined cgroups.
#[btf_map]
static SCOPES: ScopeMap = ScopeMap {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

/// The storage of the cgroup that the running program is attached to; a child cgroup's sockets get
/// their confined ancestor's.
#[inline(always)]
pub(crate) fn scope() -> *mut ConfinedCgroup {
    // SAFETY: SCOPES is a cgroup storage map, flags must be 0, and the helper never fails: the kernel
    // made the storage when it attached the program.
    unsafe { bpf_get_local_storage((&raw const SCOPES).cast_mut().cast(), 0) }.cast()
}

/// The policy in force for an instance.
#[inline(always)]
pub(crate) fn current(instance: u32) -> Current {
    match CURRENT.get_ptr(instance) {
        // SAFETY: the map's value is an aligned u64. Volatile: one load, never repeated, so that the
        // program works with one generation from beginning to end.
        Some(word) => Current(unsafe { core::ptr::read_volatile(word) }),
        None => Current::default(),
    }
}

/// The rules of one policy, in the kernel's trie.
pub(crate) struct Trie(*mut core::ffi::c_void);

/// The rules of a policy slot, if they are there.
#[inline(always)]
pub(crate) fn trie(slot: u32) -> Option<Trie> {
    TRIES.get(slot).map(|inner| Trie(core::ptr::from_ref(inner).cast_mut().cast()))
}

impl Rules for Trie {
    #[inline(always)]
    fn entry(&self, key: &TrieKey) -> Option<Entry> {
        // SAFETY: the pointer is an inner map of TRIES, whose key is `TrieKey`'s bytes.
        let entry = unsafe { bpf_map_lookup_elem(self.0, core::ptr::from_ref(key).cast()) };
        // SAFETY: a value that was found is a whole, 8-byte aligned Entry that lives as long as the
        // program runs (RCU); entries are replaced, not written in place, while a policy is in force.
        (!entry.is_null()).then(|| unsafe { *entry.cast::<Entry>() })
    }
}
