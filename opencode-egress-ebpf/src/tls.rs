//! What `cgroup_skb/egress` goes on with: a connection that passes by name rules with `tls` alone lives only when what it begins with is
//! a hello to a server that one of them lists.
//!
//! The program of `packet` judges each packet, and goes on with this one where it is of such a connection, whose stream this one follows: from
//! the SYN, which says how its bytes are counted, until the hello is over. A segment passes when all of it is what a hello may begin with. What was read may be sent again
//! and passes unread: the kernel sends it from its own copy, or from pages of the sender's that were never copied, and what becomes of those
//! meanwhile nobody reads. What comes before what is missing does not pass.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_load_bytes, bpf_tcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use opencode_egress_common::{
    abi::{Event, GreetedEvent, Learned, LearnedKey, NameRuleId},
    decide::Verdict,
    flow::{Address, Class, Flow},
    hello::{self, Followed, Number, ServerName, Source, Standing, WINDOW},
    names::{GoesOn, LearnedAddresses, NamedFlow, goes_on},
    reason::{DropReason, Hook},
    segment::{Mptcp, Segment, URG, mptcp},
};

use crate::{
    asked::Sent,
    judge::Instance,
    maps, named,
    opaque::opaque,
    report::{Denial, Details, denied},
    sk::FullSk,
    skb::Skb,
    storage::{NamedSocket, TlsFlow},
    uapi::{SOCK_STREAM, TCP_SYN_SENT},
};

// What becomes of a segment. (Functions return one of these and leave the rest in the connection's storage, of which the verifier
// forgets what it knew.)
const PASSES: u32 = 0;
/// It is to be read.
const READ: u32 = 1;
const DENIED: u32 = 2;

#[cgroup_skb(egress)]
pub(crate) fn tls(ctx: SkBuffContext) -> i32 {
    let skb = Skb(ctx);
    let Some(sk) = skb.full_socket() else { return 1 };
    if sk.kind() != SOCK_STREAM {
        return 1;
    }
    let socket = named::socket_of(sk.as_ptr(), 0);
    // Without a flow by name there is none that must open TLS.
    // SAFETY: it is null, or the socket's for as long as the program runs. All of it may be zeros.
    let Some(NamedSocket { tls: flow, .. }) = (unsafe { socket.as_ref() }) else { return 1 };
    let opens = sk.state() == TCP_SYN_SENT;
    if !opens && flow.hello.is_followed() == 0 {
        return 1;
    }
    let generation = Instance::get().current.generation();
    if opens || flow.generation.get() != generation {
        // Nearly every SYN was found to open TLS just now, by the program before this one; unless another policy is in force since.
        let goes_on = match skb.tls_generation() == generation {
            true => GoesOn::AsTls as u32,
            false => must_open_tls(&skb, socket),
        };
        let goes_on = opaque(goes_on, skb.0.len());
        let said = prepare(&skb, sk, flow, goes_on);
        flow.generation.set(generation);
        if said != READ {
            return i32::from(said == PASSES);
        }
    }
    if flow.hello.is_followed() == 0 { 1 } else { go_on(&skb, flow) }
}

/// Begins to follow a connection that is opened, where it must open TLS, and ends that where it need not any more, under another
/// policy. `goes_on` is a [`GoesOn`].
#[inline(never)]
fn prepare(skb: &Skb, sk: FullSk, flow: &TlsFlow, goes_on: u32) -> u32 {
    let opens = sk.state() == TCP_SYN_SENT;
    if opens && goes_on == GoesOn::AsTls as u32 {
        return match flow.hello.standing() == Standing::Followed && is_sent_again(skb, sk, flow) {
            true => PASSES,
            false => opaque(begin(skb, flow), skb.0.len()),
        };
    }
    // It does not go on by that rule when what frees it ends. Also where nothing is followed: it may have sent nothing under the rule.
    if opens || goes_on == GoesOn::Freely as u32 {
        named::forget_tls(sk.as_ptr());
        flow.hello.end();
    }
    READ
}

/// Whether a SYN opens the connection that is followed already, to whose SYN with data no answer came. The kernel sends it again without
/// that, and does not say so; but by then it has sent more than the SYN, as far as was read (`tcp_connect` in
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_output.c> sets `snd_nxt` when the first SYN has left).
#[inline(never)]
fn is_sent_again(skb: &Skb, sk: FullSk, flow: &TlsFlow) -> bool {
    let Some(segment) = Segment::read(skb) else { return false };
    // SAFETY: the helper takes a full socket; what it returns is null or the socket's for as long as the program runs.
    let sent = unsafe {
        let tcp = bpf_tcp_sock(sk.as_ptr());
        if tcp.is_null() {
            return false;
        }
        (&raw const (*tcp).snd_nxt).read_volatile()
    };
    segment.payload == skb.0.len() && sent.wrapping_sub(segment.sequence) > 1 && sent == flow.next.get()
}

