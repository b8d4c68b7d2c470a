//! What happens to units, links and the daemon over the years.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{A, B, POLICY, Scenario, TALK, Tell, daemon_log, get, health_request, healthy, pinned, status};
use crate::machine::{Machine, wait};

/// Scenarios of units, daemons and clients that come and go.
pub(super) const LIFECYCLE: &[Scenario] = &[
    Scenario { title: "the daemon has the least that it needs", run: hardened },
    Scenario { title: "there is room for `attach`, however many follow events", run: followers },
    Scenario { title: "top draws on a terminal until it is told to leave", run: top },
    Scenario {
        title: "a daemon that hangs is ended by the watchdog, and the next one takes over",
        run: watchdog,
    },
    Scenario {
        title: "what is denied while no daemon runs is logged by the next, and counting goes on",
        run: denied_meanwhile,
    },
    Scenario {
        title: "a unit without `attach` is confined when it starts, and reported",
        run: unit_without_attach,
    },
    Scenario { title: "a restarted unit is confined again, and its old links are gone", run: restart },
    Scenario {
        title: "a unit that runs before the daemon is confined late, and reported so",
        run: late_unit,
    },
    Scenario {
        title: "a connection that a reload denies is reset at once, not left hanging",
        run: open_connection_is_reset,
    },
];

fn hardened(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let security = ["systemd-analyze", "security", "--threshold=25", "--no-pager", "opencode-egress"];
    machine.succeed(&security)?;
    let pid = machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
    let process = machine.read(&format!("/proc/{}/status", pid.trim()))?;
    // CAP_NET_ADMIN (12), CAP_PERFMON (38), CAP_BPF (39).
    let bounds = format!("CapBnd:\t{:016x}", (1_u64 << 12) | (1 << 38) | (1 << 39));
    ensure!(process.contains(&bounds) && process.contains("NoNewPrivs:\t1"), "{process}");
    let inside = |script: &str| {
        machine
            .run(&["nsenter", "-t", pid.trim(), "-m", "sh", "-c", script])
            .map(|said| said.trim().to_owned())
    };
    let places = "/etc /var/lib /usr /run /sys/kernel/mm /proc/sys/kernel /dev/shm /home";
    let tried = inside(&format!("for d in {places}; do touch $d/x 2> /dev/null && echo $d; done"))?;
    ensure!(tried.is_empty(), "the daemon can write to {tried}");
    let tried = inside("touch /run/opencode-egress/x && rm /run/opencode-egress/x && echo written")?;
    ensure!(tried == "written", "the daemon cannot write where it must: {tried}");
    hardened_network(machine)
}

/// The unit as it is shipped; the machine's own has more, for the metrics.
const UNIT: &str = include_str!("../../../dist/opencode-egress.service");

fn hardened_network(machine: &Machine) -> Result<()> {
    // What IPAddressDeny= takes leaves the caller waiting.
    let connect = "/usr/bin/timeout 3 /bin/bash -c 'exec 3<>/dev/tcp/192.0.2.10/80'";
    let own = ["ExecStart=", "ExecReload=", "Type=", "Restart", "WatchdogSec=", "RuntimeDirectory"];
    let settings = |others: &[&str]| {
        let left_out = |line: &&str| !own.iter().chain(others).any(|start| line.starts_with(start));
        let settings: Vec<_> = UNIT.lines().filter(left_out).collect();
        settings.join("\n").replace("[Service]", &format!("[Service]\nType=oneshot\nExecStart={connect}"))
    };
    let try_with = |others: &[&str]| -> Result<String> {
        machine.write("/run/systemd/system/shipped.service", &settings(others))?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        machine.run(&["systemctl", "start", "shipped"])?;
        machine.succeed(&["systemctl", "show", "-P", "Result", "shipped"])
    };
    let (shipped, opened) = (try_with(&[])?, try_with(&["RestrictAddressFamilies=", "IPAddressDeny="])?);
    ensure!(
        shipped.trim() == "exit-code" && opened.trim() == "success",
        "a connection from the shipped unit: {shipped}; without its two settings about that: {opened}"
    );
    Ok(())
}

