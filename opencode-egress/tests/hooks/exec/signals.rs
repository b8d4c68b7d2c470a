//! What becomes of the command when `exec` is sent a signal, and of what the command leaves behind.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{exec, said};

/// The process of this id.
fn pid(id: u32) -> Pid {
    i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Starts a script and reads the first line that it prints.
fn start(script: &str) -> (Child, String) {
    let mut command = exec("192.0.2.0/24", script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("opencode-egress runs");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
    (child, line.trim().to_owned())
}

/// Waits until the process is no shell any more, which would do with signals and descriptors what it likes.
fn wait_for_sleep(id: &str) {
    let name = format!("/proc/{id}/comm");
    while fs::read_to_string(&name).expect("the process' name").trim() != "sleep" {
        std::thread::yield_now();
    }
}

const SIGNALS: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::TERM];

#[test]
fn exec_passes_signals_on() {
    for signal in SIGNALS {
        let number = signal.as_raw();
        let (child, _) =
            start(&format!("trap 'exit {}' {number}; echo $$; while :; do read -t 0.1; done", 40 + number));
        kill_process(pid(child.id()), signal).expect("it is sent");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(40 + number), "{signal:?}: {}", said(&output.stderr));
    }
}

#[test]
fn exec_ends_as_its_command_does() {
    for signal in SIGNALS {
        let (child, id) = start("echo $$; exec sleep 1000");
        let command = pid(id.parse().expect("a process id"));
        wait_for_sleep(&id);
        kill_process(pid(child.id()), signal).expect("it is sent");
        let output = child.wait_with_output().expect("it ends");
        let ended = output.status.code().or(output.status.signal().map(|signal| -signal));
        assert_eq!(ended, Some(128 + signal.as_raw()), "{signal:?}: {}", said(&output.stderr));
        assert!(test_kill_process(command).is_err(), "its command is still there after {signal:?}");
    }
}

/// A cgroup of the version 1 freezer, in which a process cannot be killed.
struct Freezer(PathBuf);

impl Freezer {
    fn create() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let is_freezer =
            |fields: &Vec<&str>| fields[2] == "cgroup" && fields[3].split(',').any(|o| o == "freezer");
        let place = Path::new(mounts.find(is_freezer)?[1]).join(format!("hooks-{}", std::process::id()));
        fs::create_dir(&place).expect("a cgroup of the freezer");
        Some(Self(place))
    }

    fn freeze(&self, process: &str) {
        fs::write(self.0.join("cgroup.procs"), process).expect("the process is moved");
        fs::write(self.0.join("freezer.state"), "FROZEN").expect("it is frozen");
        while fs::read_to_string(self.0.join("freezer.state")).expect("its state").trim() != "FROZEN" {
            std::thread::yield_now();
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        while fs::remove_dir(&self.0).is_err() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn exec_says_what_it_cannot_end() {
    let Some(freezer) = Freezer::create() else {
        eprintln!(
            "skipped: no hierarchy of the version 1 freezer, which makes a process that cannot be killed"
        );
        return;
    };
    let (mut child, id) = start("sleep 1000 > /dev/null 2>&1 & echo $!; read; exit 7");
    wait_for_sleep(&id);
    freezer.freeze(&id);
    let begin = Instant::now();
    child.stdin.take().expect("its input").write_all(b"\n").expect("the script goes on");
    let output = child.wait_with_output().expect("it ends");
    let stderr = said(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{stderr}");
    assert!(begin.elapsed() < Duration::from_secs(20), "it gives up after {:?}", begin.elapsed());
    let told = format!("cannot end what the command left running (process {id})");
    assert!(stderr.contains(&told), "{stderr}");
}
