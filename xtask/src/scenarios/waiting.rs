//! What the daemon does not wait for, or does without.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{POLICY, Scenario, Tell, daemon_log, load::processor_time, pinned, status};
use crate::{
    machine::{Machine, wait},
    pins,
};

/// What it does not wait for.
pub(super) const WAITING: &[Scenario] = &[
    Scenario {
        title: "sockets that somebody holds full are not waited for, and the daemon says whose place it cannot take",
        run: full_sockets,
    },
    Scenario {
        title: "a daemon without inotify goes on, says so, and looks every few seconds",
        run: no_inotify,
    },
    Scenario {
        title: "a million rules: in force within the memory that is promised, and asked for meanwhile, all are answered",
        run: million,
    },
];

/// Listens at a path and takes nobody, with the only place taken.
fn hold(machine: &Machine, path: &str) -> Result<()> {
    let script = format!(
        "import os, socket, time
s = socket.socket(socket.AF_UNIX); s.bind('{path}'); s.listen(0)
c = socket.socket(socket.AF_UNIX); c.connect('{path}')
if os.fork(): os._exit(0)
os.setsid()
for fd in (0, 1, 2): os.close(fd)
time.sleep(600)"
    );
    machine.succeed(&["python3", "-c", &script]).map(drop)
}

fn full_sockets(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["mkdir", "-p", "/run/held"])?;
    hold(machine, "/run/held/control.sock")?;
    let begin = Instant::now();
    let run = ["timeout", "20", "opencode-egress", "run", "--socket", "/run/held/control.sock"];
    let said = machine.fail(&run)?;
    ensure!(said.contains("/run/held/control.sock: another process listens there"), "{said}");
    ensure!(begin.elapsed() < Duration::from_secs(5), "it took {:?} to say so", begin.elapsed());
    // Metrics are no reason to end, nor to be late.
    hold(machine, "/run/opencode-egress/held.sock")?;
    let drop_in = "/etc/systemd/system/opencode-egress.service.d/metrics.conf";
    let before = machine.read(drop_in)?;
    machine.write(drop_in, &before.replace("127.0.0.1:9642", "/run/opencode-egress/held.sock"))?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    let restarted = machine.succeed(&["timeout", "20", "systemctl", "restart", "opencode-egress"]);
    let log = daemon_log(machine)?;
    machine.write(drop_in, &before)?;
    machine.succeed(&[
        "sh",
        "-c",
        "pkill -f '/run/[h]eld/control.sock'; pkill -f '/run/opencode-egress/[h]eld.sock'; true",
    ])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    restarted?;
    ensure!(log.contains("/run/opencode-egress/held.sock: another process listens there"), "{log}");
    Ok(())
}

fn no_inotify(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    const SAID: &str = "what comes and goes is found within seconds, not at once";
    let drop_in = "/etc/systemd/system/opencode-egress.service.d/no-inotify.conf";
    machine.write(drop_in, "[Service]\nSystemCallFilter=~inotify_init inotify_init1\n")?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    let said = || -> Result<usize> { Ok(daemon_log(machine)?.matches(SAID).count()) };
    let before = said()?;
    let tried = (|| -> Result<()> {
        machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
        let status = machine.succeed(&["opencode-egress", "status"])?;
        ensure!(status.contains(&format!("! {SAID}: cannot watch for units")), "{status}");
        let cgroup = pinned(machine, "opencode-b.service")?.join("");
        let link = pins::own(&format!("links/opencode-b,service/{cgroup}/egress"));
        machine.succeed(&["rm", &link])?;
        wait("the link to come back", || machine.succeed(&["test", "-e", &link]).ok())?;
        machine.succeed(&["systemctl", "restart", "opencode-b"])?;
        ensure!(said()? == before + 1, "it was said {} times", said()? - before);
        Ok(())
    })();
    machine.succeed(&["rm", drop_in])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    tried?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(!status.contains(SAID), "{status}");
    wait("b to answer", || super::healthy(machine.succeed(&super::health_request(super::B)))).map(drop)
}

