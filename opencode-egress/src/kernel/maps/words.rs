//! Maps in this process' memory, where one word can be stored at once. The map update call copies bytes, which no one promises
//! to be atomic.

use std::{
    io,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::Map;
use opencode_egress_common::abi::{Current, Taken};

use crate::kernel::{instance::InstanceIndex, maps::MapsError};

/// A map of 64-bit words, a few for each instance.
struct MappedWords {
    words: NonNull<AtomicU64>,
    /// How many in all.
    len: usize,
    /// How many an instance has.
    each: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only used through atomics.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    fn map(map: Map, name: &'static str, each: usize) -> Result<Self, MapsError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let Map::Array(data) = map else { return Err(MapsError::Missing(name)) };
        let info = data.info().map_err(MapsError::operation("inspect", name))?;
        if info.value_size() as usize != each * 8 {
            return Err(MapsError::Missing(name));
        }
        let len = info.max_entries() as usize * each;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the map is an array of whole u64 words made with
        // BPF_F_MMAPABLE, whose values lie one behind the other from the first byte.
        let address =
            unsafe { mmap(std::ptr::null_mut(), len * 8, flags, MapFlags::SHARED, data.fd().as_fd(), 0) };
        let address = address.map_err(|errno| MapsError::Mmap { name, source: errno.into() })?;
        let words = NonNull::new(address.cast())
            .ok_or_else(|| MapsError::Mmap { name, source: io::ErrorKind::Other.into() })?;
        Ok(Self { words, len, each })
    }

    fn word(&self, instance: u32, number: usize) -> &AtomicU64 {
        let index = instance as usize * self.each + number;
        assert!(number < self.each && index < self.len, "word {index} of {}", self.len);
        // SAFETY: inside the mapping, which lives as long as self; kernel and user space access the word
        // only as a whole.
        unsafe { self.words.add(index).as_ref() }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nothing borrows from it any more. An error would mean
        // that it is not one, and there is nothing left to do about that.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.len * 8) };
    }
}

/// The map CURRENT: which policy is in force for each instance.
pub(crate) struct CurrentWords(MappedWords);

impl CurrentWords {
    pub(crate) fn map(map: Map) -> Result<Self, MapsError> {
        Ok(Self(MappedWords::map(map, "CURRENT", 1)?))
    }

    pub(crate) fn load(&self, instance: InstanceIndex) -> Current {
        Current(self.0.word(instance.number(), 0).load(Ordering::Acquire))
    }

    pub(crate) fn store(&self, instance: InstanceIndex, current: Current) {
        self.0.word(instance.number(), 0).store(current.0, Ordering::Release);
    }
}

/// The map TAKEN: what this process took of each instance's ring records and memory of denials. The kernel compares it with
/// what it put there, so that each instance has its share.
pub(crate) struct TakenWords(MappedWords);

/// One of the numbers in [`Taken`].
#[derive(Clone, Copy)]
pub(crate) enum TakenKind {
    Event = std::mem::offset_of!(Taken, events) as isize / 8,
    Forgotten = std::mem::offset_of!(Taken, forgotten) as isize / 8,
    Reset = std::mem::offset_of!(Taken, resets) as isize / 8,
}

impl TakenWords {
    pub(super) fn map(map: Map) -> Result<Self, MapsError> {
        Ok(Self(MappedWords::map(map, "TAKEN", size_of::<Taken>() / 8)?))
    }

    /// Counts one that was taken. Number 0 is a confined cgroup's of no instance; a number beyond the map is nobody's.
    pub(crate) fn count(&self, instance: u32, kind: TakenKind) {
        if (instance as usize) < self.0.len / self.0.each {
            self.0.word(instance, kind as usize).fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What was counted so far.
    pub(crate) fn get(&self, instance: InstanceIndex, kind: TakenKind) -> u64 {
        self.0.word(instance.number(), kind as usize).load(Ordering::Acquire)
    }
}
