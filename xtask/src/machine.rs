//! A machine with real systemd: fresh namespaces over a throw-away root, and a second host behind a veth that
//! witnesses what arrives.

mod cable;
pub(crate) mod parts;
mod wait;
mod witness;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    cable::{HOST_ADDRESSES, in_netns},
    parts::{Cgroup, Directory, Netns, PacketLog, Process},
    wait::PATIENCE,
    witness::Witness,
};
use crate::{
    opencode,
    process::{ensure, root, text},
};
pub(crate) use wait::wait;

/// A booted machine. It goes with this value, its parts in the order of these fields.
pub(crate) struct Machine {
    name: String,
    init: u32,
    witness: Witness,
    _upstreams: Process,
    _second_host: Netns,
    _unshare: Process,
    _cgroup: Cgroup,
    _directory: Directory,
    _packet_log: PacketLog,
}

/// Where Debian and most others have systemd.
const SYSTEMD: &str = "/lib/systemd/systemd";

impl Machine {
    /// Why no machine can be booted here, if that is so: the throw-away root is laid out like Debian's.
    pub(crate) fn impossible() -> Option<&'static str> {
        let nixos = Path::new("/etc/NIXOS").exists();
        nixos.then_some(
            "this is NixOS, whose root the machine cannot be made from; use Debian, or a NixOS VM test",
        )
    }

    /// Boots a machine with the daemon in `binary` and the units of `vm-tests/machine/files`.
    pub(crate) fn boot(binary: &Path) -> Result<Self> {
        let unit = |name: &str| root().join("dist").join(name);
        let (daemon, resolver) = (unit("opencode-egress.service"), unit("opencode-egress-resolver.service"));
        Self::boot_with(
            &root().join("vm-tests/machine/files"),
            None,
            &[
                (binary, "usr/bin/opencode-egress"),
                (&daemon, "usr/lib/systemd/system/opencode-egress.service"),
                (&resolver, "usr/lib/systemd/system/opencode-egress-resolver.service"),
                (&opencode::binary()?, "usr/local/bin/opencode"),
            ],
        )
    }

    /// Installs what a machine takes, and boots one with `files` over its root and single files at other places. Its root is a copy of
    /// `lower`, or of this machine's.
    pub(crate) fn boot_with(files: &Path, lower: Option<&Path>, single: &[(&Path, &str)]) -> Result<Self> {
        ensure(
            "the machine tests",
            &[
                ("ip", "iproute2"),
                ("tcpdump", "tcpdump"),
                ("curl", "curl"),
                ("nft", "nftables"),
                ("python3", "python3"),
                (SYSTEMD, "systemd"),
                ("dbus-daemon", "dbus"),
                ("unshare", "util-linux"),
            ],
        )?;
        let name = format!("egress-{}", std::process::id());
        let packet_log = PacketLog::start()?;
        let directory = Directory(root().join("target/machine").join(&name));
        fs::create_dir_all(&directory.0)?;
        let cgroup = Cgroup::make(unified()?.join(&name))?;
        let mut command = Command::new("sh");
        // In a cgroup of its own before the cgroup namespace is made, which is then rooted there. It ends with this
        // process, however that ends.
        command.args(["-c", "echo $$ > \"$1/cgroup.procs\" && shift && exec setpriv --pdeathsig KILL unshare --fork --kill-child --pid --mount --net --cgroup --uts --ipc sh \"$@\"", "sh"]);
        command.arg(&cgroup.0).arg(root().join("vm-tests/machine/boot.sh")).arg(&directory.0);
        command.arg(files);
        if let Some(lower) = lower {
            command.env("BOOT_ROOT", lower);
        }
        let xtask = std::env::current_exe()?;
        for (file, target) in single.iter().chain([&(xtask.as_path(), "usr/local/bin/xtask")]) {
            command.arg(format!("{}={target}", file.display()));
        }
        let log = fs::File::create(root().join("target/machine").join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let unshare = Process(command.spawn().context("cannot run unshare")?);
        let init = wait("systemd to start", || {
            let pid = unshare.0.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            let init = children.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (name.trim() == "systemd").then_some(init)
        })?;
        // Out of the cgroup that is the machine's root: while a process is in it, systemd cannot hand controllers on to those below.
        fs::write(unified()?.join("cgroup.procs"), unshare.0.id().to_string())
            .context("cannot move the machine's parent to another cgroup")?;
        let second_host = cable::lay(&name, init)?;
        let addresses = HOST_ADDRESSES.map(|address| address.split('/').next().unwrap_or_default());
        let upstreams =
            Process(in_netns(&name, std::env::current_exe()?).arg("upstreams").args(addresses).spawn()?);
        let witness = Witness::start(&name)?;
        // It sees everything from the first packet on.
        cable::connect(init)?;
        let machine = Self {
            name,
            init,
            witness,
            _upstreams: upstreams,
            _second_host: second_host,
            _unshare: unshare,
            _cgroup: cgroup,
            _directory: directory,
            _packet_log: packet_log,
        };
        wait("the machine to boot", || {
            let state = machine.run(&["systemctl", "is-system-running"]).ok()?;
            matches!(state.trim(), "running" | "degraded").then_some(())
        })?;
        Ok(machine)
    }

    /// A command on the machine.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        // nsenter leaves the cgroup as it is, which is outside what the machine sees.
        const JOIN: &str =
            "mkdir -p /sys/fs/cgroup/tester && echo $$ > /sys/fs/cgroup/tester/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &self.init.to_string(),
            "-m",
            "-p",
            "-n",
            "-u",
            "-i",
            "-C",
            "--",
            "sh",
            "-c",
            JOIN,
            "sh",
        ]);
        command.args(["timeout", &PATIENCE.as_secs().to_string()]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command on the machine and returns what it prints on both streams, success or not.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        Ok(text(&self.command(words).output()?))
    }

    /// Runs a command on the machine that must succeed.
    pub(crate) fn succeed(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).output()?;
        if !output.status.success() {
            bail!("`{}` failed on the machine:\n{}", words.join(" "), text(&output));
        }
        Ok(text(&output))
    }

    /// Runs a command on the machine that must fail, and returns what it prints.
    pub(crate) fn fail(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).output()?;
        if output.status.success() {
            bail!("`{}` succeeded on the machine and should not:\n{}", words.join(" "), text(&output));
        }
        Ok(text(&output))
    }

    /// Runs a command on the second host.
    pub(crate) fn host(&self, words: &[&str]) -> Result<String> {
        let output = in_netns(&self.name, "timeout").args(["20"]).args(words).output()?;
        Ok(text(&output))
    }

    /// Writes a file on the machine.
    pub(crate) fn write(&self, path: &str, content: &str) -> Result<()> {
        fs::write(format!("/proc/{}/root{path}", self.init), content)
            .with_context(|| format!("cannot write {path}"))
    }

    /// Copies a file to the machine, with its directory.
    pub(crate) fn copy(&self, file: &Path, path: &str) -> Result<()> {
        let target = PathBuf::from(format!("/proc/{}/root{path}", self.init));
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(file, &target).with_context(|| format!("cannot write {path}")).map(drop)
    }

    /// Reads a file on the machine.
    pub(crate) fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", self.init))
            .with_context(|| format!("cannot read {path}"))
    }

    /// Runs a shell command through an opencode server's own shell tool, so in its unit, as its user.
    pub(crate) fn opencode_shell(&self, server: &str, command: &str) -> Result<String> {
        let post = |path: &str, body: &serde_json::Value| -> Result<serde_json::Value> {
            let url = format!("http://{server}{path}");
            let header = "content-type: application/json";
            let reply =
                self.succeed(&["curl", "-sf", "-m", "40", "-H", header, "-d", &body.to_string(), &url])?;
            serde_json::from_str(&reply).with_context(|| format!("{url} answered {reply}"))
        };
        let session = post("/session", &serde_json::json!({}))?;
        let id = session["id"].as_str().with_context(|| format!("no session id in {session}"))?;
        let body = serde_json::json!({ "agent": "build", "command": command });
        let message = post(&format!("/session/{id}/shell"), &body)?;
        let output = &message["parts"][0]["state"]["output"];
        Ok(output.as_str().with_context(|| format!("no output in {message}"))?.to_owned())
    }

    /// What has arrived at the second host since it was last asked, a line a packet.
    pub(crate) fn witnessed(&mut self) -> Result<Vec<String>> {
        let marker = self.witness.next_marker();
        // From the machine itself, outside every unit that is confined.
        let send = format!("echo x > /dev/udp/192.0.2.10/{marker}");
        let (begin, mut seen) = (Instant::now(), vec![]);
        // The cable loses packets where more come than the other end takes in; every one that it does not lose is seen.
        while begin.elapsed() < PATIENCE {
            self.succeed(&["bash", "-c", &send])?;
            if self.witness.until(marker, Duration::from_secs(2), &mut seen)? {
                return Ok(seen);
            }
        }
        bail!("the witness did not see the marker within {PATIENCE:?}")
    }
}

/// Boots a machine for a scenario's script, says how to reach it, and answers what the script asks on stdin, a line each,
/// until that ends.
pub(crate) fn serve(files: &Path, binary: &Path, lower: Option<&Path>) -> Result<()> {
    let mut machine = Machine::boot_with(
        files,
        lower,
        &[
            (binary, "nix/store/opencode-egress/bin/opencode-egress"),
            (binary, "usr/bin/opencode-egress"),
            (&opencode::binary()?, "nix/store/opencode/bin/opencode"),
        ],
    )?;
    println!("{}", serde_json::json!({ "init": machine.init, "witness": machine.name }));
    for line in std::io::stdin().lines() {
        match line?.as_str() {
            "arrived" => println!("{}", serde_json::json!(machine.witnessed()?)),
            other => bail!("the script asks for `{other}`"),
        }
    }
    Ok(())
}

/// Where cgroup2 is mounted here.
fn unified() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"));
    Ok(mount.context("no cgroup2 mount here")?[1].into())
}
