//! `cgroup_skb/egress` and `ingress`: every IP packet of the cgroup's sockets, whatever made it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, generated::bpf_get_socket_uid},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use opencode_egress_common::{
    abi::Event,
    decide::Verdict,
    flow::{Address, Flow, Protocol},
    names::may_be_allowed_by_name,
    packet::Packet,
    reason::{DropReason, Hook},
    segment::{SYN, URG},
};

use crate::{
    asked::Sent,
    judge::Instance,
    loopback, maps, opaque,
    report::{Denial, Details, denied},
    reset::{self, Target},
    shortcut::{EXPIRED, GOES_ON, IS_FOLLOWED, In, OPENS_TLS, Out, PASSES, by_name, remembered},
    skb::{Skb, carries},
    uapi::{
        ETH_P_IP, LOOPBACK_IFINDEX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN,
    },
};

#[cgroup_skb(egress)]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    let said = leave(&skb);
    if said == FOLLOWED {
        // The program that follows TLS lets every segment pass that has nothing of the stream.
        if carries::<{ SYN | URG }>(&skb) == 0 {
            return 1;
        }
        maps::follow(&skb.0);
        // It is not there: somebody took away the map's pin, and no daemon runs.
        return skb.end_connection(&Instance::get());
    }
    said
}

/// The same for kernels that let no program do so which has functions. There no policy has `tls`.
#[cgroup_skb(egress)]
pub(crate) fn egress_alone(ctx: SkBuffContext) -> i32 {
    let passes = match leave(&Skb(ctx)) {
        FOLLOWED => !Instance::get().head().is_some_and(|header| header.has_tls()),
        said => said != 0,
    };
    i32::from(passes)
}

/// What [`leave`] says beside what a program does: the packet passes where the program that follows TLS says so.
const FOLLOWED: i32 = 2;

#[inline(always)]
fn leave(skb: &Skb) -> i32 {
    let instance = Instance::get();
    // What goes on by name is not in the cache, so an instance with names looks for that first.
    let mut known = if instance.current.has_names() { remembered::<Out>(skb) } else { 0 };
    let passes = known & GOES_ON != 0
        || skb.passes::<Out>(|| instance)
        || skb.interface() == LOOPBACK_IFINDEX && loopback::leaves(skb) != 0;
    if !passes {
        match by_name::<Out>(skb) {
            // The connection may begin with this packet.
            PASSES if skb.is_of_stream() => known = IS_FOLLOWED,
            PASSES => {}
            said if judge_egress(skb, said) == 0 => return 0,
            _ => {}
        }
    }
    if known & OPENS_TLS != 0 {
        skb.opens_tls_under(instance.current.generation());
    }
    if known & IS_FOLLOWED == 0 { 1 } else { FOLLOWED }
}

/// A packet that is not plain, or whose flow the cache has not. Reading, judging and telling are functions of their own: each
/// takes stack, of which all callers together have 512 bytes, and the verifier has less to keep apart.
#[inline(never)]
fn judge_egress(skb: &Skb, by_name: u32) -> i32 {
    let (mut packet, mut flow) = (Packet::UNKNOWN, Flow::UNKNOWN);
    let verdict = match read(skb, &mut packet) {
        Ok(()) => egress_verdict(skb, &packet, &mut flow),
        Err(reason) => Verdict::Deny(reason),
    };
    match verdict {
        Verdict::Allow => 1,
        Verdict::Deny(reason) if by_name == EXPIRED && may_be_allowed_by_name(reason) => {
            deny_egress(skb, &flow, DropReason::NameExpired)
        }
        Verdict::Deny(reason) => deny_egress(skb, &flow, reason),
    }
}

/// Tells of a packet that is denied. Returns whether it passes all the same.
#[inline(never)]
fn deny_egress(skb: &Skb, flow: &Flow, reason: DropReason) -> i32 {
    let instance = Instance::get();
    let denial = Denial { hook: Hook::Egress, reason, flow, bytes: Some(skb.0.len()) };
    let details = Sent { skb: skb.raw(), transformed: reason == DropReason::Transformed };
    if denied(&instance, &denial, &details) { 1 } else { skb.end_connection(&instance) }
}

/// Reads a packet's headers, whatever is in them.
#[inline(never)]
fn read(skb: &Skb, packet: &mut Packet) -> Result<(), DropReason> {
    *packet = opaque::packet(skb.read()?, skb.0.len());
    Ok(())
}

