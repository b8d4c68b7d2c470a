//! Who is at the other end of a connection to the control socket.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
    process::{PidfdFlags, pidfd_open},
};

use crate::cgroups::{CgroupError, Hierarchy, unit_of};

/// A process that connected.
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// The process.
    pub pid: u32,
    /// The user who logged in for it (`/proc/PID/loginuid`, pam_loginuid(8)); `None`: nobody, or the kernel does not say.
    pub login_uid: Option<u32>,
    /// Its cgroup, relative to the hierarchy.
    pub cgroup: Result<PathBuf, CallerError>,
}

/// Why a caller's cgroup is not known.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// It went away.
    #[error("process {pid}, which asks, is gone")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// It could not be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Caller {
    /// Finds out who connected. To be asked as soon as the connection is accepted: another process may get the number of one
    /// that ends. Since Linux 6.5 the kernel remembers the process itself (`SO_PEERPIDFD`), and its number is believed only
    /// while that one is there; before, a process that ended between connecting and being accepted may be taken for
    /// another.
    ///
    /// # Errors
    ///
    /// When the kernel does not say who it is.
    pub fn of(stream: &impl AsFd, hierarchy: &Hierarchy) -> io::Result<Self> {
        let credentials = socket_peercred(stream)?;
        let pid = credentials.pid.as_raw_nonzero().get().cast_unsigned();
        let process = match peer_pidfd(stream) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                pidfd_open(credentials.pid, PidfdFlags::empty()).map_err(io::Error::from)
            }
            process => process,
        };
        let cgroup = hierarchy.of_process(pid);
        let login_uid = login_uid(pid);
        let cgroup = match process {
            // Looked at after the number was used.
            Ok(process) if is_there(&process) => cgroup.map_err(CallerError::from),
            _ => Err(CallerError::Gone { pid }),
        };
        let login_uid = login_uid.filter(|_| cgroup.is_ok());
        Ok(Self { uid: credentials.uid.as_raw(), pid, login_uid, cgroup })
    }

    /// Its unit's name, or its number where it is of no unit or gone.
    pub fn name(&self) -> String {
        let unit = self.cgroup.as_ref().ok().and_then(|path| unit_of(path));
        unit.map_or_else(|| format!("process {}", self.pid), |(unit, _)| unit.to_string())
    }
}

fn login_uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

/// The process that connected, as a descriptor (unix(7)).
fn peer_pidfd(stream: &impl AsFd) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let socket = stream.as_fd().as_raw_fd();
    // SAFETY: the value is as long as `len` says, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERPIDFD, (&raw mut pidfd).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for the call.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// A process' descriptor is readable when it has ended (pidfd_open(2)).
fn is_there(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::{UnixListener, UnixStream},
        process::Command,
    };

    use super::*;

    #[test]
    fn a_caller_that_ended_is_nobody() {
        let hierarchy = Hierarchy::find().expect("a cgroup hierarchy");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a listener");
        let _own = UnixStream::connect(&path).expect("a connection");
        let caller = Caller::of(&listener.accept().expect("it").0, &hierarchy).expect("a caller");
        assert_eq!(caller.pid, std::process::id());
        let own = hierarchy.of_process(caller.pid).expect("the test's cgroup");
        assert_eq!(caller.cgroup.expect("its cgroup"), own);
        // Its connection waits to be accepted for longer than it is there.
        let connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let status = Command::new("python3").args(["-c", connect]).arg(&path).status().expect("python3");
        assert!(status.success());
        let caller = Caller::of(&listener.accept().expect("it").0, &hierarchy).expect("a caller");
        assert!(matches!(caller.cgroup, Err(CallerError::Gone { .. })), "{:?}", caller.cgroup);
    }
}
