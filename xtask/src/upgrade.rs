//! Upgrades from an earlier daemon, built from its commit, and back.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    endurance::{EARLIER, Probes},
    machine::{Machine, wait},
    pins::{PINS, VERSION},
    process::{checked, fresh, root, run},
};

/// The last commit before there were names: another ABI version.
const BEFORE: &str = "1ae1904";
const POLICY: &str = "/etc/opencode-egress/policy.json";
/// Its unit, and its program.
const DAEMON: &str = "opencode-egress";
/// After `metrics.conf`, which has the command, too.
const DROP_IN: &str = "/run/systemd/system/opencode-egress.service.d/zz-before.conf";

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

/// Goes from the daemon before to the present one and back so many times, under probes that run all the while. Every other time the one
/// that runs is killed.
pub(crate) fn upgrades(machine: &mut Machine, count: usize) -> Result<()> {
    machine.copy(&build()?, EARLIER)?;
    // Nothing that the daemon before does not know.
    machine.write(POLICY, r#"{ "version": 1, "instances": {} }"#)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["mkdir", "-p", "/run/systemd/system/opencode-egress.service.d"])?;
    let mut probes = Probes::without_names(machine)?;
    (0..count).try_for_each(|number| {
        probes.takeovers(2, begin, |machine, step| go(machine, step == 1, number % 2 == 1))
    })
}

/// Goes to the daemon before, or to the present one. The one that runs is killed, or stops.
fn go(machine: &Machine, back: bool, kill: bool) -> Result<()> {
    choose(machine, back)?;
    if kill {
        machine.succeed(&["systemctl", "kill", "-s", "KILL", "--kill-who=main", DAEMON])?;
    } else {
        machine.succeed(&["systemctl", "restart", DAEMON])?;
    }
    let version = if back { "v2" } else { VERSION };
    let pins = || machine.succeed(&["ls", PINS]);
    // The daemon before leaves links of hooks that it does not know.
    let taken = |pins: &String| pins.contains(version) && (back || pins.trim() == version);
    wait("the takeover", || pins().ok().filter(taken)).with_context(|| {
        let log = machine.run(&["journalctl", "-u", DAEMON, "-n", "20", "--no-pager"]);
        format!("there is {}\n{}", pins().unwrap_or_default(), log.unwrap_or_default())
    })?;
    let status =
        wait("the daemon", || machine.succeed(&[if back { EARLIER } else { DAEMON }, "status"]).ok())?;
    ensure!(
        !status.contains("running before it was confined"),
        "a unit is taken for one that was not confined: {status}"
    );
    Ok(())
}

/// The daemon before, on a machine that never had another one.
fn begin(machine: &Machine) -> Result<()> {
    machine.succeed(&["systemctl", "stop", DAEMON])?;
    machine.succeed(&["rm", "-rf", PINS])?;
    choose(machine, true)?;
    machine.succeed(&["systemctl", "start", DAEMON]).map(drop)
}

/// Says which daemon systemd starts next.
fn choose(machine: &Machine, before: bool) -> Result<()> {
    if before {
        machine.write(DROP_IN, &format!("[Service]\nExecStart=\nExecStart={EARLIER} run\n"))?;
    } else {
        machine.succeed(&["rm", "-f", DROP_IN])?;
    }
    machine.succeed(&["systemctl", "daemon-reload"]).map(drop)
}
