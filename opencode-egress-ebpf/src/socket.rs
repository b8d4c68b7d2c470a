//! `cgroup/sock_create` and `cgroup/setsockopt`: what no later hook could deny with an error; and `cgroup/sock_release`.
//!
//! - A socket of a protocol that no rule lets speak. The kernel swallows the error of an ICMPv6 ping
//!   socket's send, and SCTP retries in silence, so the caller would wait for nothing.
//! - A socket that writes IP headers itself (`IPPROTO_RAW`, `IP_HDRINCL`, `IPV6_HDRINCL`): the kernel routes
//!   such a packet by another address than the one in its header, so the first hop may be anyone.
//! - A source route or routing header on a socket. Its packets are denied at egress too, but a TCP connect
//!   would hang there.
//! - A socket beyond the instance's limit.
//! - The join of a multicast group to which no rule lets UDP: the kernel itself tells the local network of it, in packets
//!   of no socket.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    helpers::bpf_get_current_uid_gid,
    macros::{cgroup_sock, cgroup_sockopt},
    programs::{SockContext, SockoptContext},
};
use opencode_egress_common::{
    abi::{CalledEvent, Event},
    decide::Verdict,
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};

use crate::{
    caller,
    judge::Instance,
    maps::setsockopt_knows_caller,
    own,
    report::{Call, Denial, Details, denied, tell_process},
    sk::FullSk,
    sockets,
    storage::{SHARES, SHARES_GROUP},
    uapi::{
        IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IP_BLOCK_SOURCE, IP_HDRINCL, IP_MSFILTER, IP_OPTIONS,
        IP_UNBLOCK_SOURCE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_MPTCP, IPPROTO_RAW, IPPROTO_TCP,
        IPPROTO_UDP, IPPROTO_UDPLITE, IPV6_2292PKTOPTIONS, IPV6_HDRINCL, IPV6_JOIN_ANYCAST, IPV6_JOIN_GROUP,
        IPV6_NEXTHOP, IPV6_RTHDR, MCAST_BLOCK_SOURCE, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP,
        MCAST_MSFILTER, MCAST_UNBLOCK_SOURCE, SO_REUSEADDR, SO_REUSEPORT, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM,
        SOL_IP, SOL_IPV6, SOL_RAW, SOL_SOCKET,
    },
};

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    let sk = ctx.sock;
    let instance = Instance::get();
    mark_datagrams(sk, &instance);
    let passes = match mute(sk, &instance) {
        Some(reason) => refuse_socket(&instance, reason, sk),
        None => true,
    };
    i32::from(
        passes && (sockets::open(sk, &instance) || refuse_socket(&instance, DropReason::TooManySockets, sk)),
    )
}

/// Sets the bit by which the second lock knows what an instance says to itself over loopback, on a socket of UDP. No later program could:
/// a datagram has its socket's mark before one is asked. So that lock leaves UDP on loopback to the programs of packets; TCP's
/// sockets get theirs at the connect.
#[inline(always)]
fn mark_datagrams(sk: *mut bpf_sock, instance: &Instance) {
    // SAFETY: the kernel's context, valid while the program runs, whose mark it may write.
    unsafe {
        if (*sk).type_ == SOCK_DGRAM
            && (*sk).protocol == IPPROTO_UDP
            && let Some(header) = instance.head()
            && header.own_mark != 0
        {
            (&raw mut (*sk).mark).write_volatile((&raw const (*sk).mark).read_volatile() | header.own_mark);
        }
    }
}

