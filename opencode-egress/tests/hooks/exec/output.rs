//! Where what is refused is told: on lines of their own, though the command writes to the same place.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Command, Stdio},
};

use super::{exec, said};

/// Connects to what no rule lists, which is refused before anything leaves, and says nothing of it.
const REFUSED: &str = "(: > /dev/tcp/198.51.100.9/9) 2> /dev/null";

#[track_caller]
fn stderr_of(script: &str) -> Vec<String> {
    let output = exec("192.0.2.0/24", script).output().expect("opencode-egress runs");
    said(&output.stderr).lines().map(str::to_owned).collect()
}

#[track_caller]
fn is_told(line: &str) {
    assert!(line.starts_with("opencode-egress: denied: proto=tcp dst=198.51.100.9 dport=9 "), "{line}");
    assert!(line.contains(" suppressed=0 exe="), "{line}");
}

#[test]
fn exec_writes_no_line_into_its_commands() {
    let lines =
        stderr_of(&format!("printf 'the first half, ' >&2; {REFUSED}; sleep 0.2; echo the second >&2"));
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!(lines[0], "the first half, the second");
    is_told(&lines[1]);
    // What ends without ending its line.
    let lines = stderr_of(&format!("{REFUSED}; sleep 0.2; printf 'no end' >&2"));
    assert_eq!(lines[1..], ["no end"], "{lines:#?}");
    is_told(&lines[0]);
    let lines = stderr_of(&format!("printf 'no end' >&2; {REFUSED}"));
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!(lines[0], "no end");
    is_told(&lines[1]);
}

/// A line that is not ended for long, such as a question, does not keep what is refused from being told.
#[test]
fn exec_does_not_wait_for_the_end_of_a_line_for_ever() {
    let mut command = exec("192.0.2.0/24", &format!("printf 'Go on? ' >&2; {REFUSED}; read; echo yes >&2"));
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("opencode-egress runs");
    let mut stderr = child.stderr.take().expect("its stderr");
    let mut text = Vec::new();
    while !(text.ends_with(b"\n") && said(&text).contains(" suppressed=0 ")) {
        let mut byte = [0];
        stderr.read_exact(&mut byte).expect("the refusal, while the command waits");
        text.extend(byte);
    }
    drop(child.stdin.take());
    stderr.read_to_end(&mut text).expect("the rest");
    let text = said(&text);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[2]), (3, "Go on? ", "yes"), "{text}");
    is_told(lines[1]);
    child.wait().expect("it ends");
}

/// What goes to one place stays in its order, and whole.
#[test]
fn exec_keeps_the_order_of_its_commands_output() {
    let script = format!(
        "for i in {{1..200}}; do printf \"out $i \"; {REFUSED}; echo end; printf \"err $i \" >&2; echo end >&2; done"
    );
    let mut reader = Command::new("bash");
    reader.args(["-c", "exec \"$@\" 2>&1", "bash", env!("CARGO_BIN_EXE_opencode-egress")]);
    let output = reader
        .args(["exec", "--allow", "192.0.2.0/24", "--", "bash", "-c", &script])
        .output()
        .expect("opencode-egress runs");
    let stdout = said(&output.stdout);
    let (own, commands): (Vec<_>, Vec<_>) =
        stdout.lines().partition(|line| line.starts_with("opencode-egress: "));
    assert!(!own.is_empty(), "{stdout}");
    let expect: Vec<_> = (1..=200).flat_map(|i| [format!("out {i} end"), format!("err {i} end")]).collect();
    assert_eq!(commands, expect);
}

/// Signals are passed on also while nobody reads what the command writes.
#[test]
fn exec_waits_for_no_reader() {
    let mut command = exec("192.0.2.0/24", "echo $$; exec cat /dev/zero >&2");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("opencode-egress runs");
    let stderr = child.stderr.take().expect("its stderr");
    let mut command = String::new();
    BufReader::new(child.stdout.take().expect("its stdout"))
        .read_line(&mut command)
        .expect("its command's id");
    // The command waits for room in a pipe, and that is seen.
    let waits = format!("/proc/{}/wchan", command.trim());
    while !std::fs::read_to_string(&waits).expect("where it waits").contains("pipe_write") {
        std::thread::yield_now();
    }
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it is sent");
    while Path::new(&waits).exists() {
        std::thread::yield_now();
    }
    drop(stderr);
    assert_eq!(child.wait().expect("it ends").code(), Some(128 + libc::SIGTERM));
}

/// Whoever reads no more is noticed by the command, as without `exec`.
#[test]
fn exec_ends_its_commands_output_where_its_own_ends() {
    let mut command = exec("192.0.2.0/24", "trap '' PIPE; while echo >&2; do :; done; exit 9");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("opencode-egress runs");
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
}
