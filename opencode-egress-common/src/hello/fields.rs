//! What a record's header and each field of a hello may say.

use crate::hello::{
    AFTER, GO_ON, Hello, LONGEST_NAME, MESSAGE, NAMED, NO_NAME, NOT_TLS, OVER, SECOND, WAITING, WHOLE,
    is_less, is_zero, least,
};

// What is read next, as `Hello::phase` has it, between `MESSAGE` and `AFTER`.
const VERSION: u32 = 1;
const SESSION: u32 = 2;
const SUITES: u32 = 3;
const COMPRESSION: u32 = 4;
const EXTENSIONS: u32 = 5;
const EXTENSION: u32 = 6;
const NAMES: u32 = 7;
const NAME: u32 = 8;

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
    /// Goes on with a field behind something to pass over. The message must have both.
    #[inline(always)]
    pub(super) fn expect(&self, phase: u32, skip: u32, needed: u32) -> u32 {
        self.phase.set(phase);
        self.skip.set(skip);
        self.needed.set(needed);
        self.had.set(0);
        let left = i64::from(self.message_left.get()) - i64::from(skip) - i64::from(needed);
        // Not by a branch, which the verifier would follow both ways.
        #[expect(clippy::cast_sign_loss, reason = "all ones, or zeros")]
        let too_long = (left >> 63) as u32;
        too_long & NOT_TLS
    }

    #[inline(always)]
    pub(super) fn take_header(&self) -> u32 {
        let header = self.header.get();
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
        self.message_left.set(length);
        match kind {
            CHANGE_CIPHER_SPEC | ALERT if length <= 2 => GO_ON,
            APPLICATION_DATA if length <= LONGEST_ENCRYPTED => {
                let early = self.early_left.get();
                if length > early {
                    return OVER;
                }
                self.early_left.set(early - length);
                GO_ON
            }
            _ => OVER,
        }
    }

    #[inline(always)]
    pub(super) fn take_field(&self) -> u32 {
        let field = self.field.get();
        self.field.set(0);
        self.had.set(0);
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
                if !(0x0301..=0x0304).contains(&number) {
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
                // It is in its extension, and so in the message.
                self.expect(NAME, 0, 0)
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

    /// Whether the name is read next.
    #[inline(always)]
    pub(super) fn is_in_name(&self) -> bool {
        self.phase.get() == NAME
    }

    /// Reads the name on, as far as it is here and a turn may. It has no field: its bytes are written where they belong, as many as come.
    #[inline(always)]
    pub(super) fn read_name(&self) {
        self.read_word();
        self.read_word();
        if self.name_left.get() == 0 {
            self.flags.set(self.flags.get() | WAITING);
            self.said.set(self.expect_extension(0));
        }
    }

    /// Reads the next eight bytes of the name, or as many as there are: what it writes for those that are to come, they write over.
    #[inline(always)]
    fn read_word(&self) {
        let (at, left) = (self.at.get(), self.name_left.get());
        let here = least(self.end.get().wrapping_sub(at), self.record_left.get());
        self.count.set(least(least(left, 8), least(here, self.window.left_from(at))));
        let count = self.count.get();
        self.name.write(left, self.window.number(at, count), count);
        self.name_left.set(left.wrapping_sub(count));
        self.advance(count);
    }

    /// Passes over all that is before the extensions, where it is next and here, and good. The rest is left to the turns, which say what is
    /// wrong: they take one for each field, and several times as long.
    #[inline(never)]
    pub(super) fn pass_beginning(&self) {
        let at = self.at.get();
        let number = |offset, count| part(self.window.number(offset, count), 0, 0xffff);
        // Of what is not here it is any number, and then the next one's place is not here either.
        let version = number(at, 2);
        let session = number(at.wrapping_add(34), 1);
        let behind_session = at.wrapping_add(35).wrapping_add(session);
        let suites = number(behind_session, 2);
        let behind_suites = behind_session.wrapping_add(2).wrapping_add(suites);
        let compression = number(behind_suites, 1);
        let behind_compression = behind_suites.wrapping_add(1).wrapping_add(compression);
        let extensions = number(behind_compression, 2);
        let passed = behind_compression.wrapping_add(2).wrapping_sub(at);
        let is_not_here =
            is_zero(self.window.left_from(at.wrapping_add(passed))) | is_less(self.record_left.get(), passed);
        let is_elsewhere = is_less(0, self.phase.get() ^ VERSION | self.had.get());
        let is_bad = is_less(version, 0x0301)
            | is_less(0x0304, version)
            | is_less(32, session)
            | is_zero(suites)
            | is_less(0, suites & 1)
            | is_zero(compression)
            | is_less(extensions, 4)
            | is_less(0, extensions ^ self.message_left.get().wrapping_sub(passed));
        if is_not_here | is_elsewhere | is_bad >= 0 {
            self.advance(passed);
            self.expect(EXTENSION, 0, 4);
        }
    }

    /// Whether an extension comes next, of which nothing has come.
    #[inline(always)]
    pub(super) fn is_before_extension(&self) -> bool {
        self.phase.get() == EXTENSION && self.had.get() == 0
    }

    /// Passes over extensions that say nothing here, as far as their headers were copied: a turn for each takes several times as long.
    /// One that is not all here is left to the turns, and one behind which no other header is in this record and this piece, unless the message
    /// ends with it.
    #[inline(never)]
    pub(super) fn pass_extensions(&self) {
        let first = self.at.get();
        let left = least(self.end.get().wrapping_sub(first), self.record_left.get());
        let end = first.wrapping_add(least(left, self.message_left.get()));
        let last = first.wrapping_add(self.message_left.get());
        let mut at = first;
        // Written out, as the turns are.
        macro_rules! extensions {
            ($($extension:literal)*) => {
                'run: {
                    $(
                        let _ = $extension;
                        let next = self.behind_extension(at, end, last);
                        if next == at {
                            break 'run;
                        }
                        at = next;
                    )*
                }
            };
        }
        extensions!(0 0 0 0 0 0);
        self.advance(at.wrapping_sub(first));
    }

    /// Where the next extension begins, if that at `at` says nothing here, and there is one before `end`, or the message ends there, which
    /// it does at `last`; else `at`.
    #[inline(always)]
    fn behind_extension(&self, at: u32, end: u32, last: u32) -> u32 {
        let header = self.window.number(at, 4);
        let kind = part(header, 16, 0xffff);
        let next = at.wrapping_add(4).wrapping_add(part(header, 0, 0xffff));
        let is_not_here = is_less(self.window.left_from(at), 4);
        let is_the_last_here = is_less(end, next.wrapping_add(4));
        let ends_the_message = is_zero(end ^ next | end ^ last);
        let says_something = is_zero(kind ^ SERVER_NAME) | is_zero(kind ^ EARLY_DATA_EXTENSION);
        if is_not_here | is_the_last_here & !ends_the_message | says_something < 0 { at } else { next }
    }

    /// Goes on with the next extension, if there is one.
    #[inline(always)]
    fn expect_extension(&self, skip: u32) -> u32 {
        let said = self.expect(EXTENSION, skip, 4);
        if skip == self.message_left.get() { GO_ON } else { said }
    }

    /// Ends the hello, of which nothing is left. Its fields were checked to be in it, so none is cut.
    #[inline(always)]
    pub(super) fn end_hello(&self) -> u32 {
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

    /// Whether some of a record's header or of a field has come, and not all.
    #[inline(always)]
    pub(super) fn has_part(&self) -> bool {
        self.header_had.get() | self.had.get() != 0
    }

    /// Whether what has come of a record's header and of a field, where the rest is to come, can become a good one.
    #[inline(never)]
    pub(super) fn is_good_beginning(&self) -> bool {
        let had = self.header_had.get();
        if had != 0 {
            let header = self.header.get() << ((5_u32.wrapping_sub(had) & 7) * 8);
            let hello = self.phase.get() != AFTER;
            return !(hello && part(header, 32, 0xff) != HANDSHAKE
                || had > 1 && part(header, 24, 0xff) != 3
                || had > 2 && part(header, 16, 0xff) > 4
                || hello && part(header, 0, 0xffff) > LONGEST_RECORD);
        }
        let missing = self.needed.get().wrapping_sub(self.had.get());
        let bits = (missing & 7) * 8;
        // The field is one of those from the lowest to the highest.
        let lowest = self.field.get() << bits;
        let highest = lowest | ((1_u64 << bits) - 1);
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

/// Some bits of a number.
#[inline(always)]
fn part(number: u64, shift: u32, mask: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "no mask is wider")]
    let part = (number >> shift & mask) as u32;
    part
}