/// Begins to follow a connection, of which this is the SYN. [`READ`]: there is more in it than that.
#[inline(never)]
fn begin(skb: &Skb, flow: &TlsFlow) -> u32 {
    let Some(segment) = Segment::read(skb) else { return DENIED };
    let mptcp = mptcp(skb, &segment) as u32;
    // Subflows of MPTCP share a stream, of which each has a part: only the first one's begins where the stream does. Bytes of it may be
    // sent twice by MPTCP itself, which the other end knows and nobody here, so what opens TLS must be one piece.
    flow.hello.begin(mptcp == Mptcp::Capable as u32);
    flow.next.set(segment.sequence.wrapping_add(1));
    if mptcp == Mptcp::Joins as u32 {
        flow.hello.deny(Followed::NotTls);
        return READ;
    }
    // Nearly every SYN has nothing to be read.
    if segment.payload == skb.0.len() && segment.flags & URG == 0 { PASSES } else { READ }
}

/// Whether the flow of a packet must open TLS: a [`GoesOn`]. Of one that is followed already it is asked under another policy.
/// Either question reads the packet anew, for the verifier keeps what a caller has read, and each way in which it can be read,
/// apart while it looks at what is called.
#[inline(never)]
fn must_open_tls(skb: &Skb, socket: *mut NamedSocket) -> u32 {
    let instance = Instance::get();
    match begun_by(skb, socket, &instance) {
        0 => {}
        rule if NameRuleId(rule).opens_tls() => return GoesOn::AsTls as u32,
        _ => return GoesOn::Freely as u32,
    }
    if is_allowed_by_networks(skb, &instance) || is_leased(skb, &instance) {
        return GoesOn::Freely as u32;
    }
    goes_on_by_name(skb, &instance)
}

/// The rule by which the flow of a packet began at its call, under the policy in force: 0 where it did not, or nobody remembers. It
/// says how the flow must go on, for it is the one that leaves it most freedom.
#[inline(never)]
fn begun_by(skb: &Skb, socket: *mut NamedSocket, instance: &Instance) -> u64 {
    let Some(segment) = Segment::read(skb) else { return 0 };
    named::goes_on_by(socket, instance, &segment.flow())
}

/// Whether a rule for networks allows the flow of a packet.
#[inline(never)]
fn is_allowed_by_networks(skb: &Skb, instance: &Instance) -> bool {
    let Some(segment) = Segment::read(skb) else { return false };
    instance.decision(&segment.flow()).settle(|| false) == Verdict::Allow
}

/// Whether a lease of a network allows the flow of a packet.
#[inline(never)]
fn is_leased(skb: &Skb, instance: &Instance) -> bool {
    let Some(segment) = Segment::read(skb) else { return false };
    named::lease_for(instance, &segment.flow()) != 0
}

/// How a flow of TCP that no rule for networks allows must go on: a [`GoesOn`].
#[inline(never)]
fn goes_on_by_name(skb: &Skb, instance: &Instance) -> u32 {
    // What cannot be read does not pass by name.
    let Some(segment) = Segment::read(skb) else { return GoesOn::Unknown as u32 };
    let words = segment.destination.words().map(u64::from);
    let place =
        opaque((segment.destination.family() as u32) << 16 | u32::from(segment.port), segment.sequence);
    ask_grants(instance, words[0] | words[1] << 32, words[2] | words[3] << 32, place)
}

/// The same for an address, whose words are in pairs, and its family and the port in one number, of which the verifier knows nothing.
#[inline(never)]
fn ask_grants(instance: &Instance, first: u64, second: u64, place: u32) -> u32 {
    let (Some(header), Some(trie)) = (instance.head(), maps::trie(instance.current.slot())) else {
        return GoesOn::Unknown as u32;
    };
    // SAFETY: the helper has no arguments and cannot fail.
    let now = unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000;
    let key = LearnedKey {
        generation: instance.current.generation(),
        place: instance.index << 16 | (place >> 16) << 8,
        address: [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32],
    };
    // The address is in the key.
    let flow = NamedFlow { address: Address::v4(0), class: Class::Tcp as u32, port: place as u16 };
    goes_on(&trie, &OneAddress(key), header.name_grants, &flow, now) as u32
}

/// What was learned of one address: its key, under the first grant.
struct OneAddress(LearnedKey);

impl LearnedAddresses for OneAddress {
    #[inline(always)]
    fn learned(&self, grant: u32, _: &Address) -> Option<Learned> {
        let key = LearnedKey { place: self.0.place | grant, ..self.0 };
        // SAFETY: a value that was found is whole and aligned, and lives as long as the program runs (RCU). One that user space
        // prolongs meanwhile has the old time or the new one.
        unsafe { maps::LEARNED.get(&key) }.copied()
    }
}

