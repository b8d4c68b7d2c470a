//! A child process that tries something: in a cgroup and in a network namespace before it makes its first
//! socket, and killed when it takes too long.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use opencode_egress::cgroups::Cgroup;
use rustix::{
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::network::Namespace;

/// A probe that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A time, longer on a machine that is said to be slow.
pub(crate) fn unhurried(time: Duration) -> Duration {
    let slowness = std::env::var("OPENCODE_EGRESS_TEST_SLOWNESS").ok();
    time * slowness.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what it tried, with this result.
    Done(u64),
    /// The system refused with this error number.
    Errno(i32),
    /// It failed without an error number: a connection that ended early, an assumption that does not hold.
    Failed,
    /// It did not end in time and was killed.
    Hangs,
}

impl Outcome {
    pub(crate) const EPERM: Self = Self::Errno(libc::EPERM);
    pub(crate) const DONE: Self = Self::Done(0);
}

const STEP: u8 = 0;
const DONE: u8 = 1;
const ERRNO: u8 = 2;
const FAILED: u8 = 3;

/// The child's end: where it waits for the test.
pub(crate) struct Steps(UnixStream);

impl Steps {
    /// Waits until the test says to go on, and tells it a number before.
    pub(crate) fn wait_with(&mut self, number: u64) -> io::Result<()> {
        self.say(STEP, number)?;
        self.0.read_exact(&mut [0])
    }

    /// Waits until the test says to go on.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        self.wait_with(0)
    }

    fn fail(&mut self, why: &str) -> io::Result<()> {
        self.say(FAILED, why.len() as u64)?;
        self.0.write_all(why.as_bytes())
    }

    fn say(&mut self, kind: u8, number: u64) -> io::Result<()> {
        let mut message = [kind; 9];
        message[1..].copy_from_slice(&number.to_ne_bytes());
        self.0.write_all(&message)
    }
}

/// A running probe, as the test sees it.
pub(crate) struct Probe {
    pid: Pid,
    channel: UnixStream,
    ended: bool,
}

impl Probe {
    /// Starts `body` in a child process in `cgroup` and `namespace`.
    ///
    /// A fork without exec, so that a test says what is tried where it says what is expected of it. The
    /// child must not wait for another thread of the test, which it does not have.
    pub(crate) fn start(
        cgroup: &Cgroup,
        namespace: &Namespace,
        body: impl FnOnce(&mut Steps) -> io::Result<u64>,
    ) -> Self {
        let mut entrance = cgroup.entrance().expect("the cgroup is there");
        let (channel, childs) = UnixStream::pair().expect("a socket pair");
        // SAFETY: the child has this thread alone. It allocates, which glibc allows after fork, takes no
        // lock that another thread may have held, and leaves by _exit.
        match unsafe { libc::fork() } {
            -1 => panic!("cannot fork: {}", io::Error::last_os_error()),
            0 => {
                let mut steps = Steps(childs);
                let kept = steps.0.as_raw_fd();
                let result = catch_unwind(AssertUnwindSafe(|| {
                    set_parent_process_death_signal(Some(Signal::KILL))?;
                    // "0" is the process that writes it.
                    entrance.write_all(b"0")?;
                    move_into_link_name_space(namespace.fd(), Some(LinkNameSpaceType::Network))?;
                    close_others(kept)?;
                    body(&mut steps)
                }));
                // When this fails, the test is gone and nobody asks.
                let _ = match result {
                    Ok(Ok(number)) => steps.say(DONE, number),
                    Ok(Err(error)) => match error.raw_os_error() {
                        Some(errno) => steps.say(ERRNO, u64::from(errno.unsigned_abs())),
                        None => steps.fail(&error.to_string()),
                    },
                    Err(_) => steps.fail("it panicked"),
                };
                // SAFETY: ends the child without running what the test process registered for its own end.
                unsafe { libc::_exit(0) }
            }
            pid => {
                let pid = Pid::from_raw(pid).expect("a process id");
                Self { pid, channel, ended: false }
            }
        }
    }

    /// Waits until the child is at its next step, and returns the number that it tells.
    pub(crate) fn step(&mut self) -> u64 {
        match self.hear() {
            Ok((STEP, number)) => number,
            Ok((kind, number)) => panic!("a step was expected of the probe; it ended: {kind} {number}"),
            Err(outcome) => panic!("a step was expected of the probe; it {outcome:?}"),
        }
    }

    /// Lets the child go on.
    pub(crate) fn go_on(&mut self) {
        self.channel.write_all(&[0]).expect("the probe waits");
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Outcome {
        match self.hear() {
            Ok((DONE, number)) => Outcome::Done(number),
            Ok((ERRNO, number)) => Outcome::Errno(i32::try_from(number).expect("an error number")),
            Ok((STEP, _)) => panic!("the probe's end was expected; it waits at a step"),
            Ok((_, length)) => {
                let mut why = String::new();
                let _ = (&self.channel).take(length).read_to_string(&mut why);
                eprintln!("the probe failed: {why}");
                Outcome::Failed
            }
            Err(outcome) => outcome,
        }
    }

    /// Readable when the child has something to say.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The child's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn hear(&mut self) -> Result<(u8, u64), Outcome> {
        let mut message = [0; 9];
        self.channel.set_read_timeout(Some(unhurried(PATIENCE))).expect("a timeout");
        let result = self.channel.read_exact(&mut message);
        match result.as_ref().map_err(io::Error::kind) {
            Ok(()) => {
                self.ended = message[0] != STEP;
                let [kind, number @ ..] = message;
                Ok((kind, u64::from_ne_bytes(number)))
            }
            Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(Outcome::Hangs),
            Err(_) => Err(Outcome::Failed),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Its sockets must be closed when the next probe starts, so its end is waited for.
        if !self.ended {
            let _ = kill_process(self.pid, Signal::KILL);
        }
        let deadline = Instant::now() + unhurried(PATIENCE);
        while let Ok(None) = waitpid(Some(self.pid), WaitOptions::NOHANG) {
            if Instant::now() > deadline {
                let _ = kill_process(self.pid, Signal::KILL);
            }
            std::thread::yield_now();
        }
    }
}

/// Closes what the child has of other tests that run in the same process: their ends of file would wait
/// for it.
fn close_others(kept: RawFd) -> io::Result<()> {
    let kept = kept.unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        // SAFETY: closes descriptors by number; everything that owns one is never used in the child.
        if first <= last && unsafe { libc::close_range(first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
