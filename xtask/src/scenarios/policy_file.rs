//! What becomes of instances when their policy file changes, is wrong, or only audits.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{A, B, POLICY, Scenario, Tell, get, pinned, status};
use crate::{
    machine::{Machine, wait},
    pins,
};

/// Scenarios of the policy file: what a good, a bad and a changed one does.
pub(super) const POLICY_FILE: &[Scenario] = &[
    Scenario {
        title: "a daemon that finds a file with an error goes on with what was applied last",
        run: start_with_bad_file,
    },
    Scenario {
        title: "an instance that the file has no more is denied everything, shown, and held until it stops",
        run: removed_instance,
    },
    Scenario { title: "audit reports in every line what would be denied, and lets it pass", run: audit },
    Scenario { title: "changed limits of the log are a change", run: log_limits },
];

/// Writes the policy file with a change in it, and applies it. Returns what it was before.
fn change(machine: &Machine, edit: impl FnOnce(&mut Value)) -> Result<(String, String)> {
    let before = machine.read(POLICY)?;
    let mut policy: Value = serde_json::from_str(&before)?;
    edit(&mut policy);
    machine.write(POLICY, &policy.to_string())?;
    Ok((before, machine.succeed(&["opencode-egress", "reload"])?))
}

fn restore(machine: &Machine, policy: &str) -> Result<()> {
    machine.write(POLICY, policy)?;
    machine.succeed(&["opencode-egress", "reload"]).map(drop)
}

fn start_with_bad_file(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.10/24"))?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(
        status.contains("! the last reload was not applied: /etc/opencode-egress/policy.json:6:27")
            && status.matches("1/1 confined").count() == 2,
        "{status}"
    );
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "another policy is in force");
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "another policy is in force");
    machine.succeed(&["systemctl", "restart", "opencode-b"])?;
    // Without what was applied last there is nothing to go on with. Stopped and started: it is not kept for a restart alone.
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let kept = super::places::COPY;
    machine.succeed(&["mv", kept, "/run/kept.json"])?;
    machine.fail(&["systemctl", "start", "opencode-egress"])?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "without a daemon this passes");
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["mv", "/run/kept.json", kept])?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    restore(machine, &policy)?;
    // Until its resolver is connected, that needs attention.
    let status = || machine.succeed(&["opencode-egress", "status"]);
    wait("a status without notices", || {
        status().ok().filter(|said| said.contains("nothing needs attention"))
    })
    .with_context(|| status().unwrap_or_default())?;
    wait("b to answer", || super::healthy(machine.succeed(&super::health_request(B)))).map(drop)
}

fn removed_instance(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let agent = "(exec 3<>/dev/tcp/192.0.2.20/80; cat <&3) > ~/connection 2>&1 & true";
    machine.opencode_shell(B, agent)?;
    let connected = || machine.succeed(&["sh", "-c", "ss -Htn dst 192.0.2.20:80 | grep -q ESTAB"]).ok();
    wait("the agent to connect", connected)?;
    let (before, _) = change(machine, |policy| {
        policy["instances"].as_object_mut().map(|instances| instances.remove("b"));
    })?;
    let told = "! b: opencode-b.service runs, and the policy file does not have this instance any more";
    let shown = || machine.succeed(&["opencode-egress", "status"]);
    let held = |when: &str| -> Result<()> {
        let status = shown()?;
        ensure!(status.contains(told), "{when}: {status}");
        let facts = &self::status(machine)?["instances"]["b"];
        ensure!(
            facts["removed"] == true && facts["units"][0]["links"] == facts["units"][0]["hooks"],
            "{when}: {facts}"
        );
        Ok(())
    };
    held("after the reload")?;
    wait("its connection to be reset", || (connected().is_none()).then_some(()))?;
    let explained = machine.succeed(&["opencode-egress", "explain", "b", "192.0.2.20:80"])?;
    ensure!(explained.contains("denied (no-policy)"), "{explained}");
    let metrics = machine.succeed(&["opencode-egress", "metrics"])?;
    ensure!(
        metrics.contains("links_missing{opencode_instance=\"b\",unit=\"opencode-b.service\"} 0"),
        "{metrics}"
    );
    // Nobody can let it go unseen.
    let said = machine.fail(&["opencode-egress", "detach", "b"])?;
    ensure!(said.contains("no instance `b` in /etc/opencode-egress/policy.json; it has: a"), "{said}");
    held("after an attempt to detach it")?;
    // A link that goes comes back, as of any other.
    let cgroup = pinned(machine, "opencode-b.service")?.join("");
    let link = pins::own(&format!("links/opencode-b,service/{cgroup}/connect4"));
    machine.succeed(&["rm", &link])?;
    wait("its link to come back", || machine.succeed(&["test", "-e", &link]).ok())?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    held("after a restart of the daemon")?;
    // It does not start again, and what is left of it goes with it.
    machine.fail(&["systemctl", "restart", "opencode-b"])?;
    let said = machine.succeed(&["journalctl", "-u", "opencode-b", "-n", "20", "--no-pager", "-o", "cat"])?;
    ensure!(said.contains("no instance `b` in /etc/opencode-egress/policy.json; it has: a"), "{said}");
    wait("it to be shown no more", || shown().ok().filter(|status| !status.contains("b: ")))?;
    restore(machine, &before)?;
    machine.succeed(&["systemctl", "start", "opencode-b"])?;
    wait("b to answer", || super::healthy(machine.succeed(&super::health_request(B))))?;
    ensure!(get(machine, B, "192.0.2.20/from-b")?.contains("reached"), "b cannot reach what it may");
    Ok(())
}

