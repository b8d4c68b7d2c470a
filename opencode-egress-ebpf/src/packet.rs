//! `cgroup_skb/egress` and `ingress`: every IP packet of the cgroup's sockets, whatever made it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use opencode_egress_common::{
    abi::Head,
    decide::Verdict,
    flow::{Address, Flow, Protocol},
    packet::{Bytes, Packet, ipv4, ipv6},
    reason::{DropReason, Hook},
};

use crate::{
    judge::Instance,
    report::{Caller, Denial, denied},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const SOCK_STREAM: u32 = 1;
/// `TCP_NEW_SYN_RECV`: a request socket, which only an inbound SYN makes.
const NEW_SYN_RECV: u32 = 12;
/// The loopback interface's index, in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

#[cgroup_skb(egress)]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    let instance = Instance::get();
    let (flow, verdict) = match skb.read() {
        Ok(packet) => (packet.outbound(), outbound(&skb, &instance, &packet)),
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

#[inline(always)]
fn outbound(skb: &Skb, instance: &Instance, packet: &Packet) -> Verdict {
    let flow = packet.outbound();
    if packet.protocol != Protocol::TCP {
        return instance.verdict(&flow);
    }
    if packet.opens {
        // `connect()` refused this already; here it is refused to everything that went round it.
        return match instance.head() {
            Some(head) if head.listens_on(packet.source_port) => Verdict::Deny(DropReason::ListenerPort),
            _ => instance.verdict(&flow),
        };
    }
    match instance.verdict(&flow) {
        Verdict::Deny(_) if instance.head().is_some_and(|head| skb.was_accepted(head)) => Verdict::Allow,
        verdict => verdict,
    }
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
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

/// A new connection must reach a listener. A datagram may also come from a peer that the instance may
/// send to: that is what its answers look like.
#[inline(always)]
fn inbound(skb: &Skb, instance: &Instance, packet: &Packet) -> Verdict {
    if packet.protocol != Protocol::TCP
        && let Verdict::Allow = instance.verdict(&packet.back())
    {
        return Verdict::Allow;
    }
    let Some(head) = instance.head() else { return Verdict::Deny(DropReason::NoPolicy) };
    let loopback = skb.interface() == LOOPBACK;
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

    /// Whether the packet is of a connection that one of the instance's listeners accepted.
    ///
    /// It is the socket that is asked, not the packet, whose source port a raw socket could write. A TCP
    /// socket has a listener's port only when it was accepted: `connect()` from there is refused.
    #[inline(always)]
    fn was_accepted(&self, head: &Head) -> bool {
        // SAFETY: the kernel's context; the pointer is null or a socket whose type the verifier knows.
        unsafe {
            let sk: *mut bpf_sock = (*self.raw()).__bindgen_anon_2.sk;
            if sk.is_null() {
                return false;
            }
            let port = (*sk).src_port as u16;
            if (*sk).state == NEW_SYN_RECV {
                return head.listens_on(port);
            }
            let full = bpf_sk_fullsock(sk);
            !full.is_null()
                && (*full).type_ == SOCK_STREAM
                && (*full).protocol == u32::from(Protocol::TCP.0)
                && head.listens_on(port)
        }
    }

    #[cold]
    #[inline(always)]
    fn refuse(&self, instance: &Instance, hook: Hook, reason: DropReason, flow: Flow) -> i32 {
        let caller = Caller::unknown(self.0.get_socket_uid());
        let denial = Denial { hook, reason, flow, bytes: Some(self.0.len()), caller };
        i32::from(denied(instance, &denial))
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        // SAFETY: the kernel's context; `data` and `data_end` bound the packet's linear part, and the
        // verifier checks that what is read lies between them. It refuses a misaligned load where the
        // architecture has none.
        unsafe {
            let data = (*self.raw()).data as usize;
            if data + OFFSET + N * 4 <= (*self.raw()).data_end as usize {
                return Some(*((data + OFFSET) as *const [u32; N]));
            }
        }
        // Headers in fragments of the buffer.
        self.far(OFFSET)
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
