//! `cgroup/sock_create` and `cgroup/setsockopt`: what no later hook could deny with an error.
//!
//! - A socket of a protocol that no rule lets speak. The kernel swallows the error of an ICMPv6 ping
//!   socket's send, and SCTP retries in silence, so the caller would wait for nothing.
//! - A socket that writes IP headers itself (`IPPROTO_RAW`, `IP_HDRINCL`, `IPV6_HDRINCL`): the kernel routes
//!   such a packet by another address than the one in its header, so the first hop may be anyone.
//! - A source route or routing header on a socket. Its packets are denied at egress too, but a TCP connect
//!   would hang there.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::bpf_get_current_uid_gid,
    macros::{cgroup_sock, cgroup_sockopt},
    programs::{SockContext, SockoptContext},
};
use opencode_egress_common::{
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};

use crate::{
    judge::Instance,
    report::{Caller, Denial, denied},
};

const AF_INET6: u32 = 10;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_RAW: u32 = 255;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    let sk = ctx.sock;
    // SAFETY: the kernel's context, valid while the program runs.
    let (kind, protocol) = unsafe { ((*sk).type_, (*sk).protocol) };
    let reason = match (kind, protocol) {
        (SOCK_RAW, IPPROTO_RAW) => DropReason::HeaderIncluded,
        // Their refused packets give the caller an error.
        (SOCK_RAW, _) | (_, 1 | 6 | 17 | 136 | IPPROTO_MPTCP) => return 1,
        _ => DropReason::SocketNotAllowed,
    };
    let instance = Instance::get();
    if let (DropReason::SocketNotAllowed, Some(head)) = (reason, instance.head()) {
        let can_speak = match (kind, protocol) {
            (SOCK_DGRAM, 58) => head.icmpv6_can_speak,
            _ => head.other_can_speak,
        };
        if can_speak != 0 {
            return 1;
        }
    }
    refuse(&instance, Hook::SockCreate, reason, sk)
}

const IPPROTO_IP: i32 = 0;
const IPPROTO_IPV6: i32 = 41;
/// A raw socket's own level, at which IPv6 takes the options on its headers too (`rawv6_setsockopt`).
const SOL_RAW: i32 = 255;
const IP_HDRINCL: i32 = 3;
const IP_OPTIONS: i32 = 4;
const IPV6_2292PKTOPTIONS: i32 = 6;
const IPV6_NEXTHOP: i32 = 9;
const IPV6_HDRINCL: i32 = 36;
const IPV6_RTHDR: i32 = 57;

#[cgroup_sockopt(setsockopt)]
pub(crate) fn setsockopt(ctx: SockoptContext) -> i32 {
    let sockopt = ctx.sockopt;
    // SAFETY: the kernel's context, valid while the program runs.
    let (level, name, len) = unsafe { ((*sockopt).level, (*sockopt).optname, (*sockopt).optlen) };
    let reason = match (level, name) {
        (IPPROTO_IP, IP_HDRINCL) | (IPPROTO_IPV6 | SOL_RAW, IPV6_HDRINCL) => DropReason::HeaderIncluded,
        // An empty value clears the option.
        (IPPROTO_IP, IP_OPTIONS) | (IPPROTO_IPV6, IPV6_RTHDR | IPV6_2292PKTOPTIONS | IPV6_NEXTHOP)
            if len > 0 =>
        {
            DropReason::RoutingOption
        }
        _ => {
            // The kernel shows at most a page of a longer value, and takes the original only when it
            // is told so. https://docs.kernel.org/bpf/prog_cgroup_sockopt.html
            if len > 4096 {
                // SAFETY: as above; `optlen` may be written.
                unsafe { (*sockopt).optlen = 0 };
            }
            return 1;
        }
    };
    // SAFETY: the context's socket is never null here and the verifier knows its type.
    let sk = unsafe { (*sockopt).__bindgen_anon_1.sk };
    refuse(&Instance::get(), Hook::Setsockopt, reason, sk)
}

#[inline(always)]
fn refuse(instance: &Instance, hook: Hook, reason: DropReason, sk: *const bpf_sock) -> i32 {
    // SAFETY: the caller's socket, which the verifier knows.
    let (family, protocol) = unsafe { ((*sk).family, (*sk).protocol) };
    let address = match family {
        AF_INET6 => Address::v6([0; 4]),
        _ => Address::v4(0),
    };
    let flow = Flow { address, protocol: Protocol(protocol as u8), port: 0 };
    let caller = match hook {
        Hook::Setsockopt if !knows_caller() => Caller::unknown(bpf_get_current_uid_gid() as u32),
        _ => Caller::current(),
    };
    let denial = Denial { hook, reason, flow: &flow, bytes: None, caller };
    i32::from(denied(instance, &denial))
}

/// Whether the kernel tells a setsockopt program which process calls, which Linux 5.10 does not; set by
/// the loader. The verifier knows the value, and does not look at what is never reached.
#[unsafe(no_mangle)]
static SETSOCKOPT_KNOWS_CALLER: u32 = 0;

#[inline(always)]
fn knows_caller() -> bool {
    // SAFETY: a reference. Volatile, because the compiler must not take the zero above for the value at run
    // time.
    unsafe { core::ptr::read_volatile(&raw const SETSOCKOPT_KNOWS_CALLER) != 0 }
}
