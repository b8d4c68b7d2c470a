//! Following a TLS stream until its client hello has named a server.
//!
//! The stream comes in pieces, as segments of a TCP connection, and records and fields of the hello may be cut anywhere by them. So what
//! is read is remembered in a [`Hello`], which is small, and begins as zeros: which field comes next, how much of the record and of
//! the message is left, and the name. What no field needs is passed over by its length.
//!
//! Nothing passes but what a well-formed hello begins with (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3): records of a handshake
//! without anything between them, one client hello that ends with its record, at most one extension for a server name, with one name in
//! it. Parsers differ on everything else, and another one may be at the other end. Where a server asks for a second hello (RFC 8446,
//! section 4.1.4), that has to name a server, too. What follows otherwise is nobody's concern here.

use core::cell::Cell;

mod name;

pub use name::{LONGEST_NAME, ServerName, ServerNameKey};

/// The bytes of a piece of a stream.
pub trait Source {
    /// The `count` bytes from `offset` on, 1 to 8, as one number, the first byte in its upper end.
    fn number(&self, offset: u32, count: u32) -> Option<u64>;
}

/// What becomes of a piece of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Followed {
    /// It passes.
    Passes = 0,
    /// It does not: the hello names a server that is not listed.
    OtherName = 1,
    /// It does not: the hello names none.
    NoName = 2,
    /// It does not: it is of no hello.
    NotTls = 3,
}

/// A number of the state. Each use of it is a load or a store: the kernel's verifier follows every value that a register may have,
/// and knows nothing of what is in memory, which makes the steps of [`judge`] the same to it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Number<T: Copy>(Cell<T>);

impl<T: Copy> Number<T> {
    /// Its value.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the cell's own place, aligned and initialised.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Sets it.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as above; a cell may be written through a shared reference.
        unsafe { self.0.as_ptr().write_volatile(value) };
    }
}

/// How far a stream has been followed. All zeros: it is not followed, and passes.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Hello {
    /// The bytes of a field that have come.
    field: Number<u64>,
    /// The same of a record's header.
    header: Number<u64>,
    /// See [`Standing`].
    standing: Number<u32>,
    /// The next field: one of the constants below.
    phase: Number<u32>,
    /// Bytes to pass over before that.
    skip: Number<u32>,
    /// How many bytes the field has.
    needed: Number<u32>,
    /// How many of them have come.
    had: Number<u32>,
    /// The same of a record's header.
    header_had: Number<u32>,
    /// Bytes of the record that are to come.
    record_left: Number<u32>,
    /// Bytes of the message that are to come.
    message_left: Number<u32>,
    /// Bytes of the name that are to come; before that, how long its extension is.
    name_left: Number<u32>,
    /// Bytes of early data that may come before a second hello.
    early_left: Number<u32>,
    /// The constants below.
    flags: Number<u32>,
    /// Where in the piece is read, and where it ends.
    at: Number<u32>,
    end: Number<u32>,
    /// How many bytes are read next.
    count: Number<u32>,
    /// The name of the last hello.
    pub name: ServerName,
}

/// What is known of a stream, as [`Hello`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not followed, or no more.
    Over,
    /// It is followed.
    Followed,
    /// It was denied, and stays so.
    Denied(Followed),
}

// What is read next.
const MESSAGE: u32 = 0;
const VERSION: u32 = 1;
const SESSION: u32 = 2;
const SUITES: u32 = 3;
const COMPRESSION: u32 = 4;
const EXTENSIONS: u32 = 5;
const EXTENSION: u32 = 6;
const NAMES: u32 = 7;
const NAME: u32 = 8;
/// Nothing, but what a record has for its content: a hello is over.
const AFTER: u32 = 9;

/// The hello has an extension with a name.
const NAMED: u32 = 1;
/// The name is there, and nobody has looked at it yet.
const WAITING: u32 = 2;
/// A hello is over.
const SECOND: u32 = 4;
/// The hello must come in one piece.
const WHOLE: u32 = 8;

// What a step says.
const GO_ON: u32 = 0;
const MORE: u32 = 1;
const OVER: u32 = 2;
const NO_NAME: u32 = 3;
const NOT_TLS: u32 = 4;

/// How many steps are taken in one piece: each passes over something, reads a field, or the header of a record. That is a hello with some
/// seventy extensions, in one record or in several; a browser's has eighteen.
const STEPS: u32 = 160;

/// The longest message that is followed. Its length has three bytes, and no server takes so much.
const LONGEST_MESSAGE: u64 = 0xffff;

