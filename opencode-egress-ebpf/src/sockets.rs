//! How many sockets an instance has open, of those that it made: one agent must not have all ephemeral ports of the host.
//!
//! A socket that was counted says so itself, in its storage, for others pass `sock_release` too: accepted ones, which take no port,
//! and those from before their cgroup was confined.

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_sk_storage_get};
use opencode_egress_common::abi::{CountedSocket, DEFAULT_MAX_SOCKETS, SocketCount};

use crate::{judge::Instance, maps, uapi::BPF_SK_STORAGE_GET_F_CREATE};

/// Counts a new socket. Returns whether the instance may have it; one that it may not is not in the count. `sk` is the context of
/// a program of `sock_create`.
#[inline(always)]
pub(crate) fn open(sk: *mut bpf_sock, instance: &Instance) -> bool {
    // Half confined: the number comes right after this hook's link.
    if instance.index == 0 {
        return true;
    }
    let Some(count) = maps::SOCKETS.get_ptr_mut(instance.index) else { return false };
    let counted = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    // The kernel has no memory for it.
    if counted.is_null() {
        return false;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    if unsafe { (&raw const (*counted).instance).read_volatile() } != 0 {
        // A confined cgroup below this one has counted or denied it.
        return true;
    }
    let limit = match instance.head() {
        Some(head) => head.max_sockets,
        None => DEFAULT_MAX_SOCKETS,
    };
    add(count, 1);
    // SAFETY: the map value is alive, its words aligned. Of those that come at once the last one reads all of them, so that never
    // more pass than may; at the limit one too few may.
    if unsafe { (&raw const (*count).open).read_volatile() } > limit {
        add(count, -1);
        // SAFETY: as above.
        unsafe { (&raw mut (*counted).instance).write_volatile(CountedSocket::DENIED) };
        return false;
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*counted).epoch).write_volatile((&raw const (*count).epoch).read_volatile());
        (&raw mut (*counted).instance).write_volatile(instance.index);
    }
    true
}

/// Takes a socket that is closed out of the count that it is in. `sk` is the context of a program of `sock_release`.
#[inline(always)]
pub(crate) fn close(sk: *mut bpf_sock) {
    let counted = storage(sk, 0);
    if counted.is_null() {
        return;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    let (instance, epoch) = unsafe {
        let instance = (&raw const (*counted).instance).read_volatile();
        // The program of a confined cgroup above comes after this one.
        (&raw mut (*counted).instance).write_volatile(0);
        (instance, (&raw const (*counted).epoch).read_volatile())
    };
    // In no count; that of a denied one is no instance's number either.
    if instance == 0 {
        return;
    }
    let Some(count) = maps::SOCKETS.get_ptr_mut(instance) else { return };
    // SAFETY: the map value is alive, its words aligned.
    let (open, current) =
        unsafe { ((&raw const (*count).open).read_volatile(), (&raw const (*count).epoch).read_volatile()) };
    if epoch == current && open != 0 {
        add(count, -1);
    }
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> *mut CountedSocket {
    // SAFETY: the map is a socket storage of a CountedSocket, the socket the program's context.
    unsafe {
        bpf_sk_storage_get(
            (&raw const maps::COUNTED).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

/// Adds to the sockets that are open, exactly, whoever else does.
#[inline(always)]
fn add(count: *mut SocketCount, amount: i64) {
    // SAFETY: the pointer is into a map value, aligned, and alive while the program runs. BPF_XADD, as in `judge::add`.
    unsafe {
        let open = &raw mut (*count).open;
        core::arch::asm!("lock *(u32 *)({open} + 0) += {amount}", open = in(reg) open, amount = in(reg) amount);
    }
}
