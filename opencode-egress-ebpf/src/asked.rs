//! Where a process wanted to, when its packet goes elsewhere: the kernel rewrites destinations behind a connect, by the program
//! of another cgroup or by network address translation.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_sk_fullsock, generated::bpf_get_socket_uid},
    programs::SockAddrContext,
};
use opencode_egress_common::{
    abi::{CalledEvent, Event},
    flow::{Address, Family, Flow},
};

use crate::{
    caller, maps,
    report::{Details, tell_process},
    sk::{FullSk, Sk},
    uapi::{SOCK_DGRAM, SOCK_RAW},
};

/// Remembers what a connect asks for, until the next one on this CPU. The packet that opens the connection mostly comes
/// before that.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, flow: &Flow) {
    let Some(slot) = maps::ASKED.get_ptr_mut(0) else { return };
    // SAFETY: the helper takes the context of these programs. The slot is this CPU's; a program that interrupts this one can
    // mix two destinations in it, of which the packet hook then tells what is in neither: no verdict comes of it.
    unsafe {
        (*slot).cookie = bpf_get_socket_cookie(ctx.as_ptr());
        (*slot).address = flow.address.words();
        (*slot).port = u32::from(flow.port);
        (*slot).family = flow.address.family() as u32;
    }
}

/// A packet that was sent, of which it is told where its process wanted to.
pub(crate) struct Sent {
    pub(crate) skb: *mut __sk_buff,
    /// The packet was transformed, which may happen long after its process sent it.
    pub(crate) transformed: bool,
}

impl Details for Sent {
    type Record = CalledEvent;

    #[inline(always)]
    unsafe fn add(&self, event: *mut Event, flow: &Flow) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.add_asked(event, flow) {
                tell_process(event);
            }
        }
    }

    #[inline(always)]
    unsafe fn tell_caller(&self, event: *mut Event) {
        // SAFETY: the caller's promise. Where the process is known, its number is there. Where no packet's program knows it, the verifier sees that
        // in the first question, and does not follow how it is told.
        unsafe {
            match maps::packet_knows_caller() && (&raw const (*event).pid).read_volatile() != 0 {
                true => caller::tell(event),
                false => caller::unknown(event),
            }
        }
    }
}

impl Sent {
    /// Writes whose the packet is and where its process wanted to. Returns whether that process is running.
    ///
    /// # Safety
    ///
    /// `event` is a record of the ring buffer.
    #[inline(always)]
    pub(crate) unsafe fn add_asked(&self, event: *mut Event, flow: &Flow) -> bool {
        // SAFETY: the helper takes the context of these programs. Another process, or none, may be running when the kernel
        // sends, so the user is the socket's.
        unsafe { (&raw mut (*event).uid).write_volatile(bpf_get_socket_uid(self.skb)) };
        // SAFETY: the kernel's context, valid while the program runs.
        let Some(sk) = Sk::new(unsafe { (*self.skb).__bindgen_anon_2.sk }) else { return false };
        // SAFETY: the helper takes any socket.
        let Some(sk) = FullSk::new(unsafe { bpf_sk_fullsock(sk.as_ptr()) }) else { return false };
        // SAFETY: the helper takes the context of these programs.
        let cookie = unsafe { bpf_get_socket_cookie(self.skb.cast()) };
        if let Some(slot) = maps::ASKED.get_ptr(0)
            // SAFETY: the slot is this CPU's and lives as long as the program runs.
            && unsafe { (&raw const (*slot).cookie).read_volatile() } == cookie
        {
            // SAFETY: as above.
            let (words, port, family) = unsafe {
                let word = |index| (&raw const (*slot).address).cast::<u32>().add(index).read_volatile();
                let port = (&raw const (*slot).port).read_volatile() as u16;
                let family = (&raw const (*slot).family).read_volatile();
                ([word(0), word(1), word(2), word(3)], port, family)
            };
            let address =
                if family == Family::V4 as u32 { Address::v4(words[0]) } else { Address::v6(words) };
            // SAFETY: the caller's promise.
            unsafe { write(event, flow, &Flow { address, port, ..*flow }) };
        } else if sk.peer_port() != 0 {
            // SAFETY: the caller's promise.
            unsafe { write(event, flow, &sk.peer(flow.protocol)) };
        }
        // A datagram is sent in the process' own system call. TCP sends when it can.
        maps::packet_knows_caller() && !self.transformed && matches!(sk.kind(), SOCK_DGRAM | SOCK_RAW)
    }
}

/// Writes where a process wanted to, unless it is where the flow goes.
///
/// # Safety
///
/// `event` is a record of the ring buffer.
#[inline(always)]
unsafe fn write(event: *mut Event, flow: &Flow, asked: &Flow) {
    let (to, from) = (flow.address.words(), asked.address.words());
    let same = to[0] == from[0] && to[1] == from[1] && to[2] == from[2] && to[3] == from[3];
    if same && flow.address.family() as u8 == asked.address.family() as u8 && flow.port == asked.port {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        for (index, word) in from.into_iter().enumerate() {
            (&raw mut (*event).asked_address).cast::<u32>().add(index).write_volatile(word);
        }
        (&raw mut (*event).asked_port).write_volatile(asked.port);
        (&raw mut (*event).asked_family).write_volatile(asked.address.family() as u8);
    }
}
