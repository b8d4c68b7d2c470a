//! The two units, and what is asked of them.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::super::{POLICY, status};
use crate::machine::{Machine, wait};

/// What the units run: it does what it is told, in a shell, and says what came of it.
const AGENT: &str = r"import socket, subprocess, sys, threading
def serve(client):
    command = client.makefile().read()
    done = subprocess.run(['bash', '-c', command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    client.sendall(done.stdout + b'\nstatus ' + str(done.returncode).encode())
    client.close()
server = socket.socket(socket.AF_UNIX)
server.bind('\0agent-' + sys.argv[1])
server.listen(64)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";
/// Tells it.
const TELL: &str = r"import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect('\0agent-' + sys.argv[1])
s.sendall(sys.argv[2].encode())
s.shutdown(socket.SHUT_WR)
print(s.makefile().read())
";
/// The server that the units' libraries ask, as far as they know. There is none.
const RESOLV_CONF: &str = "nameserver 192.0.2.99\nsearch corp.example\noptions ndots:2\n";
/// The address of `api.example.org` and most others.
pub(super) const ADDRESS: &str = "192.0.2.20";

/// The units run, and their instances are in the policy. All goes with this value.
pub(super) struct Units<'a> {
    pub(super) machine: &'a mut Machine,
    before: String,
    resolv_conf: String,
}

impl<'a> Units<'a> {
    pub(super) fn start(machine: &'a mut Machine) -> Result<Self> {
        machine.succeed(&["mkdir", "-p", "/run/names"])?;
        machine.write("/run/names/agent.py", AGENT)?;
        for name in ["n", "m"] {
            let unit = format!(
                "[Unit]\nAfter=opencode-egress.service\n[Service]\nType=exec\nDynamicUser=yes\nStateDirectory=names-{name}\nWorkingDirectory=%S/names-{name}\n\
                 ExecStartPre=+/usr/bin/opencode-egress attach {name}\nExecStart=/usr/bin/python3 /run/names/agent.py {name}\n"
            );
            machine.write(&format!("/run/systemd/system/opencode-{name}.service"), &unit)?;
        }
        machine.succeed(&["systemctl", "daemon-reload"])?;
        machine.succeed(&["systemctl", "start", "opencode-egress"])?;
        let (before, resolv_conf) = (machine.read(POLICY)?, machine.read("/etc/resolv.conf")?);
        machine.write("/etc/resolv.conf", RESOLV_CONF)?;
        let units = Self { machine, before, resolv_conf };
        units.apply(|_| {})?;
        units.machine.succeed(&["systemctl", "restart", "opencode-n", "opencode-m"])?;
        for name in ["n", "m"] {
            wait("the agent", || units.run(name, "true").ok())?;
        }
        units.resolves()?;
        Ok(units)
    }

    /// Applies the policy with a change of the two instances. Returns what changed.
    pub(super) fn apply(&self, change: impl Fn(&mut Value)) -> Result<String> {
        let mut policy: Value = serde_json::from_str(&self.before)?;
        policy["resolver"] = json!({ "upstream": ["192.0.2.30"] });
        // Some scenarios are refused faster than an instance has lines by default.
        policy["log"] = json!({ "burst": 1000, "per_sec": 1000 });
        policy["instances"]["n"] = json!({
            "units": ["opencode-n.service"],
            "allow": ["192.0.2.10/32:80/tcp", "api.example.org:80,443", "stays.example.org:80", "*.wild.example.net:80"],
        });
        policy["instances"]["m"] = json!({
            "units": ["opencode-m.service"],
            "allow": ["127.0.0.0/8", "other.example.org:80"],
        });
        change(&mut policy["instances"]);
        self.machine.write(POLICY, &policy.to_string())?;
        self.machine.succeed(&["opencode-egress", "reload"])
    }

    /// Waits until `n` gets an answer that nobody has in memory.
    pub(super) fn resolves(&self) -> Result<()> {
        let next = std::cell::Cell::new(0);
        wait("names to be resolved", || {
            next.set(next.get() + 1);
            let said = self.run("n", &format!("getent ahostsv4 up{}.wild.example.net", next.get())).ok()?;
            said.contains(ADDRESS).then_some(())
        })
        .with_context(|| {
            self.machine
                .run(&["systemctl", "status", "--no-pager", "opencode-egress-resolver"])
                .unwrap_or_default()
        })
    }

    /// Runs a command in a unit; what it prints, and `status` and how it ended.
    pub(super) fn run(&self, name: &str, command: &str) -> Result<String> {
        self.machine.succeed(&["python3", "-c", TELL, name, command])
    }

    /// One that succeeds.
    pub(super) fn can(&self, name: &str, command: &str) -> Result<String> {
        let said = self.run(name, command)?;
        ensure!(said.trim_end().ends_with("\nstatus 0"), "`{command}` in {name}: {said}");
        Ok(said)
    }

    /// One that fails, and what it says then. At once: nothing was waited for.
    pub(super) fn cannot(&self, name: &str, command: &str, says: &str) -> Result<()> {
        let said = self.run(name, &format!("TIMEFORMAT='took %R'; time {command}"))?;
        ensure!(
            !said.trim_end().ends_with("\nstatus 0") && said.contains(says),
            "`{command}` in {name} does not say `{says}`: {said}"
        );
        let took = said.lines().find_map(|line| line.strip_prefix("took ")).context("no time")?;
        ensure!(took.parse::<f64>()? < 1.0, "`{command}` in {name} takes its time: {said}");
        Ok(())
    }

    /// One line of the journal under an instance's identifier that has all of this.
    pub(super) fn line(&self, name: &str, has: &[&str]) -> Result<String> {
        let identifier = format!("opencode-{name}-blocked");
        let words = ["journalctl", "-q", "-t", &identifier, "--no-pager", "-o", "cat"];
        wait("the line", || {
            let lines = self.machine.run(&words).ok()?;
            lines.lines().find(|line| has.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
        .with_context(|| format!("{has:?} in {}", self.machine.run(&words).unwrap_or_default()))
    }

    /// `status --json` of an instance.
    pub(super) fn status(&self, name: &str) -> Result<Value> {
        Ok(status(self.machine)?["instances"][name].clone())
    }

    /// The port at which an instance asks.
    pub(super) fn port(&self, name: &str) -> Result<u64> {
        let status = self.status(name)?;
        status["names"]["port"]
            .as_u64()
            .filter(|port| *port > 0)
            .with_context(|| format!("no port in {status}"))
    }

    pub(super) fn names(&self, name: &str) -> Result<String> {
        self.machine.succeed(&["opencode-egress", "names", name])
    }

    /// For how many seconds new flows to an address of a name may begin; `None`: it is not known.
    pub(super) fn seconds(&self, name: &str, known: &str, address: &str) -> Result<Option<u64>> {
        let said = self.machine.succeed(&["opencode-egress", "names", name, "--json"])?;
        let said: Value = serde_json::from_str(&said)?;
        let its = said.as_array().into_iter().flatten().find(|its| its["name"] == known);
        let mut addresses = its.and_then(|its| its["addresses"].as_array()).into_iter().flatten();
        Ok(addresses.find(|its| its["address"] == address).and_then(|its| its["seconds"].as_u64()))
    }

    /// What was asked of whom, as it arrived at the second host since the last look; nobody else but this machine's resolver asks.
    pub(super) fn asked(&mut self) -> Result<Vec<String>> {
        let seen = self.machine.witnessed()?;
        Ok(seen.into_iter().filter(|line| line.contains(".53: ")).collect())
    }

    /// Restarts nothing: waits until the daemon answers and its resolver is connected.
    pub(super) fn whole(&self) -> Result<()> {
        wait("daemon and resolver", || {
            let said = self.machine.succeed(&["opencode-egress", "status"]).ok()?;
            (!said.contains("no resolver is connected")).then_some(())
        })?;
        self.resolves()
    }

    pub(super) fn signal(&self, unit: &str, signal: &str) -> Result<()> {
        self.machine.succeed(&["systemctl", "kill", "-s", signal, "--kill-who=main", unit]).map(drop)
    }
}

impl Drop for Units<'_> {
    fn drop(&mut self) {
        // The machine may be what failed.
        let _ = self.machine.write("/etc/resolv.conf", &self.resolv_conf);
        let _ = self.machine.run(&["systemctl", "stop", "opencode-n", "opencode-m"]);
        let _ = self.machine.run(&["systemctl", "start", "opencode-egress", "opencode-egress-resolver"]);
        let _ = self.machine.write(POLICY, &self.before);
        let _ = self.machine.run(&["opencode-egress", "reload"]);
    }
}
