//! docs/verification.md: which scenario shows what, and where it ran.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    opencode,
    process::{output, root},
    render,
    vm_test::script::{Column, Outcome, Script, totals},
};

const HEAD: &str = "# Verification

The whole system, scenario by scenario: what the module makes of a host, on a real systemd, with the real opencode server and a second host
that witnesses what arrives. Written by `cargo xtask vm-test`; each scenario is a script in [`vm-tests/scenarios`](../vm-tests/scenarios).

Under each *systemd*: it is pid 1 of fresh namespaces on Debian, the newer one over a root of Debian 13. *NixOS VM*: `nix flake check`, with the same scripts, which takes Nix and KVM; it
was not run where this table was written, and has not been elsewhere. That its tests evaluate is tested, on stubs.

";

/// How the table says that a scenario failed.
const FAILED: &str = "**failed**";

/// What the line with the hash of the sources begins with.
const MARK: &str = "<!-- inputs.sha256: ";

/// Writes the table of a run of all scenarios, with how long it took and the hash of the sources that were run.
pub(crate) fn write(scripts: &[Script], columns: &[Column], took: Duration, hash: &str) -> Result<()> {
    Ok(fs::write(path(), text(scripts, columns, took, hash)?)?)
}

fn text(scripts: &[Script], columns: &[Column], took: Duration, hash: &str) -> Result<String> {
    let mut text = HEAD.to_owned();
    let told = |program: &str, words: &[&str]| {
        let said = output(Command::new(program).args(words));
        said.with_context(|| format!("{program} {words:?} says nothing for docs/verification.md"))
    };
    writeln!(
        text,
        "{}, in {:.1} minutes on {} cores, Linux {}, opencode {}:\n",
        told("date", &["-u", "+%Y-%m-%d"])?,
        took.as_secs_f32() / 60.,
        std::thread::available_parallelism()?,
        told("uname", &["-r"])?,
        opencode::VERSION,
    )?;
    for column in columns {
        writeln!(text, "- {}: {}", column.systemd, totals(column.outcomes.iter()))?;
    }
    let mut heads = String::new();
    for column in columns {
        // `systemd 257 (257.13-1~deb13u1)`
        let short: Vec<_> = column.systemd.split(' ').take(2).collect();
        write!(heads, " {} |", short.join(" "))?;
    }
    writeln!(text, "\n| scenario | what it shows |{heads} NixOS VM |")?;
    writeln!(text, "|---|---|{}---|", "---|".repeat(columns.len()))?;
    for (index, script) in scripts.iter().enumerate() {
        let name = script.name();
        write!(
            text,
            "| [{name}](../vm-tests/scenarios/{name}.py) | **{}** {} |",
            script.title, script.shows
        )?;
        for outcome in columns.iter().filter_map(|column| column.outcomes.get(index)) {
            let place = if script.host == Script::NO_HOST { ", without a machine" } else { "" };
            write!(text, " {}{place} |", shown(outcome))?;
        }
        writeln!(text, " not run |")?;
    }
    writeln!(text, "\n{MARK}{hash} -->")?;
    Ok(text)
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed(parts) if parts.is_empty() => "passed".to_owned(),
        Outcome::Passed(parts) => format!("passed, **but for**: {}", parts.join("; ")),
        Outcome::Skipped(why) => format!("**skipped**: {why}"),
        Outcome::Failed => FAILED.to_owned(),
    }
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
const INPUTS: [&str; 20] = [
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
    "xtask/src/vm_test/roots.rs",
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
        let scripts = [script("01-a.py"), script("02-b.py"), script("03-c.py")];
        let parts = vec!["one".to_owned(), "another".to_owned()];
        let column = |systemd: &str, last| Column {
            systemd: systemd.to_owned(),
            outcomes: vec![Outcome::Passed(vec![]), Outcome::Passed(parts.clone()), last],
        };
        let columns = [
            column("systemd 252 (252.38)", Outcome::Skipped("no time".to_owned())),
            column("systemd 257 (257.13)", Outcome::Passed(vec![])),
        ];
        let text = text(&scripts, &columns, Duration::from_secs(90), "abc")?;
        for row in [
            "| scenario | what it shows | systemd 252 | systemd 257 | NixOS VM |\n|---|---|---|---|---|\n",
            "| [01-a](../vm-tests/scenarios/01-a.py) | **It holds.** So. | passed | passed | not run |",
            "| passed, **but for**: one; another | passed, **but for**: one; another | not run |",
            "| **skipped**: no time | passed | not run |",
            "- systemd 252 (252.38): 1 passed, 1 passed in part, 1 skipped, 0 failed\n",
            ", in 1.5 minutes on ",
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
