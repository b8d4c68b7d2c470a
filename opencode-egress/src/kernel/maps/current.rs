//! The map CURRENT: which policy is in force for each instance.

use std::{
    io,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::Map;
use opencode_egress_common::abi::Current;

use crate::kernel::{instance::InstanceIndex, maps::MapsError};

/// The map in this process' memory, where one word can be stored at once. The map update call copies
/// bytes, which no one promises to be atomic.
pub(crate) struct CurrentWords {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only used through atomics.
unsafe impl Send for CurrentWords {}

impl CurrentWords {
    pub(crate) fn map(map: Map) -> Result<Self, MapsError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let Map::Array(data) = map else { return Err(MapsError::Missing("CURRENT")) };
        let info = data.info().map_err(MapsError::operation("inspect", "CURRENT"))?;
        if info.value_size() != 8 {
            return Err(MapsError::Missing("CURRENT"));
        }
        let len = info.max_entries() as usize;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the map is an array of u64 made with
        // BPF_F_MMAPABLE, whose values lie one behind the other from the first byte.
        let address =
            unsafe { mmap(std::ptr::null_mut(), len * 8, flags, MapFlags::SHARED, data.fd().as_fd(), 0) };
        let address = address.map_err(|errno| MapsError::Mmap(errno.into()))?;
        let words =
            NonNull::new(address.cast()).ok_or_else(|| MapsError::Mmap(io::ErrorKind::Other.into()))?;
        Ok(Self { words, len })
    }

    fn word(&self, instance: InstanceIndex) -> &AtomicU64 {
        let index = instance.number() as usize;
        assert!(index < self.len, "instance {index} of {}", self.len);
        // SAFETY: inside the mapping, which lives as long as self; kernel and user space access the word
        // only as a whole.
        unsafe { self.words.add(index).as_ref() }
    }

    pub(crate) fn load(&self, instance: InstanceIndex) -> Current {
        Current(self.word(instance).load(Ordering::Acquire))
    }

    pub(crate) fn store(&self, instance: InstanceIndex, current: Current) {
        self.word(instance).store(current.0, Ordering::Release);
    }
}

impl Drop for CurrentWords {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nothing borrows from it any more. An error would mean
        // that it is not one, and there is nothing left to do about that.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.len * 8) };
    }
}
