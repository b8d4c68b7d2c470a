//! The command `exec`, in a namespace of its own.

mod output;
mod seal;
mod signals;
mod syscalls;

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Command, Output},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::network::Namespace;

/// Runs a shell under a policy that allows one network. Signals do what they do by default, whatever the tests' own caller ignores (`nohup` does).
fn exec(allow: &str, script: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_opencode-egress")]);
    command.args(["exec", "--allow", allow, "--", "bash", "-c", script]);
    command
}

/// Runs one of this program's own tests, which are ignored otherwise, under a policy that allows nothing that is there.
fn exec_test(name: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opencode-egress"));
    command
        .args(["exec", "--allow", "192.0.2.0/24", "--"])
        .arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "--ignored", "--nocapture", name]).output().expect("opencode-egress runs")
}

/// Its command may end with any other status.
#[test]
fn exec_ends_with_125_where_it_fails_itself() {
    for arguments in
        [&["--allow", "10.0.0.1/8", "--", "true"][..], &["--", "no-such-program"], &["--no-such-option"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opencode-egress"));
        let output = command.arg("exec").args(arguments).output().expect("opencode-egress runs");
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {}", said(&output.stderr));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_opencode-egress"));
    assert!(command.args(["exec", "--help"]).output().expect("opencode-egress runs").status.success());
}

fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn exec_confines_its_command() {
    let place = Namespace::create(format!("hooks-{}-exec", std::process::id()));
    place.ip("link set lo up\n");
    let server = place.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a listener");
    let port = server.local_addr().expect("its address").port();
    server.set_nonblocking(true).expect("an accept that does not wait");
    let connect = |allow: &str| -> Output {
        let script = format!(": > /dev/tcp/127.0.0.1/{port} && exit 7");
        place.enter(|| exec(allow, &script).output()).expect("opencode-egress runs")
    };
    let allowed = connect("127.0.0.0/8");
    assert_eq!(
        allowed.status.code(),
        Some(7),
        "the command's status is passed on: {}",
        said(&allowed.stderr)
    );
    server.accept().expect("what is allowed arrives");
    let refused = connect("192.0.2.0/24");
    assert_eq!(refused.status.code(), Some(1), "what bash ends with: {}", said(&refused.stderr));
    assert_eq!(server.accept().expect_err("LEAK").kind(), io::ErrorKind::WouldBlock);
    let told = format!(
        "opencode-egress: denied: proto=tcp dst=127.0.0.1 dport={port} hook=connect4 reason=not-allowed pid="
    );
    let stderr = said(&refused.stderr);
    assert!(stderr.lines().any(|line| line.starts_with(&told) && line.contains("comm=bash")), "{stderr}");
}

/// More denials than have lines by default.
#[test]
fn exec_keeps_to_the_log_limits_of_its_policy_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("policy.json");
    let tell = |log: &str| {
        let text = format!(
            r#"{{"version":1,"log":{log},"instances":{{"client":{{"units":["client.service"],"allow":["api.example.org"]}}}}}}"#
        );
        fs::write(&file, text).expect("a policy file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_opencode-egress"));
        command.arg("exec").arg("--policy").arg(&file).args(["--instance", "client", "--", "bash", "-c"]);
        // Flows, and questions.
        command.arg(
            "for n in {1..40}; do : > /dev/tcp/192.0.2.$n/80; getent hosts $n.example.net; done 2> /dev/null",
        );
        let output = command.output().expect("opencode-egress runs");
        let stderr = said(&output.stderr);
        let lines = |what: &str| {
            stderr
                .lines()
                .filter(|line| line.starts_with("opencode-egress: denied: ") && line.contains(what))
                .count()
        };
        [lines(" dst=192.0.2."), lines("query=")]
    };
    let [flows, questions] = tell(r#"{"burst":1000,"per_sec":1000}"#);
    assert_eq!(flows, 40);
    assert!(questions >= 40, "{questions}");
    let [flows, questions] = tell(r#"{"burst":2,"per_sec":1}"#);
    assert!((1..20).contains(&flows) && (1..20).contains(&questions), "{flows} {questions}");
}

/// A socket that this process was given is judged as its maker's, so the command must not have it.
#[test]
fn exec_gives_its_command_no_descriptors() {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    for number in [60, 1060] {
        let mut command = exec("192.0.2.0/24", &format!("[ ! -e /proc/self/fd/{number} ]"));
        let socket = socket.as_raw_fd();
        let most = getrlimit(Resource::Nofile).maximum;
        // SAFETY: between fork and exec only system calls.
        unsafe {
            command.pre_exec(move || {
                setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
                if libc::dup2(socket, number) == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let output = command.output().expect("opencode-egress runs");
        assert!(output.status.success(), "descriptor {number} is passed on: {}", said(&output.stderr));
    }
}