/// The verdict, with the flow that it is on.
#[inline(never)]
fn egress_verdict(skb: &Skb, packet: &Packet, flow: &mut Flow) -> Verdict {
    let instance = Instance::get();
    let (judged, mut verdict) = judge_way(skb, &instance, packet);
    *flow = judged;
    // The instance's resolver is on loopback. By another interface, to which a socket can bind itself, the same address is somebody else.
    if let Verdict::Allow = verdict
        && skb.interface() != LOOPBACK_IFINDEX
        && instance.head().is_some_and(|header| header.judge_resolver(flow).is_some())
    {
        verdict = Verdict::Deny(DropReason::OtherResolver);
    }
    if let Verdict::Allow = verdict {
        instance.count_allowed(skb.0.len());
    }
    verdict
}

/// The verdict on a packet by its own destination, and before that on what it was before it was transformed. With the
/// flow that the verdict is on.
#[inline(always)]
fn judge_way(skb: &Skb, instance: &Instance, packet: &Packet) -> (Flow, Verdict) {
    match skb.origin(packet) {
        Origin::Plain => {}
        Origin::Flow(inner) => {
            // A tunnel leads to no socket here.
            let verdict = instance.judge(&inner).settle(|| false);
            if verdict != Verdict::Allow && !instance.head().is_some_and(|header| skb.was_accepted(header)) {
                return (inner, verdict);
            }
        }
        Origin::Accepted if instance.head().is_some_and(|header| skb.was_accepted(header)) => {}
        Origin::Accepted | Origin::Unknown => {
            return (packet.outbound(), Verdict::Deny(DropReason::Transformed));
        }
    }
    (packet.outbound(), outbound(skb, instance, packet))
}

/// What a packet was when its socket made it. IPsec puts another header before it, or wraps it into UDP, and the hook sees
/// only the result.
enum Origin {
    /// The packet that is there.
    Plain,
    /// A packet of this flow.
    Flow(Flow),
    /// An answer of a listening TCP socket.
    Accepted,
    /// Nobody knows.
    Unknown,
}

#[inline(always)]
fn outbound(skb: &Skb, instance: &Instance, packet: &Packet) -> Verdict {
    let flow = packet.outbound();
    if packet.protocol != Protocol::TCP {
        return instance.decision(&flow).settle(|| false);
    }
    if packet.opens && instance.head().is_some_and(|header| header.listens_on(packet.source_port)) {
        // `connect()` refused this already; here it is refused to everything that went round it.
        return Verdict::Deny(DropReason::ListenerPort);
    }
    let verdict = instance.decision(&flow).settle(|| false);
    match verdict {
        Verdict::Deny(_)
            if !packet.opens && instance.head().is_some_and(|header| skb.was_accepted(header)) =>
        {
            Verdict::Allow
        }
        verdict => verdict,
    }
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    // Most of what comes in by TCP passes whatever it is, so names are asked after that.
    if loopback::arrives(&skb)
        || skb.passes::<In>(Instance::get)
        || Instance::get().current.has_names() && remembered::<In>(&skb) & GOES_ON != 0
        || by_name::<In>(&skb) == PASSES
    {
        1
    } else {
        judge_ingress(skb)
    }
}

/// A packet that is not plain, or that the shortcut does not let pass. Where it would open a connection from this host, and is
/// refused, the socket there is reset.
#[inline(never)]
fn judge_ingress(skb: Skb) -> i32 {
    let mut packet = Packet::UNKNOWN;
    let verdict = match read(&skb, &mut packet) {
        // A connection that was judged when it was opened, from here or from there.
        Ok(()) if packet.protocol == Protocol::TCP && !packet.opens => return 1,
        Ok(()) => {
            let asked = packet.opens || packet.protocol == Protocol::UDP;
            let from_own = asked && loopback::is_from_own(&skb, &packet);
            ingress_verdict(&skb, &packet, from_own)
        }
        Err(reason) => Verdict::Deny(reason),
    };
    let Verdict::Deny(reason) = verdict else { return 1 };
    let instance = Instance::get();
    let flow = packet.back();
    let denial = Denial { hook: Hook::Ingress, reason, flow: &flow, bytes: Some(skb.0.len()) };
    let details = Received { skb: skb.raw(), local_port: packet.destination_port };
    if denied(&instance, &denial, &details) {
        return 1;
    }
    if packet.opens && skb.interface() == LOOPBACK_IFINDEX { end_attempt(&instance, &packet) } else { 0 }
}

#[inline(never)]
fn ingress_verdict(skb: &Skb, packet: &Packet, from_own: bool) -> Verdict {
    inbound(skb, &Instance::get(), packet, from_own)
}

/// Asks for the reset of the socket on this host that would open a connection. Returns that the packet does not pass.
#[inline(never)]
fn end_attempt(instance: &Instance, packet: &Packet) -> i32 {
    let target = Target {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        interface: 0,
        cookie: 0,
    };
    reset::ask(instance, &target);
    0
}

