//! An instance that talks to itself: real suites under a list that has nothing, beside a neighbour and a service of the host's.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{B, POLICY, Scenario, Tell, health_request, healthy};
use crate::{
    machine::{Machine, wait},
    suites::{Suite, others},
};

/// What it may, and what stays closed.
pub(super) const LOOPBACK: &[Scenario] = &[Scenario {
    title: "real test suites and a language server talk to themselves under an empty list, and to nobody else",
    run: suites,
}];

/// The neighbour's server, which the machine runs, and one of the host's.
const OTHERS: [u16; 2] = [8788, 9009];

/// Where the unit is.
const SUITES: &str = "/run/systemd/system/suites.service";
/// A suite that cannot talk to itself may wait for ever.
const UNIT: &str = "[Service]
Type=oneshot
TimeoutStartSec=40
WorkingDirectory=/tmp/suites
Environment=HOME=/tmp/suites
ExecStartPre=+/usr/bin/opencode-egress attach suites
ExecStart=/bin/sh /run/suite.sh
";

fn suites(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    let result = run(machine, &policy, tell);
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    result
}

fn run(machine: &Machine, policy: &str, tell: Tell<'_>) -> Result<()> {
    let apply = |loopback: &str| -> Result<()> {
        let mut policy: Value = serde_json::from_str(policy)?;
        policy["instances"]["suites"] = json!({ "units": ["suites.service"], "loopback": loopback });
        machine.write(POLICY, &policy.to_string())?;
        machine.succeed(&["opencode-egress", "reload"]).map(drop)
    };
    let start = |script: &str| {
        machine.write("/run/suite.sh", script)?;
        machine.succeed(&["sh", "-c", "rm -rf /tmp/suites && mkdir /tmp/suites"])?;
        machine.run(&["sh", "-c", "systemctl start suites 2>&1 || journalctl -u suites --no-pager -o cat"])
    };
    machine.write(SUITES, UNIT)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemd-run", "-q", "--unit=host-service", "python3", "-m", "http.server", "9009"])?;
    wait("the host's service", || machine.succeed(&["curl", "-sf", "http://127.0.0.1:9009/"]).ok())?;
    wait("the neighbour's server", || healthy(machine.succeed(&health_request(B))))?;
    apply("own")?;
    let closed = others(&OTHERS);
    let mut there = vec![];
    for suite in Suite::light() {
        match suite.prepare() {
            Ok(()) => there.push(suite),
            Err(why) => tell(&format!("SKIPPED: {}: {why:#}", suite.title)),
        }
    }
    for suite in &there {
        // In a shell of its own, which may change its directory.
        let said = start(&format!("set -e\n( {} )\n{closed}\n", suite.command()))?;
        ensure!(said.is_empty(), "{} fails:\n{said}", suite.title);
    }
    // What is its own needs no rule, so none is suggested.
    let suggested = machine.succeed(&["opencode-egress", "suggest", "suites"])?;
    let ports = format!("127.0.0.1/32:{},{}/tcp", OTHERS[0], OTHERS[1]);
    ensure!(there.is_empty() || suggested.contains(&ports), "no `{ports}` in {suggested}");
    ensure!(suggested.matches("127.0.0.1/32").count() <= 1, "more than others' ports: {suggested}");
    apply("listed")?;
    machine.succeed(&["sed", "-i", "s/TimeoutStartSec=.*/TimeoutStartSec=5/", SUITES])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    // Each suite asks the kernel for a port.
    let denied = || -> Result<BTreeSet<String>> {
        let log = machine.run(&["journalctl", "-t", "opencode-suites-blocked", "--no-pager", "-o", "cat"])?;
        let ports = log.lines().filter_map(|line| line.split_once(" dst=127.0.0.1 dport="));
        Ok(ports.filter_map(|(_, rest)| rest.split(' ').next()).map(str::to_owned).collect())
    };
    for suite in &there {
        let before = denied()?;
        let said = start(&suite.command())?;
        ensure!(!said.is_empty(), "{} works where loopback is on no list", suite.title);
        wait("a denial on loopback", || (!denied().ok()?.is_subset(&before)).then_some(()))
            .with_context(|| format!("{} fails for something else:\n{said}", suite.title))?;
    }
    machine.succeed(&["systemctl", "reset-failed"])?;
    machine.succeed(&["systemctl", "stop", "host-service"]).map(drop)
}
