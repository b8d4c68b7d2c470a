//! The emulator.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::debian::{KEYRING, mirror};
use crate::process::{apt_get, apt_install, output, root};

/// The oldest version of QEMU that will do: 7.2, which Debian 12 has, ends Linux 6.12 in faults at random while it boots, and takes several times as long.
const OLDEST: u32 = 10;

/// Installs a QEMU that these kernels run on, if there is none: the release's own, or from its backports.
pub(super) fn ensure() -> Result<()> {
    apt_install("the virtual machine", &["qemu-system-x86"])?;
    if version()? >= OLDEST {
        return Ok(());
    }
    let release = fs::read_to_string("/etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = format!("{}-backports", codename.context("/etc/os-release names no release")?);
    let sources = root().join("target/kernels/backports.list");
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    fs::create_dir_all(root().join("target/kernels"))?;
    fs::write(&sources, format!("{own}\ndeb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))?;
    let what = format!("asking {suite} for QEMU {OLDEST} or newer");
    apt_get(&what, apt(&sources).arg("update"))?;
    let install = ["-y", "--no-install-recommends", "install", "-t", &suite, "qemu-system-x86"];
    apt_get("installing it", apt(&sources).args(install))?;
    anyhow::ensure!(version()? >= OLDEST, "{suite} has no QEMU {OLDEST}; install one by hand");
    Ok(())
}

/// What a machine's kernel is told. The emulated timer is late on a busy machine, which is no reason to give up on it.
pub(super) const CONSOLE: &str = "console=ttyS0 quiet panic=-1 no_timer_check";

/// A machine with so many megabytes that has its console on the standard streams. It ends with this process, however that ends.
pub(super) fn machine(megabytes: u32) -> Command {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // Not KVM: where it is there but does not work, the machine would hang.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", &megabytes.to_string()]);
    qemu.args(["-display", "none", "-no-reboot", "-nodefaults", "-serial", "stdio"]);
    qemu
}

/// apt-get with these sources beside those in `/etc/apt/sources.list.d`.
fn apt(sources: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.arg(format!("-oDir::Etc::sourcelist={}", sources.display()));
    command
}

/// The major version of the QEMU that is installed.
fn version() -> Result<u32> {
    let said = output(Command::new("qemu-system-x86_64").arg("--version"));
    let said = said.context("qemu-system-x86_64 cannot be run")?;
    let number =
        said.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split('.').next()?.parse().ok());
    number.with_context(|| format!("qemu-system-x86_64 has an unknown version: {said}"))
}
