//! Limits of systemd's that a cgroup reaches, as the kernel counts them.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use opencode_egress::cgroups::{Cgroup, Hierarchy, limits::Limit};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Where the kernel has its pids controller: in the unified hierarchy, or in one of its own, where it counts the same.
fn with_pids(hierarchy: &Hierarchy) -> Option<PathBuf> {
    let mount = hierarchy.mount();
    let unified = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    if unified.split_whitespace().any(|name| name == "pids") {
        fs::write(mount.join("cgroup.subtree_control"), "+pids").expect("cgroups have the controller");
        return Some(mount.to_owned());
    }
    let own = Path::new("/sys/fs/cgroup/pids");
    own.join("cgroup.procs").exists().then(|| own.to_owned())
}

/// Whether a process in the cgroup gets another one.
fn forks(cgroup: &Cgroup) -> bool {
    let mut entrance = cgroup.entrance().expect("the cgroup is there");
    // SAFETY: the child has this thread alone, takes no lock that another thread may have held, and leaves by _exit.
    let child = match unsafe { libc::fork() } {
        -1 => panic!("cannot fork: {}", io::Error::last_os_error()),
        0 => {
            // "0" is the process that writes it.
            let moved = entrance.write_all(b"0").is_ok();
            // SAFETY: whichever of the two this is, it ends without running what the test process registered for its own end.
            unsafe {
                let forked = libc::fork();
                libc::_exit(if !moved { 2 } else { i32::from(forked == -1) })
            }
        }
        child => Pid::from_raw(child).expect("a process id"),
    };
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).expect("it is ours").expect("it ended");
    match status.exit_status() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("the process is not in the cgroup: {other:?}"),
    }
}

#[test]
fn processes_that_are_refused_are_counted() {
    let hierarchy = Hierarchy::find().expect("a hierarchy");
    let Some(mount) = with_pids(&hierarchy) else {
        return eprintln!("skipped: no pids controller in this kernel");
    };
    let name = format!("opencode-egress-limits-{}", std::process::id());
    let cgroup = hierarchy.create(&mount.join(name)).expect("a cgroup");
    let reached = || cgroup.reached().get(&Limit::Tasks).copied();
    fs::write(cgroup.path().join("pids.max"), "2").expect("a limit");
    assert!(forks(&cgroup));
    assert_eq!(reached(), Some(0));
    fs::write(cgroup.path().join("pids.max"), "1").expect("a limit");
    assert!(!forks(&cgroup));
    assert_eq!(reached(), Some(1));
    // Its second process may be yet to end.
    while cgroup.remove().is_err() {
        std::thread::yield_now();
    }
}