/// A segment of a connection that is followed, or was denied.
#[inline(never)]
fn go_on(skb: &Skb, flow: &TlsFlow) -> i32 {
    match place(skb, flow) {
        PASSES => 1,
        READ if read(skb, flow) == PASSES => 1,
        _ => deny(skb, flow),
    }
}

/// Finds the place of a segment in its connection's stream, and what of it was not read yet.
#[inline(never)]
fn place(skb: &Skb, flow: &TlsFlow) -> u32 {
    let Some(segment) = Segment::read(skb) else { return DENIED };
    let end = skb.0.len();
    let length = end.wrapping_sub(segment.payload);
    let urgent = segment.flags & URG != 0;
    let opens = segment.opens();
    if flow.hello.standing() != Standing::Followed {
        return if length != 0 || urgent || opens { DENIED } else { PASSES };
    }
    if length == 0 && !urgent {
        return PASSES;
    }
    let first = segment.sequence.wrapping_add(u32::from(opens));
    let known = flow.next.get().wrapping_sub(first);
    if urgent || known >> 31 != 0 {
        flow.hello.deny(Followed::NotTls);
        return DENIED;
    }
    if known >= length {
        return PASSES;
    }
    flow.hello.come(segment.payload.wrapping_add(known), end);
    flow.next.set(first.wrapping_add(length));
    READ
}

/// Reads on, where [`place`] found something to be read.
#[inline(never)]
fn read(skb: &Skb, flow: &TlsFlow) -> u32 {
    let judged = hello::judge(&flow.hello, skb, |name| {
        let instance = Instance::get();
        instance.head().is_some_and(|header| header.has_tls())
            && maps::lists_server(instance.current.slot(), name)
    });
    if judged == Followed::Passes { PASSES } else { DENIED }
}

/// Tells of a connection that is denied, and asks for its reset. Returns whether it passes all the same: what is denied stays so, for when audit
/// mode ends.
#[inline(never)]
fn deny(skb: &Skb, followed: &TlsFlow) -> i32 {
    let Some(segment) = Segment::read(skb) else { return 0 };
    let instance = Instance::get();
    let (reason, name) = match followed.hello.standing() {
        Standing::Denied(Followed::OtherName) => (DropReason::TlsNameNotAllowed, Some(&followed.hello.name)),
        Standing::Denied(Followed::NoName) => (DropReason::TlsNameNotAllowed, None),
        _ => (DropReason::NotTls, None),
    };
    let flow = segment.flow();
    let denial = Denial { hook: Hook::Tls, reason, flow: &flow, bytes: Some(skb.0.len()) };
    if denied(&instance, &denial, &Greeted { skb: skb.raw(), name }) {
        1
    } else {
        skb.end_connection(&instance)
    }
}

/// A segment that was denied for what its connection's hello says.
struct Greeted<'a> {
    skb: *mut __sk_buff,
    name: Option<&'a ServerName>,
}

impl Details for Greeted<'_> {
    type Record = GreetedEvent;

    #[inline(always)]
    fn tag(&self) -> u16 {
        self.name.map_or(0, ServerName::tag)
    }

    #[inline(always)]
    unsafe fn add(&self, event: *mut Event, flow: &Flow) {
        // SAFETY: the caller's promise; every field of the record is written.
        unsafe {
            // TCP sends when it can: the process that runs is any.
            Sent { skb: self.skb, transformed: false }.add_asked(event, flow);
            let record: *mut GreetedEvent = event.cast();
            let mut len = 0;
            let mut word = 0;
            while word < 256 / 8 {
                let bytes = match self.name {
                    Some(name) => name.word(word),
                    None => 0,
                };
                (&raw mut (*record).name).cast::<u64>().add(word).write_volatile(bytes);
                word += 1;
            }
            if let Some(name) = self.name {
                len = name.len();
            }
            (&raw mut (*record).name_len).write_volatile(len);
            (&raw mut (*record).tag).write_volatile(u32::from(self.tag()));
        }
    }
}

impl Source for Skb {
    #[inline(always)]
    fn copy(&self, offset: u32, count: u32, to: &[Number<u8>; WINDOW + 8]) -> bool {
        // From 1 to the window's length, which the verifier sees by this.
        let count = (count.wrapping_sub(1) & (WINDOW as u32 - 1)) + 1;
        // SAFETY: the destination is long enough, and of cells.
        unsafe { bpf_skb_load_bytes(self.raw().cast(), offset, to.as_ptr().cast_mut().cast(), count) == 0 }
    }
}
