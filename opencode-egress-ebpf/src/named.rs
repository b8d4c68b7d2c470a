//! Flows that pass because an answer for a listed name brought their address, or because their network is leased.
//!
//! The address, or the lease, is good for new flows until its time is over; a flow that began goes on for as long as it lives. So the socket remembers
//! the last flows of its own that began, with the rule that let each begin: under another policy a flow goes on when that has
//! the rule still, whatever has become of the address. (Of a lease that ended it has the rule for that alone.)

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_ktime_get_boot_ns, bpf_setsockopt, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use opencode_egress_common::{
    abi::{Learned, LearnedKey, NameRuleId, TrieKey},
    decide::Verdict,
    flow::{Address, Flow},
    names::{ByName as Said, LearnedAddresses, NamedFlow, by_lease, by_name, covers, may_be_allowed_by_name},
    reason::DropReason,
};

use crate::{
    judge::Instance,
    maps,
    opaque::{difference, opaque},
    sk::{FullSk, Sk},
    storage::{BegunFlow, FLOWS, NamedSocket},
    uapi::{BPF_SK_STORAGE_GET_F_CREATE, SO_MARK, SOCK_STREAM, SOL_SOCKET, TCP_SYN_SENT},
};

#[inline(always)]
fn shape(flow: &Flow) -> u32 {
    (flow.address.family() as u32) << 24 | u32::from(flow.protocol.0) << 16 | u32::from(flow.port)
}

