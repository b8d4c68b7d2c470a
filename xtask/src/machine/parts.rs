//! What a machine is made of, each of which goes with its value: also where the next cannot be made.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command},
};

use anyhow::{Context as _, Result};

use super::wait::wait;
use crate::process::{checked, output};

/// Lets nftables log packets of network namespaces other than the first, as the machine's, for as long as this lives
/// (`nf_log_all_netns` in <https://docs.kernel.org/networking/netfilter-sysctl.html>).
pub(super) struct PacketLog {
    before: String,
}

impl PacketLog {
    const SWITCH: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

    pub(super) fn start() -> Result<Self> {
        let what = || {
            format!(
                "the machine's nftables could not log, for {} cannot be changed; run this as root in the first network \
                 namespace, not in a container with one of its own, on a kernel with netfilter",
                Self::SWITCH
            )
        };
        let before = fs::read_to_string(Self::SWITCH).with_context(what)?;
        fs::write(Self::SWITCH, "1").with_context(what)?;
        Ok(Self { before })
    }
}

impl Drop for PacketLog {
    fn drop(&mut self) {
        let _ = fs::write(Self::SWITCH, &self.before);
    }
}

/// An empty directory to mount things on. It is removed with this value.
pub(super) struct Directory(pub(super) PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A cgroup. It is removed with this value, and those below it too.
pub(super) struct Cgroup(pub(super) PathBuf);

impl Cgroup {
    pub(super) fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot create {}; run as root", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = wait("the machine's cgroups to go", || remove_cgroup(&self.0).ok());
    }
}

fn remove_cgroup(directory: &std::path::Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(directory)
}

/// A process. It is killed with this value.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace with a name. It goes with this value, and every process in it.
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn add(name: String) -> Result<Self> {
        let mut ip = Command::new("ip");
        ip.args(["netns", "add", &name]);
        checked(ip)?;
        Ok(Self(name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = wait("a network namespace's processes to go", || {
            let left = pids(&self.0);
            if left.is_empty() {
                return Some(());
            }
            let _ = Command::new("kill").arg("-KILL").args(left).status();
            None
        });
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// The processes in a network namespace.
pub(super) fn pids(name: &str) -> Vec<String> {
    let listed = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}
