//! A refused TCP packet ends its socket. The kernel would only send it again, and the program would wait for minutes; so
//! user space is asked to reset the socket, whatever refused the packet.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_storage_get};
use opencode_egress_common::{
    abi::{RESET_RING_BYTES, Reset},
    flow::Address,
};

use crate::{
    judge::{Instance, add},
    maps,
    report::has_room,
    sk::FullSk,
    uapi::BPF_SK_STORAGE_GET_F_CREATE,
};

/// A socket is asked for again after so long, should user space not have been there; ns.
const AGAIN: u64 = 200_000_000;

/// A socket as the kernel's socket diagnosis names it.
pub(crate) struct Target {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) interface: u32,
    pub(crate) cookie: u64,
}

/// Asks for the reset of a socket of the instance, seldom enough.
#[inline(always)]
pub(crate) fn ask_once(instance: &Instance, sk: FullSk, target: &Target) {
    // SAFETY: the map is a socket storage of a u64, the socket a full one; the kernel makes the value, all zeros. It is null
    // where the kernel has no memory for it: then the socket is asked for each time.
    let asked: *mut u64 = unsafe {
        bpf_sk_storage_get(
            (&raw const maps::RESET_ASKED).cast_mut().cast(),
            sk.as_ptr().cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE,
        )
        .cast()
    };
    // SAFETY: the helper has no arguments and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: not null, and the socket's for as long as the program runs.
    if !asked.is_null() && unsafe { asked.read_volatile() } != 0 {
        // SAFETY: as above.
        if now.wrapping_sub(unsafe { asked.read_volatile() }) < AGAIN {
            return;
        }
    }
    if ask(instance, target) && !asked.is_null() {
        // SAFETY: as above.
        unsafe { asked.write_volatile(now) };
    }
}

/// Asks for a reset. Returns whether there was room for it.
#[inline(always)]
pub(crate) fn ask(instance: &Instance, target: &Target) -> bool {
    let Some(denied) = maps::DENIED.get_ptr_mut(instance.index) else { return false };
    let Some(taken) = maps::TAKEN.get_ptr(instance.index) else { return false };
    // SAFETY: both values are alive, their words aligned.
    let waiting = unsafe {
        (&raw const (*denied).resets)
            .read_volatile()
            .wrapping_sub((&raw const (*taken).resets).read_volatile())
    };
    let ring = (&raw const maps::RESETS).cast_mut().cast();
    if !has_room(ring, RESET_RING_BYTES, size_of::<Reset>() as u64, waiting) {
        return false;
    }
    let Some(mut slot) = maps::RESETS.reserve(0) else { return false };
    let record = slot.as_mut_ptr();
    let Target { source, destination, source_port, destination_port, interface, cookie } = target;
    // SAFETY: the record is a Reset, which has no padding, and every field of it is written; the counter is only added to.
    unsafe {
        for index in 0..4 {
            (&raw mut (*record).source).cast::<u32>().add(index).write_volatile(source.words()[index]);
            (&raw mut (*record).destination)
                .cast::<u32>()
                .add(index)
                .write_volatile(destination.words()[index]);
        }
        (&raw mut (*record).cookie).write(*cookie);
        (&raw mut (*record).instance).write(instance.index);
        (&raw mut (*record).interface).write(*interface);
        (&raw mut (*record).source_port).write(*source_port);
        (&raw mut (*record).destination_port).write(*destination_port);
        (&raw mut (*record).family).write(source.family() as u32);
        add(&raw mut (*denied).resets, 1);
    }
    slot.submit(0);
    true
}
