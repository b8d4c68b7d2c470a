//! Running other programs, saying which.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
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

/// Runs a command that says nothing unless it fails.
pub(crate) fn checked(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {}", shown(&command)))?;
    if !output.status.success() {
        bail!("{} failed with {}:\n{}", shown(&command), output.status, text(&output).trim_end());
    }
    Ok(())
}

/// What a command printed, on both streams.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
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

/// Installs what is missing of these programs. Each is given with the Debian package that has it.
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
    apt_get("refreshing Debian's package lists", Command::new("apt-get").arg("update"))?;
    let mut install = Command::new("apt-get");
    install.args(["-y", "--no-install-recommends", "install"]).args(&missing);
    apt_get(&format!("installing {missing:?} with apt-get, for {why}"), &mut install)
}

/// How long an apt or dpkg that runs already is waited for.
const APT_PATIENCE: Duration = Duration::from_secs(300);

/// Runs an apt-get command that asks nothing and prints errors alone, once no other apt or dpkg holds a lock that it takes.
pub(crate) fn apt_get(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what}");
    command.args(["-q", "-o", &format!("DPkg::Lock::Timeout={}", APT_PATIENCE.as_secs())]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").stdin(Stdio::null());
    let begin = Instant::now();
    let mut told = false;
    loop {
        let output = command.output().with_context(|| format!("cannot run {}", shown(command)))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Ok(());
        }
        // The option is for dpkg's lock. apt gives up at once on those of its lists and archives.
        if !errors.contains("Could not get lock") || begin.elapsed() >= APT_PATIENCE {
            bail!("{} failed with {}:\n{}", shown(command), output.status, errors.trim_end());
        }
        if !told {
            eprintln!("xtask: waiting for another apt: {}", errors.lines().next().unwrap_or_default());
            told = true;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Debian packages unpacked under `target/tools`, where installing them would start a server or change this machine. What is there is taken;
/// remove it for newer ones.
pub(crate) fn apt_unpacked(why: &str, packages: &[&str]) -> Result<PathBuf> {
    let tree = root().join("target/tools").join(packages[0]);
    if tree.exists() {
        return Ok(tree);
    }
    let archives = tree.with_extension("part");
    fresh(&archives)?;
    apt_get("refreshing Debian's package lists", Command::new("apt-get").arg("update"))?;
    let mut download = Command::new("apt-get");
    download.current_dir(&archives).args(["-oAPT::Sandbox::User=root", "download"]).args(packages);
    apt_get(&format!("downloading {packages:?}, for {why}"), &mut download)?;
    let partial = archives.join("tree");
    for archive in fs::read_dir(&archives)?.collect::<Result<Vec<_>, _>>()? {
        let archive = archive.path();
        run("unpacking", Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
    }
    fs::rename(&partial, &tree)?;
    fs::remove_dir_all(&archives)?;
    Ok(tree)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_apt_is_waited_for_and_other_errors_are_not() -> Result<()> {
        let held = std::env::temp_dir().join(format!("xtask-held-lock-{}", std::process::id()));
        fs::write(&held, "")?;
        // As apt 2.6 says it. The lock is free the second time.
        let locked = "rm \"$0\" 2>/dev/null || exit 0; echo 'E: Could not get lock /var/lib/apt/lists/lock.' >&2; exit 100";
        apt_get("a lock that is held", Command::new("sh").args(["-c", locked]).arg(&held))?;
        assert!(!held.exists(), "it was run once more after it had found the lock held");
        let broken = "echo 'E: Unable to locate package' >&2; exit 100";
        let Err(error) = apt_get("another error", Command::new("sh").args(["-c", broken])) else {
            bail!("an error that is no lock is none")
        };
        assert!(error.to_string().ends_with("E: Unable to locate package"), "{error}");
        Ok(())
    }
}