/// Why a new socket could not say anything, or nothing that would be judged. `None`: it can.
#[inline(always)]
fn mute(sk: *mut bpf_sock, instance: &Instance) -> Option<DropReason> {
    // SAFETY: the kernel's context, valid while the program runs.
    let (kind, protocol) = unsafe { ((*sk).type_, (*sk).protocol) };
    let can_speak = match (kind, protocol) {
        (SOCK_RAW, IPPROTO_RAW) => return Some(DropReason::HeaderIncluded),
        // Their refused packets give the caller an error.
        (SOCK_RAW, _) | (_, IPPROTO_ICMP | IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_MPTCP) => {
            return None;
        }
        (SOCK_DGRAM, IPPROTO_ICMPV6) => instance.head().map(|head| head.icmpv6_can_speak),
        _ => instance.head().map(|head| head.other_can_speak),
    };
    match can_speak {
        Some(1..) => None,
        _ => Some(DropReason::SocketNotAllowed),
    }
}

/// Denies a socket. Returns whether it passes all the same.
#[inline(always)]
fn refuse_socket(instance: &Instance, reason: DropReason, sk: *mut bpf_sock) -> bool {
    let Some(sk) = FullSk::new(sk) else { return false };
    denied(instance, &Denial { hook: Hook::SockCreate, reason, flow: &of_socket(sk), bytes: None }, &Call)
}

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    sockets::close(ctx.sock);
    1
}

#[cgroup_sockopt(setsockopt)]
pub(crate) fn setsockopt(ctx: SockoptContext) -> i32 {
    let sockopt = ctx.sockopt;
    // SAFETY: the kernel's context, valid while the program runs.
    let (level, name, len) = unsafe { ((*sockopt).level, (*sockopt).optname, (*sockopt).optlen) };
    let reason = match (level, name) {
        (SOL_IP, IP_HDRINCL) | (SOL_IPV6 | SOL_RAW, IPV6_HDRINCL) => DropReason::HeaderIncluded,
        // The kernel has no memory for it.
        (SOL_SOCKET, SO_REUSEADDR | SO_REUSEPORT) if !note_sharing(sockopt) => return 0,
        // An empty value clears the option.
        (SOL_IP, IP_OPTIONS) | (SOL_IPV6, IPV6_RTHDR | IPV6_2292PKTOPTIONS | IPV6_NEXTHOP) if len > 0 => {
            DropReason::RoutingOption
        }
        // The program sees a copy of a shorter value, and that is what the kernel takes.
        _ if is_membership(level, name) && len > PAGE => DropReason::UnreadableHeader,
        _ if is_membership(level, name) => return join(sockopt),
        _ => {
            // The kernel shows at most a page of a longer value, and takes the original only when it
            // is told so. https://docs.kernel.org/bpf/prog_cgroup_sockopt.html
            if len > PAGE {
                // SAFETY: as above; `optlen` may be written.
                unsafe { (*sockopt).optlen = 0 };
            }
            return 1;
        }
    };
    // SAFETY: the kernel's context, valid while the program runs; it is a full socket in this hook.
    let Some(sk) = FullSk::new(unsafe { (*sockopt).__bindgen_anon_1.sk }) else { return 0 };
    refuse(&Instance::get(), reason, &of_socket(sk))
}

#[inline(always)]
fn refuse(instance: &Instance, reason: DropReason, flow: &Flow) -> i32 {
    let denial = Denial { hook: Hook::Setsockopt, reason, flow, bytes: None };
    i32::from(denied(instance, &denial, &Setsockopt))
}

/// Notes that a socket may share its port. Of a stream socket that only `SO_REUSEPORT` does: a port where another one listens the kernel
/// gives to none by `SO_REUSEADDR`. (A 32-bit caller's options no program sees.)
#[inline(always)]
fn note_sharing(sockopt: *mut bpf_sockopt) -> bool {
    // SAFETY: the kernel's context, valid while the program runs; it is a full socket in this hook.
    let (sk, name) = unsafe { ((*sockopt).__bindgen_anon_1.sk, (*sockopt).optname) };
    let Some(full) = FullSk::new(sk) else { return false };
    match name {
        SO_REUSEPORT => own::note_sharing(sk, SHARES | SHARES_GROUP),
        _ => full.kind() == SOCK_STREAM || own::note_sharing(sk, SHARES),
    }
}

