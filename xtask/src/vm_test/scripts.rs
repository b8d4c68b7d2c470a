//! The scenarios of `vm-tests/scenarios`: Python scripts against the calls of the NixOS test driver, of which `driver.py`
//! has as many as they take. Each boots a machine with what the module made of a host in `vm-tests/hosts`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    daemon,
    machine::Machine,
    process::{apt_install, ensure as ensure_program},
    render, root, verification,
};

/// One script.
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    /// The host that it runs on, or [`Script::NO_HOST`].
    pub(crate) host: String,
    /// The first line of what it says of itself.
    pub(crate) title: String,
    /// The rest of it.
    pub(crate) shows: String,
}

/// What became of one.
pub(crate) enum Outcome {
    /// But for these parts, of which it says that they cannot be shown here, and why.
    Passed(Vec<String>),
    /// It says that it cannot run here, and why.
    Skipped(String),
    Failed,
}

impl Script {
    /// How long one may take; ten servers take longer.
    fn limit(&self) -> Duration {
        Duration::from_secs(if self.host == "ten" { 600 } else { 300 })
    }

    /// The host of those that take no machine.
    pub(crate) const NO_HOST: &str = "none";

    fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path)?;
        let place = || path.display().to_string();
        let (first, rest) = text.split_once('\n').with_context(place)?;
        let hosts = first.strip_prefix("# host: ").with_context(|| format!("{}: no `# host: …`", place()))?;
        // The others are those that it switches to.
        let host = hosts.split(' ').next().unwrap_or(hosts);
        let said = rest.strip_prefix("\"\"\"").and_then(|rest| rest.split_once("\"\"\""));
        let (said, _) = said.with_context(|| format!("{} does not say what it shows", place()))?;
        let (title, shows) = said.split_once('\n').unwrap_or((said, ""));
        Ok(Self {
            host: host.to_owned(),
            title: title.trim().to_owned(),
            shows: shows.split_whitespace().collect::<Vec<_>>().join(" "),
            path,
        })
    }

    /// Its file's name, without the ending.
    pub(crate) fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// All of them, by name.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let directory = root().join("vm-tests/scenarios");
        let mut paths =
            fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
        paths.sort();
        ensure!(!paths.is_empty(), "{} has no scenarios", directory.display());
        paths.into_iter().map(Self::read).collect()
    }
}

/// Runs the scenarios with one of `names` in theirs, or all; then also writes docs/verification.md.
pub(super) fn run(names: &[String]) -> Result<()> {
    if let Some(why) = Machine::impossible() {
        bail!("no scenario can run: {why}");
    }
    render::check()?;
    ensure_program("the scenarios", &[("python3", "python3")])?;
    apt_install("the second lock", &["nftables"])?;
    apt_install("a database on a Unix socket", &["postgresql"])?;
    let binary = daemon::build()?;
    let all = Script::all()?;
    let mut results = vec![];
    // Of what is there now: whoever edits a script meanwhile is to run it again.
    let (hash, begin_all) = (verification::hash()?, Instant::now());
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

/// What became of a scenario that ended so, after it had said this.
fn outcome(status: Option<i32>, said: &str) -> Result<Outcome> {
    let mut skipped = said.lines().filter_map(|line| line.strip_prefix("SKIPPED: ")).map(str::to_owned);
    match status {
        Some(0) => Ok(Outcome::Passed(skipped.collect())),
        // As driver.py has it.
        Some(77) => {
            Ok(Outcome::Skipped(skipped.next_back().context("a scenario was skipped, and does not say why")?))
        }
        _ => Ok(Outcome::Failed),
    }
}

/// How many became what.
pub(crate) fn totals<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let (mut whole, mut in_part, mut skipped, mut failed) = (0, 0, 0, 0);
    for outcome in outcomes {
        match outcome {
            Outcome::Passed(parts) if parts.is_empty() => whole += 1,
            Outcome::Passed(_) => in_part += 1,
            Outcome::Skipped(_) => skipped += 1,
            Outcome::Failed => failed += 1,
        }
    }
    format!("{whole} passed, {in_part} passed in part, {skipped} skipped, {failed} failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_shown_is_not_counted_as_passed() -> Result<()> {
        let whole = outcome(Some(0), "something else\n")?;
        let in_part = outcome(Some(0), "SKIPPED: one\nmore\nSKIPPED: another\n")?;
        let skipped = outcome(Some(77), "SKIPPED: all of it\n")?;
        let failed = outcome(Some(1), "SKIPPED: one\n")?;
        assert!(matches!(&in_part, Outcome::Passed(parts) if *parts == ["one", "another"]));
        assert!(matches!(&skipped, Outcome::Skipped(why) if why == "all of it"));
        assert_eq!(
            totals([whole, in_part, skipped, failed].iter()),
            "1 passed, 1 passed in part, 1 skipped, 1 failed"
        );
        assert!(outcome(Some(77), "").is_err(), "a scenario is skipped without a reason");
        Ok(())
    }
}
