//! Lines of `exec` itself on stderr, each on a line of its own, though its command writes there as well.
//!
//! Where stderr is a pipe, a socket or a file, the command writes into a pipe of ours, from which everything goes on as it is; so
//! what is ours can wait until the command has ended its line. Where stdout is the same, it goes that way too, and what
//! goes to one place keeps its order. A terminal stays the command's, for it does more there than write: what is ours waits
//! until nothing was refused for a moment, in which the command says what it makes of the refusal.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Stderr, Write as _},
    mem,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, OFlags, Stat, fcntl_setfl, fstat},
    pipe::{PipeFlags, pipe_with},
    termios::{isatty, tcgetwinsize},
};

/// How long what is ours waits at most: for the end of the command's line, or for a terminal's quiet moment.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long nothing must be refused until a terminal gets what is ours.
const QUIET: Duration = Duration::from_millis(100);
/// What is passed on at once before other things are looked at.
const TURN: usize = 256 * 1024;
/// What a pipe takes without waiting when it has room (`PIPE_BUF`, pipe(7)).
const CHUNK: usize = 4096;

/// Where what is ours goes, and how.
enum Place {
    /// Behind what comes out of the pipe that the command has for stderr: `None` once all of the command have closed it.
    Behind { pipe: Option<File>, line_is_open: bool },
    /// To a terminal, which the command has as well.
    Terminal,
    /// To a device such as /dev/null.
    Device,
}

/// Stderr, shared with the command. It never waits for who reads it, until the command has ended.
pub(super) struct Output {
    place: Place,
    /// What is to be written next.
    pending: Vec<u8>,
    /// Lines of ours that wait.
    held: Vec<u8>,
    /// When the first of them came, and the last one.
    came: Option<(Instant, Instant)>,
}

impl Output {
    /// Gives a command that is about to be started its stderr, and its stdout where that is the same.
    ///
    /// # Errors
    ///
    /// When a pipe cannot be made.
    pub(super) fn share_with(command: &mut Command) -> Result<Self> {
        let stat = fstat(io::stderr()).context("cannot see what stderr is")?;
        let place = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if isatty(io::stderr()) => Place::Terminal,
            FileType::CharacterDevice | FileType::BlockDevice => Place::Device,
            _ => {
                let why = "cannot make a pipe for the command's output";
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(why)?;
                fcntl_setfl(&read, OFlags::NONBLOCK).context(why)?;
                let same = |other: Stat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
                if fstat(io::stdout()).is_ok_and(same) {
                    command.stdout(write.try_clone().context(why)?);
                }
                command.stderr(write);
                Place::Behind { pipe: Some(read.into()), line_is_open: false }
            }
        };
        Ok(Self { place, pending: vec![], held: vec![], came: None })
    }

    /// What [`Self::go_on`] waits for, besides [`Self::patience`].
    pub(super) fn waits_for<'a>(&'a self, stderr: &'a Stderr) -> Option<PollFd<'a>> {
        match &self.place {
            _ if !self.pending.is_empty() => Some(PollFd::new(stderr, PollFlags::OUT)),
            Place::Behind { pipe: Some(pipe), .. } => Some(PollFd::new(pipe, PollFlags::IN)),
            _ => None,
        }
    }

    /// How long there is nothing to do without that.
    pub(super) fn patience(&self) -> Option<Duration> {
        let due = self.due().filter(|_| self.pending.is_empty())?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn due(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        Some(match self.place {
            Place::Terminal => (last + QUIET).min(first + LONGEST_WAIT),
            _ => first + LONGEST_WAIT,
        })
    }

    /// Takes a line of ours, to be written when it can be.
    pub(super) fn say(&mut self, line: &str) {
        let now = Instant::now();
        self.came = Some((self.came.map_or(now, |(first, _)| first), now));
        self.held.extend(format!("opencode-egress: {line}\n").as_bytes());
    }

    /// Passes on what the command wrote, and writes what is ours where that is due, as far as somebody reads.
    pub(super) fn go_on(&mut self) {
        let mut passed_on = 0;
        while self.write_pending(Some(&Timespec::default())) && passed_on < TURN {
            // First what the command wrote before what is told now.
            self.read();
            passed_on += self.pending.len();
            let is_good = match &self.place {
                Place::Behind { line_is_open, .. } => !line_is_open,
                Place::Terminal => false,
                Place::Device => true,
            };
            if is_good || self.due().is_some_and(|due| due <= Instant::now()) {
                self.take_held();
            }
            if self.pending.is_empty() {
                return;
            }
        }
    }

    /// Passes on and writes all that is left, when the command has ended, and waits until that is read.
    pub(super) fn finish(&mut self) {
        while self.write_pending(None) && self.read() {}
        self.take_held();
        self.write_pending(None);
    }

    /// Reads what the command wrote, where it did.
    fn read(&mut self) -> bool {
        let Place::Behind { pipe, line_is_open } = &mut self.place else { return false };
        let Some(source) = pipe else { return false };
        let mut buffer = [0; 16 * CHUNK];
        match source.read(&mut buffer) {
            Ok(length @ 1..) => {
                *line_is_open = buffer[length - 1] != b'\n';
                self.pending.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            _ => {
                *pipe = None;
                false
            }
        }
    }

    fn take_held(&mut self) {
        self.came = None;
        if self.held.is_empty() {
            return;
        }
        match &mut self.place {
            Place::Behind { line_is_open, .. } => {
                if mem::take(line_is_open) {
                    self.pending.push(b'\n');
                }
            }
            Place::Terminal => self.pending.extend(fresh_line()),
            Place::Device => {}
        }
        self.pending.append(&mut self.held);
    }

    /// Writes what is to be written, as far as stderr takes it within some time. `false`: some is left.
    fn write_pending(&mut self, patience: Option<&Timespec>) -> bool {
        let mut stderr = io::stderr();
        while !self.pending.is_empty() {
            let mut room = [PollFd::new(&stderr, PollFlags::OUT)];
            match poll(&mut room, patience) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => continue,
            }
            let chunk = &self.pending[..self.pending.len().min(CHUNK)];
            match stderr.write(chunk) {
                Ok(length @ 1..) => drop(self.pending.drain(..length)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // Nobody reads on, and nobody can be told. The command is, by the end of its pipe, as without us.
                _ => {
                    self.pending.clear();
                    self.held.clear();
                    if let Place::Behind { pipe, .. } = &mut self.place {
                        *pipe = None;
                    }
                }
            }
        }
        true
    }
}

/// What takes a terminal's cursor to the beginning of a line, and to the next one only where it is not at a beginning,
/// which nobody can ask: as many spaces as a line has, which end in the same line or the next, and a carriage return.
fn fresh_line() -> Vec<u8> {
    let columns = tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    let mut text = vec![b' '; columns.into()];
    text.push(b'\r');
    text
}
