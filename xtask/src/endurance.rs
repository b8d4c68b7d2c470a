//! The same thing many times over, on a machine, with probes that know at once when something is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    machine::{Machine, wait},
    pins,
};

const POLICY: &str = "/etc/opencode-egress/policy.json";
const TOTAL: &str = "/run/probe-total";
/// The program of an earlier daemon, where there is one: each understands its own.
pub(crate) const EARLIER: &str = "/run/before/opencode-egress";
/// What the probes may reach, and what they may not.
const ALLOWED: &str = "192.0.2.10";
const DENIED: [&str; 2] = ["192.0.2.30", "2001:db8::30"];
/// Below this one each name is listed.
const ZONE: &str = "listed.example.net";
/// Where the second host's server for names is. The probes may not reach it; their instance's resolver asks it for listed names.
const UPSTREAM: &str = DENIED[0];

/// Instances beside those that the machine has, with probes in their units. They go with this value.
pub(crate) struct Probes<'a> {
    machine: &'a mut Machine,
    /// The policy file without them.
    before: String,
    /// Denials that were counted when they came.
    counted: u64,
    /// Whether names are on their list, too.
    names: bool,
}

impl<'a> Probes<'a> {
    /// Probes that reach what they do by names and by networks.
    pub(crate) fn install(machine: &'a mut Machine) -> Result<Self> {
        Self::write(machine, true)
    }

    /// Such as daemons know that knew no names.
    pub(crate) fn without_names(machine: &'a mut Machine) -> Result<Self> {
        Self::write(machine, false)
    }

    /// Writes the units and the policy, and applies it. Nothing is started.
    fn write(machine: &'a mut Machine, names: bool) -> Result<Self> {
        let below = if names { format!(" --below {ZONE}") } else { String::new() };
        for (number, denied) in DENIED.iter().enumerate() {
            let denied = if denied.contains(':') { format!("[{denied}]:80") } else { format!("{denied}:80") };
            let command = format!("probe both {ALLOWED}:80 {denied} {TOTAL}{below}");
            machine.write(&unit_path(&format!("probe{number}")), &unit(&command, "exec"))?;
        }
        machine.write(&unit_path("short"), &unit("--version", "oneshot"))?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        let before = machine.read(POLICY)?;
        let mut probes = Self { machine, before, counted: 0, names };
        probes.reload(0)?;
        probes.counted = probes.denials()?;
        Ok(probes)
    }

    /// Applies a policy that differs from others in nothing that the probes try.
    fn reload(&mut self, variant: usize) -> Result<()> {
        self.machine.write(POLICY, &self.policy(variant)?)?;
        self.machine.succeed(&["opencode-egress", "reload"]).map(drop)
    }

    fn policy(&self, variant: usize) -> Result<String> {
        let mut policy: Value = serde_json::from_str(&self.before)?;
        let other = format!("198.51.100.{}/32", variant % 256);
        let units = ["probe0", "probe1", "short"].map(|name| format!("opencode-{name}.service"));
        let mut allow = vec![format!("{ALLOWED}/32"), other];
        if self.names {
            allow.push(format!("*.{ZONE}:80"));
            policy["resolver"] = json!({ "upstream": [UPSTREAM] });
        }
        policy["instances"]["probes"] = json!({ "units": units, "allow": allow, "deny": [] });
        Ok(policy.to_string())
    }

    /// Restarts the probes so many times, with a reload in between.
    pub(crate) fn restarts(&mut self, count: usize) -> Result<()> {
        for number in 0..count {
            self.reload(number)?;
            self.machine.succeed(&["systemctl", "restart", "opencode-probe0", "opencode-probe1"])?;
            if number % 20 == 0 {
                self.witness()?;
            }
        }
        self.verify()
    }

