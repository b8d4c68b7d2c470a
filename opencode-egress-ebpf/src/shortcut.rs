//! What lets a plain packet pass before it is judged: what the cache remembers, which is nearly every packet; and flows by name.

use opencode_egress_common::{
    abi::{NameRuleId, PolicyHeader},
    decide::Verdict,
    flow::{Flow, Protocol},
    names::may_be_allowed_by_name,
    packet::{Packet, ipv4, ipv6},
};

use crate::{
    judge::Instance,
    named::{self, ByName},
    opaque::{self, opaque},
    question,
    sk::FullSk,
    skb::{Linear, Skb},
    uapi::{ETH_P_IP, ETH_P_IPV6, LOOPBACK_IFINDEX, SOCK_DGRAM, SOCK_STREAM, TCP_NEW_SYN_RECV, TCP_SYN_SENT},
};

/// What lets a plain packet pass without judging it: nearly every packet. Apart from the rest it is short
/// code that hardly needs the stack.
pub(crate) trait Shortcut {
    /// Whether the cache has what lets the packet pass, or it needs nothing of the instance's.
    fn passes(skb: &Skb, instance: impl FnOnce() -> Instance, packet: &Packet) -> bool;

    /// Whether a packet that is plain otherwise may be of a flow by name.
    fn may_be_named(skb: &Skb, header: &PolicyHeader, packet: &Packet) -> bool;

    /// Whether a packet is as its socket made it, or for it.
    fn is_of_socket(skb: &Skb, packet: &Packet) -> bool;

    /// The flow that the packet belongs to, seen from the instance.
    fn flow(packet: &Packet) -> Flow;

    /// Counts one that passes.
    fn count(skb: &Skb, instance: &Instance);

    /// Takes note of one between the instance and its resolver, which passes.
    fn note_question(skb: &Skb, instance: &Instance) -> u32;
}

/// What names say of a packet.
const NOTHING: u32 = 0;
pub(crate) const PASSES: u32 = 1;
pub(crate) const EXPIRED: u32 = 2;

/// Whether a plain packet passes by name: one of a flow that its socket began, or that may begin now. It is asked before the packet is
/// judged, and says no more than this one number, so that the verifier has little to keep apart.
#[inline(never)]
pub(crate) fn by_name<S: Shortcut>(skb: &Skb) -> u32 {
    let mut flow = Flow::UNKNOWN;
    if !flow_that_may_be_named::<S>(skb, &mut flow) {
        return NOTHING;
    }
    let instance = Instance::get();
    let (Some(header), Some(sk)) = (instance.head(), skb.full_socket()) else { return NOTHING };
    let said = match header.judge_resolver(&flow) {
        Some(Verdict::Allow) if skb.interface() == LOOPBACK_IFINDEX => S::note_question(skb, &instance),
        Some(_) => NOTHING,
        None => named_now(&instance, &flow, sk),
    };
    if said == PASSES {
        S::count(skb, &instance);
    }
    opaque(said, skb.0.len())
}

/// Reads the flow of a plain packet of an instance with name rules. `false`: it is of none that passes by name. (A function of its own,
/// for what it takes of the stack, of which all callers together have 512 bytes.)
#[inline(never)]
fn flow_that_may_be_named<S: Shortcut>(skb: &Skb, flow: &mut Flow) -> bool {
    let instance = Instance::get();
    if !instance.current.has_names() {
        return false;
    }
    let Some(header) = instance.head() else { return false };
    let Some(sk) = skb.full_socket() else { return false };
    let Some(packet) = skb.read_plain() else { return false };
    // What a raw socket sends is of no flow of its own. (The kernel's test run of a program has a socket without a type.)
    let of_its_socket = matches!(
        (sk.kind(), packet.protocol),
        (SOCK_STREAM, Protocol::TCP) | (SOCK_DGRAM, Protocol::UDP) | (0, _)
    );
    if !of_its_socket || !S::may_be_named(skb, header, &packet) {
        return false;
    }
    *flow = opaque::flow(S::flow(&packet), skb.0.len());
    true
}

// What its socket's memory says of a packet.
/// It is plain, and of a flow that the socket began by name, under the policy in force.
pub(crate) const GOES_ON: u32 = 1;
/// Where it passes, the program that follows TLS is to see it.
pub(crate) const IS_FOLLOWED: u32 = 2;
/// It is of a socket that opens a connection, by a rule with `tls`.
pub(crate) const OPENS_TLS: u32 = 4;

/// What its socket's memory says of a packet: bits of the above. (A function of its own, for what it takes of the stack.)
#[inline(never)]
pub(crate) fn remembered<S: Shortcut>(skb: &Skb) -> u32 {
    let instance = Instance::get();
    let Some(sk) = skb.full_socket() else { return 0 };
    let socket = named::socket_of(sk.as_ptr(), 0);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and the socket's for as long as the program runs.
    let followed = unsafe { (*socket).tls.hello.is_followed() } << 1;
    // What opens a connection begins to be followed; or is not, where something else than the socket remembers lets it pass.
    let opens = u32::from(sk.state() == TCP_SYN_SENT);
    let looked_at = followed | opens * IS_FOLLOWED;
    let Some(packet) = skb.read_plain() else { return looked_at };
    // Only a socket's own flows are in its storage, of TCP and UDP, and none from a listener's port.
    if !S::is_of_socket(skb, &packet) {
        return looked_at;
    }
    let rule = named::goes_on_by(socket, &instance, &S::flow(&packet));
    if rule == 0 {
        return looked_at;
    }
    S::count(skb, &instance);
    GOES_ON | if NameRuleId(rule).opens_tls() { looked_at | opens * OPENS_TLS } else { followed }
}

