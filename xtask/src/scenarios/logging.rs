//! The log: what becomes of denials when journald takes nothing, and when there are very many.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{POLICY, Scenario, Tell, daemon_log, status};
use crate::machine::{Machine, wait};

/// What the log bears.
pub(super) const LOGGING: &[Scenario] = &[
    Scenario {
        title: "journald stands still: the daemon answers, units start, and what the log lost is counted and told",
        run: journald_stops,
    },
    Scenario {
        title: "a flood with high limits costs another instance neither a line nor its start, and the daemon no memory",
        run: flood_with_high_limits,
    },
];

const LIMITS: (u64, u64) = (2000, 100_000);

/// Two instances beside those that the machine has, with limits that let nearly everything into the log: `noise`, whose unit
/// tries `attempts` times what it may not, and `quiet`, whose unit tries twenty places once.
struct Noise<'a> {
    machine: &'a Machine,
    before: String,
}

impl<'a> Noise<'a> {
    fn install(machine: &'a Machine, attempts: u64) -> Result<Self> {
        let before = machine.read(POLICY)?;
        let mut policy: Value = serde_json::from_str(&before)?;
        policy["log"] = json!({ "per_sec": LIMITS.0, "burst": LIMITS.1 });
        let tries = [
            ("noise", format!("/usr/local/bin/xtask probe flood 192.0.2.30 {attempts}")),
            (
                "quiet",
                "/bin/bash -c 'for p in {1..20}; do ! : < /dev/tcp/192.0.2.30/$p || exit 1; done'".to_owned(),
            ),
        ];
        for (name, command) in tries {
            policy["instances"][name] = json!({ "units": [format!("opencode-{name}.service")] });
            // Nothing of it is to wait for journald.
            let unit = format!(
                "[Service]\nType=oneshot\nStandardOutput=null\nStandardError=null\n\
                 ExecStartPre=+/usr/bin/opencode-egress attach {name}\nExecStart={command}\n"
            );
            machine.write(&format!("/run/systemd/system/opencode-{name}.service"), &unit)?;
        }
        machine.write(POLICY, &policy.to_string())?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        machine.succeed(&["opencode-egress", "reload"])?;
        Ok(Self { machine, before })
    }

    fn counters(&self, name: &str) -> Result<Value> {
        Ok(status(self.machine)?["instances"][name]["counters"].clone())
    }

    /// Waits until no line of an instance waits, and checks that each of its denials is in one count, and that the journal has
    /// as many lines as are counted.
    fn adds_up(&self, name: &str, denied: u64) -> Result<Value> {
        let counters = wait("the lines to be written", || {
            let counters = self.counters(name).ok()?;
            (sum(&counters).ok()? == denied && counters["waiting"] == 0).then_some(counters)
        });
        let counters =
            counters.with_context(|| format!("{name}: {:?}, of {denied} denials", self.counters(name)))?;
        ensure!(counters["denied_packets"] == denied, "{name}: {counters}");
        let lines = self.journal(name, "2da292e8965a49f690f448fafc95f50a")?;
        ensure!(counters["lines"] == lines.len(), "{name}: {} lines in the journal, {counters}", lines.len());
        let metric =
            format!("opencode_egress_log_lines_total{{opencode_instance=\"{name}\"}} {}", lines.len());
        let metrics = self.machine.succeed(&["opencode-egress", "metrics"])?;
        ensure!(metrics.contains(&metric), "there is no `{metric}` in\n{metrics}");
        Ok(counters)
    }

    /// An instance's lines of a kind.
    fn journal(&self, name: &str, id: &str) -> Result<Vec<String>> {
        let (name, id) = (format!("OPENCODE_INSTANCE={name}"), format!("MESSAGE_ID={id}"));
        let lines = self.machine.succeed(&["journalctl", "-q", "--no-pager", "-o", "cat", &name, &id])?;
        Ok(lines.lines().map(str::to_owned).collect())
    }

    fn remove(self) -> Result<()> {
        self.machine.write(POLICY, &self.before)?;
        self.machine.succeed(&["opencode-egress", "reload"]).map(drop)
    }
}

fn sum(counters: &Value) -> Result<u64> {
    let counts = ["lines", "folded", "limited", "lost"].map(|count| counters[count].as_u64());
    counts.into_iter().sum::<Option<u64>>().context("a count is missing")
}