/// The longest content of a record, and what encryption may add (RFC 5246, section 6.2.3).
const LONGEST_RECORD: u32 = 1 << 14;
const LONGEST_ENCRYPTED: u32 = LONGEST_RECORD + 2048;

/// How much early data is passed over before a second hello. Servers take or pass over some 16 KiB.
const EARLY_DATA: u32 = 1 << 20;

// Content types of records, and types of extensions.
const CHANGE_CIPHER_SPEC: u32 = 20;
const ALERT: u32 = 21;
const HANDSHAKE: u32 = 22;
const APPLICATION_DATA: u32 = 23;
const SERVER_NAME: u32 = 0;
const EARLY_DATA_EXTENSION: u32 = 42;

impl Hello {
    /// Begins to follow a stream from its first byte. `whole`: its first piece must have the whole hello.
    #[inline(always)]
    pub fn begin(&self, whole: bool) {
        self.standing.set(1);
        self.flags.set(if whole { WHOLE } else { 0 });
        self.header_had.set(0);
        self.record_left.set(0);
        self.early_left.set(0);
        self.name.clear();
        self.begin_message();
    }

    /// Follows the stream no more: it passes.
    #[inline(always)]
    pub fn end(&self) {
        self.standing.set(0);
    }

    /// What is known of it.
    #[inline(always)]
    pub fn standing(&self) -> Standing {
        match self.standing.get() {
            0 => Standing::Over,
            1 => Standing::Followed,
            2 => Standing::Denied(Followed::OtherName),
            3 => Standing::Denied(Followed::NoName),
            _ => Standing::Denied(Followed::NotTls),
        }
    }

    /// Denies the stream from now on.
    #[inline(always)]
    pub fn deny(&self, why: Followed) {
        self.standing.set(1 + why as u32);
    }

    #[inline(always)]
    fn begin_message(&self) {
        self.message_left.set(4);
        self.expect(MESSAGE, 0, 4);
    }

    /// Goes on with a field behind something to pass over. The message must have both.
    #[inline(always)]
    fn expect(&self, phase: u32, skip: u32, needed: u32) -> u32 {
        self.phase.set(phase);
        self.skip.set(skip);
        self.needed.set(needed);
        self.had.set(0);
        if skip + needed > self.message_left.get() { NOT_TLS } else { GO_ON }
    }

    /// Notes that bytes of the message were read or passed over.
    #[inline(always)]
    fn advance(&self, count: u32) {
        self.at.set(self.at.get().wrapping_add(count));
        self.record_left.set(self.record_left.get().wrapping_sub(count));
        self.message_left.set(self.message_left.get().wrapping_sub(count));
    }

    /// The next bytes, as many as `count` says. Whoever looks at the program forgets what it knew of that number.
    #[inline(always)]
    fn take(&self, source: &impl Source) -> Option<u64> {
        source.number(self.at.get(), self.count.get())
    }

    /// One step. [`GO_ON`]: there is another.
    #[inline(never)]
    fn step(&self, source: &impl Source) -> u32 {
        let left = self.end.get().wrapping_sub(self.at.get());
        if left == 0 {
            return MORE;
        }
        let in_record = self.record_left.get();
        if in_record == 0 {
            return self.read_header(source, left);
        }
        let here = if left < in_record { left } else { in_record };
        let skip = self.skip.get();
        if skip == 0 {
            return self.read_field(source, here);
        }
        let count = if skip < here { skip } else { here };
        self.skip.set(skip - count);
        self.advance(count);
        self.end_if_over()
    }

    #[inline(always)]
    fn read_header(&self, source: &impl Source, left: u32) -> u32 {
        let had = self.header_had.get();
        let needed = 5_u32.wrapping_sub(had);
        self.count.set(if left < needed { left } else { needed });
        let Some(number) = self.take(source) else { return NOT_TLS };
        let count = self.count.get();
        self.at.set(self.at.get().wrapping_add(count));
        let header = join(self.header.get(), number, count);
        if had.wrapping_add(count) != 5 {
            self.header.set(header);
            self.header_had.set(had.wrapping_add(count));
            return GO_ON;
        }
        self.header_had.set(0);
        self.header.set(0);
        let (kind, major, minor) = (part(header, 32, 0xff), part(header, 24, 0xff), part(header, 16, 0xff));
        let length = part(header, 0, 0xffff);
        if major != 3 || minor > 4 || length == 0 {
            return NOT_TLS;
        }
        self.record_left.set(length);
        if kind == HANDSHAKE {
            if self.phase.get() == AFTER {
                self.begin_message();
            }
            return if length > LONGEST_RECORD { NOT_TLS } else { GO_ON };
        }
        if self.phase.get() != AFTER {
            return NOT_TLS;
        }
        self.skip.set(length);
        match kind {
            CHANGE_CIPHER_SPEC | ALERT => {
                if length > 2 {
                    return OVER;
                }
            }
            APPLICATION_DATA => {
                let early = self.early_left.get();
                if length > LONGEST_ENCRYPTED || length > early {
                    return OVER;
                }
                self.early_left.set(early - length);
            }
            _ => return OVER,
        }
        GO_ON
    }

