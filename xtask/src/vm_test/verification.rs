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

/// How the table says that a scenario failed.
const FAILED: &str = "**failed**";

/// What the line with the hash of the sources begins with.
const MARK: &str = "<!-- inputs.sha256: ";

/// Writes the table of a run of all scenarios, with how long it took and the hash of the sources that were run.
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
            Outcome::Failed => FAILED,
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

/// Fails when the table is of other sources than these, or has a scenario that failed.
pub(crate) fn check() -> Result<()> {
    const AGAIN: &str =
        "run all scenarios, which takes some minutes and writes it again, and commit it: cargo xtask vm-test";
    let text =
        fs::read_to_string(path()).with_context(|| format!("cannot read docs/verification.md; {AGAIN}"))?;
    ensure!(
        recorded(&text) == Some(&hash()?),
        "the product or its scenarios have changed since the run that docs/verification.md records; {AGAIN}"
    );
    ensure!(
        !text.contains(FAILED),
        "docs/verification.md records a scenario that failed; mend that, and {AGAIN}"
    );
    Ok(())
}

fn recorded(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix(MARK)?.strip_suffix(" -->"))
}

/// What decides how the scenarios end: the product, the scenarios, and the machine that they run on.
const INPUTS: [&str; 19] = [
    "Cargo.lock",
    "Cargo.toml",
    "dist",
    "nixos",
    "opencode-egress-common",
    "opencode-egress-ebpf",
    "opencode-egress/Cargo.toml",
    "opencode-egress/build.rs",
    "opencode-egress/src",
    "vm-tests/driver.py",
    "vm-tests/hosts",
    "vm-tests/machine/boot.sh",
    "vm-tests/prelude.py",
    "vm-tests/rendered",
    "vm-tests/scenarios",
    "xtask/src/build_ebpf.rs",
    "xtask/src/machine",
    "xtask/src/machine.rs",
    "xtask/src/opencode.rs",
];

/// A hash of the files that decide how the scenarios end. Unit tests of the Rust crates do not; those of the module do, for
/// a scenario runs them.
pub(crate) fn hash() -> Result<String> {
    render::digest(inputs()?)
}

fn inputs() -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for name in INPUTS {
        let path = root().join(name);
        if path.is_dir() { render::collect(&path, &mut files)? } else { files.push(path) }
    }
    let is_unit_test = |file: &PathBuf| {
        file.extension().is_some_and(|extension| extension == "rs")
            && file.iter().any(|part| part == "tests" || part == "tests.rs")
    };
    files.retain(|file| !is_unit_test(file));
    Ok(files)
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

    #[test]
    fn the_hash_is_of_the_product_and_not_of_what_is_beside_it() -> Result<()> {
        let inputs = inputs()?;
        let has = |name: &str| inputs.contains(&root().join(name));
        for name in [
            "Cargo.lock",
            "opencode-egress-common/src/decide.rs",
            "opencode-egress-ebpf/src/judge.rs",
            "opencode-egress/src/daemon/state.rs",
            "dist/opencode-egress.service",
            "nixos/egress/daemon.nix",
            "nixos/tests/units.nix",
            "vm-tests/scenarios/00-units.py",
        ] {
            assert!(has(name), "a change of {name} leaves the record good");
        }
        for name in [
            "README.md",
            "docs/verification.md",
            "opencode-egress/src/policy/tests.rs",
            "opencode-egress/src/policy/compile/tests/reference.rs",
            "opencode-egress/tests/hooks/main.rs",
        ] {
            assert!(!has(name) && root().join(name).exists(), "a change of {name} makes the record stale");
        }
        Ok(())
    }
}
