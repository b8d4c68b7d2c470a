//! Signals that `exec` passes on to its command.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use anyhow::{Context as _, Result};
use libc::c_int;
use rustix::process::{Signal, pidfd_send_signal};

/// Signals that somebody sends to a process to have it end, or to tell it something, and that would end this one and leave
/// its command alone.
const PASSED_ON: [c_int; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGTERM];

/// Those signals, blocked and read from a descriptor: so no handler of this process is in the command before its program
/// runs, and none is lost before there is a command.
pub(super) struct Signals {
    came: OwnedFd,
    blocked_before: libc::sigset_t,
}

impl Signals {
    /// Takes them from now on, in this thread and in threads and processes that it starts.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn take() -> Result<Self> {
        let mut set = mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first call makes the one set, the third the other; with good numbers none of them fails.
        let (fd, blocked_before) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in PASSED_ON {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            (fd, before.assume_init())
        };
        if fd == -1 {
            return Err(io::Error::last_os_error()).context("cannot wait for signals");
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        Ok(Self { came: unsafe { OwnedFd::from_raw_fd(fd) }, blocked_before })
    }

    /// What makes a process that this one starts get its signals again: to be called there.
    pub(super) fn release(&self) -> impl Fn() + Send + Sync + use<> {
        let blocked = self.blocked_before;
        move || {
            // SAFETY: a system call on a set of signals that the kernel gave.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const blocked, ptr::null_mut()) };
        }
    }

    /// Passes on to a process what came.
    pub(super) fn pass_on(&self, process: &impl AsFd) {
        while let Some(signal) = self.next() {
            // A process that ended by now needs none.
            let _ = pidfd_send_signal(process, signal);
        }
    }

    /// The next that is not the command's own already: the terminal sends an interrupt to all of its foreground.
    fn next(&self) -> Option<Signal> {
        loop {
            let mut info = mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the kernel writes at most that many bytes there.
            let read = unsafe { libc::read(self.came.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(read) != Ok(size) {
                return None;
            }
            // SAFETY: it is numbers, all of which the kernel wrote.
            let info = unsafe { info.assume_init() };
            let signal = c_int::try_from(info.ssi_signo).ok().and_then(Signal::from_named_raw)?;
            let by_terminal = info.ssi_code == libc::SI_KERNEL;
            if !(by_terminal && matches!(signal, Signal::INT | Signal::QUIT)) {
                return Some(signal);
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }
}