/// A million rules with ports, in JSON; `first` makes them others.
fn rules(first: u8) -> String {
    let nets = (0..=u8::MAX).flat_map(|b| (0..=u8::MAX).map(move |c| (b, c)));
    let hosts = nets.flat_map(|(b, c)| (0..=u8::MAX).step_by(16).map(move |d| [first, b, c, d]));
    let rule = |[a, b, c, d]: [u8; 4]| {
        format!(r#"{{"cidr":"{a}.{b}.{c}.{d}/32","protocol":"tcp","ports":["443"]}}"#)
    };
    hosts.take(1_000_000).map(rule).collect::<Vec<_>>().join(",\n")
}

fn million(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = machine.read(POLICY)?;
    let policy = |first: u8| -> Result<String> {
        let mut policy: Value = serde_json::from_str(&before)?;
        policy["instances"]["million"] = json!({ "units": ["opencode-million.service"], "allow": ["RULES"] });
        Ok(policy.to_string().replace("\"RULES\"", &rules(first)))
    };
    machine.write(
        "/run/systemd/system/opencode-million.service",
        "[Service]\nType=oneshot\nExecStartPre=+/usr/bin/opencode-egress attach million --timeout 2\nExecStart=/bin/true\n",
    )?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    let tried = (|| -> Result<()> {
        machine.write(POLICY, &policy(11)?)?;
        machine.succeed(&["opencode-egress", "reload"])?;
        let before = processor_time(machine)?;
        let said = machine.succeed(&["opencode-egress", "reload"])?;
        let used = processor_time(machine)? - before;
        ensure!(said.trim() == "nothing changed", "{said}");
        ensure!(used < 1.0, "a reload that changes nothing took {used:.2} s of a processor");
        machine.write(POLICY, &policy(12)?)?;
        busy(machine)?;
        // A start takes as long as the rules take; a signal that comes meanwhile waits for its end.
        machine.succeed(&["systemctl", "restart", "--no-block", "opencode-egress"])?;
        let pid = || machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"]);
        let starting = || machine.succeed(&["systemctl", "show", "-P", "ActiveState", "opencode-egress"]);
        wait("it to start", || starting().ok().filter(|state| state.trim() == "activating"))?;
        wait("its socket", || machine.succeed(&["test", "-S", "/run/opencode-egress/control.sock"]).ok())?;
        let first = pid()?;
        machine.succeed(&["kill", "-HUP", first.trim()])?;
        machine.succeed(&["opencode-egress", "status"])?;
        ensure!(pid()? == first, "the signal ended it: {}", daemon_log(machine)?);
        Ok(())
    })();
    machine.write(POLICY, &before)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    tried
}

/// What asks while a million rules are compiled, three times over.
fn busy(machine: &Machine) -> Result<()> {
    let generation = || -> Result<u64> {
        status(machine)?["instances"]["million"]["generation"].as_u64().context("no generation")
    };
    let before = generation()?;
    let mut reloads = vec![];
    for _ in 0..3 {
        reloads.push(machine.command(&["opencode-egress", "reload"]).spawn()?);
    }
    let mut answered = 0;
    while generation()? == before {
        let begin = Instant::now();
        machine.succeed(&["opencode-egress", "status"])?;
        // Entering the machine takes most of it, and what else this machine does.
        ensure!(begin.elapsed() < Duration::from_secs(2), "status took {:?}", begin.elapsed());
        machine.succeed(&["systemctl", "start", "opencode-million"])?;
        answered += 1;
    }
    for reload in &mut reloads {
        ensure!(reload.wait()?.success(), "a reload failed");
    }
    ensure!(answered > 0, "the rules were in force before anybody asked");
    ensure!(generation()? == before + 1, "the policy was put in force {} times", generation()? - before);
    let pid = machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
    let memory = machine.read(&format!("/proc/{}/status", pid.trim()))?;
    let most = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let most: u64 = most.trim_end_matches("kB").trim().parse()?;
    ensure!(most < 300 * 1024, "it took {most} KiB");
    Ok(())
}
