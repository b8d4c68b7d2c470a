//! The confined instance, and its verdict on a flow.

use core::mem::transmute;

use opencode_egress_common::{
    abi::{ConfinedCgroup, Counter, Current, PolicyHeader},
    cache,
    decide::{Decision, Verdict, decide, decide_for_some_port},
    flow::Flow,
    reason::DropReason,
};

use crate::{maps, opaque::opaque};

/// The instance that the running program confines, with the policy that is in force for it now.
#[derive(Clone, Copy)]
pub(crate) struct Instance {
    pub(crate) index: u32,
    pub(crate) current: Current,
    scope: *mut ConfinedCgroup,
}

impl Instance {
    /// The instance of the cgroup that the program is attached to.
    #[inline(always)]
    pub(crate) fn get() -> Self {
        let scope = maps::scope();
        // SAFETY: the storage is a whole ConfinedCgroup and lives as long as the program runs. User space
        // replaces it only while it attaches.
        let index = unsafe { (*scope).instance };
        Self { index, current: maps::current(index), scope }
    }

    /// The policy without its rules.
    #[inline(always)]
    pub(crate) fn head(&self) -> Option<&'static PolicyHeader> {
        match self.current.slot() {
            0 => None,
            slot => maps::HEADS.get(slot),
        }
    }

    /// Whether datagrams' calls are judged, and not their packets alone: where no packet's program knows the process, or the calls are to get another error.
    #[inline(always)]
    pub(crate) fn judges_datagram_calls(&self) -> bool {
        maps::sendmsg_judges() || self.head().is_some_and(|header| header.errno != 0)
    }

    /// Whether the cache remembers that the current policy allows a flow.
    #[inline(always)]
    pub(crate) fn remembers(&self, flow: &Flow) -> bool {
        // A retired policy's generation stays, and so do the tags that carry it.
        if self.current.slot() == 0 {
            return false;
        }
        let tag = cache::tag(flow, self.current.generation(), maps::tag_key);
        // SAFETY: the slot is inside the scope's cache; one aligned 64-bit load, so it is a tag that
        // was stored whole.
        tag != 0 && unsafe { self.cache_slot(flow).read_volatile() } == tag
    }

    /// The decision on a flow: from the cache, or from the rules.
    #[inline(always)]
    pub(crate) fn decision(&self, flow: &Flow) -> Decision {
        if self.remembers(flow) { Decision::Settled(Verdict::Allow) } else { self.judge(flow) }
    }

    /// The rules' decision on a flow; a settled `Allow` is remembered.
    #[inline(always)]
    pub(crate) fn judge(&self, flow: &Flow) -> Decision {
        unpack(self.judge_apart(flow))
    }

    /// The same, packed into a number of which the verifier does not know that it is one of a few. Apart from the rest, for it takes stack.
    #[inline(never)]
    fn judge_apart(&self, flow: &Flow) -> u32 {
        opaque(pack(self.judge_by_rules(flow)), self.current.generation())
    }

    #[inline(always)]
    fn judge_by_rules(&self, flow: &Flow) -> Decision {
        let decision = match self.current.slot() {
            0 => Decision::Settled(Verdict::Deny(DropReason::NoPolicy)),
            policy => match maps::trie(policy) {
                Some(trie) => match self.head().and_then(|header| header.judge_resolver(flow)) {
                    // Not remembered: what is remembered passes by whatever interface it leaves.
                    Some(verdict) => return Decision::Settled(verdict),
                    None => decide(&trie, flow),
                },
                None => Decision::Settled(Verdict::Deny(DropReason::NoPolicy)),
            },
        };
        if let Decision::Settled(Verdict::Allow) = decision {
            self.remember(flow);
        }
        decision
    }

    /// The rules' verdict on a flow whose port is not known yet.
    #[inline(always)]
    pub(crate) fn judge_some_port(&self, flow: &Flow) -> Verdict {
        match self.current.slot() {
            0 => Verdict::Deny(DropReason::NoPolicy),
            policy => match maps::trie(policy) {
                Some(trie) => decide_for_some_port(&trie, flow),
                None => Verdict::Deny(DropReason::NoPolicy),
            },
        }
    }

    /// Has the cache remember a flow under the current policy.
    #[inline(always)]
    pub(crate) fn remember(&self, flow: &Flow) {
        let tag = cache::tag(flow, self.current.generation(), maps::tag_key);
        if tag != 0 {
            // SAFETY: the slot is inside the scope's cache; one aligned 64-bit store. The tag carries the
            // generation that judged, so a store that comes late is a miss for the next generation.
            unsafe { self.cache_slot(flow).write_volatile(tag) };
        }
    }

    #[inline(always)]
    fn cache_slot(&self, flow: &Flow) -> *mut u64 {
        // SAFETY: `cache::slot` is below CACHE_SLOTS by a mask that the verifier sees too.
        unsafe { (&raw mut (*self.scope).cache).cast::<u64>().add(cache::slot(flow)) }
    }

    /// How deep below the root of its hierarchy the confined cgroup is; see [`ConfinedCgroup::level`].
    #[inline(always)]
    pub(crate) fn level(&self) -> *mut u32 {
        // SAFETY: the storage is a whole ConfinedCgroup and lives as long as the program runs.
        unsafe { &raw mut (*self.scope).level }
    }

    /// Counts a denial of the cgroup's.
    #[inline(always)]
    pub(crate) fn count_denial(&self) {
        // SAFETY: the storage is alive while the program runs, and the number is aligned. BPF_XADD, as in `add`.
        unsafe {
            let number = &raw mut (*self.scope).denials;
            core::arch::asm!("lock *(u32 *)({number} + 0) += {one}", number = in(reg) number, one = in(reg) 1_u64);
        }
    }

    /// Counts a packet that passes.
    #[inline(always)]
    pub(crate) fn count_allowed(&self, bytes: u32) {
        if let Some(counter) = maps::ALLOWED.get_ptr_mut(self.index) {
            count(counter, bytes);
        }
    }
}