/// How long `status` takes.
fn answer_time(machine: &Machine) -> Result<Duration> {
    let begin = Instant::now();
    machine.succeed(&["opencode-egress", "status"])?;
    Ok(begin.elapsed())
}

fn journald_stops(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    const ATTEMPTS: u64 = 30_000;
    let noise = Noise::install(machine, ATTEMPTS)?;
    let restarts = || machine.succeed(&["systemctl", "show", "-P", "NRestarts", "opencode-egress"]);
    let before = restarts()?;
    let journald = machine.succeed(&["systemctl", "show", "-P", "MainPID", "systemd-journald"])?;
    machine.succeed(&["kill", "-STOP", journald.trim()])?;
    // It goes on whatever becomes of this.
    let stopped = while_it_stops(&noise);
    machine.succeed(&["kill", "-CONT", journald.trim()])?;
    let shown = stopped?;
    ensure!(shown.contains("! the log has taken no line for "), "{shown}");
    let counters = noise.adds_up("noise", ATTEMPTS)?;
    let lost = counters["lost"].as_u64().context("no count")?;
    ensure!(lost > 0, "nothing was lost: {counters}");
    ensure!(noise.adds_up("quiet", 20)?["lines"] == 20, "lines of the quiet one are missing");
    wait("it to be told", || {
        let lines = noise.journal("noise", "471259d7e4c94873b2977a6f2613f6a6").ok()?;
        let told = lines.iter().filter_map(|line| line.split_once("lost=")?.1.trim().parse::<u64>().ok());
        (told.sum::<u64>() == lost).then_some(())
    })?;
    ensure!(restarts()? == before, "the daemon was restarted: {}", daemon_log(machine)?);
    // Nor does a daemon wait that starts or ends meanwhile.
    machine.succeed(&["kill", "-STOP", journald.trim()])?;
    let restarted = machine.succeed(&["timeout", "20", "systemctl", "restart", "opencode-egress"]);
    machine.succeed(&["kill", "-CONT", journald.trim()])?;
    restarted?;
    noise.remove()
}

fn while_it_stops(noise: &Noise<'_>) -> Result<String> {
    let Noise { machine, .. } = noise;
    machine.succeed(&["timeout", "20", "systemctl", "start", "opencode-noise", "opencode-quiet"])?;
    let begin = Instant::now();
    // Longer than the watchdog waits.
    while begin.elapsed() < Duration::from_secs(35) {
        let took = answer_time(machine)?;
        ensure!(took < Duration::from_secs(2), "status took {took:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    machine.succeed(&["opencode-egress", "status"])
}

fn flood_with_high_limits(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    const ATTEMPTS: u64 = 400_000;
    let noise = Noise::install(machine, ATTEMPTS)?;
    let daemon = machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
    let resident = || -> Result<u64> {
        let status = machine.read(&format!("/proc/{}/status", daemon.trim()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    };
    let counted = |name: &str| -> Result<u64> { sum(&noise.counters(name)?) };
    let (quiet_before, noise_before) = (counted("quiet")?, counted("noise")?);
    let before = resident()?;
    machine.succeed(&["systemctl", "start", "--no-block", "opencode-noise"])?;
    wait("the flood", || counted("noise").ok().filter(|count| *count > noise_before + 1000))?;
    let begin = Instant::now();
    machine.succeed(&["systemctl", "start", "opencode-quiet"])?;
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(5), "the quiet one's start took {took:?}");
    let mut rounds = 0;
    while machine.run(&["systemctl", "is-active", "opencode-noise"])?.trim() == "activating" {
        let took = answer_time(machine)?;
        ensure!(took < Duration::from_secs(2), "status took {took:?}");
        rounds += 1;
    }
    ensure!(rounds > 1, "the flood was over too soon");
    let after = resident()?;
    ensure!(
        after < before + 16 * 1024,
        "the daemon took {before} KiB before, {after} KiB at most in the flood"
    );
    ensure!(noise.adds_up("quiet", quiet_before + 20)?["lost"] == 0, "the quiet one lost lines");
    noise.adds_up("noise", noise_before + ATTEMPTS)?;
    noise.remove()
}
