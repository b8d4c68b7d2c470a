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

mod fields;
mod name;
mod window;

pub use name::{LONGEST_NAME, ServerName, ServerNameKey};
pub use window::{WINDOW, Window};

/// The bytes of a piece of a stream.
pub trait Source {
    /// Copies the `count` bytes from `offset` on, 1 to [`WINDOW`], to the beginning of what has room for them. `false`: they are not there.
    fn copy(&self, offset: u32, count: u32, to: &[Number<u8>; WINDOW + 8]) -> bool;
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
/// and knows nothing of what is in memory, which makes the turns of [`judge`] the same to it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Number<T: Copy>(Cell<T>);

impl<T: Copy> Number<T> {
    const fn new(value: T) -> Self {
        Self(Cell::new(value))
    }

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
    /// The next field: one of the constants of `fields`.
    phase: Number<u32>,
    /// Bytes to pass over before that.
    skip: Number<u32>,
    /// How many bytes the field has; 0 for a name, which is read as it comes.
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
    /// How many bytes are read next. Whoever looks at the program forgets what it knew of that number.
    count: Number<u32>,
    /// What the last turn said.
    said: Number<u32>,
    /// Keeps the layout free of padding.
    reserved: u32,
    /// The name of the last hello.
    pub name: ServerName,
    /// What is read of the piece.
    window: Window,
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

/// What is read next: the message's header. `fields` has those that follow.
const MESSAGE: u32 = 0;
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

// What a turn says.
const GO_ON: u32 = 0;
const MORE: u32 = 1;
const OVER: u32 = 2;
const NO_NAME: u32 = 3;
const NOT_TLS: u32 = 4;

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

