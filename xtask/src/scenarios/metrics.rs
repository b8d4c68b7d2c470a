//! What the daemon says to Prometheus, as root, as a scraper, and as a confined agent.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    process::Command,
};

use anyhow::{Result, ensure};

use super::{A, Scenario, Tell, get};
use crate::{assets::promtool, machine::Machine};

/// Scenarios of what the metrics and the journal say.
pub(super) const METRICS: &[Scenario] = &[
    Scenario {
        title: "metrics are right, printed, in a file and over HTTP, and no agent reads them",
        run: metrics,
    },
    Scenario { title: "the journal finds lines by id, priority and unit", run: journal_fields },
];

fn metrics(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "this is not refused");
    let printed = machine.succeed(&["opencode-egress", "metrics"])?;
    for sample in [
        "opencode_egress_config_last_reload_successful 1",
        "opencode_egress_audit_mode{opencode_instance=\"a\"} 0",
        "opencode_egress_links_missing{opencode_instance=\"a\",unit=\"opencode-a.service\"} 0",
        "opencode_egress_unit_running{opencode_instance=\"a\",unit=\"opencode-a.service\"} 1",
        "opencode_egress_policy_rules{kind=\"allow\",opencode_instance=\"b\"} 2",
    ] {
        ensure!(printed.lines().any(|line| line == sample), "there is no `{sample}` in\n{printed}");
    }
    let denials = "opencode_egress_denials_total{opencode_instance=\"a\",reason=\"not-allowed\"} ";
    let count = printed.lines().find_map(|line| line.strip_prefix(denials));
    ensure!(count.is_some_and(|count| count != "0"), "no denial of a was counted:\n{printed}");
    check(&printed)?;

    let file = "/run/opencode_egress.prom";
    machine.succeed(&["opencode-egress", "metrics", "--textfile", file])?;
    ensure!(names(&machine.read(file)?) == names(&printed), "the textfile has other metrics");
    let mode = machine.succeed(&["stat", "-c", "%a", file])?;
    ensure!(mode.trim() == "644", "the textfile has mode {mode}");

    let page = machine.succeed(&["curl", "-sf", "http://127.0.0.1:9642/metrics"])?;
    ensure!(names(&page) == names(&printed), "over HTTP there are other metrics:\n{page}");
    let agent = get(machine, A, "127.0.0.1:9642/metrics")?;
    ensure!(agent.contains("refused"), "a confined agent reads the metrics: {agent}");
    Ok(())
}

/// Lines of the scenarios before are found by their ids, priorities and units.
fn journal_fields(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let by_id = |id: &str| format!("MESSAGE_ID={id}");
    let (denied, refused) =
        (by_id("2da292e8965a49f690f448fafc95f50a"), by_id("9d564aa252204d34814c6f3c11e594f6"));
    for (words, expected) in [
        (&["OPENCODE_INSTANCE=a", "EGRESS_MODE=enforce", &denied][..], "dst=192.0.2.20"),
        (&["-p", "err", &refused], "the running policy stays"),
        (
            &["-u", "opencode-b", "-p", "warning"],
            "links of opencode-b.service were gone, or the maps by which they judge: 1. ",
        ),
        (&["-u", "opencode-late"], "opencode-late.service did not ask to be confined"),
    ] {
        let lines = machine.succeed(&[&["journalctl", "--no-pager", "-o", "cat"], words].concat())?;
        ensure!(lines.contains(expected), "journalctl {words:?} does not say `{expected}`: {lines}");
    }
    Ok(())
}

fn names(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("# TYPE ")).collect()
}

/// Has promtool read an exposition.
fn check(text: &str) -> Result<()> {
    let path = crate::process::root().join("target/machine/metrics.txt");
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    let output = Command::new(promtool()?).args(["check", "metrics"]).stdin(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "promtool says: {said}");
    Ok(())
}
