//! What the command may not write, so that the kernel runs no program for it outside of its cgroup.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::UnshareFlags,
};

use super::{exec, said};

/// Everything in these that somebody may write, but for what belongs to a process.
const WRITABLE: &str = r#"
for place in "$@"; do
    for entry in "$place"/[!0-9]*; do
        [ -L "$entry" ] || find "$entry" -type f -perm /222 -writable
    done
done 2>/dev/null"#;

/// As paths of `/proc` are named by others.
const OTHER_PROC: &str = "another proc\\";

/// Runs the command in a mount namespace that has one more `proc`.
fn with_another_proc(command: &mut Command, directory: &Path) {
    let place = directory.join(OTHER_PROC);
    fs::create_dir(&place).expect("a directory");
    // SAFETY: between fork and exec only system calls; the path was made before.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)?;
            mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            Ok(mount(c"proc", &place, c"proc", MountFlags::empty(), c"")?)
        });
    }
}

fn writable(mut command: Command, places: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    with_another_proc(&mut command, directory.path());
    let other = directory.path().join(OTHER_PROC);
    let output = command.args(["bash"]).args(places).arg(other).output().expect("it runs");
    assert!(output.stdout.is_ascii(), "{}", said(&output.stderr));
    said(&output.stdout)
}

#[test]
fn exec_lets_its_command_steer_no_kernel() {
    let places = ["/proc", "/sys"];
    let mut outside = Command::new("bash");
    outside.args(["-c", WRITABLE]);
    let outside = writable(outside, &places);
    for steering in ["/proc/sys/kernel/core_pattern", "/proc/irq/", "/sys/"] {
        assert!(outside.contains(steering), "{steering} is there to be written: {outside}");
    }
    assert!(outside.contains(&format!("{OTHER_PROC}/sys/kernel/core_pattern")));
    assert_eq!(writable(exec("192.0.2.0/24", WRITABLE), &places), "");
}

/// A process' own files are its own.
#[test]
fn exec_leaves_its_command_its_own_files_of_proc() {
    let script = "echo 10 > /proc/self/oom_score_adj && cat /proc/self/oom_score_adj";
    let output = exec("192.0.2.0/24", script).output().expect("opencode-egress runs");
    assert_eq!(said(&output.stdout), "10\n", "{}", said(&output.stderr));
}

/// Also from a directory that was entered before it was sealed.
#[test]
fn exec_seals_where_its_command_is() {
    let write = ": >> core_pattern && echo written; [ $PWD = /proc/sys/kernel ]";
    let mut command = exec("192.0.2.0/24", write);
    let output = command.current_dir("/proc/sys/kernel").output().expect("opencode-egress runs");
    assert_eq!(said(&output.stdout), "", "written by a relative path");
    assert!(output.status.success(), "{}", said(&output.stderr));
}
