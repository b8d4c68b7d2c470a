//! Whose socket would take what is sent.
//!
//! An address and a port are anybody's who binds them first: a service of the host's, another user's program. So the socket is asked, for
//! the cgroup in which it was made. Only the programs of packets may ask for that; those of calls ask for what a bind has
//! left with the socket.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skc_lookup_tcp,
        generated::{bpf_sk_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
    },
    programs::SockAddrContext,
};
use opencode_egress_common::{
    flow::{Address, Family, Protocol},
    packet::Packet,
};

use crate::{
    judge::Instance,
    maps,
    opaque::opaque,
    sk::Sk,
    sockets,
    storage::{OwnSocket, SHARES_GROUP},
    uapi::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, TCP_LISTEN, TCP_NEW_SYN_RECV},
};

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> *mut OwnSocket {
    // SAFETY: the map is a socket storage of an `OwnSocket`, the socket a full one. Null where there is none, or no memory for one.
    unsafe {
        bpf_sk_storage_get(
            (&raw const maps::OWN_SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

/// Has a full socket known for the instance's.
#[inline(always)]
pub(crate) fn mark(sk: *mut bpf_sock, instance: u32) {
    let own = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if !own.is_null() {
        // SAFETY: not null, and the socket's for as long as the program runs.
        unsafe { (&raw mut (*own).instance).write_volatile(instance) };
    }
}

/// Notes that a full socket may share its port with others. Returns whether there was memory for it.
#[inline(always)]
pub(crate) fn note_sharing(sk: *mut bpf_sock, how: u32) -> bool {
    let own = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if own.is_null() {
        return false;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    unsafe {
        let shares = &raw mut (*own).shares;
        shares.write_volatile(shares.read_volatile() | how);
    }
    true
}

/// How a full socket may share its port, as far as it was noted.
#[inline(always)]
pub(crate) fn sharing(sk: *mut bpf_sock) -> u32 {
    let own = storage(sk, 0);
    // SAFETY: not null, and the socket's for as long as the program runs.
    if own.is_null() { 0 } else { unsafe { (&raw const (*own).shares).read_volatile() } }
}

/// Whether the socket of a call may share its port. What the kernel made for a program, whose options are another socket's, may.
#[inline(always)]
pub(crate) fn may_share(ctx: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    sharing(sk) != 0 || !sockets::is_counted(ctx, sk)
}

/// Nobody takes it.
pub(crate) const NOBODY: u32 = 0;
/// Somebody else's socket does.
pub(crate) const OTHER: u32 = 1;
/// A socket of the instance's that listens.
pub(crate) const LISTENS: u32 = 2;
/// One that shares its port with a group. Another one of it may be the one.
pub(crate) const IN_GROUP: u32 = 4;
/// A socket of the instance's, which no other can take the place of while a TCP connection to it lasts.
pub(crate) const OWN: u32 = 3;

/// Who asks.
pub(crate) trait Asker {
    /// Whether a full socket is the instance's own.
    ///
    /// # Safety
    ///
    /// `context` is that of the running program, of a type for which this is.
    unsafe fn is_own(context: *mut core::ffi::c_void, sk: *mut bpf_sock, instance: &Instance) -> bool;
}

/// The program of a call.
pub(crate) struct OfCall;

impl Asker for OfCall {
    #[inline(always)]
    unsafe fn is_own(_: *mut core::ffi::c_void, sk: *mut bpf_sock, instance: &Instance) -> bool {
        let own = storage(sk, 0);
        // SAFETY: not null, and the socket's for as long as the program runs.
        !own.is_null() && unsafe { (&raw const (*own).instance).read_volatile() } == instance.index
    }
}

/// The program of a packet.
pub(crate) struct OfPacket;

impl Asker for OfPacket {
    #[inline(always)]
    unsafe fn is_own(context: *mut core::ffi::c_void, sk: *mut bpf_sock, instance: &Instance) -> bool {
        // SAFETY: the caller's promise; the packet's program has its socket as context, which is the instance's.
        let level = unsafe { level(context, instance) };
        // SAFETY: a full socket. No ancestor of that level has the number 0.
        let cgroup = unsafe { bpf_sk_ancestor_cgroup_id(sk.cast(), level as i32) };
        // SAFETY: the value is a whole word, and lives as long as the program runs.
        unsafe { maps::CONFINED.get(&cgroup) }.copied() == Some(instance.index)
    }
}

/// How deep a confined cgroup may be for the programs to find out.
const DEEPEST: i32 = 16;

/// How deep the confined cgroup is: where the packet's socket has an ancestor that is one of the instance's. It is the same for all
/// packets, so it is found out once.
///
/// # Safety
///
/// `context` is that of a program of packets.
#[inline(always)]
unsafe fn level(context: *mut core::ffi::c_void, instance: &Instance) -> u32 {
    // SAFETY: the word is the scope's, aligned.
    let known = unsafe { instance.level().read_volatile() };
    if known != 0 { known } else { find_level(context.cast(), instance) }
}

#[inline(never)]
fn find_level(skb: *mut aya_ebpf::bindings::__sk_buff, instance: &Instance) -> u32 {
    let mut level = 1;
    while level <= DEEPEST {
        // SAFETY: the helper takes the context of these programs.
        let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
        // SAFETY: the value is a whole word, and lives as long as the program runs.
        if unsafe { maps::CONFINED.get(&cgroup) }.copied() == Some(instance.index) {
            // SAFETY: the word is the scope's, aligned.
            unsafe { instance.level().write_volatile(level as u32) };
            break;
        }
        level += 1;
    }
    opaque(level as u32, instance.current.generation())
}

/// What the kernel searches sockets by: addresses, then both ports in one word. Returns how many bytes of it are for the family.
#[inline(always)]
fn fill(tuple: *mut u32, packet: &Packet) -> u32 {
    let (from, to) = (packet.source.words(), packet.destination.words());
    let [a, b] = packet.source_port.to_be_bytes();
    let [c, d] = packet.destination_port.to_be_bytes();
    let ports = u32::from_ne_bytes([a, b, c, d]);
    // SAFETY: the caller's tuple has nine words.
    let write = |index: usize, word: u32| unsafe { tuple.add(index).write_volatile(word) };
    match packet.destination.family() {
        Family::V4 => {
            write(0, from[0]);
            write(1, to[0]);
            write(2, ports);
            12
        }
        Family::V6 => {
            write(0, from[0]);
            write(1, from[1]);
            write(2, from[2]);
            write(3, from[3]);
            write(4, to[0]);
            write(5, to[1]);
            write(6, to[2]);
            write(7, to[3]);
            write(8, ports);
            36
        }
    }
}

/// Who takes a packet in the network namespace of the program's socket: [`NOBODY`], [`OTHER`], [`LISTENS`], [`IN_GROUP`] or [`OWN`]. Of
/// a connection that began it is the socket at its other end; one that is being opened there counts as its listener, whom it ends
/// with.
///
/// # Safety
///
/// `context` is that of the running program, of a type whose programs may search sockets.
#[inline(never)]
pub(crate) unsafe fn taker<A: Asker>(
    context: *mut core::ffi::c_void,
    instance: &Instance,
    packet: &Packet,
) -> u32 {
    let mut tuple = MaybeUninit::<[u32; 9]>::uninit();
    let size = fill(tuple.as_mut_ptr().cast(), packet);
    let tcp = packet.protocol == Protocol::TCP;
    let place = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
    // SAFETY: the caller's promise; the tuple has the layout of `bpf_sock_tuple`, `size` bytes of it.
    let sk = unsafe {
        if tcp {
            bpf_sk_lookup_tcp(context, place, size, BPF_F_CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(context, place, size, BPF_F_CURRENT_NETNS, 0)
        }
    };
    let Some(found) = Sk::new(sk) else { return NOBODY };
    // SAFETY: the caller's promise.
    let whose = match unsafe { A::is_own(context, sk, instance) } {
        true if tcp && found.state() != TCP_LISTEN => OWN,
        // A program of the group's own may choose another one than is found here.
        true if sharing(sk) & SHARES_GROUP != 0 => IN_GROUP,
        true if tcp => LISTENS,
        true => OWN,
        false => OTHER,
    };
    // SAFETY: the search took a reference, which ends here; the pointer is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    opaque(whose, u32::from(packet.source_port))
}

/// Whether a connection is being opened where a packet goes: then it is the one that the kernel chose who takes it.
///
/// # Safety
///
/// `context` is that of the running program, of a type whose programs may search sockets.
#[inline(never)]
pub(crate) unsafe fn is_being_opened(context: *mut core::ffi::c_void, packet: &Packet) -> u32 {
    let mut tuple = MaybeUninit::<[u32; 9]>::uninit();
    let size = fill(tuple.as_mut_ptr().cast(), packet);
    let place = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
    // SAFETY: as in `taker`.
    let sk = unsafe { bpf_skc_lookup_tcp(context, place, size, BPF_F_CURRENT_NETNS, 0) };
    let Some(found) = Sk::new(sk) else { return 0 };
    let opened = found.state() == TCP_NEW_SYN_RECV;
    // SAFETY: as in `taker`.
    unsafe { bpf_sk_release(sk.cast()) };
    opaque(u32::from(opened), u32::from(packet.source_port))
}

/// What would reach an address from nowhere in particular, to ask who takes it.
#[inline(always)]
pub(crate) fn probe(address: Address, protocol: Protocol, port: u16) -> Packet {
    let source = match address.family() {
        Family::V4 => Address::v4(0),
        Family::V6 => Address::v6([0; 4]),
    };
    Packet { source, destination: address, protocol, source_port: 0, destination_port: port, opens: true }
}