fn followers(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    // Nothing is denied to b meanwhile, so nothing is written to those that have gone. They are noticed all the same.
    let script = format!(
        "{TALK}
import subprocess, time

def follow():
    s = connect()
    s.sendall(b'{{\"events\": {{\"instance\": \"b\", \"follow\": true}}}}' + bytes([10]))
    s.settimeout(0.2)
    return s

def refused(s):
    try:
        while words := s.recv(65536):
            if b'clients follow events already' in words:
                return True
    except TimeoutError:
        pass
    return False

for _ in range(3):
    deadline = time.monotonic() + 20
    while refused(first := follow()):
        assert time.monotonic() < deadline, 'those that have gone keep their places'
    all = [first] + [follow() for _ in range(63)]
    subprocess.check_call(['opencode-egress', 'status'])
    assert refused(follow()), 'as many as like may follow'
    subprocess.check_call(['systemctl', 'restart', 'opencode-b'])
    for s in all:
        s.close()
"
    );
    machine.succeed(&["python3", "-c", &script])?;
    wait("b to answer", || healthy(machine.succeed(&health_request(B)))).map(drop)
}

fn top(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    // Types `q` when the table is there.
    let script = "import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 120, 0, 0))
    os.environ['TERM'] = 'xterm'
    os.execvp('opencode-egress', ['opencode-egress', 'top', '--interval', '1'])
seen, typed = b'', False
while True:
    try:
        seen += os.read(terminal, 65536)
    except OSError:
        break
    if b'INSTANCE' in seen and b'Denied' in seen and not typed:
        typed = os.write(terminal, b'q') > 0
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if typed else 'the table never came')
";
    machine.succeed(&["python3", "-c", script])?;
    let said = machine.fail(&["opencode-egress", "top"])?;
    ensure!(said.contains("top draws on a terminal, and stdout is none"), "{said}");
    Ok(())
}

fn watchdog(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let drop_in = "/run/systemd/system/opencode-egress.service.d";
    machine.succeed(&["mkdir", "-p", drop_in])?;
    machine.write(&format!("{drop_in}/watchdog.conf"), "[Service]\nWatchdogSec=3\n")?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    // For a moment longer than the watchdog waits it runs well.
    let restarts = || machine.succeed(&["systemctl", "show", "-P", "NRestarts", "opencode-egress"]);
    machine.succeed(&["systemctl", "kill", "-s", "STOP", "--kill-who=main", "opencode-egress"])?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "the daemon hangs and this passes");
    wait("the watchdog", || restarts().ok().filter(|count| count.trim() != "0"))?;
    wait("the daemon to answer", || status(machine).ok())?;
    let said = daemon_log(machine)?;
    ensure!(said.contains("Watchdog timeout"), "{said}");
    machine.succeed(&["rm", "-r", drop_in])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"]).map(drop)
}

fn denied_meanwhile(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let facts = |status: &serde_json::Value| {
        let a = &status["instances"]["a"];
        Some((a["generation"].as_u64()?, a["counters"]["denied_packets"].as_u64()?))
    };
    let (generation, denied) = facts(&status(machine)?).context("no counters")?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let reply = get(machine, A, "192.0.2.20:7777/from-a")?;
    ensure!(reply.contains("refused"), "no daemon runs and this passes: {reply}");
    let line = ["journalctl", "-t", "opencode-a-blocked", "EGRESS_DPORT=7777", "--no-pager", "-o", "cat"];
    ensure!(!machine.run(&line)?.contains("dport"), "somebody logged while no daemon ran");
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    wait("the line", || machine.run(&line).ok().filter(|lines| lines.contains("dst=192.0.2.20 dport=7777")))?;
    let now = facts(&status(machine)?).context("no counters")?;
    ensure!(now.0 > generation && now.1 == denied + 1, "{generation}, {denied} became {now:?}");
    Ok(())
}

