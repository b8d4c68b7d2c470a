//! Upgrades from an earlier daemon, built from its commit, and back.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    endurance::Probes,
    machine::{Machine, wait},
    process::{checked, fresh, root, run},
};

/// The last commit before there were names: another ABI version.
const BEFORE: &str = "1ae1904";
const PINS: &str = "/sys/fs/bpf/opencode-egress";
const DROP_IN: &str = "/run/systemd/system/opencode-egress.service.d/before.conf";

/// Builds the daemon of that commit, unless it was built before, and returns where it is.
fn build() -> Result<PathBuf> {
    let tree = root().join("target/before");
    let binary = tree.join("target/release/opencode-egress");
    let stamp = tree.join("target/built-from");
    if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|commit| commit == BEFORE) {
        return Ok(binary);
    }
    fresh(&tree)?;
    let archive = tree.join("tree.tar");
    let mut git = Command::new("git");
    git.current_dir(root()).args(["archive", "--output"]).arg(&archive).arg(BEFORE);
    checked(git).with_context(|| {
        format!("commit {BEFORE} is not in this clone; `git fetch --unshallow` brings it")
    })?;
    let mut tar = Command::new("tar");
    tar.current_dir(&tree).arg("-xf").arg(&archive);
    checked(tar)?;
    // With the linker that is here already.
    let linkers = [root().join("target/tools/bin")].into_iter();
    let path = env::join_paths(linkers.chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())))?;
    let cargo = || {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&tree).env("PATH", &path);
        cargo
    };
    run("building the earlier object", cargo().args(["xtask", "build-ebpf"]))?;
    run(
        "building the earlier daemon",
        cargo().args(["build", "--quiet", "--release", "--package", "opencode-egress"]),
    )?;
    fs::write(stamp, BEFORE)?;
    Ok(binary)
}

/// Goes to the present daemon and back so many times, under probes that run all the while. Every other time the daemon before is killed.
pub(crate) fn upgrades(machine: &mut Machine, count: usize) -> Result<()> {
    machine.copy(&build()?, "/run/before/opencode-egress")?;
    let go = |machine: &Machine, number: usize| -> Result<()> {
        let back = number % 2 == 1;
        if back {
            machine.write(DROP_IN, "[Service]\nExecStart=\nExecStart=/run/before/opencode-egress run\n")?;
        } else {
            machine.succeed(&["rm", "-f", DROP_IN])?;
        }
        machine.succeed(&["systemctl", "daemon-reload"])?;
        if number / 2 % 2 == 1 {
            machine.succeed(&["systemctl", "kill", "-s", "KILL", "--kill-who=main", "opencode-egress"])?;
        } else {
            machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
        }
        let (there, gone) = if back { ("v2", "v4") } else { ("v4", "v2") };
        let pins = || machine.succeed(&["ls", PINS]);
        wait("the other version's pins to go", || pins().ok().filter(|pins| pins.trim() == there))
            .with_context(|| format!("{gone} and {there}: there is {}", pins().unwrap_or_default()))?;
        let status = machine.succeed(&["opencode-egress", "status"])?;
        if status.contains("running before it was confined") {
            bail!("a unit is taken for one that was not confined: {status}");
        }
        Ok(())
    };
    machine.succeed(&["mkdir", "-p", "/run/systemd/system/opencode-egress.service.d"])?;
    go(machine, 1)?;
    Probes::without_names(machine)?.takeovers(2 * count, go)
}