    /// Has daemons of other ABI versions take over so many times from the one that `begin` leaves running, under probes that run all the
    /// while. What is counted in the moment of a takeover may be counted by the old links alone, so this looks at what gets out and what
    /// is denied.
    pub(crate) fn takeovers(
        &mut self,
        count: usize,
        begin: impl Fn(&Machine) -> Result<()>,
        takeover: impl Fn(&Machine, usize) -> Result<()>,
    ) -> Result<()> {
        begin(self.machine)?;
        self.machine.succeed(&["systemctl", "start", "opencode-probe0", "opencode-probe1"])?;
        wait("the first denials", || self.denials().ok().filter(|denials| *denials > 0))?;
        for number in 0..count {
            let before = self.denials()?;
            takeover(self.machine, number)?;
            wait("counting to go on", || self.denials().ok().filter(|now| *now > before))?;
            self.witness()?;
        }
        self.stop()?;
        self.machine.write(TOTAL, "")?;
        self.counted = self.denials()?;
        Ok(())
    }

    /// Starts a unit that ends at once so many times.
    pub(crate) fn starts(&mut self, count: usize) -> Result<()> {
        // The first start makes what stays.
        self.machine.succeed(&["systemctl", "start", "opencode-short"])?;
        let links = &pins::own("links/opencode-short,service");
        wait("the first start's links to go", || self.machine.fail(&["test", "-e", links]).ok())?;
        let before = self.kept()?;
        // In the machine, a start takes a fraction of what a command from outside does.
        for number in (0..count).step_by(200) {
            let times = (count - number).min(200);
            let script =
                format!("for i in $(seq {times}); do systemctl start opencode-short || exit 1; done");
            self.machine.succeed(&["sh", "-c", &script])?;
        }
        wait("what the unit's cgroups had to go", || self.kept().ok().filter(|kept| *kept == before))
            .with_context(|| format!("before: {before:?}, after: {:?}", self.kept()))
            .map(drop)
    }

    /// What is pinned, and how many descriptors the daemon has.
    fn kept(&self) -> Result<(usize, usize)> {
        let pins = self.machine.succeed(&["find", "/sys/fs/bpf/opencode-egress"])?;
        let pid = self.machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
        let files = self.machine.succeed(&["ls", &format!("/proc/{}/fd", pid.trim())])?;
        Ok((pins.lines().count(), files.lines().count()))
    }

    /// Mixes restarts, reloads, kills of daemon and resolver, and floods for so long, while names are resolved. In the second half nobody
    /// kills the daemon, so that what it keeps would show.
    pub(crate) fn mixed(&mut self, duration: Duration) -> Result<Mixed> {
        let begin = Instant::now();
        let mut mixed = Mixed::default();
        while begin.elapsed() < duration / 2 {
            self.round(mixed.rounds, true)?;
            mixed.rounds += 1;
        }
        // One to get warm.
        self.round(mixed.rounds, false)?;
        mixed.first = self.resident()?;
        while begin.elapsed() < duration {
            self.round(mixed.rounds, false)?;
            mixed.rounds += 1;
            mixed.undisturbed += 1;
        }
        mixed.last = self.resident()?;
        ensure!(mixed.undisturbed > 0, "one round took more than half of {duration:?}; take more time");
        ensure!(
            mixed.last <= mixed.first + 2048,
            "the daemon had {} KiB resident, and {} KiB after {} rounds more",
            mixed.first,
            mixed.last,
            mixed.undisturbed
        );
        Ok(mixed)
    }

    fn round(&mut self, number: usize, kill: bool) -> Result<()> {
        self.machine.succeed(&["systemctl", "start", "opencode-probe0", "opencode-probe1"])?;
        for step in 0..10 {
            match (number + step) % 5 {
                1 => drop(self.machine.succeed(&["systemctl", "restart", "opencode-probe0"])?),
                2 if kill => self.kill_daemon()?,
                3 if kill => self.kill_resolver()?,
                4 => self.flood(20_000)?,
                _ => self.reload(number * 10 + step)?,
            }
            self.witness()?;
        }
        self.verify()
    }

    fn kill_daemon(&mut self) -> Result<()> {
        self.machine.succeed(&["systemctl", "kill", "-s", "KILL", "--kill-who=main", "opencode-egress"])?;
        wait("the daemon to come back", || self.denials().ok()).map(drop)
    }

    fn kill_resolver(&self) -> Result<()> {
        let resolver = "opencode-egress-resolver";
        self.machine.succeed(&["systemctl", "kill", "-s", "KILL", "--kill-who=main", resolver]).map(drop)
    }