    #[inline(always)]
    fn read_field(&self, source: &impl Source, here: u32) -> u32 {
        let had = self.had.get();
        let needed = self.needed.get();
        let missing = needed.wrapping_sub(had);
        self.count.set(if here < missing { here } else { missing });
        let Some(number) = self.take(source) else { return NOT_TLS };
        let count = self.count.get();
        self.advance(count);
        let field = join(self.field.get(), number, count);
        self.field.set(field);
        self.had.set(had.wrapping_add(count));
        if had.wrapping_add(count) != needed {
            return GO_ON;
        }
        self.field.set(0);
        let said = self.take_field(field);
        if said == GO_ON { self.end_if_over() } else { said }
    }

    #[inline(always)]
    fn take_field(&self, field: u64) -> u32 {
        let number = part(field, 0, 0xffff);
        match self.phase.get() {
            MESSAGE => {
                let flags = self.flags.get();
                if part(field, 24, 0xff) != 1 {
                    return if flags & SECOND != 0 { OVER } else { NOT_TLS };
                }
                // A second hello answers the server, which has not seen the first one yet.
                if flags & WAITING != 0 || field & 0x00ff_ffff > LONGEST_MESSAGE {
                    return NOT_TLS;
                }
                self.flags.set(flags & !NAMED);
                self.message_left.set(number);
                self.expect(VERSION, 0, 2)
            }
            VERSION => {
                if number < 0x0301 || number > 0x0304 {
                    return NOT_TLS;
                }
                // The random bytes are 32.
                self.expect(SESSION, 32, 1)
            }
            SESSION => {
                if number > 32 {
                    return NOT_TLS;
                }
                self.expect(SUITES, number, 2)
            }
            SUITES => {
                if number == 0 || number & 1 != 0 {
                    return NOT_TLS;
                }
                self.expect(COMPRESSION, number, 1)
            }
            COMPRESSION => {
                if number == 0 {
                    return NOT_TLS;
                }
                let said = self.expect(EXTENSIONS, number, 2);
                // There may be no extensions, and then nothing is behind it.
                if number == self.message_left.get() { GO_ON } else { said }
            }
            EXTENSIONS => {
                if number != self.message_left.get() {
                    return NOT_TLS;
                }
                if number == 0 { GO_ON } else { self.expect(EXTENSION, 0, 4) }
            }
            EXTENSION => self.take_extension(part(field, 16, 0xffff), number),
            NAMES => {
                // The list's length, the kind of its first name, and that name's length.
                let extension = self.name_left.get();
                let list = part(field, 24, 0xffff);
                let is_host = part(field, 16, 0xff) == 0;
                if !is_host
                    || list + 2 != extension
                    || number + 3 != list
                    || number == 0
                    || number > LONGEST_NAME
                {
                    return NOT_TLS;
                }
                self.name.begin(number);
                self.name_left.set(number);
                self.expect_name(number)
            }
            NAME => {
                let (left, count) = (self.name_left.get(), self.needed.get());
                self.name.write(left, field, count);
                let left = left.wrapping_sub(count);
                self.name_left.set(left);
                if left != 0 {
                    return self.expect_name(left);
                }
                self.flags.set(self.flags.get() | WAITING);
                self.expect_extension(0)
            }
            _ => NOT_TLS,
        }
    }

    #[inline(always)]
    fn take_extension(&self, kind: u32, length: u32) -> u32 {
        if length > self.message_left.get() {
            return NOT_TLS;
        }
        if kind == SERVER_NAME {
            let flags = self.flags.get();
            if flags & NAMED != 0 {
                return NOT_TLS;
            }
            self.flags.set(flags | NAMED);
            self.name_left.set(length);
            return self.expect(NAMES, 0, 5);
        }
        if kind == EARLY_DATA_EXTENSION {
            self.early_left.set(EARLY_DATA);
        }
        self.expect_extension(length)
    }

