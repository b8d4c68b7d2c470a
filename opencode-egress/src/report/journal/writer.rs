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
    LeftOut { limited: u64, lost: u64 },
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

    /// Takes a line that tells of so many denials without one; `false`: there is no room.
    pub(super) fn left_out(&self, instance: u32, entry: Entry, limited: u64, lost: u64) -> bool {
        self.push(Owner::Instance(instance), entry, Kind::LeftOut { limited, lost }, |_| {})
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
                (Owner::Instance(instance), Kind::LeftOut { limited, lost }) if written => {
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
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::{
        super::{
            entry::Priority,
            queue::{CAPACITY, RESERVE},
        },
        *,
    };

    /// How long what must come may take.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn entry(message: &str) -> Entry {
        Entry::new("x", Priority::Warning, message, [])
    }

    /// A journald that reads nothing until it is asked to.
    struct Journald {
        directory: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Journald {
        fn start() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let socket = UnixDatagram::bind(directory.path().join("socket")).expect("a socket");
            Self { directory, socket }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("socket")
        }

        /// Reads until nothing waits, and returns what it got.
        fn read(&self, journal: &Journal) -> Vec<String> {
            self.socket.set_nonblocking(true).expect("no waiting");
            let (mut buffer, mut read) = ([0; 4096], vec![]);
            loop {
                let over = journal.writing().waiting == 0;
                while let Ok(len) = self.socket.recv(&mut buffer) {
                    read.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
                }
                if over {
                    return read;
                }
                thread::yield_now();
            }
        }
    }

    struct Kept(Sender<(u32, LineCounts)>);

    impl KeepCounts for Kept {
        fn keep(&mut self, instance: u32, counts: &LineCounts) {
            self.0.send((instance, *counts)).expect("the test listens");
        }
    }

    #[test]
    fn a_journald_that_reads_nothing_is_not_waited_for_and_every_line_is_counted() {
        let journald = Journald::start();
        let journal = Journal::start_at(&journald.path()).expect("a journal");
        let offered = 4 * CAPACITY as u64;
        for number in 0..offered {
            journal.denial(1, entry(&number.to_string()));
        }
        journal.denial(2, entry("of a quiet instance"));
        (0..2 * RESERVE).for_each(|_| journal.own(entry("own")));
        let noisy = journal.counts(1);
        assert!(noisy.lost > 0 && noisy.waiting() > 0, "{noisy:?}");
        assert_eq!((noisy.offered, journal.counts(2).lost), (offered, 0));
        let state = journal.writing();
        assert!(state.own_lost > 0 && state.waiting > RESERVE, "{state:?}");
        let begin = Instant::now();
        journal.flush(Duration::from_millis(50));
        assert!(begin.elapsed() < Duration::from_secs(5), "the end of the process waits");
        // It goes on, and has all that was not counted as lost, in its order.
        let read = journald.read(&journal);
        let counts = journal.counts(1);
        assert_eq!((counts.lines + counts.lost, counts.waiting()), (offered, 0));
        assert_eq!(counts.lost, noisy.lost);
        let written = read.iter().filter(|line| !line.contains("own") && !line.contains("quiet")).count();
        assert_eq!(written as u64, counts.lines);
        assert!(read.iter().any(|line| line.contains("MESSAGE=of a quiet instance\n")));
    }

    #[test]
    fn a_journald_that_is_started_again_gets_what_waited() {
        let journald = Journald::start();
        let path = journald.path();
        // It ended, and what listens at its socket is not there yet.
        drop(journald.socket);
        let journal = Journal::start_at(&path).expect("a journal");
        journal.denial(1, entry("while it was away"));
        assert_eq!(journal.counts(1).waiting(), 1);
        std::fs::remove_file(&path).expect("its old socket");
        let next = path.with_file_name("next");
        let socket = UnixDatagram::bind(&next).expect("a socket");
        std::fs::rename(&next, &path).expect("in the old one's place");
        let again = Journald { directory: journald.directory, socket };
        // In the moment without a socket it went to stderr; that is as good.
        again.socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
        journal.flush(Duration::from_secs(10));
        assert_eq!((journal.counts(1).lines, journal.counts(1).lost), (1, 0));
    }

    #[test]
    fn folded_denials_that_find_no_room_stay_folded() {
        let journald = Journald::start();
        let journal = Journal::start_at(&journald.path()).expect("a journal");
        while journal.has_room(1) {
            journal.denial(1, entry("noise"));
        }
        let before = journal.counts(1);
        // The writer may have taken one out meanwhile.
        while journal.folded(1, entry("folded")) {}
        let after = journal.counts(1);
        assert_eq!(after.lost, before.lost);
        assert_eq!(after.offered - before.offered, after.unfolded);
        journald.read(&journal);
    }

    #[test]
    fn counts_are_kept_and_what_waited_in_an_earlier_process_is_lost() {
        let journald = Journald::start();
        let journal = Journal::start_at(&journald.path()).expect("a journal");
        let (sender, kept) = channel();
        let before = LineCounts { offered: 10, lines: 6, lost: 1, unfolded: 2, ..LineCounts::default() };
        journal.keep_counts([(7, before)], Box::new(Kept(sender)));
        assert_eq!(kept.recv_timeout(PATIENCE), Ok((7, LineCounts { lost: 4, ..before })));
        journal.denial(7, entry("one"));
        assert_eq!(kept.recv_timeout(PATIENCE), Ok((7, LineCounts { offered: 11, lost: 4, ..before })));
        assert_eq!(
            kept.recv_timeout(PATIENCE),
            Ok((7, LineCounts { offered: 11, lines: 7, lost: 4, ..before }))
        );
        assert!(journal.left_out(7, entry("left out"), 3, 4));
        let told = kept.recv_timeout(PATIENCE).map(|(_, counts)| (counts.limited_told, counts.lost_told));
        assert_eq!(told, Ok((3, 4)));
        journal.forget(7);
        assert_eq!(kept.recv_timeout(PATIENCE), Ok((7, LineCounts::default())));
    }
}
