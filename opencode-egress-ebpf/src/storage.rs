//! What maps hold that user space never reads: what programs remember of a socket for one another.

use opencode_egress_common::{
    abi::NAMED_SOCKET_BYTES,
    hello::{Hello, Number},
};

/// Flows of one socket that are remembered. A TCP socket has one; a datagram socket without a peer may have any number, of which
/// these are the last.
pub(crate) const FLOWS: usize = 4;

/// A flow that began.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BegunFlow {
    pub(crate) rule: u64,
    /// Network byte order.
    pub(crate) address: [u32; 4],
    /// The generation that judged it last; 0 for no flow.
    pub(crate) generation: u32,
    /// Family, protocol and port in one word.
    pub(crate) shape: u32,
}

/// What is remembered of a socket that has flows by name.
#[repr(C)]
pub(crate) struct NamedSocket {
    pub(crate) flows: [BegunFlow; FLOWS],
    /// Where the next one goes, before it is reduced to the number of places.
    pub(crate) next: u32,
    /// Whose flows they are.
    pub(crate) instance: u32,
    /// Its connection, where that must open TLS. Here, for a storage of its own would cost it 0.4 µs.
    pub(crate) tls: TlsFlow,
}

/// A TCP connection whose beginning is followed. All zeros: none.
#[repr(C)]
pub(crate) struct TlsFlow {
    /// How far.
    pub(crate) hello: Hello,
    /// The number of the next byte in the stream.
    pub(crate) next: Number<u32>,
    /// The generation by which it was last found that it is to be followed.
    pub(crate) generation: Number<u32>,
}

const _: () = assert!(size_of::<NamedSocket>() == NAMED_SOCKET_BYTES);

/// What a socket's last question was addressed to, and by whom.
#[repr(C)]
pub(crate) struct AskedResolver {
    /// Network byte order.
    pub(crate) address: [u32; 4],
    pub(crate) family: u32,
    /// 0: none.
    pub(crate) port: u32,
    /// The process.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) comm: [u32; 4],
}

/// Of a socket: whose it is, and with whom it may share its port.
#[repr(C)]
pub(crate) struct OwnSocket {
    /// The instance; 0 for none.
    pub(crate) instance: u32,
    /// [`SHARES`], [`SHARES_GROUP`].
    pub(crate) shares: u32,
}

/// In [`OwnSocket::shares`]: others may bind the port too (`SO_REUSEADDR` of a datagram socket, `SO_REUSEPORT`).
pub(crate) const SHARES: u32 = 1;
/// Likewise: what comes may go to any socket of a group (`SO_REUSEPORT`).
pub(crate) const SHARES_GROUP: u32 = 2;

/// What was found out about where a socket sends over loopback.
#[repr(C)]
pub(crate) struct OwnPeer {
    /// Where to; network byte order.
    pub(crate) address: [u32; 4],
    /// The source port in the upper half, the destination port in the lower.
    pub(crate) ports: u32,
    /// The instance.
    pub(crate) instance: u32,
    /// The generation that judged; 0 for nothing found out.
    pub(crate) generation: u32,
    /// The packets' protocol.
    pub(crate) protocol: u32,
}

/// A destination that a connect asked for.
#[repr(C)]
pub(crate) struct Asked {
    /// The kernel's number of the socket.
    pub(crate) cookie: u64,
    /// Network byte order.
    pub(crate) address: [u32; 4],
    pub(crate) port: u32,
    /// 4 or 6.
    pub(crate) family: u32,
}