    /// Goes on with the next extension, if there is one.
    #[inline(always)]
    fn expect_extension(&self, skip: u32) -> u32 {
        let said = self.expect(EXTENSION, skip, 4);
        if skip == self.message_left.get() { GO_ON } else { said }
    }

    #[inline(always)]
    fn expect_name(&self, left: u32) -> u32 {
        self.expect(NAME, 0, if left < 8 { left } else { 8 })
    }

    /// Ends the hello where nothing of it is left. Its fields were checked to be in it, so none is cut.
    #[inline(always)]
    fn end_if_over(&self) -> u32 {
        if self.message_left.get() != 0 || self.phase.get() == AFTER {
            return GO_ON;
        }
        // Another message behind it would be read with it.
        if self.record_left.get() != 0 {
            return NOT_TLS;
        }
        let flags = self.flags.get();
        if flags & NAMED == 0 {
            return NO_NAME;
        }
        self.flags.set((flags | SECOND) & !WHOLE);
        self.phase.set(AFTER);
        GO_ON
    }

    #[inline(always)]
    fn steps(&self, source: &impl Source) -> u32 {
        let mut step = 0;
        while step < STEPS {
            let said = self.step(source);
            if said != GO_ON {
                return said;
            }
            step += 1;
        }
        NOT_TLS
    }

    /// Whether what has come of a record's header and of a field, where the rest is to come, can become a good one.
    #[inline(never)]
    fn is_good_beginning(&self) -> bool {
        let had = self.header_had.get();
        if had != 0 {
            let header = self.header.get() << ((5_u32.wrapping_sub(had) & 7) * 8);
            let hello = self.phase.get() != AFTER;
            return !(hello && part(header, 32, 0xff) != HANDSHAKE
                || had > 1 && part(header, 24, 0xff) != 3
                || had > 2 && part(header, 16, 0xff) > 4
                || hello && part(header, 0, 0xffff) > LONGEST_RECORD);
        }
        let had = self.had.get();
        if had == 0 {
            return true;
        }
        let missing = self.needed.get().wrapping_sub(had);
        let bits = (missing & 7) * 8;
        // The field is one of those from the lowest to the highest.
        let lowest = self.field.get() << bits;
        let highest = lowest | (1_u64 << bits) - 1;
        let left = u64::from(self.message_left.get().wrapping_sub(missing));
        let is = |expected: u64| lowest <= expected && expected <= highest;
        match self.phase.get() {
            MESSAGE => {
                let of_hello = part(lowest, 24, 0xff) == 1;
                if of_hello {
                    lowest & 0x00ff_ffff <= LONGEST_MESSAGE
                } else {
                    self.flags.get() & SECOND != 0
                }
            }
            VERSION => part(lowest, 8, 0xff) == 3,
            SUITES => lowest < left,
            EXTENSIONS => is(left),
            EXTENSION => lowest & 0xffff <= left,
            NAMES => {
                let extension = u64::from(self.name_left.get());
                is(extension.wrapping_sub(2) << 24 | extension.wrapping_sub(5))
            }
            _ => true,
        }
    }
}

/// What has come of a field, and what came now.
#[inline(always)]
fn join(before: u64, number: u64, count: u32) -> u64 {
    // In two, for there may be 64 bits, of which none was there before.
    let half = (count & 0xf) * 4;
    before << half << half | number
}

/// Some bits of a number.
#[inline(always)]
fn part(number: u64, shift: u32, mask: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "no mask is wider")]
    let part = (number >> shift & mask) as u32;
    part
}

/// Follows a stream through its next piece, from `offset` to `end` of its bytes. `is_listed` is asked for a name.
#[inline(always)]
pub fn judge(
    hello: &Hello,
    source: &impl Source,
    offset: u32,
    end: u32,
    is_listed: impl FnOnce(&ServerName) -> bool,
) -> Followed {
    hello.at.set(offset);
    hello.end.set(end);
    let said = match hello.steps(source) {
        MORE if !hello.is_good_beginning() => NOT_TLS,
        said => said,
    };
    let flags = hello.flags.get();
    let judged = if flags & WAITING != 0
        && !{
            hello.flags.set(flags & !WAITING);
            hello.name.is_sound() && is_listed(&hello.name)
        } {
        Followed::OtherName
    } else if said == NO_NAME {
        Followed::NoName
    } else if said == NOT_TLS || said == MORE && flags & WHOLE != 0 {
        Followed::NotTls
    } else {
        Followed::Passes
    };
    if judged != Followed::Passes {
        hello.deny(judged);
    } else if said == OVER {
        hello.end();
    }
    judged
}

#[cfg(test)]
mod tests;
