//! What happens at a denial: it is counted, always; and told to user space, within limits.
//!
//! ```text
//! denied -> counter by reason -> seen within the interval? folded
//!                             -> beyond the instance's rate? limited
//!                             -> no room in the ring? lost
//!                             -> event
//! ```

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_ns,
};
use opencode_egress_common::{
    abi::{Counter, Denied, DestinationDenials, DestinationKey, Mode, REASON_SLOTS},
    flow::Flow,
    reason::{DropReason, Hook},
};

use crate::{
    judge::{Instance, add, count},
    maps,
};

/// A denied flow and where it was denied.
pub(crate) struct Denial<'a> {
    pub(crate) hook: Hook,
    pub(crate) reason: DropReason,
    pub(crate) flow: &'a Flow,
    /// IP length of the packet; `None` for a call that never became one.
    pub(crate) bytes: Option<u32>,
    pub(crate) caller: Caller,
}

/// Who asked, as far as the hook can know.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) comm: [u8; 16],
}

impl Caller {
    /// The process in whose system call the program runs.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        Self {
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            uid: bpf_get_current_uid_gid() as u32,
            comm: bpf_get_current_comm().unwrap_or_default(),
        }
    }

    /// Only the user is known. A packet's: another process, or none, may be running when the kernel sends
    /// it, so the user is the socket's. And a hook's in which the kernel does not tell the process.
    #[inline(always)]
    pub(crate) fn unknown(uid: u32) -> Self {
        Self { pid: 0, uid, comm: [0; 16] }
    }
}

/// Ends a denial. Returns whether the flow passes all the same, which only audit mode makes it do.
#[inline(always)]
pub(crate) fn denied(instance: &Instance, denial: &Denial<'_>) -> bool {
    let audit = match instance.head() {
        Some(head) => head.mode == Mode::Audit as u32,
        None => false,
    };
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        instance,
        "instance {} generation {}: denied at hook {} for reason {}",
        instance.index,
        instance.current.generation(),
        denial.hook as u8,
        denial.reason as u8
    );
    instance.count_denial();
    record(instance.index, instance.current.generation(), denial, u16::from(audit));
    audit
}

#[inline(never)]
fn record(instance: u32, generation: u32, denial: &Denial<'_>, audit: u16) {
    let Some(denied) = maps::DENIED.get_ptr_mut(instance) else { return };
    // A call that audit mode lets pass becomes a packet, and that is what is counted.
    if denial.bytes.is_some() || audit == 0 || !becomes_packet(denial.hook) {
        let slot = counter_slot(denial.reason);
        // SAFETY: the map value is alive and has REASON_SLOTS counters.
        let counter = unsafe { (&raw mut (*denied).reasons).cast::<Counter>().add(slot) };
        count(counter, denial.bytes.unwrap_or(0));
    }
    // SAFETY: the helper has no arguments and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(Due { attempts, suppressed }) = due(denied, instance, denial, now) else { return };
    // SAFETY: the map value is alive; both numbers are only ever added to.
    if !within_rate(denied, now) {
        unsafe { add(&raw mut (*denied).limited, 1) };
        return;
    }
    let Some(mut slot) = maps::EVENTS.reserve(0) else {
        // SAFETY: as above.
        unsafe { add(&raw mut (*denied).lost, 1) };
        return;
    };
    let Denial { hook, reason, flow, caller, .. } = denial;
    let event = slot.as_mut_ptr();
    // SAFETY: the record is an Event, which has no padding, and every field of it is written. One by one: an Event
    // made first and copied here would lie on the stack, of which older kernels leave too little.
    unsafe {
        // Volatile, or the compiler makes a call of it that moves 16 bytes, and a call takes stack.
        for (index, word) in flow.address.words().into_iter().enumerate() {
            (&raw mut (*event).address).cast::<u32>().add(index).write_volatile(word);
        }
        (&raw mut (*event).attempts).write(attempts);
        (&raw mut (*event).suppressed).write(suppressed);
        (&raw mut (*event).instance).write(instance);
        (&raw mut (*event).generation).write(generation);
        (&raw mut (*event).pid).write(caller.pid);
        (&raw mut (*event).uid).write(caller.uid);
        (&raw mut (*event).comm).write(caller.comm);
        (&raw mut (*event).port).write(flow.port);
        (&raw mut (*event).protocol).write(flow.protocol.0);
        (&raw mut (*event).family).write(flow.address.family() as u8);
        (&raw mut (*event).hook).write(*hook as u8);
        (&raw mut (*event).reason).write(*reason as u8);
        (&raw mut (*event).audit).write(audit);
    }
    slot.submit(0);
}

