//! What is delivered beside the program, read by the programs that it is for.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;

use crate::process::{apt_unpacked, ensure, output, root, run as run_command};

/// Tests metrics, alerts, dashboard, catalog, completions and manual pages.
pub(crate) fn test() -> Result<()> {
    if output(Command::new("apt-get").arg("--version")).is_none() {
        let missing: Vec<_> = ["promtool", "groff", "journalctl", "bash"]
            .into_iter()
            .filter(|name| found(name).is_none())
            .collect();
        if !missing.is_empty() {
            println!(
                "SKIPPED alerts, dashboard, catalog, manual pages: there is no {missing:?} here, and no Debian to get it from"
            );
            return Ok(());
        }
    }
    ensure(
        "the manual pages and the catalog",
        &[("groff", "groff-base"), ("journalctl", "systemd"), ("bash", "bash")],
    )?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["test", "--quiet", "--package", "opencode-egress", "--test", "assets"]);
    run_command("tier 1, host: alerts, dashboard, catalog, manual pages", cargo.env("PROMTOOL", promtool()?))
}

/// Prometheus' own tool: this machine's, or Debian's under `target/`, for installing the package would start a
/// server.
pub(crate) fn promtool() -> Result<PathBuf> {
    if let Some(path) = found("promtool") {
        return Ok(path);
    }
    Ok(apt_unpacked("promtool", &["prometheus"])?.join("usr/bin/promtool"))
}

fn found(program: &str) -> Option<PathBuf> {
    output(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program])).map(PathBuf::from)
}
