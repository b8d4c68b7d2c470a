//! The two hosts on one wire: the clients' own, and the second one with a resolver, where every name exists, and servers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::table::LISTED;
use crate::{
    machine::{
        parts::{Netns, Process},
        wait,
    },
    process::{checked, fresh, root, text},
};

/// The second host's address, where its resolver and its servers are.
const SECOND: &str = "192.0.2.10";

/// How long a client's runs may take, together: the slowest tries again for more than a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// Both hosts. They go with this value, the processes on them too.
pub(super) struct Hosts {
    own: Netns,
    _servers: Process,
    _resolver: Process,
    second: Netns,
    directory: PathBuf,
    /// What of the logs was read.
    asked: usize,
    reached: usize,
    markers: usize,
}

/// What a client left on the second host.
pub(super) struct Seen {
    /// Names that its resolver was asked for.
    pub(super) asked: Vec<String>,
    /// Ports that were reached, each with the name that the request was for where it was one.
    pub(super) reached: Vec<String>,
}

impl Hosts {
    /// Makes them in a directory of their own.
    pub(super) fn make(directory: PathBuf) -> Result<Self> {
        fresh(&directory)?;
        let name = format!("egress-clients-{}", std::process::id());
        let (own, second) = (Netns::add(name.clone())?, Netns::add(format!("{name}-second"))?);
        join(&own.0, &second.0)?;
        certificate(&directory)?;
        fs::create_dir(directory.join("served"))?;
        let plain = format!("nameserver {SECOND}\n");
        let search = format!("{plain}search lan example.com\noptions ndots:5\n");
        for (file, content) in [("plain", &*plain), ("search", &search), ("asked", ""), ("reached", "")] {
            fs::write(directory.join(file), content)?;
        }
        let resolver = resolver(&second.0, &directory.join("asked"))?;
        let servers = servers(&second.0, &directory)?;
        let mut hosts = Self {
            own,
            _servers: servers,
            _resolver: resolver,
            second,
            directory,
            asked: 0,
            reached: 0,
            markers: 0,
        };
        wait("the second host's servers", || hosts.log("reached").ok()?.contains("ready").then_some(()))?;
        wait("the second host's resolver", || hosts.mark("plain").ok())?;
        hosts.seen("plain")?;
        Ok(hosts)
    }

    /// Where everything is that this makes.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command on the second host.
    pub(super) fn second(&self, program: &str) -> Command {
        inside(&self.second.0, program)
    }

    /// A command on the clients' host, with one of its two `resolv.conf`.
    pub(super) fn command(&self, resolv_conf: &str, words: &[&str]) -> Command {
        // In a mount namespace of its own. Not by `ip netns exec`, which hides the cgroups.
        const JOIN: &str = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
        let mut command = inside(&self.own.0, "unshare");
        command.args(["--mount", "sh", "-c", JOIN, "sh"]).arg(self.directory.join(resolv_conf));
        command.args(["timeout", &PATIENCE.as_secs().to_string()]).args(words);
        // Nothing of whoever runs this: a proxy, a registry, a configuration of their own.
        command.env_clear().env("LC_ALL", "C.UTF-8").env("PATH", path());
        command
    }

    /// What was left on the second host since this was last asked. An unconfined client asks for a name of its own first: what was asked
    /// before is seen then, and the resolver answers names that are not listed.
    pub(super) fn seen(&mut self, resolv_conf: &str) -> Result<Seen> {
        self.markers += 1;
        let marker = self.mark(resolv_conf)?;
        let asked = self.log("asked")?;
        ensure!(asked[self.asked..].contains(&marker), "the second host's resolver has not logged {marker}");
        let questions = asked[self.asked..].lines().filter_map(|line| {
            let (_, question) = line.split_once(": query[")?;
            question.split_once("] ")?.1.split(' ').next()
        });
        let questions = questions.filter(|name| !name.starts_with("marker-")).map(str::to_owned).collect();
        let reached = self.log("reached")?;
        let lines = reached[self.reached..].lines().map(str::to_owned).collect();
        (self.asked, self.reached) = (asked.len(), reached.len());
        Ok(Seen { asked: questions, reached: lines })
    }

    /// Has an unconfined client ask for a name of its own, and returns that.
    pub(super) fn mark(&self, resolv_conf: &str) -> Result<String> {
        let marker = format!("marker-{}.example.net", self.markers);
        let output = self.command(resolv_conf, &["getent", "ahosts", &marker]).output()?;
        match output.status.success() {
            true => Ok(marker),
            false => bail!("a client that is not confined gets no answer: {}", text(&output)),
        }
    }

    fn log(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.directory.join(name)).with_context(|| format!("no log `{name}`"))
    }
}

/// Where programs are found: the toolchain's first, then Debian's.
pub(super) fn path() -> String {
    let cargo = std::env::var("CARGO").unwrap_or_default();
    let toolchain = Path::new(&cargo).parent().unwrap_or(Path::new(""));
    format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", toolchain.display())
}

/// A command in a network namespace.
fn inside(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program).stdin(Stdio::null());
    command
}

/// Answers every question, and logs it.
fn resolver(netns: &str, log: &Path) -> Result<Process> {
    let mut dnsmasq = inside(netns, "setpriv");
    dnsmasq.args(["--pdeathsig", "KILL", "dnsmasq", "--keep-in-foreground", "--user=root", "--pid-file="]);
    dnsmasq.args([
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--log-queries",
    ]);
    dnsmasq.arg(format!("--listen-address={SECOND}")).arg(format!("--log-facility={}", log.display()));
    dnsmasq.arg(format!("--address=/#/{SECOND}")).arg("--address=/#/2001:db8::10");
    Ok(Process(dnsmasq.spawn().context("cannot run dnsmasq")?))
}

/// Serves what the clients ask for, and logs it.
fn servers(netns: &str, directory: &Path) -> Result<Process> {
    let mut python = inside(netns, "setpriv");
    python.args(["--pdeathsig", "KILL", "/usr/bin/python3"]);
    python.arg(root().join("xtask/src/clients/programs/second_host.py"));
    python.args(["leaf.pem", "leaf.key", "reached", "served"].map(|file| directory.join(file)));
    Ok(Process(python.spawn().context("cannot run python3")?))
}

fn join(own: &str, second: &str) -> Result<()> {
    let ip = |words: &str| {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        checked(command)
    };
    ip(&format!("link add eth0 netns {own} type veth peer name eth0 netns {second}"))?;
    for (netns, addresses) in
        [(own, ["192.0.2.1/24", "2001:db8::1/64"]), (second, ["192.0.2.10/24", "2001:db8::10/64"])]
    {
        ip(&format!("-n {netns} addr add {} dev eth0", addresses[0]))?;
        ip(&format!("-n {netns} addr add {} dev eth0 nodad", addresses[1]))?;
        ip(&format!("-n {netns} link set eth0 up"))?;
        ip(&format!("-n {netns} link set lo up"))?;
    }
    Ok(())
}

/// An authority that the clients are told of, and a certificate of its for the listed name.
fn certificate(directory: &Path) -> Result<()> {
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    for arguments in [
        "-subj /CN=authority -keyout ca.key -out ca.pem".to_owned(),
        format!(
            "-subj /CN={LISTED} -addext subjectAltName=DNS:{LISTED} -addext basicConstraints=critical,CA:FALSE \
             -CA ca.pem -CAkey ca.key -keyout leaf.key -out leaf.pem"
        ),
    ] {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(directory).args(request.split(' ')).args(arguments.split_whitespace());
        checked(openssl)?;
    }
    Ok(())
}
