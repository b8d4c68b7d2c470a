//! Running other programs, saying which.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs a command whose output the reader sees; `what` is printed first.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what}");
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns what it prints; `None` when it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Sees to it that programs are there, each given with the Debian package that has it.
pub(crate) fn ensure(why: &str, programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| {
        output(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program])).is_none()
    });
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() { Ok(()) } else { apt_install(why, &packages) }
}

/// Installs Debian packages that are missing, saying which.
pub(crate) fn apt_install(why: &str, packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| {
            let status =
                output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]));
            status.as_deref() != Some("installed")
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if output(Command::new("apt-get").arg("--version")).is_none() {
        bail!("{why} needs {missing:?} and this is no Debian to install it on; install the like by hand");
    }
    let quiet = |command: &mut Command| {
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).stdin(Stdio::null());
    };
    let mut update = Command::new("apt-get");
    quiet(update.args(["-q", "update"]));
    run("refreshing Debian's package lists", &mut update)?;
    let mut install = Command::new("apt-get");
    quiet(install.args(["-q", "-y", "--no-install-recommends", "install"]).args(&missing));
    run(&format!("installing {missing:?} with apt-get, for {why}"), &mut install)
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

pub(crate) fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}
