//! Writing lines without ever waiting for who takes them.
//!
//! Whoever has a line puts it into a bounded queue; a thread of its own takes it out and writes it, and waits where journald, or
//! what reads stderr, does not keep up. What finds no room is counted.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    LeftOut,
    entry::Entry,
    queue::{Owner, Queue},
};

/// Where journald takes entries.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// How long to wait for a journald that is not there, or has no memory, before it is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// What became of the lines of an instance's denials. Each number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Denials that were to have a line.
    pub offered: u64,
    /// Those whose line was written.
    pub lines: u64,
    /// Those whose line found no room.
    pub lost: u64,
    /// Those of them that the kernel had folded into an earlier line: their line came at the end of an interval.
    pub unfolded: u64,
    /// Denials over the rate of which a written line tells that they have none.
    pub limited_told: u64,
    /// Denials that were lost, on the way to the log or before, of which a written line tells.
    pub lost_told: u64,
}

impl LineCounts {
    /// Lines that wait to be written.
    pub fn waiting(&self) -> u64 {
        self.offered.saturating_sub(self.lines + self.lost)
    }
}

/// Keeps [`LineCounts`] where they outlive the process.
pub trait KeepCounts: Send {
    /// Keeps an instance's. It must not log: lines wait for it.
    fn keep(&mut self, instance: u32, counts: &LineCounts);
}

/// What the log's reader should know of the writing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalState {
    /// Lines that wait to be written.
    pub waiting: usize,
    /// For how long the first of them is being written.
    pub stalled: Duration,
    /// Lines of the daemon's own that found no room since it started.
    pub own_lost: u64,
}

/// The journal, or stderr where there is none. Nothing here waits.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A line came, or the last one was written.
    changed: Condvar,
}

struct State {
    queue: Queue<Line>,
    /// Since when a line that was taken out of the queue is being written.
    writing: Option<Instant>,
    counts: HashMap<u32, LineCounts>,
    keeper: Option<Box<dyn KeepCounts>>,
    own_lost: u64,
}

struct Line {
    entry: Entry,
    of: Kind,
}

/// What a line is counted as.
#[derive(Clone, Copy)]
enum Kind {
    Denial,
    Question,
    LeftOut(LeftOut),
    Own,
}

impl State {
    fn count(&mut self, instance: u32, change: impl FnOnce(&mut LineCounts)) {
        let counts = self.counts.entry(instance).or_default();
        change(counts);
        if let Some(keeper) = &mut self.keeper {
            keeper.keep(instance, counts);
        }
    }
}

impl Journal {
    /// Starts writing.
    ///
    /// # Errors
    ///
    /// When there can be no thread or no socket.
    pub fn start() -> io::Result<Self> {
        Self::start_at(Path::new(JOURNALD))
    }

