//! Whether the socket that would take a connection is the instance's own.
//!
//! A listener in the policy is an address and a port, and others may come to listen there: a service of the host's, or another
//! user's. So the socket is asked. It is marked when the instance binds it to a listener's address; and the socket that
//! connects to it when its first packet leaves, so that the rest of the connection passes without a search.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get},
};
use opencode_egress_common::flow::{Address, Family};

use crate::{
    maps,
    uapi::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE},
};

#[inline(always)]
fn mark_of(sk: *mut bpf_sock, flags: u64) -> *mut u32 {
    // SAFETY: the map is a socket storage of a u32, the socket a full one. Null where there is no mark, or no memory for one.
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

/// Marks a full socket as one of the instance's: bound to a listener's address, or connected to such a one.
#[inline(always)]
pub(crate) fn mark(sk: *mut bpf_sock, instance: u32) {
    let mark = mark_of(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if !mark.is_null() {
        // SAFETY: not null, and the socket's for as long as the program runs.
        unsafe { mark.write_volatile(instance) };
    }
}

/// Whether a full socket has the instance's mark.
#[inline(always)]
pub(crate) fn is_marked(sk: *mut bpf_sock, instance: u32) -> bool {
    let mark = mark_of(sk, 0);
    // SAFETY: not null, and the socket's for as long as the program runs.
    !mark.is_null() && unsafe { mark.read_volatile() } == instance
}

/// Whether the instance bound the socket that listens at an address, in the network namespace of the program's socket.
///
/// # Safety
///
/// `context` is that of the running program, of a type whose programs may search sockets.
#[inline(never)]
pub(crate) unsafe fn listens(
    context: *mut core::ffi::c_void,
    instance: u32,
    address: &Address,
    port: u16,
) -> bool {
    // From nowhere, so that no connection is found.
    let mut tuple = [0_u32; 9];
    let words = address.words();
    let port = port.to_be();
    let size = match address.family() {
        Family::V4 => {
            tuple[1] = words[0];
            tuple[2] = u32::from_ne_bytes([0, 0, port.to_ne_bytes()[0], port.to_ne_bytes()[1]]);
            12
        }
        Family::V6 => {
            tuple[4] = words[0];
            tuple[5] = words[1];
            tuple[6] = words[2];
            tuple[7] = words[3];
            tuple[8] = u32::from_ne_bytes([0, 0, port.to_ne_bytes()[0], port.to_ne_bytes()[1]]);
            36
        }
    };
    // SAFETY: the caller's promise; the tuple has the layout of `bpf_sock_tuple`: addresses, then both ports in one word, the
    // destination's last; the first `size` bytes of it are for the family.
    let sk = unsafe {
        bpf_sk_lookup_tcp(context, (&raw mut tuple).cast::<bpf_sock_tuple>(), size, BPF_F_CURRENT_NETNS, 0)
    };
    if sk.is_null() {
        return false;
    }
    let own = is_marked(sk, instance);
    // SAFETY: the search took a reference, which ends here; the pointer is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    own
}
