//! The part of a piece that is looked at: read at once, for its fields are many and each reading of a packet takes its time.

use crate::hello::{Number, Source, least};

/// How many bytes are read at once.
pub const WINDOW: usize = 256;

/// Bytes of a piece of a stream, copied out of it. So that what is judged is read once, whatever becomes of the packet meanwhile.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Window {
    /// And a word behind them, of which a number at their end has nothing.
    bytes: [Number<u8>; WINDOW + 8],
    /// Where in the piece they are.
    from: Number<u32>,
    /// How many there are.
    len: Number<u32>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            bytes: [const { Number::new(0) }; WINDOW + 8],
            from: Number::default(),
            len: Number::default(),
        }
    }
}

impl Window {
    /// Forgets what another piece had.
    #[inline(always)]
    pub(super) fn close(&self) {
        self.len.set(0);
    }

    /// Has the bytes from `offset` on here, of those before `end` at least the next 8. `false`: they cannot be read.
    #[inline(always)]
    pub(super) fn reach(&self, source: &impl Source, offset: u32, end: u32) -> bool {
        let left = end.wrapping_sub(offset);
        if self.left_from(offset) < least(left, 8) {
            #[expect(clippy::cast_possible_truncation, reason = "a small one")]
            let len = least(left, WINDOW as u32);
            if !source.copy(offset, len, &self.bytes) {
                return false;
            }
            self.from.set(offset);
            self.len.set(len);
        }
        true
    }

    /// How many bytes from `offset` on are here; 0 where none is.
    #[inline(always)]
    pub(super) fn left_from(&self, offset: u32) -> u32 {
        let within = offset.wrapping_sub(self.from.get());
        let len = self.len.get();
        len.wrapping_sub(least(within, len))
    }

    /// The `count` bytes from `offset` on, as one number, the first byte in its upper end: 1 to 8 that are here. Of others, and of none, it is
    /// any number.
    #[inline(always)]
    pub(super) fn number(&self, offset: u32, count: u32) -> u64 {
        let within = offset.wrapping_sub(self.from.get());
        let (word, bits) = ((within >> 3) as usize & (WINDOW / 8 - 1), (within & 7) * 8);
        // Two words that are aligned, as every architecture takes them.
        let bytes = self.word(word) << bits | self.word(word + 1) >> 1 >> (63 - bits);
        bytes >> (64_u32.wrapping_sub(count.wrapping_mul(8)) & 63)
    }

    #[inline(always)]
    fn word(&self, number: usize) -> u64 {
        // SAFETY: the caller's number is below the words that there are, and they are aligned to that; nobody has a reference that is
        // unique to what is in them.
        u64::from_be(unsafe { self.bytes.as_ptr().cast::<u64>().add(number).read_volatile() })
    }
}
