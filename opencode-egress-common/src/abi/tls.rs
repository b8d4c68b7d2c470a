//! Layouts of what follows TLS.

use crate::{
    abi::Event,
    hello::{Hello, Number, ServerName},
};

/// A TCP connection whose beginning is followed. All zeros: none.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TlsFlow {
    /// How far.
    pub hello: Hello,
    /// The number of the next byte in the stream.
    pub next: Number<u32>,
    /// The generation by which it was last found that it is to be followed.
    pub generation: Number<u32>,
}

/// A ring-buffer record of a connection that was denied for what its hello says: an [`Event`] with the server's name.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GreetedEvent {
    /// As of every denial.
    pub event: Event,
    /// The name from its end to its beginning, in lower case.
    pub name: [u8; 256],
    /// How long it is; 0 for none.
    pub name_len: u32,
    /// [`ServerName::tag`].
    pub tag: u32,
}

const _: () = assert!(size_of::<TlsFlow>() == 2 * 8 + 16 * 4 + size_of::<ServerName>() + 2 * 4);
const _: () = assert!(size_of::<GreetedEvent>() == size_of::<Event>() + 256 + 2 * 4);
