//! One script of `vm-tests/scenarios`, and what becomes of it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::process::root;

/// One script, as its first lines describe it.
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    /// The host that it runs on, or [`Script::NO_HOST`].
    pub(crate) host: String,
    /// The first line of what it says of itself.
    pub(crate) title: String,
    /// The rest of it.
    pub(crate) shows: String,
}

/// What became of a scenario.
pub(crate) enum Outcome {
    /// It passed, but for these parts, which it says cannot be shown here, and why.
    Passed(Vec<String>),
    /// It says that it cannot run here, and why.
    Skipped(String),
    /// It ended with an error, or took too long.
    Failed,
}

/// What became of the scenarios on one root, in their order.
pub(crate) struct Column {
    pub(crate) systemd: String,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Script {
    /// How long it may take. With ten servers it may take longer.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(if self.host == "ten" { 600 } else { 300 })
    }

    /// What a scenario that takes no machine has for its host.
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

    /// Those with one of `names` in theirs, or all.
    pub(super) fn chosen(names: &[String]) -> Result<Vec<Self>> {
        let mut scripts = Self::all()?;
        scripts.retain(|script| names.is_empty() || names.iter().any(|name| script.name().contains(name)));
        ensure!(!scripts.is_empty(), "no scenario has {names:?} in its name");
        Ok(scripts)
    }

    /// Prints what became of it.
    pub(super) fn tell(&self, outcome: &Outcome, begin: Instant) {
        let word = match outcome {
            Outcome::Passed(_) => "ok     ",
            Outcome::Skipped(_) => "SKIPPED",
            Outcome::Failed => "FAILED ",
        };
        println!("{word} {:5.1} s  {}: {}", begin.elapsed().as_secs_f32(), self.name(), self.title);
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

/// What became of a scenario that ended so, after it had said this.
pub(super) fn outcome(status: Option<i32>, said: &str) -> Result<Outcome> {
    let mut skipped = not_shown(said);
    match status {
        Some(0) => Ok(Outcome::Passed(skipped)),
        // As driver.py has it.
        Some(77) => {
            Ok(Outcome::Skipped(skipped.pop().context("a scenario was skipped, and does not say why")?))
        }
        _ => Ok(Outcome::Failed),
    }
}

/// What a scenario says that it cannot show here.
pub(crate) fn not_shown(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| line.strip_prefix("SKIPPED: ")).map(str::to_owned).collect()
}

/// How many passed, were skipped and failed, in one line.
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
