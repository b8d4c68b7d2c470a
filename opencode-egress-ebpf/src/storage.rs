//! What maps hold that user space never reads: what programs remember of a socket for one another.

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

/// The flows of one socket.
#[repr(C)]
pub(crate) struct BegunFlows {
    pub(crate) flows: [BegunFlow; FLOWS],
    /// Where the next one goes, before it is reduced to the number of places.
    pub(crate) next: u64,
}

/// What a socket's last question was addressed to.
#[repr(C)]
pub(crate) struct AskedResolver {
    /// Network byte order.
    pub(crate) address: [u32; 4],
    pub(crate) family: u32,
    /// 0: none.
    pub(crate) port: u32,
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
