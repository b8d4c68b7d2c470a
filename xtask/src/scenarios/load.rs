//! Many of one thing. `cargo xtask soak` does more of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{A, POLICY, Scenario, Tell, get, status};
use crate::{
    endurance::Probes,
    machine::{Machine, wait},
};

/// Scenarios in which one thing is done very often.
pub(super) const LOAD: &[Scenario] = &[
    Scenario {
        title: "a million denied connections: counted exactly, logged within limits, the daemon idle",
        run: flood,
    },
    Scenario {
        title: "restarts with reloads in between leak nothing and deny nothing wrongly",
        run: restarts,
    },
    Scenario { title: "starts and stops leave nothing behind", run: starts },
];

const ATTEMPTS: u64 = 1_000_000;

fn flood(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    let mut with_flood: Value = serde_json::from_str(&policy)?;
    with_flood["instances"]["flood"] = json!({ "units": ["opencode-flood.service"] });
    machine.write(POLICY, &with_flood.to_string())?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let unit = format!(
        "[Service]\nType=oneshot\nExecStartPre=+/usr/bin/opencode-egress attach flood\n\
         ExecStart=/usr/local/bin/xtask probe flood 192.0.2.30 {ATTEMPTS}\n"
    );
    machine.write("/run/systemd/system/opencode-flood.service", &unit)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;

    let (begin, before) = (Instant::now(), processor_time(machine)?);
    machine.succeed(&["systemctl", "start", "--no-block", "opencode-flood"])?;
    let counted = |machine: &Machine| {
        status(machine).ok()?["instances"]["flood"]["counters"]["denied_packets"].as_u64()
    };
    wait("the flood", || counted(machine).filter(|count| *count > 0))?;
    // A destination that `a` never tried before.
    let refused = Instant::now();
    let other = get(machine, A, "192.0.2.30:8099/from-a")?;
    ensure!(other.contains("refused"), "{other}");
    let line = ["journalctl", "-t", "opencode-a-blocked", "EGRESS_DPORT=8099", "--no-pager", "-o", "cat"];
    wait("the other instance's line", || {
        machine.run(&line).ok().filter(|lines| lines.contains("dport=8099"))
    })?;
    let (logged, still) = (refused.elapsed(), counted(machine).context("no counter")?);
    ensure!(still < ATTEMPTS, "the flood was over before the other instance was refused");
    ensure!(logged < Duration::from_secs(2), "the other instance's line came after {logged:?}");
    wait("the end of the flood", || {
        let state = machine.run(&["systemctl", "is-active", "opencode-flood"]).ok()?;
        matches!(state.trim(), "inactive" | "failed").then_some(())
    })?;
    let (took, used) = (begin.elapsed().as_secs_f64(), processor_time(machine)? - before);

    let result = machine.succeed(&["systemctl", "show", "-P", "Result", "opencode-flood"])?;
    ensure!(result.trim() == "success", "the flood ended with {result}");
    let counted = counted(machine).context("no counter")?;
    ensure!(counted == ATTEMPTS, "{counted} of {ATTEMPTS} are counted");
    ensure!(used < 0.05 * took, "the daemon used {used:.2} s of {took:.2}");
    let lines =
        machine.succeed(&["journalctl", "-t", "opencode-flood-blocked", "--no-pager", "-o", "cat"])?;
    // The default limits: a burst of 20 and 5 a second, and a summary every 10 seconds.
    let most = 20.0 + 6.0 * (took + 1.0);
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let logged = lines.lines().count() as f64;
    ensure!(logged <= most, "{logged} lines in {took:.1} s");
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"]).map(drop)
}

/// What the daemon has used of a processor, in seconds.
pub(super) fn processor_time(machine: &Machine) -> Result<f64> {
    let nanoseconds = machine.succeed(&["systemctl", "show", "-P", "CPUUsageNSec", "opencode-egress"])?;
    Ok(nanoseconds.trim().parse::<f64>()? / 1e9)
}

fn restarts(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    Probes::install(machine)?.restarts(15)
}

fn starts(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    Probes::install(machine)?.starts(50)
}
