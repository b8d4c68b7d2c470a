//! `cgroup_skb/egress` and `ingress`: every IP packet of the cgroup's sockets, whatever made it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use opencode_egress_common::{
    abi::PolicyHeader,
    decide::Verdict,
    flow::{Address, Flow, Protocol},
    packet::{Bytes, Packet, ipv4, ipv6},
    reason::{DropReason, Hook},
};

use crate::{
    judge::Instance,
    maps,
    report::{Caller, Denial, denied},
    sk::{FullSk, Sk},
    uapi::{
        ETH_P_IP, ETH_P_IPV6, LOOPBACK_IFINDEX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, TCP_ESTABLISHED,
        TCP_LISTEN, TCP_NEW_SYN_RECV,
    },
};

#[cgroup_skb(egress)]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    if skb.passes::<Out>() { 1 } else { judge_egress(skb) }
}

/// What lets a plain packet pass without judging it: nearly every packet. Apart from the rest it is short
/// code that hardly needs the stack.
trait Shortcut {
    fn passes(skb: &Skb, packet: &Packet) -> bool;
}

struct Out;

impl Shortcut for Out {
    /// What the cache has, of a flow that the packet itself names: a TCP segment, unless it opens a connection from a
    /// listener's port, and a datagram from its socket's own port.
    #[inline(always)]
    fn passes(skb: &Skb, packet: &Packet) -> bool {
        let instance = Instance::get();
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
            instance.count_allowed(skb.0.len());
        }
        remembered
    }
}

#[inline(never)]
fn judge_egress(skb: Skb) -> i32 {
    let instance = Instance::get();
    let (flow, verdict) = match skb.read() {
        Ok(packet) => judge_way(&skb, &instance, &packet),
        Err(reason) => (Flow::UNKNOWN, Verdict::Deny(reason)),
    };
    match verdict {
        Verdict::Allow => {
            instance.count_allowed(skb.0.len());
            1
        }
        Verdict::Deny(reason) => skb.refuse(&instance, Hook::Egress, reason, flow),
    }
}