/// What is remembered of a full socket. Null where nothing is, or there is no memory for it.
#[inline(always)]
pub(crate) fn socket_of(sk: *mut bpf_sock, flags: u64) -> *mut NamedSocket {
    // SAFETY: the map is a socket storage of as many bytes as a `NamedSocket` has, the socket a full one.
    unsafe {
        bpf_sk_storage_get(
            (&raw const maps::NAMED_SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

/// How a place differs from a flow.
#[inline(always)]
fn differs(place: *const BegunFlow, flow: &Flow) -> u64 {
    let words = flow.address.words();
    // SAFETY: the caller's place is one of the socket's storage, which lives as long as the program runs. What two processors write
    // at once mixes two flows of the same socket, each of which may pass.
    unsafe {
        let word = |index: usize| (&raw const (*place).address).cast::<u32>().add(index).read_volatile();
        difference((&raw const (*place).shape).read_volatile(), shape(flow))
            | difference(word(0), words[0])
            | difference(word(1), words[1])
            | difference(word(2), words[2])
            | difference(word(3), words[3])
    }
}

/// A place among a socket's flows, by a number that is reduced to how many there are.
#[inline(always)]
fn place(socket: *mut NamedSocket, number: u64) -> *mut BegunFlow {
    // SAFETY: the index is below the length, by a mask that the verifier sees too.
    unsafe { (&raw mut (*socket).flows).cast::<BegunFlow>().add(number as usize & (FLOWS - 1)) }
}

/// The number of the place that has a flow; [`FLOWS`] where none has.
#[inline(always)]
fn find(socket: *mut NamedSocket, flow: &Flow) -> u64 {
    let mut index = 0;
    while index < FLOWS as u64 && differs(place(socket, index), flow) != 0 {
        index += 1;
    }
    index
}

/// Whether what is remembered of a socket is of this instance. Another one's generations are others, of the same numbers.
#[inline(always)]
fn is_of(socket: *mut NamedSocket, instance: &Instance) -> bool {
    // SAFETY: the caller's pointer is not null, and the socket's for as long as the program runs.
    unsafe { (&raw const (*socket).instance).read_volatile() == instance.index }
}

/// The rule by which a flow of a socket, of which this is remembered, was allowed under the policy in force: 0 for none.
#[inline(never)]
pub(crate) fn goes_on_by(socket: *mut NamedSocket, instance: &Instance, flow: &Flow) -> u64 {
    // A policy that is out of force has its generation still.
    if socket.is_null() || instance.current.slot() == 0 || !is_of(socket, instance) {
        return 0;
    }
    let mut index = 0;
    while index < FLOWS as u64 {
        let place = place(socket, index);
        // SAFETY: as in `differs`.
        let generation = unsafe { (&raw const (*place).generation).read_volatile() };
        if differs(place, flow) | difference(generation, instance.current.generation()) == 0 {
            // SAFETY: as in `differs`.
            return unsafe { (&raw const (*place).rule).read_volatile() };
        }
        index += 1;
    }
    0
}

/// Remembers that a flow of this full socket began. Returns whether there was memory for it.
#[inline(never)]
fn remember(sk: *mut bpf_sock, instance: &Instance, flow: &Flow, rule: u64) -> bool {
    let socket = socket_of(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if socket.is_null() {
        return false;
    }
    if !is_of(socket, instance) {
        forget(socket, 0);
        // SAFETY: the storage is the socket's for as long as the program runs.
        unsafe { (&raw mut (*socket).instance).write_volatile(instance.index) };
    }
    // The place that has it, or the next one.
    let number = match find(socket, flow) {
        known if known < FLOWS as u64 => known,
        // SAFETY: the storage is the socket's for as long as the program runs.
        _ => unsafe {
            let next = (&raw const (*socket).next).read_volatile();
            (&raw mut (*socket).next).write_volatile(next.wrapping_add(1));
            u64::from(next)
        },
    };
    let place = place(socket, number);
    let words = flow.address.words();
    // SAFETY: as above.
    unsafe {
        (&raw mut (*place).rule).write_volatile(rule);
        let address = (&raw mut (*place).address).cast::<u32>();
        address.write_volatile(words[0]);
        address.add(1).write_volatile(words[1]);
        address.add(2).write_volatile(words[2]);
        address.add(3).write_volatile(words[3]);
        (&raw mut (*place).shape).write_volatile(shape(flow));
        (&raw mut (*place).generation).write_volatile(instance.current.generation());
    }
    true
}

/// What was learned for a policy, in the kernel's map.
struct OfPolicy<'a>(&'a Instance);

impl LearnedAddresses for OfPolicy<'_> {
    #[inline(always)]
    fn learned(&self, grant: u32, address: &Address) -> Option<Learned> {
        let key = LearnedKey::new(self.0.index, self.0.current.generation(), grant, address);
        // SAFETY: a value that was found is whole and aligned, and lives as long as the program runs (RCU). One that user space
        // prolongs meanwhile has the old time or the new one.
        unsafe { maps::LEARNED.get(&key) }.copied()
    }
}

/// What the name rules in force say of a new flow: 0 for nothing, 1 for a time that is over, otherwise the rule. (A function of its own,
/// which takes stack, returns one word.)
#[inline(never)]
fn rule_for(instance: &Instance, flow: &Flow) -> u64 {
    let (Some(header), Some(trie)) = (instance.head(), maps::trie(instance.current.slot())) else { return 0 };
    // SAFETY: the helper has no arguments and cannot fail.
    let time = unsafe { bpf_ktime_get_boot_ns() };
    let now = time / 1_000_000_000;
    let Some(flow) = NamedFlow::of(flow) else { return 0 };
    let flow = NamedFlow { class: opaque(flow.class, time as u32), ..flow };
    match by_name(&trie, &OfPolicy(instance), header.name_grants, &flow, now) {
        Said::Unknown => 0,
        Said::Expired => 1,
        Said::Allowed(rule) => rule.0,
    }
}

/// The lease of a network by which a new flow may begin, as the rule that it is remembered by: 0 for none. (A function of its own, for
/// what it takes of the stack.)
#[inline(never)]
pub(crate) fn lease_for(instance: &Instance, flow: &Flow) -> u64 {
    let (Some(header), Some(trie)) = (instance.head(), maps::trie(instance.current.slot())) else { return 0 };
    if header.leased == 0 {
        return 0;
    }
    // SAFETY: the helper has no arguments and cannot fail.
    let time = unsafe { bpf_ktime_get_boot_ns() };
    let Some(flow) = NamedFlow::of(flow) else { return 0 };
    let flow = NamedFlow { class: opaque(flow.class, time as u32), ..flow };
    match by_lease(&trie, &flow, time / 1_000_000_000) {
        Some(lease) => lease.0,
        None => 0,
    }
}

// How a flow of a socket began.
/// By no name, or nobody knows.
const BEGAN_OTHERWISE: u32 = 0;
/// By a rule that the policy in force has, too.
const BEGAN: u32 = 1;
/// By a rule with `tls` that it has not, so that what it began with was a hello.
const BEGAN_AS_TLS: u32 = 2;

/// The place that has a flow of this full socket.
#[inline(always)]
fn place_of(sk: *mut bpf_sock, instance: &Instance, flow: &Flow) -> Option<*mut BegunFlow> {
    let socket = socket_of(sk, 0);
    if socket.is_null() || !is_of(socket, instance) {
        return None;
    }
    let number = find(socket, flow);
    (number < FLOWS as u64).then(|| place(socket, number))
}

/// How a flow of this full socket began.
#[inline(never)]
fn began(sk: *mut bpf_sock, instance: &Instance, flow: &Flow) -> u32 {
    let Some(place) = place_of(sk, instance, flow) else { return BEGAN_OTHERWISE };
    // SAFETY: the storage is the socket's for as long as the program runs.
    let rule = NameRuleId(unsafe { (&raw const (*place).rule).read_volatile() });
    let (Some(trie), Some(flow)) = (maps::trie(instance.current.slot()), NamedFlow::of(flow)) else {
        return BEGAN_OTHERWISE;
    };
    if covers(&trie, &TrieKey::name_rule(rule), &flow) {
        // SAFETY: as above.
        unsafe { (&raw mut (*place).generation).write_volatile(instance.current.generation()) };
        return BEGAN;
    }
    if rule.opens_tls() { BEGAN_AS_TLS } else { BEGAN_OTHERWISE }
}

/// Has flows of this full socket that began by a rule with `tls` go on by none: they are free of TLS now, by something that may end. All of
/// them, for where a connection goes may be rewritten.
#[inline(always)]
pub(crate) fn forget_tls(sk: *mut bpf_sock) {
    let socket = socket_of(sk, 0);
    if !socket.is_null() {
        forget(socket, NameRuleId::TLS);
    }
}

/// Forgets the rules that have these bits, by which flows began.
#[inline(never)]
fn forget(socket: *mut NamedSocket, bits: u64) {
    let mut index = 0;
    while index < FLOWS as u64 {
        let place = place(socket, index);
        // SAFETY: the storage is the socket's for as long as the program runs.
        unsafe {
            if (&raw const (*place).rule).read_volatile() & bits == bits {
                (&raw mut (*place).generation).write_volatile(0);
                (&raw mut (*place).rule).write_volatile(0);
            }
        }
        index += 1;
    }
}

/// What names say of a flow that the network rules deny.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum ByName {
    /// Nothing.
    Unknown,
    /// The time for new flows to the address is over.
    Expired,
    /// It passes.
    Allowed,
}

/// Judges a flow that the network rules deny, for a reason that a name may turn. `new`: only a flow that may begin now passes, not
/// one that began before.
#[inline(never)]
pub(crate) fn judge(instance: &Instance, flow: &Flow, sk: FullSk, new: bool) -> ByName {
    if !instance.current.has_names() {
        return ByName::Unknown;
    }
    // By what it began, whatever else would let it begin by now: the end of that is not its end.
    let began = if new { BEGAN_AS_TLS } else { began(sk.as_ptr(), instance, flow) };
    let began = opaque(began, instance.current.generation());
    if began == BEGAN {
        return ByName::Allowed;
    }
    let by_name = rule_for(instance, flow);
    // A lease frees a flow of the TLS that the name's rule would have it open.
    let freely = by_name > 1 && !NameRuleId(by_name).opens_tls();
    let lease = if freely { 0 } else { lease_for(instance, flow) };
    let rule = if lease != 0 { lease } else { by_name };
    // A connection that is open, and began otherwise, brought no hello that anybody looked at. (The kernel's test run of a program has a
    // socket without a type.)
    let open = sk.kind() == SOCK_STREAM && sk.state() != TCP_SYN_SENT;
    if NameRuleId(rule).opens_tls() && began != BEGAN_AS_TLS && open {
        return ByName::Unknown;
    }
    if rule > 1 {
        let remembered = remember(sk.as_ptr(), instance, flow, rule);
        // Without memory for it a flow goes on for as long as the address is good; but a hello that nobody can follow must not leave.
        return if remembered || !NameRuleId(rule).opens_tls() { ByName::Allowed } else { ByName::Unknown };
    }
    if by_name == 1 { ByName::Expired } else { ByName::Unknown }
}

/// The verdict on a call, of which the network rules have said this, and whether it passes by name.
#[inline(always)]
pub(crate) fn settle(
    instance: &Instance,
    flow: &Flow,
    verdict: Verdict,
    sk: FullSk,
    new: bool,
) -> (Verdict, bool) {
    match verdict {
        Verdict::Deny(reason) if may_be_allowed_by_name(reason) => match judge(instance, flow, sk, new) {
            ByName::Allowed => (Verdict::Allow, true),
            ByName::Expired => (Verdict::Deny(DropReason::NameExpired), false),
            ByName::Unknown => (verdict, false),
        },
        _ => (verdict, false),
    }
}

/// Sets the bit of the socket's mark by which the second lock lets flows by name pass, or takes it away from a socket that goes elsewhere.
/// Where the kernel refuses, the flow meets that lock without.
#[inline(always)]
pub(crate) fn mark(ctx: *mut core::ffi::c_void, sk: Sk, bit: u32, named: bool) {
    let before = sk.mark();
    let mut mark = if named { before | bit } else { before & !bit };
    if mark == before {
        return;
    }
    // SAFETY: the helper takes the context of these programs, and a value of the length that it is told.
    unsafe { bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), size_of::<u32>() as i32) };
}

/// The same in a program that may do so: before Linux 5.12 the programs of sendmsg may not.
///
/// The kernel has taken the socket's mark for the datagram before it runs these programs. So the first datagram by name of a socket without
/// a peer has no mark, and the second lock refuses it; those that follow have it. Of a socket with a peer every one has it,
/// for connect has set it, until the socket sends elsewhere by an address of its own.
#[inline(always)]
pub(crate) fn mark_if_possible(ctx: &SockAddrContext, sk: Sk, bit: u32, named: bool) {
    if maps::sendmsg_may_mark() {
        mark(ctx.sock_addr.cast(), sk, bit, named);
    }
}
