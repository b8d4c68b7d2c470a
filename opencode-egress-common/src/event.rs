//! Reading a record of the ring buffer: a denial.

use crate::{
    abi::{CalledEvent, Caller, DestinationKey, Event, GreetedEvent},
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};

/// Why a record is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The record has another size.
    #[error("a record of {found} bytes where an event has {}; the programs are of another version", size_of::<Event>())]
    Size {
        /// Its size in bytes.
        found: usize,
    },
    /// A field has a number that this version gives no meaning.
    #[error("a record with {field} {number}, which means nothing to this version")]
    Number {
        /// The field.
        field: &'static str,
        /// What it holds.
        number: u8,
    },
}

/// The server that a hello names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Server {
    name: [u8; 256],
    len: u8,
    tag: u16,
}

impl Server {
    /// A name of which a record has the bytes backwards.
    fn of(event: &GreetedEvent) -> Option<Self> {
        let len = u8::try_from(event.name_len).ok().filter(|len| *len > 0)?;
        let mut name = [0; 256];
        for (to, from) in name.iter_mut().zip(event.name[..usize::from(len)].iter().rev()) {
            *to = *from;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the kernel's number has 16 bits")]
        Some(Self { name, len, tag: event.tag as u16 })
    }

    /// The name, as the program that connects wrote it, but in lower case: any bytes.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for Server {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.name().escape_ascii())
    }
}

/// Who asked, of a record that has it. It is apart from [`Denial`], of which many are remembered.
pub fn caller(bytes: &[u8]) -> Option<Caller> {
    let caller = bytes.get(core::mem::offset_of!(CalledEvent, caller)..)?;
    // SAFETY: the size is right, unaligned reads are what this does, and every bit pattern is a Caller.
    (bytes.len() == size_of::<CalledEvent>())
        .then(|| unsafe { core::ptr::read_unaligned(caller.as_ptr().cast()) })
}

/// A denial, as the kernel reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The layout as the kernel wrote it, with the numbers below known to be good.
    pub event: Event,
    /// Where.
    pub hook: Hook,
    /// Why.
    pub reason: DropReason,
    /// What.
    pub flow: Flow,
    /// Where the process wanted to, address and port, where that was elsewhere.
    pub asked: Option<(Address, u16)>,
    /// The server that its hello names, where it was denied for what that says and there is one.
    pub server: Option<Server>,
    /// The hook under which repeats of it are folded.
    key_hook: Hook,
}

impl Denial {
    /// Decodes a ring buffer's record.
    ///
    /// # Errors
    ///
    /// When its size or one of its numbers is none that this version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let server = match bytes.len() {
            len if len == size_of::<Event>() || len == size_of::<CalledEvent>() => None,
            len if len == size_of::<GreetedEvent>() => {
                // SAFETY: the size is right, unaligned reads are what this does, and every bit pattern is a GreetedEvent.
                Server::of(&unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
            }
            found => return Err(DecodeError::Size { found }),
        };
        // SAFETY: each begins with an Event; otherwise as above.
        let event: Event = unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) };
        let number = |field, number| DecodeError::Number { field, number };
        let hook = Hook::from_number(event.hook).ok_or_else(|| number("hook", event.hook))?;
        let reason = DropReason::from_number(event.reason).ok_or_else(|| number("reason", event.reason))?;
        let key_hook = Hook::from_number(event.key_hook).ok_or_else(|| number("key_hook", event.key_hook))?;
        let address = |family, words: [u32; 4]| match family {
            4 => Ok(Address::v4(words[0])),
            6 => Ok(Address::v6(words)),
            other => Err(number("family", other)),
        };
        let flow = Flow {
            address: address(event.family, event.address)?,
            protocol: Protocol(event.protocol),
            port: event.port,
        };
        let asked = match event.asked_family {
            0 => None,
            family => Some((address(family, event.asked_address)?, event.asked_port)),
        };
        Ok(Self { event, hook, reason, flow, asked, server, key_hook })
    }

    /// What repeats of it have in common.
    pub fn destination_key(&self) -> DestinationKey {
        let key = DestinationKey::new(self.event.instance, &self.flow, self.key_hook, self.reason);
        DestinationKey { server: self.server.map_or(0, |server| server.tag), ..key }
    }
}
