//! `cgroup/connect4`, `connect6`, `sendmsg4`, `sendmsg6`, `bind4`, `bind6`: the quick, clear `EPERM`, or the error that the policy has
//! instead, with the process that asked.

use aya_ebpf::{EbpfContext as _, macros::cgroup_sock_addr, programs::SockAddrContext};
use opencode_egress_common::{
    decide::{Decision, Verdict},
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};

use crate::{
    asked,
    judge::Instance,
    loopback, maps, named, opaque, own, question,
    report::{Call, Denial, denied},
    sk::{FullSk, OfSocket as _},
    uapi::{BPF_FUNC_SET_RETVAL, MAX_ERRNO, SOCK_STREAM},
};

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Hook::Connect4, v4(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Hook::Connect6, v6(&ctx))
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs. This field is the address that the datagram goes out
    // from, the socket's or that of a control message.
    let local = Address::v4(unsafe { (*ctx.sock_addr).msg_src_ip4 });
    sendmsg(&ctx, Hook::Sendmsg4, v4(&ctx).reached_from(local))
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    // An IPv4 destination comes to the program for IPv4.
    sendmsg(&ctx, Hook::Sendmsg6, v6(&ctx).reached())
}

#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Hook::Bind4, v4(&ctx))
}

#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Hook::Bind6, v6(&ctx))
}

#[inline(always)]
fn v4(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel's context, valid while the program runs; this field is IPv4's.
    Address::v4(unsafe { (*ctx.sock_addr).user_ip4 })
}

#[inline(always)]
fn v6(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel's context, valid while the program runs; this field is IPv6's.
    Address::v6(unsafe { (*ctx.sock_addr).user_ip6 })
}

/// The socket call's type, protocol and port.
#[inline(always)]
fn call(ctx: &SockAddrContext) -> (u32, Protocol, u16) {
    // SAFETY: the kernel's context, valid while the program runs. `user_port` is in network byte
    // order in the lower half of its word.
    let (kind, protocol, port) =
        unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    (kind, Protocol::of_socket(protocol), u16::from_be(port as u16))
}

/// A connect of a stream socket. A datagram socket's connect sends nothing: its datagrams are judged.
#[inline(always)]
fn connect(ctx: &SockAddrContext, hook: Hook, address: Address) -> i32 {
    let (kind, protocol, port) = call(ctx);
    let instance = Instance::get();
    let Some(sk) = FullSk::of_call(ctx) else { return 0 };
    let address = if address.is_unspecified() { address.reached_from(sk.address()) } else { address };
    let flow = opaque::flow(Flow { address, protocol, port }, kind);
    if kind != SOCK_STREAM {
        if instance.current.has_names() {
            name_peer(ctx, &instance, sk, &flow, hook);
        }
        return 1;
    }
    let port = sk.port();
    // Packets from a listener's port pass as replies, so nothing may connect from there.
    let from_listener = port != 0 && instance.head().is_some_and(|head| head.listens_on(port));
    asked::remember(ctx, &flow);
    if !from_listener && instance.remembers(&flow) {
        if sk.mark() != 0 {
            unmark(ctx, &instance, sk);
        }
        return 1;
    }
    judge(ctx, &instance, hook, &flow, from_listener)
}

/// Takes the mark of flows by name from a socket that goes elsewhere.
#[inline(never)]
fn unmark(ctx: &SockAddrContext, instance: &Instance, sk: FullSk) {
    if let Some(header) = instance.head() {
        named::mark(ctx.as_ptr(), *sk, header.mark | header.own_mark, false);
    }
}

/// The connect of a datagram socket of an instance with name rules: its datagrams go to the instance's resolver, where they are questions;
/// a flow by name begins.
#[inline(never)]
fn name_peer(ctx: &SockAddrContext, instance: &Instance, sk: FullSk, flow: &Flow, hook: Hook) {
    if question::redirect(ctx, instance, flow, hook == Hook::Connect6) {
        // The mark by which what it sends to itself passes the second lock it keeps: it got that as it was made.
        if let Some(header) = instance.head() {
            named::mark(ctx.as_ptr(), *sk, header.mark, false);
        }
        return;
    }
    let verdict = instance.decision(flow).settle(|| false);
    let (_, named) = named::settle(instance, flow, verdict, sk, true);
    if let Some(header) = instance.head() {
        named::mark(ctx.as_ptr(), *sk, header.mark, named);
    }
}

/// A datagram with an address of its own, which is where it goes.
#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, hook: Hook, address: Address) -> i32 {
    let (kind, protocol, port) = call(ctx);
    let instance = Instance::get();
    let flow = opaque::flow(Flow { address, protocol, port }, kind);
    if instance.current.has_names() {
        return send_by_name(ctx, &instance, hook, &flow);
    }
    if !instance.judges_datagram_calls() || instance.remembers(&flow) {
        1
    } else {
        judge_datagram(ctx, &instance, hook, &flow)
    }
}

/// The same of an instance with name rules.
#[inline(never)]
fn send_by_name(ctx: &SockAddrContext, instance: &Instance, hook: Hook, flow: &Flow) -> i32 {
    let (Some(sk), Some(header)) = (FullSk::of_call(ctx), instance.head()) else { return 0 };
    let redirected =
        flow.port == question::DOMAIN && question::redirect(ctx, instance, flow, hook == Hook::Sendmsg6);
    let (verdict, named) = if redirected {
        (Verdict::Allow, false)
    } else if named::goes_on_by(named::socket_of(sk.as_ptr(), 0), instance, flow) != 0 {
        (Verdict::Allow, true)
    } else {
        let verdict = loopback::called(ctx, instance, flow, &instance.decision(flow));
        named::settle(instance, flow, verdict, sk, false)
    };
    named::mark_if_possible(ctx, *sk, header.mark, named);
    if instance.judges_datagram_calls() { conclude(instance, hook, flow, verdict) } else { 1 }
}

