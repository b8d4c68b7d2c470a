//! bpf(2), called by hand where aya has no type for it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::Pod;

/// Calls bpf(2).
///
/// # Safety
///
/// `Attr` has the layout of the command's part of `union bpf_attr`, and what it points to is valid for
/// what the command does with it.
pub(crate) unsafe fn bpf<Attr>(command: i32, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: the caller's promise; the kernel reads `size_of::<Attr>()` bytes and takes the rest of the
    // union as zeros.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a command returned.
///
/// # Safety
///
/// `result` is a new descriptor that nothing else owns.
pub(crate) unsafe fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as `union bpf_attr` has it.
#[expect(clippy::cast_sign_loss, reason = "open descriptors are not negative")]
pub(crate) fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// The part of `union bpf_attr` with which many elements of a map are read or written at once.
#[repr(C)]
pub(crate) struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// How many: asked for, then done.
    pub(crate) count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

impl BatchAttr {
    /// `count` elements, from the beginning on, with their keys and values at these addresses.
    pub(crate) fn of(map: BorrowedFd<'_>, keys: usize, values: usize, count: u32) -> Self {
        let (keys, values) = (keys as u64, values as u64);
        Self { in_batch: 0, out_batch: 0, keys, values, count, map: number(map), elem_flags: 0, flags: 0 }
    }

    /// From one place to another: where a batch before ended, 0 for none; and where this one's end is to be written.
    pub(crate) fn between(self, from: usize, to: usize) -> Self {
        Self { in_batch: from as u64, out_batch: to as u64, ..self }
    }
}

/// How many entries are read in one system call.
const BATCH: usize = 4096;

/// Entries of a hash map, and where to go on; `None` at the end.
pub(crate) struct Batch<K, V> {
    pub(crate) entries: Vec<(K, V)>,
    pub(crate) next: Option<u32>,
}

/// Reads some entries of a hash map with these types of keys and values, from a place on.
pub(crate) fn read_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, place: Option<u32>) -> io::Result<Batch<K, V>> {
    const BPF_MAP_LOOKUP_BATCH: i32 = 24;
    let mut keys: Vec<K> = Vec::with_capacity(BATCH);
    let mut values: Vec<V> = Vec::with_capacity(BATCH);
    let mut next = 0_u32;
    let (key, value) = (keys.as_mut_ptr().expose_provenance(), values.as_mut_ptr().expose_provenance());
    let from = place.as_ref().map_or(0, |place| std::ptr::from_ref(place).expose_provenance());
    #[expect(clippy::cast_possible_truncation, reason = "4096")]
    let mut attr =
        BatchAttr::of(map, key, value, BATCH as u32).between(from, (&raw mut next).expose_provenance());
    // SAFETY: the layout of BPF_MAP_LOOKUP_BATCH; there is room for `count` keys and values of the map's sizes, and the place
    // of a hash map is a bucket's number.
    let next = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Some(next),
        // The end.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Err(error) => return Err(error),
    };
    let count = (attr.count as usize).min(BATCH);
    // SAFETY: the kernel wrote that many, and every bit pattern is a value of either type.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok(Batch { entries: keys.into_iter().zip(values).collect(), next })
}