/// The verdict on a packet by its own destination, and before that on what it was before it was transformed. With the
/// flow that the verdict is on.
#[inline(always)]
fn judge_way(skb: &Skb, instance: &Instance, packet: &Packet) -> (Flow, Verdict) {
    match skb.origin(packet) {
        Origin::Plain => {}
        Origin::Flow(inner) => {
            let denied = matches!(instance.verdict(&inner), Verdict::Deny(_));
            if denied && !instance.head().is_some_and(|header| skb.was_accepted(header)) {
                return (inner, instance.verdict(&inner));
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
        return instance.verdict(&flow);
    }
    if packet.opens {
        // `connect()` refused this already; here it is refused to everything that went round it.
        return match instance.head() {
            Some(header) if header.listens_on(packet.source_port) => Verdict::Deny(DropReason::ListenerPort),
            _ => instance.verdict(&flow),
        };
    }
    match instance.verdict(&flow) {
        Verdict::Deny(_) if instance.head().is_some_and(|header| skb.was_accepted(header)) => Verdict::Allow,
        verdict => verdict,
    }
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    if skb.passes::<In>() { 1 } else { judge_ingress(skb) }
}

struct In;

impl Shortcut for In {
    /// Of a connection that was judged when it was opened, from here or from there; or from a peer that the
    /// instance may send to.
    #[inline(always)]
    fn passes(_: &Skb, packet: &Packet) -> bool {
        match packet.protocol {
            Protocol::TCP => !packet.opens,
            _ => Instance::get().remembers(&packet.back()),
        }
    }
}

#[inline(never)]
fn judge_ingress(skb: Skb) -> i32 {
    let packet = match skb.read() {
        // A connection that was judged when it was opened, from here or from there.
        Ok(packet) if packet.protocol == Protocol::TCP && !packet.opens => return 1,
        Ok(packet) => packet,
        Err(reason) => return skb.refuse(&Instance::get(), Hook::Ingress, reason, Flow::UNKNOWN),
    };
    let instance = Instance::get();
    match inbound(&skb, &instance, &packet) {
        Verdict::Allow => 1,
        Verdict::Deny(reason) => skb.refuse(&instance, Hook::Ingress, reason, packet.back()),
    }
}

/// A new connection must reach a listener. What comes from a peer that the instance may send to passes too:
/// a datagram, because that is what answers look like; and a connection over loopback, because that is the
/// instance talking to a server of its own on a port of the kernel's choice, as test suites do, and dropping what
/// egress let pass would leave it hanging.
#[inline(always)]
fn inbound(skb: &Skb, instance: &Instance, packet: &Packet) -> Verdict {
    let loopback = skb.interface() == LOOPBACK_IFINDEX;
    if (packet.protocol != Protocol::TCP || loopback)
        && let Verdict::Allow = instance.verdict(&packet.back())
    {
        return Verdict::Allow;
    }
    let Some(head) = instance.head() else { return Verdict::Deny(DropReason::NoPolicy) };
    match head.judge_inbound(&packet.destination, packet.destination_port, loopback) {
        Verdict::Deny(DropReason::NotAListener) if packet.protocol != Protocol::TCP => {
            Verdict::Deny(DropReason::PeerNotAllowed)
        }
        verdict => verdict,
    }
}

struct Skb(SkBuffContext);

impl Skb {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.0.as_ptr().cast()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { (*self.raw()).ifindex }
    }

    /// Reads the headers. A packet whose version is not what its socket family says is unreadable.
    #[inline(always)]
    fn read(&self) -> Result<Packet, DropReason> {
        // SAFETY: the kernel's context, valid while the program runs; `protocol` is in network order.
        match u16::from_be(unsafe { (*self.raw()).protocol } as u16) {
            ETH_P_IP => ipv4(self),
            ETH_P_IPV6 => ipv6(self),
            _ => Err(DropReason::UnreadableHeader),
        }
    }

    /// Whether the packet is plain, without options and extension headers, and a shortcut lets it pass.
    #[inline(always)]
    fn passes<S: Shortcut>(&self) -> bool {
        // SAFETY: the kernel's context, valid while the program runs; `protocol` is in network order.
        let packet = match u16::from_be(unsafe { (*self.raw()).protocol } as u16) {
            ETH_P_IP => ipv4(&Linear(self)),
            // One after the other, so that neither is slowed by what the other needs.
            ETH_P_IPV6 => return matches!(ipv6(&Linear(self)), Ok(packet) if S::passes(self, &packet)),
            _ => return false,
        };
        matches!(packet, Ok(packet) if S::passes(self, &packet))
    }

    /// The packet's socket.
    #[inline(always)]
    fn socket(&self) -> Option<Sk> {
        // SAFETY: the kernel's context, valid while the program runs.
        Sk::new(unsafe { (*self.raw()).__bindgen_anon_2.sk })
    }

    /// The packet's socket, if that is a full one.
    #[inline(always)]
    fn full_socket(&self) -> Option<FullSk> {
        // SAFETY: the helper takes any socket.
        FullSk::new(unsafe { bpf_sk_fullsock(self.socket()?.as_ptr()) })
    }

    /// Whether a datagram has its socket's own port for a source, as everything has that was not wrapped into
    /// another datagram on its way.
    #[inline(always)]
    fn is_from_its_port(&self, packet: &Packet) -> bool {
        self.socket().is_some_and(|sk| sk.port() == packet.source_port)
    }

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
                } else if changed && sk.state() == TCP_ESTABLISHED {
                    Origin::Flow(sk.peer(protocol))
                } else {
                    Origin::Plain
                }
            }
            _ if changed => Origin::Unknown,
            _ => Origin::Plain,
        }
    }

    /// Whether the packet is of a connection that one of the instance's listeners accepted.
    ///
    /// It is the socket that is asked, not the packet, whose source port a raw socket could write. A TCP
    /// socket has a listener's port only when it was accepted: `connect()` from there is refused.
    #[inline(always)]
    fn was_accepted(&self, header: &PolicyHeader) -> bool {
        let Some(sk) = self.socket() else { return false };
        if sk.state() == TCP_NEW_SYN_RECV {
            return header.listens_on(sk.port());
        }
        self.full_socket().is_some_and(|full| {
            full.kind() == SOCK_STREAM && full.protocol() == Protocol::TCP && header.listens_on(full.port())
        })
    }

    #[cold]
    #[inline(always)]
    fn refuse(&self, instance: &Instance, hook: Hook, reason: DropReason, flow: Flow) -> i32 {
        let caller = Caller::unknown(self.0.get_socket_uid());
        let denial = Denial { hook, reason, flow: &flow, bytes: Some(self.0.len()), caller };
        i32::from(denied(instance, &denial))
    }
}

/// What of a packet is linear in memory and at constant offsets: enough for a plain one.
struct Linear<'a>(&'a Skb);

impl Bytes for Linear<'_> {
    #[inline(always)]
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        // SAFETY: the kernel's context; `data` and `data_end` bound the packet's linear part, and the
        // verifier checks that what is read lies between them. It refuses a misaligned load where the
        // architecture has none.
        unsafe {
            let skb = self.0.raw();
            let data = (*skb).data as usize;
            (data + OFFSET + N * 4 <= (*skb).data_end as usize).then(|| *((data + OFFSET) as *const [u32; N]))
        }
    }

    #[inline(always)]
    fn far<const N: usize>(&self, _offset: usize) -> Option<[u32; N]> {
        None
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        // Otherwise headers are in fragments of the buffer.
        Linear(self).near::<OFFSET, N>().or_else(|| self.far(OFFSET))
    }

    #[inline(always)]
    fn far<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        // SAFETY: the destination is on the stack and N words long.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.raw().cast(),
                offset as u32,
                (&raw mut words).cast(),
                size_of::<[u32; N]>() as u32,
            )
        };
        (result == 0).then_some(words)
    }
}

trait UnknownFlow {
    /// What stands in the event of a packet that could not be read.
    const UNKNOWN: Self;
}

impl UnknownFlow for Flow {
    const UNKNOWN: Self = Self { address: Address::v4(0), protocol: Protocol(0), port: 0 };
}