/// The place of a reason's counter. Reasons' numbers are below REASON_SLOTS (a test in -common), but the
/// verifier sees only a byte, and the compiler drops a mask that it knows to be idle, so this is one that
/// the compiler does not see.
#[inline(always)]
fn counter_slot(reason: DropReason) -> usize {
    let mut slot = reason as u64;
    // SAFETY: one instruction on the named register.
    unsafe { core::arch::asm!("{slot} &= {mask}", slot = inout(reg) slot, mask = const REASON_SLOTS - 1) };
    slot as usize
}

#[inline(always)]
fn becomes_packet(hook: Hook) -> bool {
    matches!(hook, Hook::Connect4 | Hook::Connect6 | Hook::Sendmsg4 | Hook::Sendmsg6)
}

/// What is to be told of a destination.
struct Due {
    attempts: u64,
    suppressed: u64,
}

/// Counts a denial of a destination. `None` when it is folded into the destination's last event.
#[inline(always)]
fn due(denied: *mut Denied, instance: u32, denial: &Denial<'_>, now: u64) -> Option<Due> {
    let key = DestinationKey::new(instance, denial.flow);
    let reason = DestinationDenials::bit(denial.reason);
    let Some(seen) = maps::SEEN.get_ptr_mut(key) else {
        // A full table evicts the oldest; a failed insert only means that the next one is told too.
        let _ = maps::SEEN.insert(
            key,
            DestinationDenials { reported: now, attempts: 1, told: 1, reasons: reason },
            0,
        );
        return Some(Due { attempts: 1, suppressed: 0 });
    };
    let interval = maps::LIMITS.get(0).map_or(0, |limits| limits.interval);
    // SAFETY: the value is alive; an evicted entry may be reused for another destination meanwhile,
    // which can misplace one attempt but not write outside the value.
    unsafe {
        add(&raw mut (*seen).attempts, 1);
        let reasons = (&raw const (*seen).reasons).read_volatile();
        if reasons & reason == 0 {
            (&raw mut (*seen).reasons).write_volatile(reasons | reason);
        }
        if now.wrapping_sub((*seen).reported) < interval {
            add(&raw mut (*denied).folded, 1);
            return None;
        }
        (*seen).reported = now;
        let attempts = (&raw const (*seen).attempts).read_volatile();
        let suppressed = attempts.wrapping_sub((*seen).told).wrapping_sub(1);
        (*seen).told = attempts;
        Some(Due { attempts, suppressed })
    }
}

/// The instance's token bucket, as the time at which it will be full again (GCRA): one word. Two CPUs
/// that read it at once can let one event more through; the ring and the journal bear that.
#[inline(always)]
fn within_rate(denied: *mut Denied, now: u64) -> bool {
    let Some(limits) = maps::LIMITS.get(0) else { return true };
    // SAFETY: the map value is alive and the word aligned.
    let bucket = unsafe { (&raw mut (*denied).bucket).read_volatile() };
    let bucket = if bucket > now { bucket } else { now };
    if bucket + limits.per_event > now + limits.burst {
        return false;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*denied).bucket).write_volatile(bucket + limits.per_event) };
    true
}
