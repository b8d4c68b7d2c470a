//! What the programs put into ring buffers, taken out some at a time.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use opencode_egress_common::{
    abi::{Event, Reset},
    event::{self, DecodeError, Denial},
};

use crate::{
    kernel::maps::{self, Maps, MapsError, TakenKind, TakenWords},
    report::caller::Caller,
};

/// The ring buffer of denied flows.
pub struct Events {
    ring: RingBuf<MapData>,
    taken: Arc<TakenWords>,
}

/// The ring buffer of sockets to be reset.
pub struct Resets {
    ring: RingBuf<MapData>,
    taken: Arc<TakenWords>,
}

/// Takes both out of the object.
pub(super) fn open(ebpf: &mut Ebpf, maps: &Maps) -> Result<(Events, Resets), MapsError> {
    let events = Events { ring: maps::take(ebpf, "EVENTS")?, taken: maps.taken() };
    Ok((events, Resets { ring: maps::take(ebpf, "RESETS")?, taken: maps.taken() }))
}

/// A denial as the ring has it.
#[derive(Clone, Debug)]
pub struct Reported {
    /// What was denied, and why.
    pub denial: Denial,
    /// Who asked, as far as the programs told.
    pub caller: Caller,
}

impl Reported {
    /// Decodes a record.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let denial = Denial::decode(bytes)?;
        let caller = event::caller(bytes).map(|caller| Caller::of(&caller));
        Ok(Self { denial, caller: caller.unwrap_or_default() })
    }
}

impl Events {
    /// Takes up to `most` denials, one after the other: a record leaves the ring when `each` is done with it, so that what
    /// ends this process between two loses none. Returns whether there may be more.
    pub fn take(&mut self, most: usize, mut each: impl FnMut(Result<Reported, DecodeError>)) -> bool {
        take(&mut self.ring, most, |bytes| {
            let reported = Reported::decode(bytes);
            if let Some(instance) = field(bytes, std::mem::offset_of!(Event, instance)) {
                self.taken.count(instance, TakenKind::Event);
            }
            each(reported);
        })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Resets {
    /// Takes up to `most` requests. Returns whether there may be more. A record of another size, of programs of another
    /// build, is nobody's.
    pub fn take(&mut self, most: usize, mut each: impl FnMut(&Reset)) -> bool {
        take(&mut self.ring, most, |bytes| {
            if let Some(instance) = field(bytes, std::mem::offset_of!(Reset, instance)) {
                self.taken.count(instance, TakenKind::Reset);
            }
            if bytes.len() == size_of::<Reset>() {
                // SAFETY: the size is right, unaligned reads are what this does, and every bit pattern is a Reset.
                each(&unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) });
            }
        })
    }
}

impl AsFd for Resets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Takes up to `most` records. Returns whether there may be more.
pub(crate) fn take(ring: &mut RingBuf<MapData>, most: usize, mut each: impl FnMut(&[u8])) -> bool {
    for _ in 0..most {
        let Some(record) = ring.next() else { return false };
        each(&record);
    }
    true
}

fn field(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}
