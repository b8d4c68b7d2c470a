//! Questions for names: wherever they are addressed, they go to the instance's own resolver.
//!
//! The calls that address port 53 are given the resolver's address on loopback instead, and those that ask where an answer came from
//! are told what was addressed: clients take no answer from elsewhere.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_pid_tgid, bpf_sk_storage_get,
        generated::{bpf_get_current_comm, bpf_get_socket_uid},
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use opencode_egress_common::{
    abi::{Asker, AskerKey, PolicyHeader},
    decide::Verdict,
    flow::{Address, Family, Flow, Protocol},
    packet::Bytes as _,
};

use crate::{
    judge::Instance,
    maps, named,
    opaque::opaque,
    sk::FullSk,
    skb::{Linear, Skb},
    storage::AskedResolver,
    uapi::{
        BPF_SK_STORAGE_GET_F_CREATE, ETH_P_IP, ETH_P_IPV6, LOOPBACK_IFINDEX, SOCK_STREAM, TCP_ESTABLISHED,
    },
};

/// The port of every resolver that could be asked in the clear. What is asked in TLS or HTTPS is a flow like any other.
pub(crate) const DOMAIN: u16 = 53;

const LOOPBACK: u32 = 0x7f00_0001_u32.to_be();

/// Gives the call the address of the instance's resolver, if the flow is a question that no rule for networks, and no lease of one, lets pass. `v6` is the family of
/// the call, not of the address. A socket that is bound to an interface would not find the resolver there, so its questions are
/// flows like any other.
#[inline(never)]
pub(crate) fn redirect(ctx: &SockAddrContext, instance: &Instance, flow: &Flow, v6: bool) -> bool {
    if flow.port != DOMAIN || !matches!(flow.protocol, Protocol::TCP | Protocol::UDP) {
        return false;
    }
    let (Some(sk), Some(header)) = (FullSk::of_call(ctx), instance.head()) else { return false };
    let reaches_loopback = matches!(sk.interface(), 0 | LOOPBACK_IFINDEX);
    if !reaches_loopback
        || header.resolver_port == 0
        || matches!(instance.judge(flow).settle(|| false), Verdict::Allow)
        || named::lease_for(instance, flow) != 0
    {
        return false;
    }
    remember(sk, flow);
    let addr = ctx.sock_addr;
    // SAFETY: the kernel's context, whose address and port these programs may change.
    unsafe {
        match (v6, flow.address.family()) {
            (false, _) => write4(addr, LOOPBACK),
            (true, Family::V4) => write6(addr, [0, 0, 0xffff_u32.to_be(), LOOPBACK]),
            (true, Family::V6) => write6(addr, [0, 0, 0, 1_u32.to_be()]),
        }
        write_port(addr, header.resolver_port as u16);
    }
    true
}

/// Remembers whose a question is that leaves for the resolver. Its socket may be closed when it is refused, and then nothing else knows.
/// Returns `result`: of a function whose result nobody takes the compiler makes one that the verifier refuses.
#[inline(never)]
pub(crate) fn remember_asker(skb: &Skb, instance: u32, result: u32) -> u32 {
    put_asker(skb, instance);
    opaque(result, skb.0.len())
}

#[inline(always)]
fn put_asker(skb: &Skb, instance: u32) {
    let Some(sk) = skb.full_socket() else { return };
    // What follows the first segment is the same user's.
    if sk.kind() == SOCK_STREAM && sk.state() == TCP_ESTABLISHED {
        return;
    }
    // The packet has an address where its socket may have none.
    let source = match skb.ethertype() {
        ETH_P_IP => Linear(skb).near::<12, 1>().map(|[word]| Address::v4(word)),
        ETH_P_IPV6 => Linear(skb).near::<8, 4>().map(Address::v6),
        _ => None,
    };
    let Some(source) = source else { return };
    let key = AskerKey::new(instance, &source, sk.port());
    let (mut pid, mut comm) = (0, [0; 4]);
    // The process that named the server: who sends is not known on every kernel. One that addresses the resolver itself named none.
    let asked = asked_of(sk, 0);
    if !asked.is_null() {
        // SAFETY: not null, and the socket's for as long as the program runs.
        unsafe {
            let word = |index| (&raw const (*asked).comm).cast::<u32>().add(index).read_volatile();
            (pid, comm) = ((&raw const (*asked).pid).read_volatile(), [word(0), word(1), word(2), word(3)]);
        }
    }
    // SAFETY: the helper takes the context of these programs; four words are sixteen bytes.
    let asker = unsafe {
        Asker {
            user: bpf_get_socket_uid(skb.raw()),
            pid,
            comm: core::mem::transmute::<[u32; 4], [u8; 16]>(comm),
        }
    };
    // The oldest ones make room.
    let _ = maps::ASKERS.insert(&key, asker, 0);
}

/// Writes a word of the context. The verifier wants its place to be a constant in the instruction itself, where the compiler computes it
/// once for two that are near each other.
macro_rules! write {
    ($addr:expr, $place:expr, $word:expr) => {
        core::arch::asm!(
            "*(u32 *)({addr} + {place}) = {word}",
            addr = in(reg) $addr,
            place = const $place,
            word = in(reg) u64::from($word),
        )
    };
}

