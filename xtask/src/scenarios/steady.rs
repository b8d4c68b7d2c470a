//! A destination that is denied steadily, of which `status` and `top` tell.
//!
//! That takes ten minutes. The daemon's wall clock alone is set forward between the tries, by libfaketime; its timers go on as they do, and so
//! does everything else on the machine.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{A, POLICY, Scenario, Tell, health_request, healthy, status, top::Terminal};
use crate::machine::{Machine, wait};

/// The scenario.
pub(super) const STEADY: &[Scenario] = &[Scenario {
    title: "what is denied steadily is told by status and top: the rule that is missing, how often, since when, and who",
    run: told,
}];

/// What the scenario takes on the machine, beside the rest: a Debian package.
pub(crate) const CLOCK: &str = "libfaketime";
const DROP_IN: &str = "/run/systemd/system/opencode-egress.service.d/clock.conf";
/// How far the daemon's clock is ahead.
const AHEAD: &str = "/run/clock";

/// An agent's client of two providers that the list lacks. It never gives up.
const CLIENT: &str = r#"
import socket, time
while True:
    for to in [("missing.example.org", 443), ("192.0.2.20", 8383)]:
        try:
            socket.create_connection(to)
        except OSError:
            pass
    time.sleep(0.2)
"#;
const RULES: [&str; 2] = ["192.0.2.20/32:8383/tcp", "missing.example.org"];

fn told(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    let result = under_clock(machine, &policy);
    machine.run(&["pkill", "-x", "-f", "python3 /run/retry.py"])?;
    machine.run(&["rm", DROP_IN])?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    result
}

fn under_clock(machine: &Machine, policy: &str) -> Result<()> {
    // A line for each second, so that each of the times has one soon.
    let mut often: Value = serde_json::from_str(policy)?;
    often["log"] = json!({ "interval_secs": 1, "burst": 1000, "per_sec": 1000 });
    machine.write(POLICY, &often.to_string())?;
    let library = machine.succeed(&["sh", "-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"])?;
    machine.succeed(&["mkdir", "-p", "/run/systemd/system/opencode-egress.service.d"])?;
    machine.write(
        DROP_IN,
        &format!(
            "[Service]\nEnvironment=LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={AHEAD} FAKETIME_NO_CACHE=1\n\
             Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1\n",
            library.trim()
        ),
    )?;
    machine.write(AHEAD, "+0")?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    machine.succeed(&["systemctl", "start", "opencode-a"])?;
    wait("a to answer", || healthy(machine.succeed(&health_request(A))))?;
    let now = || machine.succeed(&["date", "+%s"])?.trim().parse::<u64>().context("date");
    let began = now()?;
    machine.write("/run/retry.py", CLIENT)?;
    let said =
        machine.opencode_shell(A, "setsid -f python3 /run/retry.py > /tmp/retried 2>&1; echo begun")?;
    ensure!(said.contains("begun"), "{said}");
    for time in 0..5 {
        ensure!(steady(machine, "a")?.is_empty(), "after {time} times: {:?}", steady(machine, "a")?);
        // Written in one step: the daemon reads it whenever it looks at the clock.
        machine.write("/run/clock.new", &format!("+{}", 150 * time))?;
        machine.succeed(&["mv", "/run/clock.new", AHEAD])?;
        wait("lines of this time", || denied_since(machine, began + 150 * time).ok()?.then_some(()))
            .with_context(|| {
                machine
                    .run(&["sh", "-c", "opencode-egress events a; cat /tmp/retried; pgrep -af retry"])
                    .unwrap_or_default()
            })?;
    }
    let told = wait("what is denied steadily", || {
        steady(machine, "a").ok().filter(|told| told.len() == RULES.len())
    })?;
    let text = machine.succeed(&["opencode-egress", "status"])?;
    for (denial, rule) in told.iter().zip(RULES) {
        // Of who asked for a name `/proc` has more, where process numbers are those of the kernel's programs; here they are a namespace's.
        let who = [&denial["who"][0]["name"], &denial["processes"][0]];
        ensure!(denial["rule"] == rule && who.iter().any(|name| **name == "python3"), "{denial}");
        let number = |key: &str| denial[key].as_u64().unwrap_or_default();
        let first = number("first");
        ensure!((began..=now()?).contains(&first), "it began between {began} and now: {denial}");
        ensure!(number("times") == 5 && number("attempts") >= 5, "{denial}");
        ensure!((600..700).contains(&(number("last") - first)), "{denial}");
        let since = machine.succeed(&["date", &format!("-d@{first}"), "+%Y-%m-%dT%H:%M:%S%:z"])?;
        let (begins, ends) = (
            format!("! a: `{rule}` is denied steadily, "),
            format!(" times since {}, by python3; add \"{rule}\" to `allow` if it should pass", since.trim()),
        );
        ensure!(text.lines().any(|line| line.starts_with(&begins) && line.ends_with(&ends)), "{text}");
    }
    ensure!(steady(machine, "b")?.is_empty(), "{:?}", steady(machine, "b")?);
    // At 80 columns, too.
    let terminal = Terminal::open(machine, "opencode-egress top")?;
    terminal.heighten()?;
    let screen = terminal.shows("by python3; add \"missing.example.org\"")?;
    ensure!(
        RULES.iter().all(|rule| screen.contains(&format!("! a: `{rule}` is denied steadily, "))),
        "{screen}"
    );
    drop(terminal);
    // Once it has ended, that is told for an hour.
    machine.succeed(&["pkill", "-x", "-f", "python3 /run/retry.py"])?;
    machine.write(AHEAD, "+3900")?;
    ensure!(steady(machine, "a")?.len() == RULES.len(), "{:?}", steady(machine, "a")?);
    machine.write(AHEAD, "+4500")?;
    ensure!(steady(machine, "a")?.is_empty(), "{:?}", steady(machine, "a")?);
    Ok(())
}

/// What `status --json` says is denied steadily to an instance, in the order of the rules.
fn steady(machine: &Machine, name: &str) -> Result<Vec<Value>> {
    let mut steady = status(machine)?["instances"][name]["steady"].as_array().cloned().unwrap_or_default();
    steady.sort_by_key(|denial| denial["rule"].to_string());
    Ok(steady)
}

/// Whether there is a line of each of the two since a second.
fn denied_since(machine: &Machine, second: u64) -> Result<bool> {
    let lines = machine.succeed(&["opencode-egress", "events", "a", "--json"])?;
    let lines = lines.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let since = |line: &&Value| line["time"].as_u64() >= Some(second);
    let (mut flow, mut question) = (false, false);
    for line in lines.iter().filter(since) {
        flow |= line["dport"] == 8383;
        question |= line["query"] == "missing.example.org";
    }
    Ok(flow && question)
}
