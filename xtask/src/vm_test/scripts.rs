//! The scenarios of `vm-tests/scenarios`: Python scripts against the calls of the NixOS test driver, of which `driver.py`
//! has as many as they take. Each boots a machine with what the module made of a host in `vm-tests/hosts`.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    daemon,
    machine::Machine,
    process::{apt_install, ensure as ensure_program, root},
    render,
    vm_test::verification,
};

use super::script::{Outcome, Script, outcome, totals};

/// Runs the scenarios with one of `names` in theirs, or all; then also writes docs/verification.md.
pub(super) fn run(names: &[String]) -> Result<()> {
    if let Some(why) = Machine::impossible() {
        bail!("no scenario can run: {why}");
    }
    render::check()?;
    ensure_program("the scenarios", &[("python3", "python3")])?;
    apt_install("the second lock", &["nftables"])?;
    apt_install("a database on a Unix socket", &["postgresql"])?;
    // Of what is there now: whoever edits something from here on is to run all again.
    let hash = verification::hash()?;
    let binary = daemon::build()?;
    let all = Script::all()?;
    let mut results = vec![];
    let begin_all = Instant::now();
    for script in &all {
        if !names.is_empty() && !names.iter().any(|name| script.name().contains(name)) {
            continue;
        }
        let begin = Instant::now();
        let outcome = run_one(script, &binary)?;
        let word = match outcome {
            Outcome::Passed(_) => "ok     ",
            Outcome::Skipped(_) => "SKIPPED",
            Outcome::Failed => "FAILED ",
        };
        println!("{word} {:5.1} s  {}: {}", begin.elapsed().as_secs_f32(), script.name(), script.title);
        results.push((script, outcome));
    }
    ensure!(!results.is_empty(), "no scenario has {names:?} in its name");
    let took = begin_all.elapsed();
    if names.is_empty() {
        verification::write(&results, took, &hash)?;
    }
    let failed = results.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed)).count();
    let minutes = took.as_secs_f32() / 60.;
    println!("{}, in {minutes:.1} minutes", totals(results.iter().map(|(_, outcome)| outcome)));
    if failed > 0 { bail!("{failed} of {} scenarios failed", results.len()) } else { Ok(()) }
}

fn run_one(script: &Script, binary: &Path) -> Result<Outcome> {
    let mut python = Command::new("python3");
    // Nothing is left beside the scripts.
    python.arg("-B").arg(root().join("vm-tests/driver.py")).arg(std::env::current_exe()?);
    python.arg(render::directory().join(&script.host)).arg(binary).arg(&script.path);
    python.arg(script.limit().as_secs().to_string());
    let output =
        python.current_dir(root()).stderr(Stdio::inherit()).output().context("cannot run python3")?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    outcome(output.status.code(), &said)
}