    /// Denied connections of another unit of the same instance, counted with the rest.
    fn flood(&mut self, count: u64) -> Result<()> {
        let command = format!("probe flood {} {count}", DENIED[0]);
        self.machine.write(&unit_path("short"), &unit(&command, "oneshot"))?;
        self.machine.succeed(&["systemctl", "daemon-reload"])?;
        self.machine.succeed(&["systemctl", "start", "opencode-short"])?;
        self.counted += count;
        Ok(())
    }

    /// The daemon's resident memory in KiB.
    fn resident(&self) -> Result<u64> {
        let pid = self.machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
        let status = self.machine.read(&format!("/proc/{}/status", pid.trim()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.context("no VmRSS")?.split_whitespace().next().context("VmRSS is empty")?;
        Ok(words.parse()?)
    }

    /// Stops the probes, which must have met with nothing wrong.
    fn stop(&mut self) -> Result<()> {
        self.machine.succeed(&["systemctl", "stop", "opencode-probe0", "opencode-probe1"])?;
        self.witness()?;
        for number in 0..DENIED.len() {
            let unit = format!("opencode-probe{number}");
            let result = self.machine.succeed(&["systemctl", "show", "-P", "Result", &unit])?;
            if result.trim() != "success" {
                bail!("{}", self.machine.run(&["journalctl", "-u", &unit, "-n", "20", "--no-pager"])?);
            }
        }
        Ok(())
    }

    /// Stops the probes and compares what they tried with what was counted.
    fn verify(&mut self) -> Result<()> {
        self.stop()?;
        let total = self.machine.read(TOTAL)?;
        self.machine.write(TOTAL, "")?;
        let tried: u64 = total.lines().map(|line| line.parse::<u64>().unwrap_or(0)).sum();
        let counted = wait("the daemon", || self.denials().ok())?;
        let expected = self.counted + tried;
        ensure!(counted == expected, "{counted} denials are counted and {expected} were tried");
        ensure!(tried > 0, "the probes tried nothing");
        self.counted = counted;
        Ok(())
    }

    fn denials(&self) -> Result<u64> {
        let status = |program| self.machine.succeed(&[program, "status", "--json"]);
        let said = status("opencode-egress").or_else(|error| status(EARLIER).map_err(|_| error))?;
        let status: Value = serde_json::from_str(&said)?;
        let counters = &status["instances"]["probes"]["counters"];
        counters["denied_packets"].as_u64().with_context(|| format!("no counters in {status}"))
    }

    /// Fails when the second host saw something that it should not.
    fn witness(&mut self) -> Result<()> {
        let seen = self.machine.witnessed()?;
        let question =
            |line: &str| line.contains(&format!("> {UPSTREAM}.53: ")) && line.contains(&format!(".{ZONE}. "));
        let leaked: Vec<_> = seen
            .iter()
            .filter(|line| DENIED.iter().any(|denied| line.contains(&format!("> {denied}."))))
            .filter(|line| !question(line))
            .collect();
        ensure!(leaked.is_empty(), "the witness saw {leaked:#?}");
        Ok(())
    }
}

impl Drop for Probes<'_> {
    fn drop(&mut self) {
        // The machine may be what failed.
        let _ = self.machine.run(&["systemctl", "stop", "opencode-probe0", "opencode-probe1"]);
        let _ = self.machine.write(POLICY, &self.before);
        let _ = self.machine.run(&["opencode-egress", "reload"]);
    }
}

/// What a mixed run did.
#[derive(Default)]
pub(crate) struct Mixed {
    pub(crate) rounds: usize,
    /// Of them, how many the daemon's memory was watched over.
    pub(crate) undisturbed: usize,
    /// The daemon's resident memory in KiB before those.
    pub(crate) first: u64,
    /// And after them.
    pub(crate) last: u64,
}

fn unit_path(name: &str) -> String {
    format!("/run/systemd/system/opencode-{name}.service")
}

fn unit(command: &str, kind: &str) -> String {
    format!(
        "[Unit]\nAfter=opencode-egress.service\nStartLimitIntervalSec=0\n[Service]\nType={kind}\n\
         ExecStartPre=+/usr/bin/opencode-egress attach probes\nExecStart=/usr/local/bin/xtask {command}\n"
    )
}
