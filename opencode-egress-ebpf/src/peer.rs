//! What a socket remembers of the other end that it talks to over loopback.

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_sk_storage_get};
use opencode_egress_common::packet::Packet;

use crate::{
    judge::Instance, maps, opaque::difference, sk::FullSk, storage::OwnPeer,
    uapi::BPF_SK_STORAGE_GET_F_CREATE,
};

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> *mut OwnPeer {
    // SAFETY: the map is a socket storage of an `OwnPeer`, the socket a full one. Null where there is none, or no memory for one.
    unsafe {
        bpf_sk_storage_get(
            (&raw const maps::OWN_PEERS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

#[inline(always)]
fn ports(packet: &Packet) -> u32 {
    u32::from(packet.source_port) << 16 | u32::from(packet.destination_port)
}

/// Whether something was found out about where the packet goes, under the policy in force.
#[inline(always)]
pub(crate) fn is_known(sk: FullSk, instance: &Instance, packet: &Packet) -> bool {
    let peer = storage(sk.as_ptr(), 0);
    if peer.is_null() {
        return false;
    }
    let to = packet.destination.words();
    // SAFETY: not null, and the socket's for as long as the program runs. What two processors write at once mixes two destinations of
    // the same socket; of TCP there is one.
    unsafe {
        let word = |index: usize| (&raw const (*peer).address).cast::<u32>().add(index).read_volatile();
        0 == difference((&raw const (*peer).generation).read_volatile(), instance.current.generation())
            | difference((&raw const (*peer).instance).read_volatile(), instance.index)
            | difference((&raw const (*peer).ports).read_volatile(), ports(packet))
            | difference((&raw const (*peer).protocol).read_volatile(), u32::from(packet.protocol.0))
            | difference(word(0), to[0])
            | difference(word(1), to[1])
            | difference(word(2), to[2])
            | difference(word(3), to[3])
    }
}

/// Where there is no memory for it, each packet is asked for.
#[inline(always)]
pub(crate) fn remember(sk: FullSk, instance: &Instance, packet: &Packet) {
    let peer = storage(sk.as_ptr(), BPF_SK_STORAGE_GET_F_CREATE);
    if peer.is_null() {
        return;
    }
    let to = packet.destination.words();
    // SAFETY: as in `is_known`.
    unsafe {
        (&raw mut (*peer).generation).write_volatile(0);
        for (index, word) in to.into_iter().enumerate() {
            (&raw mut (*peer).address).cast::<u32>().add(index).write_volatile(word);
        }
        (&raw mut (*peer).ports).write_volatile(ports(packet));
        (&raw mut (*peer).protocol).write_volatile(u32::from(packet.protocol.0));
        (&raw mut (*peer).instance).write_volatile(instance.index);
        (&raw mut (*peer).generation).write_volatile(instance.current.generation());
    }
}

/// A socket that opens another connection knows nothing of it.
#[inline(always)]
pub(crate) fn forget(sk: FullSk) {
    let peer = storage(sk.as_ptr(), 0);
    if !peer.is_null() {
        // SAFETY: as in `is_known`.
        unsafe { (&raw mut (*peer).generation).write_volatile(0) };
    }
}