/// What names say now of a flow, where no rule for networks says that it passes or does not.
#[inline(never)]
fn named_now(instance: &Instance, flow: &Flow, sk: FullSk) -> u32 {
    match instance.judge(flow).settle(|| false) {
        Verdict::Deny(reason) if may_be_allowed_by_name(reason) => {
            match named::judge(instance, flow, sk, false) {
                ByName::Allowed => PASSES,
                ByName::Expired => EXPIRED,
                ByName::Unknown => NOTHING,
            }
        }
        _ => NOTHING,
    }
}

/// Of what the instance sends.
pub(crate) struct Out;

impl Shortcut for Out {
    /// What the cache has, of a flow that the packet itself names: a TCP segment, unless it opens a connection from a
    /// listener's port, and a datagram from its socket's own port.
    #[inline(always)]
    fn passes(skb: &Skb, instance: impl FnOnce() -> Instance, packet: &Packet) -> bool {
        let instance = instance();
        let plain = match packet.protocol {
            Protocol::TCP if packet.opens => {
                instance.head().is_some_and(|header| !header.listens_on(packet.source_port))
            }
            Protocol::TCP => true,
            Protocol::UDP => skb.is_from_its_port(packet),
            _ => false,
        };
        if !plain {
            return false;
        }
        let remembered = instance.remembers(&packet.outbound());
        if remembered {
            Self::count(skb, &instance);
        }
        remembered
    }

    #[inline(always)]
    fn may_be_named(skb: &Skb, header: &PolicyHeader, packet: &Packet) -> bool {
        match packet.protocol {
            Protocol::TCP if packet.opens => !header.listens_on(packet.source_port),
            Protocol::TCP => !skb.was_accepted(header),
            Protocol::UDP => skb.is_from_its_port(packet),
            _ => false,
        }
    }

    #[inline(always)]
    fn is_of_socket(skb: &Skb, packet: &Packet) -> bool {
        packet.protocol == Protocol::TCP || skb.is_from_its_port(packet)
    }

    #[inline(always)]
    fn flow(packet: &Packet) -> Flow {
        packet.outbound()
    }

    #[inline(always)]
    fn count(skb: &Skb, instance: &Instance) {
        instance.count_allowed(skb.0.len());
    }

    #[inline(always)]
    fn note_question(skb: &Skb, instance: &Instance) -> u32 {
        question::remember_asker(skb, instance.index, PASSES)
    }
}

/// Of what comes to it.
pub(crate) struct In;

impl Shortcut for In {
    /// A packet passes that is of a connection that was judged when it was opened, from here or from there; or from a peer that the
    /// instance may send to.
    #[inline(always)]
    fn passes(_: &Skb, instance: impl FnOnce() -> Instance, packet: &Packet) -> bool {
        match packet.protocol {
            Protocol::TCP => !packet.opens,
            _ => instance().remembers(&packet.back()),
        }
    }

    /// Answers. What comes in by TCP is of a connection that was judged, or opens one.
    #[inline(always)]
    fn may_be_named(_: &Skb, _: &PolicyHeader, packet: &Packet) -> bool {
        packet.protocol == Protocol::UDP
    }

    #[inline(always)]
    fn is_of_socket(_: &Skb, _: &Packet) -> bool {
        true
    }

    #[inline(always)]
    fn flow(packet: &Packet) -> Flow {
        packet.back()
    }

    /// What comes in is not counted.
    #[inline(always)]
    fn count(_: &Skb, _: &Instance) {}

    /// An answer.
    #[inline(always)]
    fn note_question(_: &Skb, _: &Instance) -> u32 {
        PASSES
    }
}

impl Skb {
    /// Whether the packet is plain, without options and extension headers, and a shortcut lets it pass. The instance is asked for where it is
    /// needed: that takes as long as all the rest of what most of the packets that come in take.
    #[inline(always)]
    pub(crate) fn passes<S: Shortcut>(&self, instance: impl FnOnce() -> Instance) -> bool {
        let packet = match self.ethertype() {
            ETH_P_IP => ipv4(&Linear(self)),
            // One after the other, so that neither is slowed by what the other needs.
            ETH_P_IPV6 => {
                return matches!(ipv6(&Linear(self)), Ok(packet) if S::passes(self, instance, &packet));
            }
            _ => return false,
        };
        matches!(packet, Ok(packet) if S::passes(self, instance, &packet))
    }

    /// Whether the packet is of a connection that one of the instance's listeners accepted.
    ///
    /// It is the socket that is asked, not the packet, whose source port a raw socket could write. A TCP
    /// socket has a listener's port only when it was accepted: `connect()` from there is denied.
    #[inline(always)]
    pub(crate) fn was_accepted(&self, header: &PolicyHeader) -> bool {
        let Some(sk) = self.socket() else { return false };
        if sk.state() == TCP_NEW_SYN_RECV {
            return header.listens_on(sk.port());
        }
        self.full_socket().is_some_and(|full| {
            full.kind() == SOCK_STREAM && full.protocol() == Protocol::TCP && header.listens_on(full.port())
        })
    }
}
