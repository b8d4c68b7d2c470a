//! What a daemon keeps outside itself: pins where root alone may write, a copy of the policy for each such place, and numbers
//! for the instances that there are.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{A, POLICY, Scenario, Tell, get, status};
use crate::{
    machine::{Machine, wait},
    pins,
};

/// Where it keeps what.
pub(super) const PLACES: &[Scenario] = &[
    Scenario {
        title: "pins are refused where others than root may write, with the way to mend it",
        run: others_may_write,
    },
    Scenario {
        title: "a trial daemon beside the first one does not change what that goes on with",
        run: trial,
    },
    Scenario {
        title: "a copy of the policy from before its name said whose it is is taken over once",
        run: copy_for_all,
    },
    Scenario { title: "instances come and go, and their numbers with them", run: numbers },
];

const DAEMON: [&str; 4] = ["timeout", "5", "opencode-egress", "run"];
/// The copy of what was applied last.
pub(super) const COPY: &str = r"/run/opencode-egress/last-applied-sys-fs-bpf-opencode\x2degress.json";
const COPY_FOR_ALL: &str = "/run/opencode-egress/last-applied.json";
/// The name in the policy file, after the rule before it.
const NAME_RULE: &str = ", \"provider.example.org:80\"";

fn others_may_write(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let tried = |mend: &str| -> Result<()> {
        let said = machine.fail(&DAEMON)?;
        ensure!(said.contains(mend), "no `{mend}` in {said}");
        // It does what it says.
        machine.succeed(&["sh", "-c", mend]).map(drop)
    };
    // As `mount -t bpf bpf /sys/fs/bpf` makes it.
    machine.succeed(&["chmod", "1777", "/sys/fs/bpf"])?;
    tried("chmod 700 /sys/fs/bpf")?;
    // What somebody made while it was open.
    let planted = &pins::own("links/opencode-a,service/77");
    machine.succeed(&["mkdir", "-p", planted])?;
    machine.succeed(&["chown", "65534", planted])?;
    tried(&format!("rm -r {planted}"))?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    wait("both to be confined", || {
        let status = machine.succeed(&["opencode-egress", "status"]).ok()?;
        (status.matches("1/1 confined").count() == 2).then_some(())
    })
}

/// The policy file with an error, and the daemon that goes on with its copy. The file as it was is put back.
fn restart_with_bad_file(machine: &Machine, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.10/24"))?;
    let tried = machine.run(&["systemctl", "restart", "opencode-egress"]).and_then(|_| check());
    machine.write(POLICY, &policy)?;
    tried
}

fn trial(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let machine = &*machine;
    let policy = machine.read(POLICY)?;
    machine.write("/run/try.json", &policy.replace("192.0.2.10/32", "0.0.0.0/0"))?;
    let own = "--config /run/try.json --pins /sys/fs/bpf/try --socket /run/opencode-egress/try.sock";
    machine.succeed(&[
        "sh",
        "-c",
        &format!("opencode-egress run {own} > /run/try.log 2>&1 & echo $! > /run/try.pid"),
    ])?;
    wait("the trial daemon", || {
        machine.succeed(&["opencode-egress", "status", "--socket", "/run/opencode-egress/try.sock"]).ok()
    })?;
    machine.succeed(&["sh", "-c", "kill $(cat /run/try.pid)"])?;
    wait("its end", || machine.fail(&["sh", "-c", "kill -0 $(cat /run/try.pid)"]).ok())?;
    machine.succeed(&["rm", "-r", "/sys/fs/bpf/try"])?;
    restart_with_bad_file(machine, || {
        let status = machine.succeed(&["opencode-egress", "status"])?;
        ensure!(status.contains("! the last reload was not applied"), "{status}");
        ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "the trial's policy is in force");
        ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "another policy is in force");
        Ok(())
    })?;
    machine.succeed(&["opencode-egress", "reload"]).map(drop)
}

