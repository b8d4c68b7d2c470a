//! Layouts of what follows TLS.

use crate::{
    abi::Event,
    hello::{Hello, ServerName, Window},
};

/// What the programs remember of a socket that has flows by name: four flows of 32 bytes, a number, and how far its TLS was followed.
pub const NAMED_SOCKET_BYTES: usize = 4 * 32 + 8 + size_of::<Hello>() + 2 * 4;

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

const _: () = assert!(size_of::<Hello>() == 2 * 8 + 16 * 4 + size_of::<ServerName>() + size_of::<Window>());
const _: () = assert!(size_of::<GreetedEvent>() == size_of::<Event>() + 256 + 2 * 4);
