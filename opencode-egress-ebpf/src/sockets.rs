//! How many sockets an instance has open, of those that it made: one agent must not have all ephemeral ports of the host.
//!
//! It is remembered of a socket in which count it is, for others pass `sock_release` too: accepted ones, which take no port,
//! and those from before their cgroup was confined. Nearly always that stands in a slot of a table, found by the kernel's number of
//! the socket; a storage of the socket's own, which is for those that find their slot taken, costs several times as much.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::{bpf_get_socket_cookie, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use opencode_egress_common::abi::{
    CountedSocket, DEFAULT_MAX_SOCKETS, SOCKET_SLOTS, SocketCount, SocketSlot,
};

use crate::{
    judge::{self, Instance},
    maps,
    uapi::BPF_SK_STORAGE_GET_F_CREATE,
};

/// Counts a new socket. Returns whether the instance may have it; one that it may not is not in the count. `sk` is the context of
/// a program of `sock_create`.
#[inline(always)]
pub(crate) fn open(sk: *mut bpf_sock, instance: &Instance) -> bool {
    // Half confined: the number comes right after this hook's link.
    if instance.index == 0 {
        return true;
    }
    let Some(count) = maps::SOCKETS.get_ptr_mut(instance.index) else { return false };
    let Some(slot) = Slot::of(sk) else { return false };
    // A confined cgroup below this one has counted or denied it.
    if slot.is_its() || instance_in(storage(sk, 0)) != 0 {
        return true;
    }
    let limit = match instance.head() {
        Some(head) => head.max_sockets,
        None => DEFAULT_MAX_SOCKETS,
    };
    add(count, 1);
    // SAFETY: the map value is alive, its words aligned. Of those that come at once the last one reads all of them, so that never
    // more pass than may; at the limit one too few may.
    let (open, epoch) =
        unsafe { ((&raw const (*count).open).read_volatile(), (&raw const (*count).epoch).read_volatile()) };
    if open > limit {
        add(count, -1);
        // Not in its slot: one that is denied is never released, and would keep it.
        let denied = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
        if !denied.is_null() {
            write(denied, CountedSocket::DENIED, epoch);
        }
        return false;
    }
    if slot.take(instance.index, epoch) {
        return true;
    }
    let counted = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    // The kernel has no memory for it.
    if counted.is_null() {
        add(count, -1);
        return false;
    }
    write(counted, instance.index, epoch);
    true
}

/// Takes a socket that is closed out of the count that it is in. `sk` is the context of a program of `sock_release`.
#[inline(always)]
pub(crate) fn close(sk: *mut bpf_sock) {
    let Some(slot) = Slot::of(sk) else { return };
    // The program of a confined cgroup above comes after this one, and finds the socket in no count.
    if slot.is_its() {
        // SAFETY: the slot is in a map value, alive and aligned.
        leave(unsafe { &raw mut (*slot.slot).counted });
        slot.give_back();
        return;
    }
    let counted = storage(sk, 0);
    leave(counted);
    if !counted.is_null() {
        write(counted, 0, 0);
    }
}

/// Whether the socket of a call was made by an instance, and not by the kernel for its listener.
#[inline(always)]
pub(crate) fn is_counted(ctx: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: the helper takes the context of these programs.
    let slot = Slot::with(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    slot.is_some_and(|slot| slot.is_its()) || instance_in(storage(sk, 0)) != 0
}

/// Takes a socket out of the count that it is said to be in, if it is in one.
#[inline(always)]
fn leave(counted: *mut CountedSocket) {
    let instance = instance_in(counted);
    // In no count; that of a denied one is no instance's number either.
    if instance == 0 {
        return;
    }
    let Some(count) = maps::SOCKETS.get_ptr_mut(instance) else { return };
    // SAFETY: both values are alive, their words aligned; `counted` is not null, or its instance would be 0.
    let (epoch, open, current) = unsafe {
        (
            (&raw const (*counted).epoch).read_volatile(),
            (&raw const (*count).open).read_volatile(),
            (&raw const (*count).epoch).read_volatile(),
        )
    };
    if epoch == current && open != 0 {
        add(count, -1);
    }
}

/// A socket's slot. Others' numbers come to the same one, and the first to take it has it.
struct Slot {
    slot: *mut SocketSlot,
    cookie: u64,
}

/// The lower bits of [`SocketSlot::taken`]: how many want the slot.
const WANT_BITS: u32 = 16;

impl Slot {
    #[inline(always)]
    fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: the helper takes the context of these programs.
        Self::with(unsafe { bpf_get_socket_cookie(sk.cast()) })
    }

    #[inline(always)]
    fn with(cookie: u64) -> Option<Self> {
        let slot = maps::COUNTED_SLOTS.get_ptr_mut(cookie as u32 & (SOCKET_SLOTS - 1))?;
        Some(Self { slot, cookie })
    }

    #[inline(always)]
    fn taken(&self) -> u64 {
        // SAFETY: the map value is alive, its word aligned.
        unsafe { (&raw const (*self.slot).taken).read_volatile() }
    }

    /// Whether the socket has it.
    #[inline(always)]
    fn is_its(&self) -> bool {
        self.taken() >> WANT_BITS == self.cookie
    }

    /// Takes it, unless another socket has it or wants it at the same time.
    ///
    /// Linux 5.10 has no compare-and-swap for programs, only an addition that returns nothing. So each adds that it wants the slot, and
    /// has it where it then finds itself alone; of two, at most one can. One that finds another takes back what it added.
    #[inline(always)]
    fn take(&self, instance: u32, epoch: u32) -> bool {
        self.add(1);
        if self.taken() != 1 {
            self.add(1_u64.wrapping_neg());
            return false;
        }
        // SAFETY: the map value is alive.
        write(unsafe { &raw mut (*self.slot).counted }, instance, epoch);
        self.add(self.cookie << WANT_BITS);
        true
    }

    /// Gives it back, of a socket that has it.
    #[inline(always)]
    fn give_back(&self) {
        self.add(((self.cookie << WANT_BITS) + 1).wrapping_neg());
    }

    #[inline(always)]
    fn add(&self, amount: u64) {
        // SAFETY: the map value is alive, its word aligned.
        unsafe { judge::add(&raw mut (*self.slot).taken, amount) };
    }
}

/// Which instance's count is said to have a socket; 0 where nothing is said.
#[inline(always)]
fn instance_in(counted: *mut CountedSocket) -> u32 {
    if counted.is_null() {
        return 0;
    }
    // SAFETY: not null, and alive for as long as the program runs.
    unsafe { (&raw const (*counted).instance).read_volatile() }
}

/// Says in which count a socket is. `counted` is not null.
#[inline(always)]
fn write(counted: *mut CountedSocket, instance: u32, epoch: u32) {
    // SAFETY: the caller's value is alive for as long as the program runs.
    unsafe {
        (&raw mut (*counted).epoch).write_volatile(epoch);
        (&raw mut (*counted).instance).write_volatile(instance);
    }
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> *mut CountedSocket {
    // SAFETY: the map is a socket storage of a CountedSocket, the socket a full one.
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