/// # Safety
///
/// The kernel's context of a program for IPv4 that may change the address.
#[inline(always)]
unsafe fn write4(addr: *mut bpf_sock_addr, word: u32) {
    // SAFETY: the caller's promise.
    unsafe { write!(addr, offset_of!(bpf_sock_addr, user_ip4), word) };
}

/// # Safety
///
/// The kernel's context of a program for IPv6 that may change the address.
#[inline(always)]
unsafe fn write6(addr: *mut bpf_sock_addr, words: [u32; 4]) {
    const START: usize = offset_of!(bpf_sock_addr, user_ip6);
    // SAFETY: the caller's promise.
    unsafe {
        write!(addr, START, words[0]);
        write!(addr, START + 4, words[1]);
        write!(addr, START + 8, words[2]);
        write!(addr, START + 12, words[3]);
    }
}

/// # Safety
///
/// The kernel's context of a program that may change the address.
#[inline(always)]
unsafe fn write_port(addr: *mut bpf_sock_addr, port: u16) {
    // SAFETY: the caller's promise. The field has the port in network byte order in its lower half.
    unsafe { write!(addr, offset_of!(bpf_sock_addr, user_port), u32::from(port.to_be())) };
}

#[inline(always)]
fn asked_of(sk: FullSk, flags: u64) -> *mut AskedResolver {
    // SAFETY: the map is a socket storage of an `AskedResolver`, the socket a full one. Null where there is none, or no memory for one.
    unsafe {
        bpf_sk_storage_get(
            (&raw const maps::ASKED_RESOLVERS).cast_mut().cast(),
            sk.as_ptr().cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

/// Where there is no memory for it, answers come from the resolver's address.
#[inline(always)]
fn remember(sk: FullSk, flow: &Flow) {
    let asked = asked_of(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if asked.is_null() {
        return;
    }
    let words = flow.address.words();
    // SAFETY: not null, and the socket's for as long as the program runs; the helper writes a name of as many bytes as it is told.
    unsafe {
        let address = (&raw mut (*asked).address).cast::<u32>();
        address.write_volatile(words[0]);
        address.add(1).write_volatile(words[1]);
        address.add(2).write_volatile(words[2]);
        address.add(3).write_volatile(words[3]);
        (&raw mut (*asked).family).write_volatile(flow.address.family() as u32);
        (&raw mut (*asked).port).write_volatile(u32::from(flow.port));
        (&raw mut (*asked).pid).write_volatile((bpf_get_current_pid_tgid() >> 32) as u32);
        bpf_get_current_comm((&raw mut (*asked).comm).cast(), size_of::<[u8; 16]>() as u32);
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore6(&ctx)
}

/// Tells the caller that an answer came from where the question was addressed. The kernel takes no other result than 1 here.
#[inline(always)]
fn restore4(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the kernel's context, valid while the program runs; this field is IPv4's.
    let from = Address::v4(unsafe { (*addr).user_ip4 });
    if let Some(asked) = asked_instead_of(ctx, from)
        && let Family::V4 = asked.address.family()
    {
        // SAFETY: as above; these programs may change address and port.
        unsafe {
            write4(addr, asked.address.words()[0]);
            write_port(addr, asked.port);
        }
    }
    1
}

#[inline(always)]
fn restore6(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the kernel's context, valid while the program runs; this field is IPv6's.
    let from = Address::v6(unsafe { (*addr).user_ip6 });
    if let Some(asked) = asked_instead_of(ctx, from) {
        let words = asked.address.words();
        let words = match asked.address.family() {
            Family::V4 => [0, 0, 0xffff_u32.to_be(), words[0]],
            Family::V6 => words,
        };
        // SAFETY: as above; these programs may change address and port.
        unsafe {
            write6(addr, words);
            write_port(addr, asked.port);
        }
    }
    1
}

/// What the socket's last question was addressed to, if `from` is the instance's resolver.
#[inline(always)]
fn asked_instead_of(ctx: &SockAddrContext, from: Address) -> Option<Flow> {
    // SAFETY: the kernel's context, valid while the program runs. The port is in network byte order in the lower half of its word.
    let port = u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16);
    let flow = Flow { address: from, protocol: Protocol::UDP, port };
    let header: &PolicyHeader = Instance::get().head()?;
    if header.judge_resolver(&flow) != Some(Verdict::Allow) {
        return None;
    }
    let asked = asked_of(FullSk::of_call(ctx)?, 0);
    if asked.is_null() {
        return None;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    let (words, family, port) = unsafe {
        let word = |index| (&raw const (*asked).address).cast::<u32>().add(index).read_volatile();
        let family = (&raw const (*asked).family).read_volatile();
        ([word(0), word(1), word(2), word(3)], family, (&raw const (*asked).port).read_volatile() as u16)
    };
    let address = if family == Family::V4 as u32 { Address::v4(words[0]) } else { Address::v6(words) };
    (port != 0).then_some(Flow { address, protocol: Protocol::UDP, port })
}