/// A new connection must reach a listener. What comes from a peer that the instance may send to passes too:
/// a datagram, because that is what answers look like; and a connection over loopback, because that is the
/// instance talking to a server of its own, as test suites do, and dropping what egress let pass would leave it hanging.
/// With own loopback it must be the instance itself, for then its servers are on ports that others know: what a rule lets it send
/// to a port of loopback comes unvouched, and so does its datagram there, of which only the address says whose it is.
#[inline(always)]
fn inbound(skb: &Skb, instance: &Instance, packet: &Packet, from_own: bool) -> Verdict {
    let loopback = skb.interface() == LOOPBACK_IFINDEX;
    let Some(header) = instance.head() else { return Verdict::Deny(DropReason::NoPolicy) };
    let tcp = packet.protocol == Protocol::TCP;
    let own = header.own_loopback != 0;
    if own
        && from_own
        && (tcp || matches!(instance.decision(&packet.outbound()).settle(|| false), Verdict::Allow))
    {
        return Verdict::Allow;
    }
    if (!tcp || loopback && !own)
        && let Verdict::Allow = instance.decision(&packet.back()).settle(|| false)
    {
        return Verdict::Allow;
    }
    match header.judge_inbound(&packet.destination, packet.destination_port, loopback) {
        Verdict::Deny(DropReason::NotAListener) if packet.protocol != Protocol::TCP => {
            Verdict::Deny(DropReason::PeerNotAllowed)
        }
        verdict => verdict,
    }
}

/// A packet that came in for a local port.
struct Received {
    skb: *mut __sk_buff,
    local_port: u16,
}

impl Details for Received {
    type Record = Event;

    #[inline(always)]
    unsafe fn add(&self, event: *mut Event, _: &Flow) {
        // SAFETY: the caller's promise; the helper takes the context of these programs.
        unsafe {
            (&raw mut (*event).uid).write_volatile(bpf_get_socket_uid(self.skb));
            (&raw mut (*event).local_port).write_volatile(self.local_port);
        }
    }
}

impl Skb {
    /// What the packet was before it was transformed, if it was: then it has another protocol than its socket, or another
    /// source port. Of TCP it is known where it goes, to the socket's peer. A datagram may go elsewhere than to the peer,
    /// so where the call was not judged that is not known.
    #[inline(always)]
    fn origin(&self, packet: &Packet) -> Origin {
        let Some(sk) = self.full_socket() else { return Origin::Plain };
        let protocol = sk.protocol();
        let changed = protocol != packet.protocol;
        match (sk.kind(), protocol) {
            // The kernel's test run of a program has a socket without a type.
            (0, _) => Origin::Plain,
            (SOCK_STREAM, Protocol::TCP) if !changed => Origin::Plain,
            (SOCK_STREAM, Protocol::TCP) if sk.state() == TCP_LISTEN => Origin::Accepted,
            (SOCK_STREAM, Protocol::TCP) => Origin::Flow(sk.peer(protocol)),
            // What follows an extension header that the socket writes has a protocol of its own.
            (SOCK_RAW, Protocol(0 | 60)) => Origin::Plain,
            (SOCK_DGRAM, Protocol::UDP | Protocol::UDPLITE) => {
                if !changed && self.is_from_its_port(packet) {
                    Origin::Plain
                } else if !maps::sendmsg_judges() {
                    Origin::Unknown
                } else if sk.state() == TCP_ESTABLISHED {
                    Origin::Flow(sk.peer(protocol))
                } else {
                    Origin::Plain
                }
            }
            _ if changed => Origin::Unknown,
            _ => Origin::Plain,
        }
    }

    /// Asks for the reset of the TCP socket whose packet was refused. Returns that the packet does not pass.
    #[inline(never)]
    pub(crate) fn end_connection(&self, instance: &Instance) -> i32 {
        let Some(sk) = self.full_socket() else { return 0 };
        let connected = sk.kind() == SOCK_STREAM
            && sk.protocol() == Protocol::TCP
            && !matches!(sk.state(), TCP_LISTEN | TCP_CLOSE);
        if !connected {
            return 0;
        }
        let (source, destination) = match self.ethertype() {
            ETH_P_IP => (Address::v4(sk.address4()), Address::v4(sk.peer4())),
            _ => (Address::v6(sk.address6()), Address::v6(sk.peer6())),
        };
        let target = Target {
            source,
            destination,
            source_port: sk.port(),
            destination_port: sk.peer_port(),
            interface: sk.interface(),
            // SAFETY: the helper takes the context of these programs.
            cookie: unsafe { bpf_get_socket_cookie(self.0.as_ptr()) },
        };
        reset::ask_once(instance, sk, &target);
        0
    }
}