    pub(super) fn start_at(journald: &Path) -> io::Result<Self> {
        let state =
            State { queue: Queue::new(), writing: None, counts: HashMap::new(), keeper: None, own_lost: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let sink = Sink { socket: UnixDatagram::unbound()?, journald: journald.to_owned() };
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("journal".to_owned()).spawn(move || writer.write_lines(&sink))?;
        Ok(Self(shared))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// Goes on from what was counted, and has it kept from now on. What a process before this one had waiting is lost.
    pub fn keep_counts(
        &self,
        counted: impl IntoIterator<Item = (u32, LineCounts)>,
        keeper: Box<dyn KeepCounts>,
    ) {
        let mut state = self.state();
        state.keeper = Some(keeper);
        for (instance, before) in counted {
            state.counts.insert(instance, before);
            if before.waiting() > 0 {
                state.count(instance, |counts| counts.lost += before.waiting());
            }
        }
    }

    /// What became of an instance's lines.
    pub fn counts(&self, instance: u32) -> LineCounts {
        self.state().counts.get(&instance).copied().unwrap_or_default()
    }

    /// Begins to count an instance's anew: its number is free for another.
    pub fn forget(&self, instance: u32) {
        self.state().count(instance, |counts| *counts = LineCounts::default());
    }

    /// Takes the line of a denial, or counts that it found no room.
    pub(super) fn denial(&self, instance: u32, entry: Entry) {
        let taken = self.push(Owner::Instance(instance), entry, Kind::Denial, |state| {
            state.count(instance, |counts| counts.offered += 1);
        });
        if !taken {
            self.state().count(instance, |counts| {
                counts.offered += 1;
                counts.lost += 1;
            });
        }
    }

    /// Takes the line of a denial that was folded, and that counts as folded if this returns `false` for want of room.
    pub(super) fn folded(&self, instance: u32, entry: Entry) -> bool {
        self.push(Owner::Instance(instance), entry, Kind::Denial, |state| {
            state.count(instance, |counts| {
                counts.offered += 1;
                counts.unfolded += 1;
            });
        })
    }

    /// Takes the line of a refused question; `false`: there is no room.
    pub(super) fn question(&self, instance: u32, entry: Entry) -> bool {
        self.push(Owner::Instance(instance), entry, Kind::Question, |_| {})
    }

    /// Takes a line that tells of so many denied flows without one; `false`: there is no room.
    pub(super) fn left_out(&self, instance: u32, entry: Entry, flows: LeftOut) -> bool {
        self.push(Owner::Instance(instance), entry, Kind::LeftOut(flows), |_| {})
    }

    /// Takes a line of the daemon's own, or counts that it found no room.
    pub(super) fn own(&self, entry: Entry) {
        if !self.push(Owner::Daemon, entry, Kind::Own, |_| {}) {
            self.state().own_lost += 1;
        }
    }

    fn push(&self, owner: Owner, entry: Entry, of: Kind, count: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state();
        let taken = state.queue.push(owner, Line { entry, of });
        if taken {
            count(&mut state);
            drop(state);
            self.0.changed.notify_all();
        }
        taken
    }

    /// Whether a line about this instance would be taken.
    pub(super) fn has_room(&self, instance: u32) -> bool {
        self.state().queue.has_room(Owner::Instance(instance))
    }

    /// How the writing goes.
    pub fn writing(&self) -> JournalState {
        let state = self.state();
        JournalState {
            waiting: state.queue.len() + usize::from(state.writing.is_some()),
            stalled: state.writing.map_or(Duration::ZERO, |since| since.elapsed()),
            own_lost: state.own_lost,
        }
    }

    /// Waits until every line is written, at most so long: for the end of the process, which takes what waits along.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while state.queue.len() > 0 || state.writing.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it left nothing half done that matters more than the lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that waits for journald, for as long as the process is there.
    fn write_lines(&self, sink: &Sink) {
        let mut state = self.state();
        loop {
            let Some((owner, line)) = state.queue.pop() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.writing = Some(Instant::now());
            drop(state);
            let written = sink.write(&line.entry);
            state = self.state();
            state.writing = None;
            let written = written.is_ok();
            match (owner, line.of) {
                (Owner::Instance(instance), Kind::Denial) if written => {
                    state.count(instance, |counts| counts.lines += 1);
                }
                (Owner::Instance(instance), Kind::Denial) => {
                    state.count(instance, |counts| counts.lost += 1);
                }
                (Owner::Instance(instance), Kind::LeftOut(LeftOut { limited, lost })) if written => {
                    state.count(instance, |counts| {
                        counts.limited_told += limited;
                        counts.lost_told += lost;
                    });
                }
                (Owner::Daemon, _) if !written => state.own_lost += 1,
                _ => {}
            }
            if state.queue.len() == 0 {
                self.changed.notify_all();
            }
        }
    }
}

/// Where lines go.
struct Sink {
    socket: UnixDatagram,
    journald: PathBuf,
}

impl Sink {
    /// Writes an entry, and waits for as long as that takes.
    fn write(&self, entry: &Entry) -> io::Result<()> {
        let Some(datagram) = &entry.datagram else { return to_stderr(entry) };
        loop {
            match self.socket.send_to(datagram, &self.journald) {
                Ok(_) => return Ok(()),
                // No journal here: the line is better on stderr than nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return to_stderr(entry),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is being started again, or the kernel has no memory: the line waits, and others behind it.
                Err(error) if is_passing(&error) => thread::sleep(RETRY),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn to_stderr(entry: &Entry) -> io::Result<()> {
    io::stderr().write_all(entry.text.as_bytes())
}

#[cfg(test)]
mod tests;
