//! docs/verification.md: which scenario shows what, and where it ran.

use std::{fmt::Write as _, fs};

use anyhow::Result;

use crate::{
    root,
    vm_test::{Outcome, Script},
};

const HEAD: &str = "# Verification

The whole system, scenario by scenario: what the module makes of a host, on a real systemd, with the real opencode server and a second host
that witnesses what arrives. Written by `cargo xtask vm-test`; each scenario is a script in [`vm-tests/scenarios`](../vm-tests/scenarios).

*Namespaces*: systemd as pid 1 of fresh namespaces on Debian. *NixOS VM*: `nix flake check`, with the same scripts, which takes Nix and KVM; it
was not run where this table was written, and has not been elsewhere. That its tests evaluate is tested, on stubs.

| scenario | what it shows | namespaces | NixOS VM |
|---|---|---|---|
";

/// Writes the table of a whole run.
pub(crate) fn write(results: &[(&Script, Outcome)]) -> Result<()> {
    let mut text = HEAD.to_owned();
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
    Ok(fs::write(root().join("docs/verification.md"), text)?)
}
