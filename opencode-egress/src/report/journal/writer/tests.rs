use std::sync::mpsc::{Sender, channel};

use super::{
    super::{
        entry::Priority,
        queue::{CAPACITY, RESERVE},
    },
    *,
};
use crate::policy::Mode;

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
    assert_eq!(kept.recv_timeout(PATIENCE), Ok((7, LineCounts { offered: 11, lines: 7, lost: 4, ..before })));
    assert!(journal.left_out(7, entry("left out"), LeftOut { limited: 3, lost: 4 }));
    let told = kept.recv_timeout(PATIENCE).map(|(_, counts)| (counts.limited_told, counts.lost_told));
    assert_eq!(told, Ok((3, 4)));
    journal.forget(7);
    assert_eq!(kept.recv_timeout(PATIENCE), Ok((7, LineCounts::default())));
}

#[test]
fn refused_questions_without_a_line_are_told_with_the_flows_and_not_counted_as_these() {
    let journald = Journald::start();
    let journal = Journal::start_at(&journald.path()).expect("a journal");
    let instance = "a".parse().expect("a name");
    let (flows, questions) = (LeftOut { limited: 3, lost: 0 }, LeftOut { limited: 40, lost: 2 });
    assert!(journal.log_left_out(7, &instance, Mode::Enforce, flows, questions));
    let told = journald.read(&journal);
    assert!(told[0].contains("not logged one by one: limited=43 lost=2\n"), "{told:?}");
    assert_eq!((journal.counts(7).limited_told, journal.counts(7).lost_told), (3, 0));
}