/// A datagram that is not in the cache. Apart from the rest, so that a call that is there needs little code.
#[inline(never)]
fn judge_datagram(ctx: &SockAddrContext, instance: &Instance, hook: Hook, flow: &Flow) -> i32 {
    conclude(instance, hook, flow, by_networks(ctx, instance, flow))
}

/// What the rules for networks say, and whose socket is there where they leave it to that.
#[inline(always)]
fn by_networks(ctx: &SockAddrContext, instance: &Instance, flow: &Flow) -> Verdict {
    let decision = instance.judge(flow);
    loopback::called(ctx, instance, flow, &decision)
}

/// A connect that is not in the cache. Apart from the rest, so that a call that is there needs little code; and what is told of a denial
/// apart from that, for both take stack.
#[inline(always)]
fn judge(ctx: &SockAddrContext, instance: &Instance, hook: Hook, flow: &Flow, from_listener: bool) -> i32 {
    let verdict = if from_listener {
        Verdict::Deny(DropReason::ListenerPort)
    } else {
        judge_connect(ctx, instance, hook, flow)
    };
    conclude_apart(instance, hook, flow, verdict)
}

#[inline(never)]
fn conclude_apart(instance: &Instance, hook: Hook, flow: &Flow, verdict: Verdict) -> i32 {
    conclude(instance, hook, flow, verdict)
}

#[inline(never)]
fn judge_connect(ctx: &SockAddrContext, instance: &Instance, hook: Hook, flow: &Flow) -> Verdict {
    // What the cache knows to be left to whose socket it is takes no look at the rules, unless a denial has to say why.
    let left = loopback::is_remembered(instance, flow);
    let decision = match left {
        true => Decision::Settled(Verdict::Deny(DropReason::NotAllowed)),
        false => instance.judge(flow),
    };
    let mut verdict = loopback::called(ctx, instance, flow, &decision);
    if left && verdict != Verdict::Allow {
        verdict = instance.judge(flow).settle(|| false);
    }
    // What the rules leave to whose socket it is passes the second lock by its mark.
    if let (Some(header), Some(sk)) = (instance.head(), FullSk::of_call(ctx)) {
        let own = verdict == Verdict::Allow && decision != Decision::Settled(Verdict::Allow);
        named::mark(ctx.as_ptr(), *sk, header.own_mark, own);
    }
    if instance.current.has_names() { by_name(ctx, instance, hook, flow, verdict) } else { verdict }
}

/// The connect of a stream socket of an instance with name rules, of which the network rules have said this.
#[inline(never)]
fn by_name(ctx: &SockAddrContext, instance: &Instance, hook: Hook, flow: &Flow, verdict: Verdict) -> Verdict {
    let (Some(sk), Some(header)) = (FullSk::of_call(ctx), instance.head()) else {
        return Verdict::Deny(DropReason::NoPolicy);
    };
    if verdict != Verdict::Allow && question::redirect(ctx, instance, flow, hook == Hook::Connect6) {
        unmark(ctx, instance, sk);
        return Verdict::Allow;
    }
    let (verdict, named) = named::settle(instance, flow, verdict, sk, true);
    named::mark(ctx.as_ptr(), *sk, header.mark, named);
    verdict
}

/// A bind. Port 0 asks the kernel for an ephemeral port.
#[inline(always)]
fn bind(ctx: &SockAddrContext, hook: Hook, address: Address) -> i32 {
    let (kind, protocol, port) = call(ctx);
    let instance = Instance::get();
    let flow = opaque::flow(Flow { address, protocol, port }, kind);
    let verdict = match instance.head() {
        _ if port == 0 => Verdict::Allow,
        Some(head) => loopback::binds(ctx, head, &instance, &flow),
        None => Verdict::Deny(DropReason::NoPolicy),
    };
    // What a call's program may ask of one that it finds.
    if let (Verdict::Allow, Some(sk)) = (verdict, FullSk::of_call(ctx))
        && (kind == SOCK_STREAM || own::sharing(sk.as_ptr()) != 0)
    {
        own::mark(sk.as_ptr(), instance.index);
    }
    conclude(&instance, hook, &flow, verdict)
}

/// Has the call return an error. Newer kernels (7.2 does, 6.18 does not) want to see that the number is one, in the whole register: so it
/// is cut to those that there are, and given as 64 bits, where `aya_ebpf`'s function has 32.
#[inline(always)]
fn set_error(errno: u32) {
    // SAFETY: the helper's number, of <linux/bpf.h>. It sets the number that the call returns; what is no error number changes nothing, for
    // the program's own result is a refusal.
    unsafe {
        let set_retval: unsafe extern "C" fn(i64) -> i64 = core::mem::transmute(BPF_FUNC_SET_RETVAL);
        set_retval(-i64::from(errno & MAX_ERRNO));
    }
}

#[inline(always)]
fn conclude(instance: &Instance, hook: Hook, flow: &Flow, verdict: Verdict) -> i32 {
    let Verdict::Deny(reason) = verdict else { return 1 };
    let denial = Denial { hook, reason, flow, bytes: None };
    let passes = denied(instance, &denial, &Call);
    if maps::call_may_set_error()
        && !passes
        && let Some(header) = instance.head()
        && header.errno != 0
    {
        set_error(header.errno);
    }
    i32::from(passes)
}