const SETTLED: u32 = 1 << 8;
const OWN_ONLY: u32 = 2 << 8;

/// A decision as a number: what it is in the upper bits, the reason in the lowest byte.
#[inline(always)]
fn pack(decision: Decision) -> u32 {
    match decision {
        Decision::Settled(Verdict::Allow) => 0,
        Decision::Settled(Verdict::Deny(reason)) => SETTLED | reason as u32,
        Decision::OwnOnly(reason) => OWN_ONLY | reason as u32,
    }
}

/// The decision of which [`pack`] made the number.
#[inline(always)]
fn unpack(packed: u32) -> Decision {
    // SAFETY: the lowest byte is a reason's, unless there is none, and then it is not used.
    let reason = || unsafe { transmute::<u8, DropReason>(packed as u8) };
    if packed == 0 {
        Decision::Settled(Verdict::Allow)
    } else if packed & OWN_ONLY != 0 {
        Decision::OwnOnly(reason())
    } else {
        Decision::Settled(Verdict::Deny(reason()))
    }
}

/// Adds a packet to a counter, exactly, whoever else counts in it: a program can be interrupted or
/// preempted by another one even on its own CPU.
#[inline(always)]
pub(crate) fn count(counter: *mut Counter, bytes: u32) {
    // SAFETY: the pointer is into a map value, aligned, and alive while the program runs.
    unsafe {
        add(&raw mut (*counter).packets, 1);
        add(&raw mut (*counter).bytes, u64::from(bytes));
    }
}

/// Adds atomically.
///
/// # Safety
///
/// `number` points to an aligned u64 in a map value.
#[inline(always)]
pub(crate) unsafe fn add(number: *mut u64, amount: u64) {
    // SAFETY: the caller's promise. This is BPF_XADD, which every supported kernel has; core has no
    // `fetch_add` for this target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({number} + 0) += {amount}", number = in(reg) number, amount = in(reg) amount);
    }
}
