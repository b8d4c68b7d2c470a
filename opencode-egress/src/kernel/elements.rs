//! Elements of maps, many in one system call, where aya has one a call.

use std::{io, os::fd::BorrowedFd, time::Duration};

use aya::Pod;

use crate::kernel::syscall::{bpf, number};

const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_UPDATE_BATCH: i32 = 26;

/// What a kernel says whose map of this type takes no batches: tries do since Linux 5.13, maps of maps since
/// 5.19.
const ENOTSUPP: i32 = 524;

/// How often more memory is waited for, and how long each time.
const NO_MEMORY: (u32, Duration) = (100, Duration::from_millis(10));

/// Writes all pairs, also where the kernel is short of memory for a moment: it takes that for entries without waiting for it
/// (`alloc_bulk`, <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/memalloc.c#L204>), and where most is used for
/// files there is some a little later.
pub(crate) fn fill<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    let (mut done, (mut patience, pause)) = (0, NO_MEMORY);
    loop {
        match update(map, &keys[done..], &values[done..]) {
            Err(Partial { error, .. }) if error.raw_os_error() != Some(libc::ENOMEM) => return Err(error),
            Err(Partial { written: 0, error }) if patience == 0 => return Err(error),
            Err(Partial { written, .. }) => {
                patience = if written > 0 { NO_MEMORY.0 } else { patience - 1 };
                done += written;
                std::thread::sleep(pause);
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// An error before all was written.
pub(crate) struct Partial {
    /// Pairs that were, the first ones.
    pub(crate) written: usize,
    pub(crate) error: io::Error,
}

/// Writes all pairs.
pub(crate) fn update<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), Partial> {
    assert_eq!(keys.len(), values.len(), "a value for every key");
    match update_batch(map, keys, values) {
        Err(Partial { error, .. }) if error.raw_os_error() == Some(ENOTSUPP) => {
            for (written, (key, value)) in keys.iter().zip(values).enumerate() {
                update_one(map, key, value).map_err(|error| Partial { written, error })?;
            }
            Ok(())
        }
        result => result,
    }
}

fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), Partial> {
    let too_many = |error| Partial { written: 0, error: io::Error::other(error) };
    let count = u32::try_from(keys.len()).map_err(too_many)?;
    let (key, value) = (keys.as_ptr().expose_provenance(), values.as_ptr().expose_provenance());
    let mut attr = BatchAttr::of(map, key, value, count);
    // SAFETY: the layout of BPF_MAP_UPDATE_BATCH; both arrays have `count` elements of the map's sizes, which
    // every caller's types are, and outlive the call.
    match unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) } {
        Ok(_) => Ok(()),
        // The kernel says how many it wrote, unless it did not get that far and left the number as it was.
        Err(error) if attr.count == count => Err(Partial { written: 0, error }),
        Err(error) => Err(Partial { written: attr.count as usize, error }),
    }
}

fn update_one<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = Element::of(map, key, std::ptr::from_ref(value).expose_provenance());
    // SAFETY: the layout of BPF_MAP_UPDATE_ELEM; key and value are of the map's sizes, which every caller's
    // types are, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr)? };
    Ok(())
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

/// The part of `union bpf_attr` with which many elements of a map are read or written at once.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// How many: asked for, then done.
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

impl BatchAttr {
    /// `count` elements, from the beginning on, with their keys and values at these addresses.
    fn of(map: BorrowedFd<'_>, keys: usize, values: usize, count: u32) -> Self {
        let (keys, values) = (keys as u64, values as u64);
        Self { in_batch: 0, out_batch: 0, keys, values, count, map: number(map), elem_flags: 0, flags: 0 }
    }

    /// From one place to another: where a batch before ended, 0 for none; and where this one's end is to be written.
    fn between(self, from: usize, to: usize) -> Self {
        Self { in_batch: from as u64, out_batch: to as u64, ..self }
    }
}

/// The part of `union bpf_attr` with which one element is looked up or written.
#[repr(C)]
pub(crate) struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    pub(crate) fn of<K>(map: BorrowedFd<'_>, key: &K, value: usize) -> Self {
        let key = std::ptr::from_ref(key).expose_provenance() as u64;
        Self { map: number(map), padding: 0, key, value: value as u64, flags: 0 }
    }
}
