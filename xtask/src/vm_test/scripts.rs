//! The scenarios of `vm-tests/scenarios`: Python scripts against the calls of the NixOS test driver, of which `driver.py`
//! has as many as they take. Each boots a machine with what the module made of a host in `vm-tests/hosts`.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use super::{
    roots::Root,
    script::{Column, Outcome, Script, outcome, totals},
};
use crate::{
    daemon,
    machine::Machine,
    process::{apt_install, ensure as ensure_program, root},
    render,
    vm_test::verification,
};

/// Runs the scenarios with one of `names` in theirs, or all, on each of `roots`, or on all. A run of all scenarios also writes
/// docs/verification.md, with a column for each root that it ran on.
pub(super) fn run(roots: &[Root], names: &[String]) -> Result<()> {
    if let Some(why) = Machine::impossible() {
        bail!("no scenario can run: {why}");
    }
    render::check()?;
    ensure_program("the scenarios", &[("python3", "python3"), ("sqlite3", "sqlite3")])?;
    apt_install("the second lock", &["nftables"])?;
    apt_install("what has the providers' keys, and a provider's certificate", &["nginx", "openssl"])?;
    apt_install("a database on a Unix socket", &["postgresql"])?;
    // Of what is there now: whoever edits something from here on is to run all again.
    let hash = verification::hash()?;
    let binary = daemon::build()?;
    let scripts = Script::chosen(names)?;
    let begin_all = Instant::now();
    let mut columns = vec![];
    for root in if roots.is_empty() { Root::value_variants() } else { roots } {
        let systemd = root.systemd()?;
        println!("on {systemd}");
        let lower = root.directory()?;
        let outcomes = scripts.iter().map(|script| run_one(script, &binary, lower.as_deref()));
        columns.push(Column { systemd, outcomes: outcomes.collect::<Result<_>>()? });
    }
    let took = begin_all.elapsed();
    if names.is_empty() {
        verification::write(&scripts, &columns, took, &hash)?;
    }
    let outcomes = || columns.iter().flat_map(|column| &column.outcomes);
    let failed = outcomes().filter(|outcome| matches!(outcome, Outcome::Failed)).count();
    println!("{}, in {:.1} minutes", totals(outcomes()), took.as_secs_f32() / 60.);
    if failed > 0 { bail!("{failed} of {} scenarios failed", outcomes().count()) } else { Ok(()) }
}

fn run_one(script: &Script, binary: &Path, lower: Option<&Path>) -> Result<Outcome> {
    let begin = Instant::now();
    let mut python = Command::new("python3");
    // Nothing is left beside the scripts.
    python.arg("-B").arg(root().join("vm-tests/driver.py")).arg(std::env::current_exe()?);
    python.arg(render::directory().join(&script.host)).arg(binary).arg(&script.path);
    python.arg(script.limit().as_secs().to_string()).args(lower);
    let output =
        python.current_dir(root()).stderr(Stdio::inherit()).output().context("cannot run python3")?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let outcome = outcome(output.status.code(), &said)?;
    script.tell(&outcome, begin);
    Ok(outcome)
}
