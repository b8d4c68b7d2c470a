//! Own loopback: what an instance says to itself needs no rule.
//!
//! | | decides |
//! |---|---|
//! | `called` | at a connect or a sendmsg: refused at once where somebody else's socket would take it |
//! | `leaves` | at each packet that leaves over loopback: whose socket takes this one |
//! | `arrives` | at each packet that arrives: whether the sender's `leaves` has vouched for it |
//! | `binds` | at a bind: a place that is nobody else's |
//!
//! A port may change hands between two packets, so nothing is concluded from an earlier one but this: a TCP connection whose other end
//! was found and is the instance's own stays that, for no other socket can take its place. Until then only segments pass that carry no
//! data, or reach a socket of the instance's. So a SYN to a port where nobody listens passes, and the kernel refuses the connection as it
//! would without us; who comes to listen there in that moment gets that SYN, and nothing after it. A datagram carries what it
//! has to say, and passes only to a socket that was found.

use aya_ebpf::{EbpfContext as _, programs::SockAddrContext};
use opencode_egress_common::{
    abi::PolicyHeader,
    decide::{Decision, Verdict},
    flow::{Flow, Protocol},
    loopback::{VOUCHED, may_be_own},
    packet::Packet,
    reason::DropReason,
};

use crate::{
    judge::Instance,
    maps,
    opaque::{self, opaque},
    own::{self, IN_GROUP, LISTENS, NOBODY, OTHER, OWN, OfCall, OfPacket},
    peer::{forget, is_known, remember},
    sk::FullSk,
    skb::{Skb, carries},
    uapi::{
        LOOPBACK_IFINDEX, SOCK_DGRAM, SOCK_STREAM, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LAST_ACK,
        TCP_NEW_SYN_RECV,
    },
};

/// The verdict on a call, of which the rules have said this. Where nobody is found, its packets are judged when they are there.
#[inline(never)]
pub(crate) fn called(
    ctx: &SockAddrContext,
    instance: &Instance,
    flow: &Flow,
    decision: &Decision,
) -> Verdict {
    let (reason, own_loopback) = match (*decision, instance.head()) {
        (Decision::Settled(Verdict::Deny(reason)), Some(header))
            if may_be_own(reason) && header.leaves_to_own(flow) =>
        {
            (reason, true)
        }
        (Decision::OwnOnly(reason), Some(header)) => {
            (reason, may_be_own(reason) && header.leaves_to_own(flow))
        }
        // To a client of its own that the kernel gave such a port, perhaps.
        (Decision::Settled(Verdict::Deny(DropReason::OtherResolver)), Some(header))
            if header.own_loopback != 0 =>
        {
            (DropReason::OtherResolver, flow.protocol != Protocol::TCP)
        }
        (Decision::Settled(verdict), _) => return verdict,
        (Decision::OwnOnly(reason), None) => return Verdict::Deny(reason),
    };
    // A datagram is judged when it is there: whose a socket is that was never bound only its program may ask.
    if own_loopback && flow.protocol != Protocol::TCP {
        return Verdict::Allow;
    }
    let reaches_loopback =
        FullSk::of_call(ctx).is_some_and(|sk| matches!(sk.interface(), 0 | LOOPBACK_IFINDEX));
    if !reaches_loopback {
        return Verdict::Deny(reason);
    }
    let packet = own::probe(flow.address, flow.protocol, flow.port);
    // SAFETY: the programs of these hooks may search sockets.
    match unsafe { own::taker::<OfCall>(ctx.as_ptr(), instance, &packet) } {
        OWN | LISTENS | IN_GROUP => Verdict::Allow,
        NOBODY if own_loopback => Verdict::Allow,
        _ => Verdict::Deny(reason),
    }
}

/// The verdict on a bind to a port: a listener's place; or one for the instance itself, unless it would share it with somebody else.
#[inline(never)]
pub(crate) fn binds(
    ctx: &SockAddrContext,
    header: &PolicyHeader,
    instance: &Instance,
    flow: &Flow,
) -> Verdict {
    let listed = header.judge_bind(&flow.address, flow.port);
    // SAFETY: the value is a whole word, and lives as long as the program runs.
    let owner = unsafe { maps::LISTED_PORTS.get(&u32::from(flow.port)) }.copied();
    let is_own_place = header.is_own_place(&flow.address, flow.port, owner, instance.index);
    let (Verdict::Deny(_), true, Some(sk)) = (listed, is_own_place, FullSk::of_call(ctx)) else {
        return listed;
    };
    // Where somebody is that shares its port with nobody, the kernel says so.
    if !own::may_share(ctx, sk.as_ptr()) {
        return Verdict::Allow;
    }
    let packet = own::probe(flow.address.reached(), flow.protocol, flow.port);
    // SAFETY: the programs of these hooks may search sockets.
    match unsafe { own::taker::<OfCall>(ctx.as_ptr(), instance, &packet) } {
        OTHER => listed,
        _ => Verdict::Allow,
    }
}