/// The daemons that had one copy for all knew no names, so the policy has none meanwhile.
fn copy_for_all(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let machine = &*machine;
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace(NAME_RULE, ""))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let tried = taken_over(machine);
    machine.write(POLICY, &policy)?;
    machine.run(&["systemctl", "restart", "opencode-egress"])?;
    tried
}

fn taken_over(machine: &Machine) -> Result<()> {
    let policy = machine.read(POLICY)?;
    ensure!(!policy.contains("example.org"), "{policy}");
    // Another daemon's: the same names, and more is allowed.
    machine.succeed(&["rm", COPY])?;
    machine.write(
        COPY_FOR_ALL,
        &policy
            .replace("192.0.2.10/32", "0.0.0.0/0")
            .replace("\"protocol\": \"tcp\", \"ports\": [\"80\"]", "\"protocol\": \"any\""),
    )?;
    restart_with_bad_file(machine, || {
        ensure!(status(machine).is_err(), "another daemon's policy is in force: {}", status(machine)?);
        ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "without a daemon this passes");
        Ok(())
    })?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.write(COPY_FOR_ALL, &policy)?;
    restart_with_bad_file(machine, || {
        let status = machine.succeed(&["opencode-egress", "status"])?;
        ensure!(status.contains("! the last reload was not applied"), "{status}");
        machine.succeed(&["test", "-e", COPY])?;
        machine.fail(&["test", "-e", COPY_FOR_ALL]).map(drop)
    })
}

fn numbers(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = machine.read(POLICY)?;
    let result = come_and_go(machine, &before);
    machine.write(POLICY, &before)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["systemctl", "reset-failed"])?;
    result
}

/// As many instances as there are numbers for beside those of the machine.
const MOST: usize = 2045;

fn come_and_go(machine: &Machine, before: &str) -> Result<()> {
    let unit = "[Service]\nType=oneshot\nExecStartPre=+/usr/bin/opencode-egress attach %i\nExecStart=/bin/bash -c 'echo x > /dev/udp/192.0.2.30/9 || true'\n";
    machine.write("/run/systemd/system/named@.service", unit)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    let apply = |prefix: &str, count: usize| -> Result<String> {
        let mut policy: Value = serde_json::from_str(before)?;
        for number in 0..count {
            let name = format!("{prefix}{number}");
            policy["instances"][&name] = json!({ "units": [format!("named@{name}.service")] });
        }
        machine.write(POLICY, &policy.to_string())?;
        machine.run(&["opencode-egress", "reload"])
    };
    let counted = |name: &str| -> Result<u64> {
        let status = status(machine)?;
        let denied = &status["instances"][name]["counters"]["denied_packets"];
        denied.as_u64().with_context(|| format!("no counters of {name}"))
    };
    for prefix in ["first-", "second-", "third-"] {
        let said = apply(prefix, MOST)?;
        ensure!(
            said.contains(&format!("+ {prefix}7: unit named@{prefix}7.service")),
            "{}",
            said.lines().next().unwrap_or_default()
        );
        for number in [0, 7, MOST - 1] {
            let name = format!("{prefix}{number}");
            ensure!(counted(&name)? == 0, "{name} has what another was denied");
            machine.succeed(&["systemctl", "start", &format!("named@{name}")])?;
            ensure!(counted(&name)? == 1, "{name} was denied once");
            let suggested = machine.succeed(&["opencode-egress", "suggest", &name])?;
            ensure!(suggested.matches("192.0.2.30/32").count() == 1, "{suggested}");
        }
    }
    // One too many takes none, and says so.
    let said = apply("third-", MOST + 1)?;
    ensure!(said.contains("is one too many: there is room for 2047"), "{said}");
    apply("fourth-", 1)?;
    ensure!(counted("fourth-0")? == 0, "fourth-0 has what another was denied");
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    ensure!(counted("fourth-0")? == 0, "fourth-0 has what another was denied, says the next daemon");
    Ok(())
}
