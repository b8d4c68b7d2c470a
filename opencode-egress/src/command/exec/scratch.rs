//! The cgroup that `exec` makes for its command.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};

use crate::{
    cgroups::{Cgroup, Hierarchy, process},
    report::caller::Caller,
};

/// Beginning of the names of the cgroups that `exec` makes.
const CGROUP_PREFIX: &str = "opencode-egress-exec-";

/// Who a process of the command's is, by `/proc`.
pub(super) fn caller(pid: u32) -> Caller {
    let Ok(hierarchy) = Hierarchy::find() else { return Caller::default() };
    let name = format!("{CGROUP_PREFIX}{}", std::process::id());
    let own = |path: &&Path| path.file_name().is_some_and(|last| *last == *name);
    process::caller(&hierarchy, pid, |path| path.ancestors().find(own).map(Path::to_owned))
}

/// How long killed processes may take to end. One that hangs in the kernel never does.
const PATIENCE: Duration = Duration::from_secs(2);

/// A cgroup below this process' own, so that what limits this process limits the command.
pub(super) struct Scratch(pub(super) Cgroup);

impl Scratch {
    pub(super) fn create() -> Result<Self> {
        let hierarchy = Hierarchy::find()?;
        let own = hierarchy.of_process(std::process::id())?;
        remove_leftovers(&hierarchy, &own);
        let name = format!("{CGROUP_PREFIX}{}", std::process::id());
        Ok(Self(hierarchy.create(&own.join(name))?))
    }

    /// Ends what the command left running: nobody would report what is refused to it. Returns the processes that
    /// are still there.
    pub(super) fn kill(&self) -> Vec<u32> {
        let deadline = Instant::now() + PATIENCE;
        while self.0.is_populated() && Instant::now() < deadline {
            // Before Linux 5.14 there is no such file, and what a process starts meanwhile is killed in the next turn.
            if fs::write(self.0.path().join("cgroup.kill"), "1").is_err() {
                for pid in
                    self.0.processes().iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
                {
                    // It may be gone by now, which is what this wants.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            self.wait_for_a_change();
        }
        if self.0.is_populated() { self.0.processes() } else { vec![] }
    }

    /// Waits until the last process ends, or a moment.
    fn wait_for_a_change(&self) {
        let Ok(events) = File::open(self.0.path().join("cgroup.events")) else { return };
        // The kernel wakes its pollers when the file's text changes, since it was read.
        let _ = std::io::read_to_string(&events);
        if self.0.is_populated() {
            let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&moment));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Processes that are still there keep it, and stay confined in it.
        let _ = self.0.remove();
    }
}

/// Whether this process is in a cgroup that `exec` made, or below one.
pub(in crate::command) fn is_confined_by_exec() -> bool {
    let own = Hierarchy::find().and_then(|hierarchy| hierarchy.of_process(std::process::id()));
    let made = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(CGROUP_PREFIX));
    own.is_ok_and(|path| path.iter().any(made))
}

/// Cgroups of earlier runs that were killed, once nothing runs in them. One whose run is there may be about to be used.
fn remove_leftovers(hierarchy: &Hierarchy, own: &Path) {
    for entry in fs::read_dir(hierarchy.mount().join(own)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(CGROUP_PREFIX));
        // This process' id may have been another's.
        let is_gone =
            |pid: &str| pid == std::process::id().to_string() || !Path::new("/proc").join(pid).exists();
        if maker.is_some_and(is_gone)
            && let Ok(cgroup) = hierarchy.open(&own.join(&name))
            && !cgroup.is_populated()
        {
            let _ = cgroup.remove();
        }
    }
}
