//! What the scenarios' machine is a copy of: this machine's own root, or another release's, with a newer systemd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::debian::{KEYRING, mirror};
use crate::process::{ensure, output, root, run as run_command};

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Root {
    /// This machine's own
    Own,
    /// Debian 13's, with systemd 257, which is installed under `target/`
    #[value(name = "debian-13")]
    Debian13,
}

/// What servers, scenarios and the second lock take of a minimal system.
const PACKAGES: &str = "ca-certificates,curl,dbus,git,iproute2,libnss-systemd,nftables,nginx,postgresql,procps,python3,sqlite3,systemd,systemd-sysv,tcpdump";

impl Root {
    /// Where it is, if it is not this machine's own; it is installed when it is not there.
    pub(crate) fn directory(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Own => Ok(None),
            Self::Debian13 => installed("trixie").map(Some),
        }
    }

    /// Its systemd, as that calls itself: `systemd 257 (257.13-1~deb13u1)`.
    pub(super) fn systemd(self) -> Result<String> {
        let mut command = Command::new("systemctl");
        if let Some(directory) = self.directory()? {
            command = Command::new("chroot");
            command.arg(directory).arg("systemctl");
        }
        let said = output(command.arg("--version"));
        let said = said.context("systemctl does not say its version")?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }
}

/// A release's root under `target/roots`. What is there is taken; remove it for newer packages.
fn installed(suite: &str) -> Result<PathBuf> {
    let directory = root().join("target/roots").join(suite);
    // Of which packages what is there was made.
    let made_of = directory.with_extension("packages");
    if directory.exists() {
        if fs::read_to_string(&made_of).is_ok_and(|packages| packages == PACKAGES) {
            return Ok(directory);
        }
        fs::remove_dir_all(&directory)?;
    }
    ensure("another release's root", &[("debootstrap", "debootstrap")])?;
    let partial = directory.with_extension("part");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args([
        "--variant=minbase",
        &format!("--include={PACKAGES}"),
        &format!("--keyring={KEYRING}"),
    ]);
    debootstrap.arg(suite).arg(&partial).arg(mirror()?).stdout(Stdio::null());
    run_command(&format!("installing Debian {suite} under target/roots, once"), &mut debootstrap)?;
    settle(&partial)?;
    fs::rename(&partial, &directory)?;
    fs::write(&made_of, PACKAGES).with_context(|| format!("cannot write {}", made_of.display()))?;
    Ok(directory)
}

/// A machine that has been booted before: no first boot, which would ask questions.
fn settle(directory: &Path) -> Result<()> {
    let path = directory.join("etc/machine-id");
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    fs::write(&path, id).with_context(|| format!("cannot write {}", path.display()))
}