/// The least size of a page: more of an option's value is not shown.
const PAGE: i32 = 4096;

/// Whether an option joins a multicast group, or changes a membership. The kernel reports either to the local network
/// (IGMP, MLD), with addresses of the sender's choice.
#[inline(always)]
fn is_membership(level: i32, name: i32) -> bool {
    match (level, name) {
        (
            SOL_IP | SOL_IPV6,
            MCAST_JOIN_GROUP
            | MCAST_BLOCK_SOURCE
            | MCAST_UNBLOCK_SOURCE
            | MCAST_JOIN_SOURCE_GROUP
            | MCAST_MSFILTER,
        )
        | (
            SOL_IP,
            IP_ADD_MEMBERSHIP | IP_UNBLOCK_SOURCE | IP_BLOCK_SOURCE | IP_ADD_SOURCE_MEMBERSHIP | IP_MSFILTER,
        )
        | (SOL_IPV6, IPV6_JOIN_GROUP | IPV6_JOIN_ANYCAST) => true,
        _ => false,
    }
}

/// Judges a membership as a flow of UDP to its group. What is too short to have one is refused by the kernel itself.
#[inline(always)]
fn join(sockopt: *mut bpf_sockopt) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let (level, name) = unsafe { ((*sockopt).level, (*sockopt).optname) };
    // `struct group_req` and its like have a sockaddr of the group at offset 8, the others the group's address first. (To a
    // 32-bit caller the offset is 4, but the kernel asks no program about those.)
    let (behind, v4) = (name >= MCAST_JOIN_GROUP, level == SOL_IP);
    let group = match (v4, behind) {
        (true, true) => value::<12, 1>(sockopt).map(|[word]| Address::v4(word)),
        (true, false) => value::<0, 1>(sockopt).map(|[word]| Address::v4(word)),
        (false, true) => value::<16, 4>(sockopt).map(Address::v6),
        (false, false) => value::<0, 4>(sockopt).map(Address::v6),
    };
    let Some(address) = group else { return 1 };
    let instance = Instance::get();
    let flow = Flow { address, protocol: Protocol::UDP, port: 0 };
    match instance.judge_some_port(&flow) {
        Verdict::Allow => 1,
        Verdict::Deny(reason) => refuse(&instance, reason, &flow),
    }
}

/// `N` words of an option's value at an offset; `None` where it is shorter, which the kernel refuses itself.
#[inline(always)]
fn value<const OFFSET: usize, const N: usize>(sockopt: *mut bpf_sockopt) -> Option<[u32; N]> {
    // SAFETY: the kernel's context; its two pointers bound the copy of the value, and the verifier checks that what is read
    // lies between them.
    unsafe {
        let start = (*sockopt).__bindgen_anon_2.optval as usize;
        let end = (*sockopt).__bindgen_anon_3.optval_end as usize;
        (start + OFFSET + N * 4 <= end).then(|| *((start + OFFSET) as *const [u32; N]))
    }
}

/// A setsockopt, whose process not every kernel tells.
struct Setsockopt;

impl Details for Setsockopt {
    type Record = CalledEvent;

    #[inline(always)]
    unsafe fn add(&self, event: *mut Event, _: &Flow) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*event).uid).write_volatile(bpf_get_current_uid_gid() as u32);
            if setsockopt_knows_caller() {
                tell_process(event);
            }
        }
    }

    #[inline(always)]
    unsafe fn tell_caller(&self, event: *mut Event) {
        // SAFETY: the caller's promise.
        unsafe { if setsockopt_knows_caller() { caller::tell(event) } else { caller::unknown(event) } };
    }
}

/// What is of a socket and of no destination.
#[inline(always)]
fn of_socket(sk: FullSk) -> Flow {
    let address = if sk.is_v6() { Address::v6([0; 4]) } else { Address::v4(0) };
    Flow { address, protocol: sk.protocol(), port: 0 }
}
