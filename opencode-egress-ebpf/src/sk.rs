//! Fields of a socket, as the kernel shows them to a program.
//!
//! Each is read on its own: the verifier knows a socket's fields by their places in it, and the compiler must not compute with
//! their addresses.

use aya_ebpf::{bindings::bpf_sock, programs::SockAddrContext};
use opencode_egress_common::flow::{Address, Flow, Protocol};

use crate::uapi::{AF_INET6, IPPROTO_MPTCP};

macro_rules! field {
    ($sk:expr, $($field:tt)+) => {
        // SAFETY: the caller of the accessor promises that the pointer is one that the verifier knows as a socket's.
        unsafe { (&raw const (*$sk).$($field)+).read_volatile() }
    };
}

/// A socket that has at least what every socket has: addresses, ports, family and state.
#[derive(Clone, Copy)]
pub(crate) struct Sk(*const bpf_sock);

impl Sk {
    /// A pointer that the kernel gave. `None`: it is null.
    #[inline(always)]
    pub(crate) fn new(sk: *const bpf_sock) -> Option<Self> {
        (!sk.is_null()).then_some(Self(sk))
    }

    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *mut bpf_sock {
        self.0.cast_mut()
    }

    #[inline(always)]
    pub(crate) fn is_v6(self) -> bool {
        field!(self.0, family) == AF_INET6
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        field!(self.0, state)
    }

    /// The local port.
    #[inline(always)]
    pub(crate) fn port(self) -> u16 {
        // In host byte order, in the lower half of its word.
        field!(self.0, src_port) as u16
    }

    /// The peer's port; 0 without a peer.
    #[inline(always)]
    pub(crate) fn peer_port(self) -> u16 {
        u16::from_be(field!(self.0, dst_port))
    }

    /// The local address as an IPv4 one, in network byte order.
    #[inline(always)]
    pub(crate) fn address4(self) -> u32 {
        field!(self.0, src_ip4)
    }

    /// The local address as an IPv6 one, in network byte order.
    #[inline(always)]
    pub(crate) fn address6(self) -> [u32; 4] {
        [
            field!(self.0, src_ip6[0]),
            field!(self.0, src_ip6[1]),
            field!(self.0, src_ip6[2]),
            field!(self.0, src_ip6[3]),
        ]
    }

    /// The peer's address as an IPv4 one, in network byte order.
    #[inline(always)]
    pub(crate) fn peer4(self) -> u32 {
        field!(self.0, dst_ip4)
    }

    /// The peer's address as an IPv6 one, in network byte order.
    #[inline(always)]
    pub(crate) fn peer6(self) -> [u32; 4] {
        [
            field!(self.0, dst_ip6[0]),
            field!(self.0, dst_ip6[1]),
            field!(self.0, dst_ip6[2]),
            field!(self.0, dst_ip6[3]),
        ]
    }

    /// The local address; unspecified when it is bound to none.
    #[inline(always)]
    pub(crate) fn address(self) -> Address {
        if self.is_v6() { Address::v6(self.address6()) } else { Address::v4(self.address4()) }
    }

    /// The flow to the peer.
    #[inline(always)]
    pub(crate) fn peer(self, protocol: Protocol) -> Flow {
        let address = if self.is_v6() { Address::v6(self.peer6()) } else { Address::v4(self.peer4()) };
        Flow { address, protocol, port: self.peer_port() }
    }

    /// Its mark, `SO_MARK`.
    #[inline(always)]
    pub(crate) fn mark(self) -> u32 {
        field!(self.0, mark)
    }

    /// The interface to which it is bound; 0 for none.
    #[inline(always)]
    pub(crate) fn interface(self) -> u32 {
        field!(self.0, bound_dev_if)
    }
}

/// A full socket, not a request for one or what is left of one.
#[derive(Clone, Copy)]
pub(crate) struct FullSk(Sk);

impl FullSk {
    /// A pointer that the verifier knows as a full socket's. `None`: it is null.
    #[inline(always)]
    pub(crate) fn new(sk: *const bpf_sock) -> Option<Self> {
        Some(Self(Sk::new(sk)?))
    }

    /// The socket of the caller of a connect, a sendmsg, a bind and the like.
    #[inline(always)]
    pub(crate) fn of_call(ctx: &SockAddrContext) -> Option<Self> {
        // SAFETY: the kernel's context, valid while the program runs; it is a full socket in these hooks.
        Self::new(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk })
    }

    /// Its type, `SOCK_STREAM` and so on.
    #[inline(always)]
    pub(crate) fn kind(self) -> u32 {
        field!(self.0.0, type_)
    }

    /// The protocol of its packets.
    #[inline(always)]
    pub(crate) fn protocol(self) -> Protocol {
        Protocol::of_socket(field!(self.0.0, protocol))
    }
}

impl core::ops::Deref for FullSk {
    type Target = Sk;

    #[inline(always)]
    fn deref(&self) -> &Sk {
        &self.0
    }
}

/// What a socket's protocol number says of its packets.
pub(crate) trait OfSocket {
    /// The protocol of the packets of a socket with this number.
    fn of_socket(number: u32) -> Self;
}

impl OfSocket for Protocol {
    #[inline(always)]
    fn of_socket(number: u32) -> Self {
        if number == IPPROTO_MPTCP { Self::TCP } else { Self(number as u8) }
    }
}
