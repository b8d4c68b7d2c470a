//! A list that writes itself: audit mode for a time, what was asked for meanwhile, and what another file would change.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{POLICY, Scenario, Tell},
    units::Units,
};
use crate::machine::{Machine, wait};

/// The way to a list.
pub(in crate::scenarios) const LEARN: &[Scenario] = &[Scenario {
    title: "learn: nothing is refused for a time, then the list is there, and what another file would change",
    run: learn,
}];

/// 192.0.2.30, by a name that nobody lists.
const OFF: &str = "v4-c000021e.off.example";
/// 192.0.2.40, by another one, which the server itself asks for.
const NEEDED: &str = "v4-c0000228.off.example";

fn learn(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    let egress = |words: &[&str]| units.machine.succeed(&[&["opencode-egress"], words].concat());
    units.apply(|instances| {
        instances["n"]["allow"] = json!(["api.example.org:80", "*.wild.example.net:80"]);
        instances["n"]["deny"] = json!(["192.0.2.10/32"]);
    })?;
    units.cannot("n", "opencode-egress learn n", "only root may ask the daemon at ")?;
    let said = egress(&["learn", "n", "--for", "5m", "--reason", "a day with it"])?;
    ensure!(said.contains("n: nothing is refused until ") && said.contains("suggest n --since=@"), "{said}");
    // Of a shell's process, and of the unit's own: a shell that has nothing else to do becomes what it runs.
    units.can("n", &format!("curl -sS -m 5 -4 http://{OFF}/x; true"))?;
    units.can("n", &format!("exec curl -sS -m 5 -4 http://{NEEDED}/x"))?;
    units.can("n", "curl -sS -m 5 -4 http://192.0.2.10/x")?;
    units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    let status = egress(&["status"])?;
    ensure!(status.contains("mode audit: what the policy denies is told, and passes until "), "{status}");
    // It is the daemon's, which starts again, and no part of the file.
    units.machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    egress(&["reload"])?;
    units.can("n", "curl -sS -m 5 -4 http://192.0.2.10/x")?;
    units.line("n", &["dst=192.0.2.30 dport=80 ", &format!("name={OFF} "), "mode=audit"])?;

    let said = egress(&["learn", "n", "--stop"])?;
    let since = said.split("--since=").nth(1).and_then(|since| since.split('`').next());
    let since = format!("--since={}", since.with_context(|| said.clone())?);
    let suggested = egress(&["suggest", "n", &since])?;
    let (needed, once) = suggested.split_once("Asked for once").context("nothing is set apart")?;
    ensure!(needed.contains(&format!("\"{NEEDED}:80\"")) && !needed.contains(OFF), "{suggested}");
    ensure!(once.contains(&format!("\"{OFF}:80\"")) && once.contains(", by curl of bash, "), "{suggested}");
    // Nor what a deny rule covers.
    let policy = format!("opencode-egress suggest n {since} --policy 2> /dev/null");
    let array: Value = serde_json::from_str(&units.machine.succeed(&["sh", "-c", &policy])?)?;
    ensure!(array == json!([format!("{NEEDED}:80")]), "{array}");
    told(&units, "lease revoked: audit mode")?;
    units.cannot("n", &format!("curl -sS -m 5 http://{OFF}/x"), "Could not resolve host")?;
    units.cannot("n", "curl -sS -m 5 http://192.0.2.10/x", "Couldn't connect")?;

    // What the file lacks that passed, and what it has that was refused.
    let against = |allow: &[&str]| -> Result<String> {
        let mut policy: Value = serde_json::from_str(&units.machine.read(POLICY)?)?;
        policy["instances"]["n"]["allow"] = json!(allow);
        units.machine.write("/run/names/new.json", &policy.to_string())?;
        let check = "opencode-egress check /run/names/new.json --against n; echo status $?";
        units.machine.succeed(&["sh", "-c", check])
    };
    let [off, needed] = [OFF, NEEDED].map(|name| format!("{name}:80"));
    let narrower = wait("the line of the listed name", || {
        let said = against(&["*.wild.example.net:80", &off, &needed]).ok()?;
        said.contains("api.example.org").then_some(said)
    })?;
    ensure!(
        narrower.contains("would refuse what passed:\n  api.example.org  name-not-allowed"),
        "{narrower}"
    );
    ensure!(narrower.trim_end().ends_with("status 3"), "{narrower}");
    let wider = against(&["*.wild.example.net:80", "api.example.org:80", &off, &needed])?;
    ensure!(wider.contains(&format!("would let pass what was refused:\n  {OFF}")), "{wider}");

    // What the file says by then is said by whatever ends it, and its end is no lease's.
    egress(&["learn", "n", "--for", "5m"])?;
    let reloaded = units.apply(|instances| instances["n"]["mode"] = json!("audit"))?;
    ensure!(reloaded.contains("+ n: mode audit"), "{reloaded}");
    let status = egress(&["status"])?;
    ensure!(!status.contains("learn n --stop"), "{status}");
    let said = egress(&["learn", "n", "--stop"])?;
    ensure!(said.contains("audit mode goes on") && !said.contains("enforced again"), "{said}");
    units.apply(|instances| {
        instances["n"]["allow"] = json!(["api.example.org:80", "*.wild.example.net:80"]);
        instances["n"]["deny"] = json!(["192.0.2.10/32"]);
    })?;
    units.cannot("n", "curl -sS -m 5 http://192.0.2.10/x", "Couldn't connect")?;

    // It ends by itself.
    egress(&["learn", "n", "--for", "2s"])?;
    told(&units, "lease ended: audit mode")?;
    units.cannot("n", "curl -sS -m 5 http://192.0.2.10/x", "Couldn't connect")
}

/// Waits for what the daemon tells of a lease, which says what to do next.
fn told(units: &Units<'_>, what: &str) -> Result<()> {
    let all = ["journalctl", "-q", "--no-pager", "-o", "cat", "-t", "opencode-egress", "OPENCODE_INSTANCE=n"];
    wait("the daemon's line", || {
        let lines = units.machine.run(&all).ok()?;
        lines
            .lines()
            .any(|line| line.contains(what) && line.contains("says what its policy lacks"))
            .then_some(())
    })
    .with_context(|| format!("{what} in {}", units.machine.run(&all).unwrap_or_default()))
}
