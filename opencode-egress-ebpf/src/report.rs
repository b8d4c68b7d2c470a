//! What happens at a denial: it is counted, always; and told to user space, within limits.
//!
//! ```text
//! denied -> counter by reason -> seen within the interval? folded
//!                             -> beyond the instance's rate? limited
//!                             -> no room in the ring? lost
//!                             -> event
//! ```

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_AVAIL_DATA},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns, bpf_ktime_get_ns,
        bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit, generated::bpf_get_current_comm,
    },
};
use opencode_egress_common::{
    abi::{
        CalledEvent, Counter, DESTINATIONS_SHARE, Denied, DestinationDenials, DestinationKey, Event, Mode,
        REASON_SLOTS, RING_BYTES, Taken,
    },
    flow::{Flow, Protocol},
    reason::{DropReason, Hook},
};

use crate::{
    caller,
    judge::{Instance, add, count},
    maps,
    opaque::{self, opaque},
};

/// A denied flow and where it was denied.
pub(crate) struct Denial<'a> {
    pub(crate) hook: Hook,
    pub(crate) reason: DropReason,
    pub(crate) flow: &'a Flow,
    /// IP length of the packet; `None` for a call that never became one.
    pub(crate) bytes: Option<u32>,
}

/// What else is told of a denial, as far as the program can know it: which helpers there are differs from one to another.
pub(crate) trait Details {
    /// The record: an [`Event`], and maybe something behind it.
    type Record;

    /// What tells repeats from one another, beside where the flow goes and why it is denied.
    #[inline(always)]
    fn tag(&self) -> u16 {
        0
    }

    /// Writes who asked, and what there is beside. What the event has for it is zero before.
    ///
    /// # Safety
    ///
    /// `event` is a record of the ring buffer, of the kind of these details.
    unsafe fn add(&self, event: *mut Event, flow: &Flow);

    /// Writes who asked, where the record has room for it. Apart from the rest, which takes so much stack that little is left.
    ///
    /// # Safety
    ///
    /// As of `add`, which was before.
    #[inline(always)]
    unsafe fn tell_caller(&self, _: *mut Event) {}
}

/// A call, whose process is running.
pub(crate) struct Call;

impl Details for Call {
    type Record = CalledEvent;

    #[inline(always)]
    unsafe fn add(&self, event: *mut Event, _: &Flow) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*event).uid).write_volatile(bpf_get_current_uid_gid() as u32);
            tell_process(event);
        }
    }

    #[inline(always)]
    unsafe fn tell_caller(&self, event: *mut Event) {
        // SAFETY: the caller's promise.
        unsafe { caller::tell(event) };
    }
}

/// Writes which process is running, for programs in its own system call.
///
/// # Safety
///
/// `event` is a record of the ring buffer.
#[inline(always)]
pub(crate) unsafe fn tell_process(event: *mut Event) {
    // SAFETY: the caller's promise; the helper writes a name of as many bytes as it is told.
    unsafe {
        (&raw mut (*event).pid).write_volatile((bpf_get_current_pid_tgid() >> 32) as u32);
        bpf_get_current_comm((&raw mut (*event).comm).cast(), size_of::<[u8; 16]>() as u32);
    }
}

/// Whether a time of audit mode is over; 0 is never.
#[inline(always)]
fn is_over(until: u32) -> bool {
    // SAFETY: the helper has no arguments and cannot fail.
    until != 0 && unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000 >= u64::from(until)
}