fn unit_without_attach(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let unit =
        "[Service]\nExecStart=/bin/bash -c 'while sleep 0.01; do echo x > /dev/udp/192.0.2.10/9; done'\n";
    machine.write("/run/systemd/system/opencode-forgetful.service", unit)?;
    let policy = machine.read(POLICY)?;
    let listed = "\"opencode-b.service\", \"opencode-forgetful.service\"";
    machine.write(POLICY, &policy.replace("\"opencode-b.service\"", listed))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "start", "opencode-forgetful"])?;
    let begin = Instant::now();
    let line = ["journalctl", "-t", "opencode-b-blocked", "EGRESS_DPORT=9", "--no-pager", "-o", "cat"];
    wait("it to be confined", || machine.run(&line).ok().filter(|lines| lines.contains("dport=9")))?;
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(2), "it was confined after {took:?}");
    let report = "opencode-forgetful.service did not ask to be confined before it ran";
    wait("the report", || daemon_log(machine).ok().filter(|said| said.contains(report)))?;
    machine.succeed(&["systemctl", "stop", "opencode-forgetful"])?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"]).map(drop)
}

fn restart(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = pinned(machine, "opencode-b.service")?;
    machine.succeed(&["systemctl", "restart", "opencode-b"])?;
    // They go when the kernel has let go of the cgroup and its last socket.
    let after = || pinned(machine, "opencode-b.service");
    wait("the old links to go", || after().ok().filter(|after| after.len() == 1 && *after != before))
        .with_context(|| format!("links of {before:?} and then {:?} are pinned", after()))?;
    wait("b to answer", || healthy(machine.succeed(&health_request(B))))?;
    ensure!(get(machine, B, "192.0.2.20/from-b")?.contains("reached"), "b cannot reach what it may");
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "b reaches what it may not");
    Ok(())
}

fn late_unit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let unit =
        "[Service]\nExecStart=/bin/bash -c 'while sleep 0.1; do echo x > /dev/tcp/192.0.2.10/80; done'\n";
    machine.write("/run/systemd/system/opencode-late.service", unit)?;
    let policy = machine.read(POLICY)?;
    machine.write(
        POLICY,
        &policy.replace("\"opencode-b.service\"", "\"opencode-b.service\", \"opencode-late.service\""),
    )?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["systemctl", "start", "opencode-late"])?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    // Before the daemon was ready.
    let status = machine.succeed(&["opencode-egress", "status", "--json"])?;
    let facts: serde_json::Value = serde_json::from_str(&status)?;
    let mut units = facts["instances"]["b"]["units"].as_array().into_iter().flatten();
    let late = units.find(|unit| unit["unit"] == "opencode-late.service");
    ensure!(late.is_some_and(|late| late["links"] == late["hooks"]), "{status}");
    wait("the report", || {
        let status = machine.succeed(&["opencode-egress", "status"]).ok()?;
        status.contains("! b: opencode-late.service was running before it was confined").then_some(())
    })?;
    machine.succeed(&["systemctl", "stop", "opencode-late"])?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["systemctl", "start", "opencode-a", "opencode-b"])?;
    Ok(())
}

fn open_connection_is_reset(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    let agent = "(exec 3<>/dev/tcp/192.0.2.20/80; cat <&3) > ~/connection 2>&1 & true";
    machine.opencode_shell(B, agent)?;
    let connected = || machine.succeed(&["sh", "-c", "ss -Htn dst 192.0.2.20:80 | grep -q ESTAB"]).ok();
    wait("the agent to connect", connected)?;
    machine.write(POLICY, &policy.replace("192.0.2.20/32", "192.0.2.30/32"))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let said = machine.opencode_shell(B, "cat ~/connection")?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(said.contains("Software caused connection abort"), "the agent saw: {said}");
    Ok(())
}