/// Whether a plain packet that leaves over loopback goes to the instance itself, as the rules leave it to. It is asked before the
/// packet is judged, and says no more than this one number, so that the verifier has little to keep apart.
#[inline(never)]
pub(crate) fn leaves(skb: &Skb) -> u32 {
    let mut packet = Packet::UNKNOWN;
    let (instance, sk) = (Instance::get(), skb.full_socket());
    let passes = read(skb, sk, &mut packet) != 0
        && match (packet.protocol, sk) {
            (Protocol::TCP, Some(sk)) => segment(skb, sk, &instance, &packet) != 0,
            (Protocol::TCP, None) => answer(skb, &instance) != 0,
            (_, Some(sk)) => datagram(skb, sk, &instance, &packet) != 0,
            _ => false,
        };
    if passes {
        instance.count_allowed(skb.0.len());
    }
    opaque(u32::from(passes), skb.0.len())
}

/// Reads a plain packet of TCP or UDP, of a socket that makes such ones.
#[inline(never)]
fn read(skb: &Skb, sk: Option<FullSk>, packet: &mut Packet) -> u32 {
    let Some(plain) = skb.read_plain() else { return 0 };
    let of_its_socket = match (sk, plain.protocol) {
        // A request for a connection, which only TCP has.
        (None, Protocol::TCP) => !plain.opens,
        // What a raw socket sends is of no socket that could have an answer. (The kernel's test run of a program has a socket without
        // a type.)
        (Some(sk), Protocol::TCP) => match sk.kind() {
            0 => true,
            kind => kind == SOCK_STREAM && sk.protocol() == Protocol::TCP,
        },
        (Some(sk), Protocol::UDP) => match sk.kind() {
            0 => true,
            kind => kind == SOCK_DGRAM && sk.protocol() == Protocol::UDP && sk.port() == plain.source_port,
        },
        _ => false,
    };
    *packet = opaque::packet(plain, skb.0.len());
    opaque(u32::from(of_its_socket), skb.0.len())
}

/// Protocols that no flow with a port has, under which the cache remembers that the rules leave a flow of TCP or UDP to whose socket takes
/// it, and no rule speaks of it.
const LEFT: [Protocol; 2] = [Protocol(253), Protocol(254)];

#[inline(always)]
fn as_left(flow: &Flow) -> Flow {
    Flow { protocol: LEFT[usize::from(flow.protocol != Protocol::TCP)], ..*flow }
}

/// The rules themselves say what becomes of a flow.
const SETTLED: u32 = 0;
/// They leave it to whose socket takes it.
const TO_OWN: u32 = 1;
/// They leave it to that, and no rule speaks of it.
const UNSPOKEN: u32 = 2;

/// Whether the cache knows that the rules leave a flow to whose socket takes it, and no rule speaks of it.
#[inline(always)]
pub(crate) fn is_remembered(instance: &Instance, flow: &Flow) -> bool {
    flow.port != 0 && instance.remembers(&as_left(flow))
}

/// Whether the rules leave a flow to whose socket takes it.
#[inline(never)]
fn is_left(instance: &Instance, flow: &Flow) -> u32 {
    if is_remembered(instance, flow) {
        return UNSPOKEN;
    }
    let unspoken =
        |reason| may_be_own(reason) && instance.head().is_some_and(|header| header.leaves_to_own(flow));
    let left = match instance.judge(flow) {
        Decision::OwnOnly(reason) | Decision::Settled(Verdict::Deny(reason)) if unspoken(reason) => {
            if flow.port != 0 {
                instance.remember(&as_left(flow));
            }
            UNSPOKEN
        }
        Decision::OwnOnly(_) => TO_OWN,
        // The port of another instance's resolver, or of a socket of the instance's own that the kernel gave one of these ports.
        Decision::Settled(Verdict::Deny(DropReason::OtherResolver))
            if instance.head().is_some_and(|header| header.own_loopback != 0) =>
        {
            TO_OWN
        }
        Decision::Settled(_) => SETTLED,
    };
    opaque(left, instance.current.generation())
}

