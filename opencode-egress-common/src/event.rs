//! Reading a record of the ring buffer: a denial.

use crate::{
    abi::{DestinationKey, Event},
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
        if bytes.len() != size_of::<Event>() {
            return Err(DecodeError::Size { found: bytes.len() });
        }
        // SAFETY: the size is right, unaligned reads are what this does, and every bit pattern is an Event.
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
        Ok(Self { event, hook, reason, flow, asked, key_hook })
    }

    /// What repeats of it have in common.
    pub fn destination_key(&self) -> DestinationKey {
        DestinationKey::new(self.event.instance, &self.flow, self.key_hook, self.reason)
    }
}