    /// Whether it is followed, or was denied: 1 for that, and 0 where it is over.
    #[inline(always)]
    pub fn is_followed(&self) -> u32 {
        // Not by a branch, which the verifier would follow both ways.
        self.standing.get().wrapping_neg() >> 31
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

    /// Takes note of the stream's next piece: where in what is sent it begins, and where it ends.
    #[inline(always)]
    pub fn come(&self, offset: u32, end: u32) {
        self.at.set(offset);
        self.end.set(end);
        self.window.close();
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

    /// Notes that bytes of the message were read or passed over.
    #[inline(always)]
    fn advance(&self, count: u32) {
        self.at.set(self.at.get().wrapping_add(count));
        self.record_left.set(self.record_left.get().wrapping_sub(count));
        self.message_left.set(self.message_left.get().wrapping_sub(count));
    }

    /// Reads the next field, or a record's header, as far as it is here, and a name as far as a turn may. Something is here.
    #[inline(always)]
    fn read(&self, source: &impl Source) {
        let (at, end) = (self.at.get(), self.end.get());
        if !self.window.reach(source, at, end) {
            self.said.set(NOT_TLS);
            return;
        }
        let here = end.wrapping_sub(at);
        match self.record_left.get() {
            0 => self.read_header(here),
            _ if self.is_in_name() => self.read_name(),
            in_record => self.read_field(least(least(here, in_record), self.message_left.get())),
        }
    }

    /// Goes on to where something is to be read next, or says that there is nothing, and ends a hello of which nothing is left.
    #[inline(always)]
    fn go_on(&self) {
        self.pass_over();
        if self.is_before_extension() {
            self.pass_extensions();
        }
        if self.message_left.get() == 0 && self.phase.get() != AFTER {
            self.said.set(self.end_hello());
        }
        if self.said.get() == GO_ON && self.at.get() == self.end.get() {
            self.said.set(MORE);
        }
    }

    /// Passes over what no field needs, as far as it is in this record and this piece.
    #[inline(always)]
    fn pass_over(&self) {
        let here = least(self.end.get().wrapping_sub(self.at.get()), self.record_left.get());
        let skip = self.skip.get();
        let passed = least(skip, least(here, self.message_left.get()));
        self.skip.set(skip.wrapping_sub(passed));
        self.advance(passed);
    }

    /// The next bytes, at most so many: there are as many as [`Hello::count`] says then.
    #[inline(always)]
    fn take(&self, most: u32, here: u32) -> u64 {
        self.count.set(least(most, here));
        self.window.number(self.at.get(), self.count.get())
    }

    #[inline(always)]
    fn read_header(&self, here: u32) {
        let had = self.header_had.get();
        let number = self.take(5_u32.wrapping_sub(had), here);
        let count = self.count.get();
        self.at.set(self.at.get().wrapping_add(count));
        self.header.set(join(self.header.get(), number, count));
        self.header_had.set(had.wrapping_add(count));
        if self.header_had.get() == 5 {
            self.said.set(self.take_header());
        }
    }

    /// Reads a field, of which so much is here.
    #[inline(always)]
    fn read_field(&self, here: u32) {
        let (had, needed) = (self.had.get(), self.needed.get());
        let number = self.take(needed.wrapping_sub(had), here);
        let count = self.count.get();
        self.advance(count);
        self.field.set(join(self.field.get(), number, count));
        self.had.set(had.wrapping_add(count));
        if self.had.get() == needed {
            self.said.set(self.take_field());
        }
    }

    /// Reads something, and goes on, of which [`Hello::said`] has what came of it. (One function: where processors mistrust returns, a
    /// call takes as long as all that is in it.)
    #[inline(never)]
    fn turn(&self, source: &impl Source) {
        self.read(source);
        if self.said.get() == GO_ON {
            self.go_on();
        }
    }

    /// Takes turns until one says something else than [`GO_ON`]. Written out, for the kernel's verifier forgets too soon what it saw of
    /// earlier turns of a loop, and looks at the rest of it again for each branch in it.
    #[inline(always)]
    fn turns(&self, source: &impl Source) {
        macro_rules! turns {
            ($($turn:literal)*) => {
                $(
                    let _ = $turn;
                    self.turn(source);
                    if self.said.get() != GO_ON {
                        return;
                    }
                )*
            };
        }
        self.said.set(GO_ON);
        self.go_on();
        if self.said.get() != GO_ON {
            return;
        }
        // The headers of the record and the message.
        turns!(0 0);
        self.pass_beginning();
        turns!(0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0);
        self.said.set(NOT_TLS);
    }
}

/// The lesser number, not by a branch, which the verifier would follow both ways.
#[inline(always)]
fn least(one: u32, other: u32) -> u32 {
    let difference = is_less(one, other);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "one of the two")]
    let least = (i64::from(other) + (difference & sign(difference))) as u32;
    least
}

// What is negative where something is so. Of several that are put together, one branch asks for all: the verifier would follow each of them
// both ways.

/// Negative where one number is less than the other.
#[inline(always)]
fn is_less(one: u32, other: u32) -> i64 {
    i64::from(one) - i64::from(other)
}

/// Negative where a number is 0.
#[inline(always)]
fn is_zero(number: u32) -> i64 {
    is_less(number, 1)
}

/// All ones for what is negative, and zeros for the rest. A compiler that saw what this does would make a branch of it.
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn sign(mut number: i64) -> i64 {
    // SAFETY: one instruction on the named register.
    unsafe { core::arch::asm!("{number} s>>= 63", number = inout(reg) number) };
    number
}

#[cfg(not(target_arch = "bpf"))]
const fn sign(number: i64) -> i64 {
    number >> 63
}

/// What has come of a field, and what came now.
#[inline(always)]
fn join(before: u64, number: u64, count: u32) -> u64 {
    // In two, for there may be 64 bits, of which none was there before.
    let half = (count & 0xf) * 4;
    before << half << half | number
}

/// Follows a stream through the piece of it that [came](Hello::come). `is_listed` is asked for a name.
#[inline(always)]
pub fn judge(hello: &Hello, source: &impl Source, is_listed: impl FnOnce(&ServerName) -> bool) -> Followed {
    hello.turns(source);
    if hello.said.get() == MORE && hello.has_part() && !hello.is_good_beginning() {
        hello.said.set(NOT_TLS);
    }
    if hello.flags.get() & WAITING != 0 {
        hello.flags.set(hello.flags.get() & !WAITING);
        if !(hello.name.is_sound() && is_listed(&hello.name)) {
            hello.deny(Followed::OtherName);
            return Followed::OtherName;
        }
    }
    let (said, flags) = (hello.said.get(), hello.flags.get());
    let judged = if said == NO_NAME {
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