/// Lines of what is denied to `a`, or would be.
fn audit_lines(machine: &Machine) -> Result<String> {
    let place = ["EGRESS_DST=192.0.2.30", "EGRESS_DPORT=80"];
    let journal = ["journalctl", "-t", "opencode-a-blocked", "--no-pager", "-o", "cat"];
    machine.run(&[&journal[..], &place].concat())
}

fn audit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before_lines = audit_lines(machine)?.lines().count();
    let (before, _) = change(machine, |policy| policy["instances"]["a"]["mode"] = "audit".into())?;
    machine.witnessed()?;
    ensure!(get(machine, A, "192.0.2.30/from-a")?.contains("reached"), "audit refuses");
    ensure!(
        machine.witnessed()?.iter().any(|line| line.contains("> 192.0.2.30.80")),
        "the witness saw nothing of it"
    );
    let new = |machine: &Machine, wanted: usize| {
        wait("the lines", || {
            let lines: Vec<_> =
                audit_lines(machine).ok()?.lines().skip(before_lines).map(str::to_owned).collect();
            (lines.len() >= wanted).then_some(lines)
        })
    };
    let audited = new(machine, 1)?;
    ensure!(audited.iter().all(|line| line.ends_with("mode=audit")), "{audited:#?}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("! a: mode audit") && status.contains("(audit: it passed)"), "{status}");
    for (words, expected) in [
        (&["--nix"][..], "services.opencode.instances.a.networkIsolation.outboundAllow = ["),
        (&["--nix"], "; protocol = \"tcp\"; ports = [ \"80\" ]; } # "),
        (&["--max-prefix-v4", "32"], r#""192.0.2.30/32:80/tcp""#),
    ] {
        let suggested = machine.succeed(&[&["opencode-egress", "suggest", "a"], words].concat())?;
        ensure!(suggested.contains(expected), "{words:?}: {suggested}");
    }
    // What is refused from now on is told at once, and as such, although the same was told a moment ago.
    restore(machine, &before)?;
    ensure!(get(machine, A, "192.0.2.30/from-a")?.contains("refused"), "enforce lets pass");
    let told = new(machine, audited.len() + 1)?;
    ensure!(told.last().is_some_and(|line| !line.contains("mode=audit")), "{told:#?}");
    Ok(())
}

fn log_limits(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let (before, said) =
        change(machine, |policy| policy["log"] = serde_json::json!({ "interval_secs": 3, "burst": 7 }))?;
    ensure!(said.contains("+ log: interval_secs 3, burst 7, per_sec 5"), "{said}");
    restore(machine, &before)
}