/// Counts and reports a denial. Returns whether the flow passes all the same, which only audit mode makes it do.
#[inline(always)]
pub(crate) fn denied(instance: &Instance, denial: &Denial<'_>, details: &impl Details) -> bool {
    let audit = match instance.head() {
        Some(head) => head.mode == Mode::Audit as u32 && !is_over(head.audit_until),
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
    let mut told = 0;
    let event = record(instance, denial, audit, details, &mut told);
    // Otherwise the verifier follows what comes for either mode.
    let audit = opaque(u32::from(audit), instance.current.generation()) != 0;
    if told != 0 {
        // SAFETY: a record of these details' kind, which was reserved and is submitted once.
        unsafe {
            details.tell_caller(event);
            bpf_ringbuf_submit(event.cast(), 0);
        }
    }
    audit
}

/// Counts a denial, and makes a record of it where it is to be told. Null where it is not. `told` says so too, for the verifier of Linux
/// 5.10 takes it that a record, too, may be null.
#[inline(never)]
fn record<D: Details>(
    instance: &Instance,
    denial: &Denial<'_>,
    audit: bool,
    details: &D,
    told: &mut u64,
) -> *mut Event {
    const NONE: *mut Event = core::ptr::null_mut();
    let key_hook = key_hook(instance, denial, audit);
    let (instance, generation) = (instance.index, instance.current.generation());
    *told = 0;
    let Some(denied) = maps::DENIED.get_ptr_mut(instance) else { return NONE };
    let Some(taken) = maps::TAKEN.get_ptr(instance) else { return NONE };
    // One denial to the verifier. Else older kernels (6.1) follow the rest for each hook, reason and kind of flow: of two records that were
    // reserved they take none for the other.
    let (hook, key_hook) = (opaque::hook(denial.hook, generation), opaque::hook(key_hook, generation));
    let (reason, flow) = (opaque::reason(denial.reason, generation), &opaque::flow(*denial.flow, generation));
    let slot = counter_slot(reason);
    // SAFETY: the map value is alive and has REASON_SLOTS counters.
    let counter = unsafe { (&raw mut (*denied).reasons).cast::<Counter>().add(slot) };
    count(counter, denial.bytes.unwrap_or(0));
    // SAFETY: the helper has no arguments and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    let key =
        DestinationKey { server: details.tag(), ..DestinationKey::new(instance, flow, key_hook, reason) };
    let Some(Due { attempts, suppressed }) = due(denied, taken, &key, now) else { return NONE };
    if !within_rate(denied, now) {
        // SAFETY: the map value is alive, and the number is only ever added to.
        unsafe { add(&raw mut (*denied).limited, 1) };
        return NONE;
    }
    // SAFETY: the values are alive, their words aligned.
    let waiting = unsafe {
        (&raw const (*denied).events)
            .read_volatile()
            .wrapping_sub((&raw const (*taken).events).read_volatile())
    };
    let ring = (&raw const maps::EVENTS).cast_mut().cast();
    let size = size_of::<D::Record>() as u64;
    let event: *mut Event = match has_room(ring, RING_BYTES, size, waiting) {
        // SAFETY: the map is a ring buffer, and the size no more than it has.
        true => unsafe { bpf_ringbuf_reserve(ring, size, 0) }.cast(),
        false => core::ptr::null_mut(),
    };
    if event.is_null() {
        // SAFETY: as above.
        unsafe { add(&raw mut (*denied).lost, 1) };
        return NONE;
    }
    // SAFETY: the record is an Event, which has no padding, and every field of it is written. One by one: an Event
    // made first and copied here would lie on the stack, of which older kernels leave too little.
    unsafe {
        // Volatile, or the compiler makes a call of it that moves 16 bytes, and a call takes stack.
        for (index, word) in flow.address.words().into_iter().enumerate() {
            (&raw mut (*event).address).cast::<u32>().add(index).write_volatile(word);
        }
        for index in 0..4 {
            (&raw mut (*event).asked_address).cast::<u32>().add(index).write_volatile(0);
        }
        (&raw mut (*event).attempts).write(attempts);
        (&raw mut (*event).suppressed).write(suppressed);
        (&raw mut (*event).instance).write(instance);
        (&raw mut (*event).generation).write(generation);
        (&raw mut (*event).pid).write_volatile(0);
        (&raw mut (*event).uid).write_volatile(0);
        for index in 0..2 {
            (&raw mut (*event).comm).cast::<u64>().add(index).write_volatile(0);
        }
        (&raw mut (*event).port).write(flow.port);
        (&raw mut (*event).asked_port).write_volatile(0);
        (&raw mut (*event).local_port).write_volatile(0);
        (&raw mut (*event).protocol).write(flow.protocol.0);
        (&raw mut (*event).family).write(flow.address.family() as u8);
        (&raw mut (*event).asked_family).write_volatile(0);
        (&raw mut (*event).hook).write(hook as u8);
        (&raw mut (*event).key_hook).write(key_hook as u8);
        (&raw mut (*event).reason).write(reason as u8);
        (&raw mut (*event).audit).write(u32::from(audit));
        details.add(event, flow);
        add(&raw mut (*denied).events, 1);
    }
    *told = 1;
    event
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

/// Whether an instance may put one more record into a ring buffer of `capacity` bytes, where `waiting` of its own are: they
/// may take half of what is free. So one that is alone may fill a third, and however many there are, some room is left for
/// one more.
#[inline(always)]
pub(crate) fn has_room(ring: *mut core::ffi::c_void, capacity: u32, record: u64, waiting: u64) -> bool {
    /// What precedes each record (`BPF_RINGBUF_HDR_SZ`).
    const HEADER: u64 = 8;
    // SAFETY: the caller's map is a ring buffer.
    let filled = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
    let free = u64::from(capacity).saturating_sub(filled);
    // User space may have taken one before it was counted here.
    let waiting = if waiting > u64::from(u32::MAX) { 0 } else { waiting };
    (waiting + 1) * (record + HEADER) <= free / 2
}

/// The hook under which repeats are folded. In audit mode a call goes on as packets, which are the same denial.
#[inline(always)]
fn key_hook(instance: &Instance, denial: &Denial<'_>, audit: bool) -> Hook {
    let hook = match (denial.hook, denial.flow.protocol) {
        (Hook::Egress, Protocol::TCP) if audit => Hook::Connect4,
        (Hook::Egress, Protocol::UDP | Protocol::UDPLITE) if audit && instance.judges_datagram_calls() => {
            Hook::Sendmsg4
        }
        (hook, _) => hook,
    };
    hook.of_family(denial.flow.address.family())
}

/// What is to be told of a denial.
struct Due {
    attempts: u64,
    suppressed: u64,
}

/// Counts a repeat. `None` when it is folded into the last event.
#[inline(always)]
fn due(denied: *mut Denied, taken: *const Taken, key: &DestinationKey, now: u64) -> Option<Due> {
    let Some(seen) = maps::SEEN.get_ptr_mut(key) else {
        // SAFETY: both values are alive, their words aligned. The numbers are only ever added to.
        unsafe {
            let remembered = (&raw const (*denied).remembered).read_volatile();
            let forgotten = (&raw const (*taken).forgotten).read_volatile();
            // Where there is no room, the next one is told too.
            if remembered.wrapping_sub(forgotten) < DESTINATIONS_SHARE {
                let first = DestinationDenials { reported: now, attempts: 1, told: 1 };
                if maps::SEEN.insert(key, first, u64::from(BPF_NOEXIST)).is_ok() {
                    add(&raw mut (*denied).remembered, 1);
                }
            }
        }
        return Some(Due { attempts: 1, suppressed: 0 });
    };
    let interval = maps::LIMITS.get(0).map_or(0, |limits| limits.interval);
    // SAFETY: the value is alive; one that user space forgets may be reused for another denial meanwhile,
    // which can misplace one attempt but not write outside the value.
    unsafe {
        add(&raw mut (*seen).attempts, 1);
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
