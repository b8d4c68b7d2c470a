//! Whose socket would take what is sent, and how a socket is known for an instance's own.
//!
//! An address and a port are anybody's who binds them first: a service of the host's, another user's program. So the socket is asked.
//! It is known from its bind, or from its first packet over loopback; and accepted ones inherit it. A socket that listens without a
//! bind, where the kernel picks the port, no program sees: it is taken for another's.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use opencode_egress_common::{
    flow::{Address, Family, Protocol},
    packet::Packet,
};

use crate::{
    maps,
    opaque::opaque,
    sk::Sk,
    sockets,
    storage::{OwnSocket, SHARES_GROUP},
    uapi::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, TCP_LISTEN},
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

/// The instance that a full socket is known to be of; 0 for none.
#[inline(always)]
fn known_of(sk: *mut bpf_sock) -> u32 {
    let own = storage(sk, 0);
    if own.is_null() {
        return 0;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    unsafe { (&raw const (*own).instance).read_volatile() }
}

/// Has a full socket known for the instance's, and what it accepts too. Where there is no memory for it, it is nobody's.
#[inline(always)]
pub(crate) fn adopt(sk: *mut bpf_sock, instance: u32) {
    if known_of(sk) == instance {
        return;
    }
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

/// Whether the socket of a call may share its port. What the kernel made for a program, whose options are another socket's, may.
#[inline(always)]
pub(crate) fn may_share(ctx: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    let own = storage(sk, 0);
    // SAFETY: not null, and the socket's for as long as the program runs.
    let noted = !own.is_null() && unsafe { (&raw const (*own).shares).read_volatile() } != 0;
    noted || !sockets::is_counted(ctx, sk)
}

/// Nobody takes it.
pub(crate) const NOBODY: u32 = 0;
/// Somebody else's socket does.
pub(crate) const OTHER: u32 = 1;
/// A socket of the instance's that listens.
pub(crate) const LISTENS: u32 = 2;
/// A socket of the instance's, which no other can take the place of while a TCP connection to it lasts.
pub(crate) const OWN: u32 = 3;

/// Whose a full socket is that the kernel found.
#[inline(always)]
fn whose(sk: *mut bpf_sock, instance: u32, tcp: bool) -> u32 {
    let own = storage(sk, 0);
    let Some(found) = Sk::new(sk) else { return OTHER };
    if own.is_null() {
        return OTHER;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    let (known, shares) = unsafe {
        ((&raw const (*own).instance).read_volatile(), (&raw const (*own).shares).read_volatile())
    };
    if known != instance {
        return OTHER;
    }
    let listens = tcp && found.state() == TCP_LISTEN;
    match (tcp, listens) {
        (_, true) => LISTENS,
        (true, false) => OWN,
        // A program of the group's own may choose another one than is found here.
        (false, _) if shares & SHARES_GROUP != 0 => OTHER,
        (false, _) => OWN,
    }
}

/// Who takes a packet in the network namespace of the program's socket: [`NOBODY`], [`OTHER`], [`LISTENS`] or [`OWN`]. Of a connection
/// that began it is the socket at its other end; one that is being opened there counts as its listener, whom it ends with.
///
/// # Safety
///
/// `context` is that of the running program, of a type whose programs may search sockets.
#[inline(never)]
pub(crate) unsafe fn taker(context: *mut core::ffi::c_void, instance: u32, packet: &Packet) -> u32 {
    let mut tuple = [0_u32; 9];
    let (from, to) = (packet.source.words(), packet.destination.words());
    let [a, b] = packet.source_port.to_be_bytes();
    let [c, d] = packet.destination_port.to_be_bytes();
    let ports = u32::from_ne_bytes([a, b, c, d]);
    let size = match packet.destination.family() {
        Family::V4 => {
            (tuple[0], tuple[1], tuple[2]) = (from[0], to[0], ports);
            12
        }
        Family::V6 => {
            (tuple[0], tuple[1], tuple[2], tuple[3]) = (from[0], from[1], from[2], from[3]);
            (tuple[4], tuple[5], tuple[6], tuple[7]) = (to[0], to[1], to[2], to[3]);
            tuple[8] = ports;
            36
        }
    };
    let tcp = packet.protocol == Protocol::TCP;
    let place = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // SAFETY: the caller's promise; the tuple has the layout of `bpf_sock_tuple`: addresses, then both ports in one word; the first
    // `size` bytes of it are for the family.
    let sk = unsafe {
        if tcp {
            bpf_sk_lookup_tcp(context, place, size, BPF_F_CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(context, place, size, BPF_F_CURRENT_NETNS, 0)
        }
    };
    if sk.is_null() {
        return NOBODY;
    }
    let whose = whose(sk, instance, tcp);
    // SAFETY: the search took a reference, which ends here; the pointer is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    opaque(whose, ports)
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
