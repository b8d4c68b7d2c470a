//! Denied flows as they come out of the ring buffer, and the line that is logged of each.

use std::{fmt, net::IpAddr};

use aya::maps::{MapData, RingBuf};
use opencode_egress_common::{
    abi::{Event, SeenKey},
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};
use serde::{Deserialize, Serialize};

/// One logged denial: a flow that was refused, or in audit mode would have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlow {
    /// The protocol's name, or its number.
    pub proto: String,
    /// The destination; for binds the local address, for inbound ones the peer.
    pub dst: IpAddr,
    /// The port; 0 for protocols without ports.
    pub dport: u16,
    /// Where it was judged.
    pub hook: String,
    /// Why.
    pub reason: String,
    /// The process; 0 where the hook cannot know it.
    pub pid: u32,
    /// The process' name; empty where the hook cannot know it.
    pub comm: String,
    /// The user.
    pub uid: u32,
    /// Earlier denials of this destination that were folded into this line.
    pub suppressed: u64,
    /// The generation of the policy that judged.
    pub generation: u32,
    /// Whether the mode let it pass.
    pub audit: bool,
}

/// Why a record is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Another size.
    #[error("a record of {found} bytes where an event has {}; the programs are of another version", size_of::<Event>())]
    Size {
        /// Its size.
        found: usize,
    },
    /// A number with no meaning.
    #[error("a record with {field} {number}, which means nothing to this version")]
    Number {
        /// Which field.
        field: &'static str,
        /// What it holds.
        number: u8,
    },
}

/// A decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The layout as the kernel wrote it, with the numbers below known to be good.
    pub event: Event,
    /// Where.
    pub hook: Hook,
    /// Why.
    pub reason: DropReason,
    /// What.
    pub flow: Flow,
}

impl Record {
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
        let event: Event = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        let number = |field, number| DecodeError::Number { field, number };
        let hook = Hook::from_number(event.hook).ok_or_else(|| number("hook", event.hook))?;
        let reason = DropReason::from_number(event.reason).ok_or_else(|| number("reason", event.reason))?;
        let address = match event.family {
            4 => Address::v4(event.address[0]),
            6 => Address::v6(event.address),
            other => return Err(number("family", other)),
        };
        let flow = Flow { address, protocol: Protocol(event.protocol), port: event.port };
        Ok(Self { event, hook, reason, flow })
    }

    /// The destination, as denials of it are counted.
    pub fn seen_key(&self) -> SeenKey {
        SeenKey::new(self.event.instance, &self.flow)
    }

    /// The denial to log, when `suppressed` earlier ones were folded into it.
    pub fn denied_flow(&self, suppressed: u64) -> DeniedFlow {
        let comm = self.event.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        DeniedFlow {
            proto: protocol_name(self.flow.protocol),
            dst: self.flow.address.into(),
            dport: self.flow.port,
            hook: self.hook.name().to_owned(),
            reason: self.reason.name().to_owned(),
            pid: self.event.pid,
            // A process chooses its own name: nothing in it may end the line, turn its direction, or look like
            // another field.
            comm: String::from_utf8_lossy(comm).replace(|c: char| !c.is_ascii_graphic() || c == '=', "?"),
            uid: self.event.uid,
            suppressed,
            generation: self.event.generation,
            audit: self.event.audit != 0,
        }
    }
}

/// A protocol's name, or its number where it has none.
pub fn protocol_name(protocol: Protocol) -> String {
    protocol.name().map_or_else(|| protocol.0.to_string(), str::to_owned)
}

/// The protocol that [`protocol_name`] calls so.
pub fn protocol_named(name: &str) -> Option<Protocol> {
    let named = (0..=u8::MAX).map(Protocol).find(|protocol| protocol.name() == Some(name));
    named.or_else(|| name.parse().ok().map(Protocol))
}

impl fmt::Display for DeniedFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proto, dst, dport, hook, reason, pid, comm, uid, suppressed, .. } = self;
        let comm = if comm.is_empty() { "-" } else { comm };
        write!(f, "proto={proto} dst={dst} dport={dport} hook={hook} reason={reason} ")?;
        write!(f, "pid={pid} comm={comm} uid={uid} suppressed={suppressed}")?;
        if self.audit { f.write_str(" mode=audit") } else { Ok(()) }
    }
}

/// Takes what is in the ring buffer now, one after the other: a record leaves it when `each` is done with it, so that
/// what ends this process between two loses none.
pub fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(Result<Record, DecodeError>)) {
    while let Some(item) = ring.next() {
        each(Record::decode(&item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"node");
        Event {
            address: Address::from(IpAddr::from([203, 0, 113, 9])).words(),
            attempts: 1,
            suppressed: 0,
            instance: 1,
            generation: 3,
            pid: 4242,
            uid: 987,
            comm,
            port: 443,
            protocol: 6,
            family: 4,
            hook: Hook::Connect4 as u8,
            reason: DropReason::NotAllowed as u8,
            audit: 0,
        }
    }

    fn bytes(event: &Event) -> Vec<u8> {
        // SAFETY: an Event has no padding, so all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(event).cast(), size_of::<Event>()) }.to_vec()
    }

    #[test]
    fn the_line_is_the_documented_one() {
        let record = Record::decode(&bytes(&event())).expect("an event");
        assert_eq!(
            record.denied_flow(0).to_string(),
            "proto=tcp dst=203.0.113.9 dport=443 hook=connect4 reason=not-allowed pid=4242 comm=node uid=987 suppressed=0"
        );
    }

    #[test]
    fn a_name_cannot_forge_a_field() {
        let mut forged = event();
        forged.comm = *b"x reason=ok\npid=";
        let line = Record::decode(&bytes(&forged)).expect("an event").denied_flow(0).to_string();
        assert!(line.contains("comm=x?reason?ok?pid? "), "{line}");
        // What follows a right-to-left override is shown backwards.
        forged.comm = *b"a\xe2\x80\xae0=diu\0\0\0\0\0\0\0";
        let line = Record::decode(&bytes(&forged)).expect("an event").denied_flow(0).to_string();
        assert!(line.contains("comm=a?0?diu "), "{line}");
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(Record::decode(&[0; 3]), Err(DecodeError::Size { found: 3 }));
        let mut unknown = event();
        unknown.reason = 200;
        let error = Record::decode(&bytes(&unknown));
        assert_eq!(error, Err(DecodeError::Number { field: "reason", number: 200 }));
    }
}