/// A server's first answer to who opens a connection, which carries nothing. What it answers was judged when it came in, and what follows
/// it is asked for. That of a listener's is judged by its port, as all of it is.
#[inline(always)]
fn answer(skb: &Skb, instance: &Instance) -> u32 {
    let (Some(request), Some(header)) = (skb.socket(), instance.head()) else { return 0 };
    let passes = request.state() == TCP_NEW_SYN_RECV
        && header.own_loopback != 0
        && !header.listens_on(opaque(u32::from(request.port()), skb.0.len()) as u16);
    opaque(u32::from(passes), skb.0.len())
}

/// A segment of a connection to the instance itself.
#[inline(always)]
fn segment(skb: &Skb, sk: FullSk, instance: &Instance, packet: &Packet) -> u32 {
    if packet.opens {
        // One that opens another connection begins with nothing.
        forget(sk);
    } else if is_known(sk, instance, packet) {
        return 1;
    }
    // It would open a connection from a listener's port, which nothing does, or is of one that a listener accepted, which the rules need not let
    // pass.
    let port = if packet.opens { packet.source_port } else { sk.port() };
    let port = opaque(u32::from(port), skb.0.len()) as u16;
    if instance.head().is_none_or(|header| header.listens_on(port)) {
        return 0;
    }
    let left = is_left(instance, &packet.outbound());
    if left == SETTLED {
        return 0;
    }
    // The other end has closed a connection that was open, and this has nothing for it.
    if matches!(sk.state(), TCP_CLOSE_WAIT | TCP_LAST_ACK) && carries::<0>(skb) == 0 {
        return 1;
    }
    // SAFETY: the programs of this hook may search sockets.
    match unsafe { own::taker::<OfPacket>(skb.raw().cast(), instance, packet) } {
        OWN if !packet.opens => {
            // One that is being closed has little more to say, and what is remembered has to be made.
            if sk.state() == TCP_ESTABLISHED {
                remember(sk, instance, packet);
            }
            return 1;
        }
        OWN | LISTENS => {}
        IN_GROUP if packet.opens && carries::<0>(skb) == 0 => {}
        // SAFETY: as above.
        IN_GROUP if unsafe { own::is_being_opened(skb.raw().cast(), packet) } != 0 => {}
        NOBODY if left == UNSPOKEN && carries::<0>(skb) == 0 => {}
        _ => return 0,
    }
    if packet.opens {
        vouch(skb, instance);
    }
    1
}

/// A datagram to the instance itself. That the rules leave its flow to who takes it is remembered, and not who does.
#[inline(always)]
fn datagram(skb: &Skb, sk: FullSk, instance: &Instance, packet: &Packet) -> u32 {
    if !is_known(sk, instance, packet) {
        if is_left(instance, &packet.outbound()) == SETTLED {
            return 0;
        }
        remember(sk, instance, packet);
    }
    // SAFETY: the programs of this hook may search sockets.
    if unsafe { own::taker::<OfPacket>(skb.raw().cast(), instance, packet) } != OWN {
        return 0;
    }
    vouch(skb, instance);
    1
}

/// Tells the program of the socket that takes it that this is the instance's own, in what no other process can write.
#[inline(always)]
fn vouch(skb: &Skb, instance: &Instance) {
    // SAFETY: the kernel's context, valid while the program runs; these programs may write the priority.
    unsafe { (&raw mut (*skb.raw()).priority).write_volatile(VOUCHED | instance.index) };
}

/// Whether a packet that arrives is one for which the sender's program has vouched, of this instance.
#[inline(always)]
pub(crate) fn arrives(skb: &Skb) -> bool {
    // SAFETY: the kernel's context, valid while the program runs.
    let priority = unsafe { (&raw const (*skb.raw()).priority).read_volatile() };
    priority & VOUCHED == VOUCHED && skb.interface() == LOOPBACK_IFINDEX && {
        let instance = Instance::get();
        priority == VOUCHED | instance.index && instance.head().is_some()
    }
}

/// Whether who opens a connection over loopback, or has the address from which a datagram says that it comes, is the instance itself.
#[inline(never)]
pub(crate) fn is_from_own(skb: &Skb, packet: &Packet) -> bool {
    if skb.interface() != LOOPBACK_IFINDEX {
        return false;
    }
    let back = Packet {
        source: packet.destination,
        destination: packet.source,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        ..*packet
    };
    // SAFETY: the programs of this hook may search sockets.
    unsafe { own::taker::<OfPacket>(skb.raw().cast(), &Instance::get(), &back) == OWN }
}
