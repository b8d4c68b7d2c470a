//! docs/verification.md: which scenario shows what, and where it ran.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    opencode,
    process::{output, root},
    render,
    vm_test::script::{Outcome, Script, totals},
};

const HEAD: &str = "# Verification

The whole system, scenario by scenario: what the module makes of a host, on a real systemd, with the real opencode server and a second host
that witnesses what arrives. Written by `cargo xtask vm-test`; each scenario is a script in [`vm-tests/scenarios`](../vm-tests/scenarios).

*Namespaces*: systemd as pid 1 of fresh namespaces on Debian. *NixOS VM*: `nix flake check`, with the same scripts, which takes Nix and KVM; it
was not run where this table was written, and has not been elsewhere. That its tests evaluate is tested, on stubs.

";

const TABLE: &str = "
| scenario | what it shows | namespaces | NixOS VM |
|---|---|---|---|
";

/// What the hash of the sources that were run is behind.
const MARK: &str = "<!-- inputs.sha256: ";

/// Writes the table of a whole run, which took so long, of what has this hash.
pub(crate) fn write(results: &[(&Script, Outcome)], took: Duration, hash: &str) -> Result<()> {
    Ok(fs::write(path(), text(results, took, hash)?)?)
}

fn text(results: &[(&Script, Outcome)], took: Duration, hash: &str) -> Result<String> {
    let mut text = HEAD.to_owned();
    let told = |program: &str, words: &[&str]| {
        let said = output(Command::new(program).args(words));
        said.with_context(|| format!("{program} {words:?} says nothing for docs/verification.md"))
    };
    let systemd = told("systemctl", &["--version"])?;
    writeln!(
        text,
        "{}: {}, in {:.1} minutes on {} cores. Linux {}, {}, opencode {}.",
        told("date", &["-u", "+%Y-%m-%d"])?,
        totals(results.iter().map(|(_, outcome)| outcome)),
        took.as_secs_f32() / 60.,
        std::thread::available_parallelism()?,
        told("uname", &["-r"])?,
        systemd.lines().next().unwrap_or_default(),
        opencode::VERSION,
    )?;
    text += TABLE;
    for (script, outcome) in results {
        let name = script.name();
        let outcome = match outcome {
            Outcome::Passed(parts) if parts.is_empty() => "passed",
            Outcome::Passed(parts) => &format!("passed, **but for**: {}", parts.join("; ")),
            Outcome::Skipped(why) => &format!("**skipped**: {why}"),
            Outcome::Failed => "**failed**",
        };
        let place = if script.host == Script::NO_HOST { ", without a machine" } else { "" };
        writeln!(
            text,
            "| [{name}](../vm-tests/scenarios/{name}.py) | **{}** {} | {outcome}{place} | not run |",
            script.title, script.shows
        )?;
    }
    writeln!(text, "\n{MARK}{hash} -->")?;
    Ok(text)
}

fn path() -> PathBuf {
    root().join("docs/verification.md")
}

/// Fails when the table is of other scenarios, or of other hosts, than these.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(path()).context("cannot read docs/verification.md")?;
    ensure!(
        recorded(&text) == Some(&hash()?),
        "docs/verification.md is of other sources than those in vm-tests/; run all scenarios again, which writes it: cargo xtask vm-test"
    );
    Ok(())
}

fn recorded(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix(MARK)?.strip_suffix(" -->"))
}

/// A hash of what is run: scenarios, hosts, and what reads them.
pub(crate) fn hash() -> Result<String> {
    let directory = root().join("vm-tests");
    let single = ["driver.py", "machine/boot.sh", "prelude.py"];
    let mut files: Vec<_> = single.map(|name| directory.join(name)).into();
    for name in ["hosts", "rendered", "scenarios"] {
        render::collect(&directory.join(name), &mut files)?;
    }
    render::digest(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_was_not_shown_and_what_it_is_of() -> Result<()> {
        let script = |name: &str| Script {
            path: name.into(),
            host: "two".to_owned(),
            title: "It holds.".to_owned(),
            shows: "So.".to_owned(),
        };
        let (whole, in_part, skipped) = (script("01-a.py"), script("02-b.py"), script("03-c.py"));
        let parts = vec!["one".to_owned(), "another".to_owned()];
        let results = [
            (&whole, Outcome::Passed(vec![])),
            (&in_part, Outcome::Passed(parts)),
            (&skipped, Outcome::Skipped("no time".to_owned())),
        ];
        let text = text(&results, Duration::from_secs(90), "abc")?;
        for row in [
            "| [01-a](../vm-tests/scenarios/01-a.py) | **It holds.** So. | passed | not run |",
            "| passed, **but for**: one; another | not run |",
            "| **skipped**: no time | not run |",
            ": 1 passed, 1 passed in part, 1 skipped, 0 failed, in 1.5 minutes on ",
        ] {
            assert!(text.contains(row), "no `{row}` in\n{text}");
        }
        assert_eq!(recorded(&text), Some("abc"));
        Ok(())
    }
}
