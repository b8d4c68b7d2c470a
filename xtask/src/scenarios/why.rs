//! What a confined process may ask: what it may reach, and what was refused to it.

use anyhow::{Result, ensure};

use super::{A, B, Scenario, Tell, get};
use crate::machine::Machine;

/// Scenarios of who is told why.
pub(super) const WHY: &[Scenario] = &[
    Scenario {
        title: "an agent asks why: it is told of its own instance, without any privilege, and of no other",
        run: told,
    },
    Scenario { title: "whoever is of no instance is told so, root too", run: of_nobody },
    Scenario { title: "an answer is about who connected, whoever has the connection", run: handed_on },
    Scenario { title: "many who ask why and do not read keep nobody from an answer", run: flood },
];

fn told(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    ensure!(get(machine, A, "192.0.2.20/why-a")?.contains("refused"), "it is denied");
    ensure!(get(machine, A, "192.0.2.10:8181/why-a")?.contains("refused"), "it is denied");
    let said = machine.opencode_shell(A, "opencode-egress why")?;
    for part in ["instance a: ", "ask for `192.0.2.20/32:80/tcp`", "ask for `192.0.2.10/32:8181/tcp`"] {
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    let said = machine.opencode_shell(B, "opencode-egress why --json")?;
    ensure!(said.contains("\"instance\": \"b\""), "{said}");
    ensure!(!said.contains("8181") && !said.contains("\"a\""), "of a, too: {said}");
    // The other sockets stay closed to it.
    let said = machine.opencode_shell(A, "opencode-egress status 2>&1 || echo failed")?;
    ensure!(said.contains("only root may ask") && said.contains("failed"), "{said}");
    Ok(())
}

fn of_nobody(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    for words in [
        &["opencode-egress", "why"][..],
        &["setpriv", "--reuid", "65534", "--clear-groups", "opencode-egress", "why"],
    ] {
        let said = machine.fail(words)?;
        ensure!(said.contains("is of no confined unit") && said.contains("`events` and `explain`"), "{said}");
    }
    let said =
        machine.run(&["sh", "-c", "opencode-egress exec -- opencode-egress why 2>&1; echo status $?"])?;
    ensure!(said.contains("runs under `opencode-egress exec`") && said.contains("status 1"), "{said}");
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let said = machine.opencode_shell(A, "opencode-egress why 2>&1 || echo failed");
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let said = said?;
    ensure!(said.contains("stays refused meanwhile") && said.contains("failed"), "{said}");
    Ok(())
}

/// Connects in one instance's cgroup, and reads in another's.
const HANDED: &str = r#"
import json, os, socket

def enter(name):
    with open(f"/sys/fs/cgroup/system.slice/opencode-{name}.service/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect("/run/opencode-egress/why.sock")
    return s

def about(s):
    return json.loads(s.makefile().readline())["why"]["instance"]

ours, theirs = socket.socketpair()
if os.fork() == 0:
    enter("b")
    message, [fd], _, _ = socket.recv_fds(theirs, 1, 1)
    print(about(socket.socket(fileno=fd)), about(connect()), flush=True)
    os._exit(0)
enter("a")
s = connect()
socket.send_fds(ours, [b"x"], [s.fileno()])
os.wait()
"#;

fn handed_on(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let said = machine.succeed(&["python3", "-c", HANDED])?;
    ensure!(said.trim() == "a b", "{said}");
    Ok(())
}

/// Connects as often as it can from one instance, reads nothing, and has another one ask meanwhile.
const FLOOD: &str = r#"
import os, socket, subprocess, time

def enter(name):
    with open(f"/sys/fs/cgroup/system.slice/opencode-{name}.service/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))

children = []
for _ in range(20):
    pid = os.fork()
    if pid:
        children.append(pid)
        continue
    enter("a")
    kept = []
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect("/run/opencode-egress/why.sock")
            s.sendall(b"x" * 4096)
            kept = kept[-500:] + [s]
        except OSError:
            pass
try:
    time.sleep(1)
    enter("b")
    slowest, answers = 0, set()
    for _ in range(5):
        began = time.monotonic()
        answers.add(subprocess.run(["opencode-egress", "why"], capture_output=True, text=True).stdout.split(":")[0])
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.3)
finally:
    for pid in children:
        os.kill(pid, 9)
print(sorted(answers), "in time" if slowest < 3 else f"after {slowest:.1f} s")
"#;

fn flood(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let said = machine.succeed(&["python3", "-c", FLOOD])?;
    ensure!(said.trim() == "['instance b'] in time", "{said}");
    // And who asks too often is told so, not left to wait.
    let often = "seq 20 | xargs -I{} opencode-egress why 2>&1; true";
    let said = machine.opencode_shell(A, often)?;
    ensure!(said.contains("instance `a` has asked too often; wait a second"), "{said}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("confined"), "{status}");
    Ok(())
}
