//! The name of a server, as a hello has it and as rules list it.

use crate::hello::{Number, least};

/// The longest name of the DNS, in bytes, without the dot at its end (RFC 1035, section 2.3.4).
pub const LONGEST_NAME: u32 = 253;

/// The name in a hello. From its end to its beginning, as the key of the kernel's trie that has the listed ones.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct ServerName {
    /// How long it is; 0 for none.
    len: Number<u32>,
    /// [`ServerNameKey::prefix_len`], once the name is whole.
    prefix_len: Number<u32>,
    /// Backwards, and a zero behind it.
    data: [Number<u8>; 256],
    /// See [`ServerName::tag`].
    tag: Number<u32>,
    /// Keeps the layout free of padding.
    reserved: u32,
}

impl Default for ServerName {
    fn default() -> Self {
        Self {
            len: Number::default(),
            prefix_len: Number::default(),
            data: [const { Number::new(0) }; 256],
            tag: Number::default(),
            reserved: 0,
        }
    }
}

impl ServerName {
    /// How long it is, in bytes; 0 for none.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len.get()
    }

    /// Whether there is none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that differs for different names, mostly: by it repeats of a denial are found.
    #[inline(always)]
    pub fn tag(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "its lower half is as good")]
        let tag = self.tag.get() as u16;
        tag
    }

    /// A byte of it, counted from its end.
    #[inline(always)]
    pub fn byte(&self, index: u32) -> u8 {
        self.at(index).get()
    }

    /// Eight bytes of it, as they stand in memory: number 0 has those at its end.
    #[inline(always)]
    pub fn word(&self, number: usize) -> u64 {
        // SAFETY: within the array, which is aligned to that; nobody has a reference that is unique to what is in it.
        unsafe { self.data.as_ptr().cast::<u64>().add(number & 31).read_volatile() }
    }

    #[inline(always)]
    fn at(&self, index: u32) -> &Number<u8> {
        // No branch: the index is masked, and the array has as many.
        &self.data[(index & 0xff) as usize]
    }

    #[inline(always)]
    pub(super) fn clear(&self) {
        self.len.set(0);
        self.tag.set(0);
    }

    /// Begins a name of a length, which is at most [`LONGEST_NAME`].
    #[inline(always)]
    pub(super) fn begin(&self, len: u32) {
        self.len.set(len);
        self.tag.set(0);
        // The length as it is in memory: the mask of the index stays, which the verifier needs to see.
        self.at(self.len.get()).set(0);
    }

    /// Writes `count` bytes, of which the first is the last one of those `left` that are to come.
    #[inline(always)]
    pub(super) fn write(&self, left: u32, bytes: u64, count: u32) {
        // The first byte at the upper end, and so the last one of eight; those below it are written over by what comes.
        let bytes = bytes << (64_u32.wrapping_sub(count.wrapping_mul(8)) & 63);
        let mut index = 0;
        while index < 8 {
            let place = left.wrapping_sub(1 + index);
            // What would be before the first place is put into the last one, where no name is.
            let place = place | place.cast_signed().wrapping_shr(31).cast_unsigned();
            #[expect(clippy::cast_possible_truncation, reason = "one byte of it")]
            self.at(place).set((bytes >> (56 - 8 * index)) as u8);
            index += 1;
        }
    }

    /// Makes a whole name the key that looks it up, in lower case. `false`: it is none that a host has. Eight bytes at once, and without
    /// branches, of which the kernel's verifier would follow every combination.
    #[inline(always)]
    pub(super) fn is_sound(&self) -> bool {
        let len = self.len.get();
        self.prefix_len.set((len + 1) * 8);
        // Behind the name there is a dot, as it were.
        let (mut bad, mut dot_before, mut tag) = (0, 0x80, 0_u64);
        let mut number = 0;
        while number < 256 / 8 {
            let done = number * 8;
            if done >= len {
                break;
            }
            let place = self.data.as_ptr().cast::<u64>().wrapping_add(number as usize).cast_mut();
            // SAFETY: within the array, which is aligned to that, and of cells.
            let bytes = u64::from_le(unsafe { place.read_volatile() });
            let bytes = bytes | each(bytes, b'A', b'Z') >> 2;
            // SAFETY: as above.
            unsafe { place.write_volatile(bytes.to_le()) };
            let of_name = u64::MAX >> (((8 - least(len - done, 8)) * 8) & 63);
            let dots = each(bytes, b'.', b'.') & of_name;
            let good = each(bytes, b'a', b'z') | each(bytes, b'0', b'9') | each(bytes, b'-', b'.');
            let good = good | each(bytes, b'_', b'_');
            bad |= bytes & of_name & HIGH | !good & of_name & HIGH | dots & (dots << 8 | dot_before);
            dot_before = dots >> 56;
            tag = (tag ^ bytes & of_name).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            number += 1;
        }
        self.tag.set((tag >> 32) as u32);
        bad == 0 && self.byte(len.wrapping_sub(1)) != b'.'
    }

    /// The key that looks it up, as the kernel takes it: the prefix's length, and what follows it.
    #[inline(always)]
    pub fn key(&self) -> *const ServerNameKey {
        core::ptr::from_ref(self).wrapping_byte_add(core::mem::offset_of!(Self, prefix_len)).cast()
    }

    /// A copy of that key.
    pub fn to_key(&self) -> ServerNameKey {
        ServerNameKey {
            prefix_len: self.prefix_len.get(),
            data: core::array::from_fn(|index| self.data[index].get()),
        }
    }
}

/// The highest bit of each of eight bytes.
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The highest bit of each of eight bytes that is one from `first` to `last`; nothing that means anything of one above 127.
#[inline(always)]
const fn each(bytes: u64, first: u8, last: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Each byte is made at least 128, and so borrows nothing from the next.
    let from = (bytes | HIGH).wrapping_sub(ONES * first as u64);
    let beyond = (bytes | HIGH).wrapping_sub(ONES * (last as u64 + 1));
    from & !beyond & HIGH
}

/// A key of the trie of listed names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServerNameKey {
    /// Significant bits of `data`; host byte order.
    pub prefix_len: u32,
    /// The name from its end to its beginning.
    pub data: [u8; 256],
}

impl ServerNameKey {
    /// The key that lists one name, which is in lower case and at most [`LONGEST_NAME`] long.
    pub fn exact(name: &str) -> Self {
        // With the zero behind it, so that no longer name has it for a prefix.
        Self::of(name, b"\0")
    }

    /// The key that lists every name below this one.
    pub fn below(name: &str) -> Self {
        Self::of(name, b".")
    }

    fn of(name: &str, behind: &[u8]) -> Self {
        let mut data = [0; 256];
        let bytes = name.bytes().rev().chain(behind.iter().copied());
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = from;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 254 bytes")]
        let prefix_len = (name.len() + behind.len()) as u32 * 8;
        Self { prefix_len, data }
    }

    /// Whether a key that looks up a name finds this one.
    pub fn covers(&self, looked_up: &Self) -> bool {
        let len = (self.prefix_len / 8) as usize;
        self.prefix_len <= looked_up.prefix_len && self.data[..len] == looked_up.data[..len]
    }
}
