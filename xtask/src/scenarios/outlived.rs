//! Sockets that outlive their unit: handed to another one, which nothing confines, and used there.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{POLICY, Scenario, Tell, pinned, status};
use crate::{
    machine::{Machine, wait},
    pins::PINS,
};

/// What stays confined.
pub(super) const OUTLIVED: &[Scenario] = &[
    Scenario {
        title: "a socket that outlives its unit is judged by the instance that made it, for as long as it exists",
        run: handed_on,
    },
    Scenario {
        title: "so it is when the daemon is killed between any two steps",
        run: handed_on_under_kills,
    },
    Scenario {
        title: "what outlived its unit under another ABI version keeps its policy, and loses it with that",
        run: handed_on_by_another_version,
    },
];

/// Makes sockets, hands them to the keeper, and sleeps.
const GIVER: &str = r"import array, os, socket, sys, time
free = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
joined = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
joined.connect(('192.0.2.30', 9))
fresh = socket.socket()
opened = socket.create_connection(('192.0.2.10', 80))
keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
keeper.connect('\0keeper')
handed = array.array('i', [s.fileno() for s in (free, joined, fresh, opened)])
keeper.sendmsg([b'keep'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
keeper.recv(10)
open('/run/handed/' + str(os.getpid()), 'w').close()
time.sleep(1000)
";

/// Keeps what it is given, the last first, and tries it when it is told to.
const KEEPER: &str = r"import array, errno, json, socket

def outcome(act):
    try:
        act()
        return 'passed'
    except TimeoutError:
        return 'hung'
    except OSError as e:
        return errno.errorcode[e.errno]

kept = []
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind('\0keeper')
server.listen()
while True:
    client, _ = server.accept()
    words, extra, _, _ = client.recvmsg(100, socket.CMSG_SPACE(4 * 4))
    if words == b'keep':
        numbers = array.array('i')
        numbers.frombytes(extra[0][2])
        sockets = [socket.socket(fileno=number) for number in numbers]
        for s in sockets:
            s.settimeout(3)
        kept.insert(0, sockets)
        client.send(b'kept')
    elif words == b'drop':
        kept.clear()
        sockets = free = joined = fresh = opened = s = None
        client.send(b'dropped')
    else:
        tried = []
        for free, joined, fresh, opened in kept:
            tried.append({
                'denied': [
                    outcome(lambda: free.sendto(b'x', ('192.0.2.30', 9))),
                    outcome(lambda: joined.send(b'x')),
                    outcome(lambda: fresh.connect(('192.0.2.30', 80))),
                ],
                'allowed': [outcome(lambda: free.sendto(b'x', ('192.0.2.10', 9)))],
                'opened': outcome(lambda: opened.send(b'x')),
            })
        client.send(json.dumps(tried).encode())
";

/// Says something to the keeper and prints what it answers.
const ASK: &str = r"import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect('\0keeper')
s.send(sys.argv[1].encode())
print(s.recv(65536).decode())
";

/// The two units, and the policy file as it was. They go with this value.
struct Attack<'a> {
    machine: &'a mut Machine,
    before: String,
    /// Whether the daemon is killed before each look.
    kills: bool,
}

impl<'a> Attack<'a> {
    fn prepare(machine: &'a mut Machine, kills: bool) -> Result<Self> {
        machine.succeed(&["mkdir", "-p", "/run/attack"])?;
        machine.succeed(&["install", "-d", "-o", "nobody", "/run/handed"])?;
        machine.write("/run/attack/giver.py", GIVER)?;
        machine.write("/run/attack/keeper.py", KEEPER)?;
        let unit = |script: &str, attach: &str| {
            format!("[Service]\nUser=nobody\n{attach}ExecStart=/usr/bin/python3 /run/attack/{script}.py\n")
        };
        let attach = "ExecStartPre=+/usr/bin/opencode-egress attach giver\n";
        machine.write("/run/systemd/system/opencode-giver.service", &unit("giver", attach))?;
        machine.write("/run/systemd/system/keeper.service", &unit("keeper", ""))?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        let before = machine.read(POLICY)?;
        let attack = Self { machine, before, kills };
        attack.apply(Some(json!(["192.0.2.10/32"])))?;
        attack.machine.succeed(&["systemctl", "start", "keeper"])?;
        wait("the keeper", || attack.ask("try").ok())?;
        Ok(attack)
    }

    /// Applies a policy in which the giver may reach this; `None`: it is not in it, and another instance may reach everything.
    fn apply(&self, allow: Option<Value>) -> Result<()> {
        let mut policy: Value = serde_json::from_str(&self.before)?;
        match allow {
            Some(allow) => {
                policy["instances"]["giver"] = json!({ "units": ["opencode-giver.service"], "allow": allow });
            }
            None => {
                policy["instances"]["other"] = json!({ "units": ["other.service"], "allow": ["0.0.0.0/0"] });
            }
        }
        self.machine.write(POLICY, &policy.to_string())?;
        self.machine.succeed(&["opencode-egress", "reload"]).map(drop)
    }

    fn ask(&self, words: &str) -> Result<Value> {
        let said = self.machine.succeed(&["python3", "-c", ASK, words])?;
        Ok(serde_json::from_str(&said).unwrap_or(Value::String(said)))
    }

    /// Starts the giver, and waits until it has handed over its sockets.
    fn give(&self) -> Result<()> {
        self.machine.succeed(&["systemctl", "restart", "opencode-giver"])?;
        let pid = self.machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-giver"])?;
        let mark = format!("/run/handed/{}", pid.trim());
        wait("the giver's sockets", || self.machine.succeed(&["test", "-e", &mark]).ok()).map(drop)
    }

    /// Tries all that the keeper has, of so many starts: what is denied is refused at once and does not arrive, and what is
    /// allowed passes, if anything is.
    fn look(&mut self, when: &str, starts: usize, allowed: &str, opened: &str) -> Result<()> {
        if self.kills {
            self.machine.succeed(&[
                "systemctl",
                "kill",
                "-s",
                "KILL",
                "--kill-who=main",
                "opencode-egress",
            ])?;
            wait("the daemon to come back", || status(self.machine).ok())?;
        }
        self.machine.witnessed()?;
        let tried = self.ask("try")?;
        let tried = tried.as_array().with_context(|| format!("{when}: the keeper says {tried}"))?;
        ensure!(tried.len() == starts, "{when}: {tried:?}");
        for each in tried {
            ensure!(each["denied"] == json!(["EPERM", "EPERM", "EPERM"]), "{when}: what is denied: {each}");
            ensure!(each["allowed"] == json!([allowed]), "{when}: what was allowed: {each}");
            ensure!(opened == "any" || each["opened"] == opened, "{when}: the open connection: {each}");
        }
        let seen = self.machine.witnessed()?;
        let arrived = |place: &str| seen.iter().filter(|line| line.contains(&format!("> {place}"))).count();
        ensure!(arrived("192.0.2.30.") == 0, "{when}: LEAK: {seen:#?}");
        ensure!((arrived("192.0.2.10.9:") > 0) == (allowed == "passed"), "{when}: what arrived: {seen:#?}");
        Ok(())
    }

    /// Waits until the giver is known to have this many starts of before with open sockets.
    fn outlived(&self, starts: u64) -> Result<Value> {
        wait("what outlived its unit to be known", || {
            let giver = status(self.machine).ok()?["instances"]["giver"].clone();
            (giver["outlived"].as_u64() == Some(starts)).then_some(giver)
        })
    }

    fn run(&mut self) -> Result<()> {
        self.give()?;
        self.look("while the unit runs", 1, "passed", "passed")?;
        self.machine.succeed(&["systemctl", "stop", "opencode-giver"])?;
        self.outlived(1)?;
        self.look("when the unit has stopped", 1, "passed", "passed")?;
        let text = self.machine.succeed(&["opencode-egress", "status"])?;
        ensure!(text.contains("giver: sockets of 1 earlier start are open; they stay confined"), "{text}");
        ensure!(
            self.kills || text.contains("! giver: 3 denials came from sockets of earlier starts"),
            "{text}"
        );
        self.give()?;
        self.look("when it has started again", 2, "passed", "passed")?;
        self.give()?;
        self.outlived(2)?;
        self.look("when it has restarted", 3, "passed", "passed")?;
        let denied = |giver: &Value| giver["counters"]["denied_packets"].as_u64().unwrap_or(0);
        let before = denied(&self.outlived(2)?);
        self.machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
        self.machine.succeed(&["systemctl", "stop", "opencode-giver"])?;
        let kills = std::mem::replace(&mut self.kills, false);
        self.look("without a daemon", 3, "passed", "passed")?;
        self.kills = kills;
        self.machine.succeed(&["systemctl", "start", "opencode-egress"])?;
        let giver = self.outlived(3)?;
        ensure!(denied(&giver) == before + 9, "{before} denials and then 9 without a daemon make {giver}");
        self.look("with the next daemon", 3, "passed", "passed")?;
        self.machine.succeed(&["opencode-egress", "detach", "giver"]).err().context("nothing runs")?;
        self.apply(Some(json!(["198.51.100.0/24"])))?;
        // Reset, and then closed.
        self.look("after a reload that denies it", 3, "EPERM", "ECONNABORTED")?;
        self.apply(None)?;
        self.look("when the instance is gone", 3, "EPERM", "EPIPE")?;
        let giver = self.outlived(3)?;
        let reasons = &giver["counters"]["denied_by_reason"];
        ensure!(giver["removed"] == true && reasons["no-policy"].as_u64() >= Some(12), "{giver}");
        self.apply(Some(json!(["192.0.2.10/32"])))?;
        self.look("when it is back", 3, "passed", "any")?;
        self.ask("drop")?;
        wait("the links to go", || {
            let left = pinned(self.machine, "opencode-giver.service").ok()?;
            left.iter().all(|name| !name.starts_with(|c: char| c.is_ascii_digit())).then_some(())
        })?;
        self.outlived(0).map(drop)
    }
}

impl Drop for Attack<'_> {
    fn drop(&mut self) {
        // The machine may be what failed.
        let _ = self.machine.run(&["systemctl", "stop", "opencode-giver", "keeper"]);
        let _ = self.machine.run(&["systemctl", "start", "opencode-egress"]);
        let _ = self.machine.write(POLICY, &self.before);
        let _ = self.machine.run(&["opencode-egress", "reload"]);
    }
}

fn handed_on(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    Attack::prepare(machine, false)?.run()
}

fn handed_on_under_kills(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    Attack::prepare(machine, true)?.run()
}

fn handed_on_by_another_version(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let mut attack = Attack::prepare(machine, false)?;
    attack.give()?;
    attack.machine.succeed(&["systemctl", "stop", "opencode-giver"])?;
    attack.outlived(1)?;
    attack.machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    attack.machine.succeed(&["sh", "-c", &format!("mv {PINS}/v* {PINS}/v0")])?;
    attack.machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    attack.outlived(1)?;
    attack.look("taken over", 1, "passed", "passed")?;
    attack.kills = true;
    attack.look("by a second daemon too", 1, "passed", "passed")?;
    attack.apply(Some(json!(["192.0.2.10/32", "198.51.100.0/24"])))?;
    // Its links cannot be given the new policy.
    attack.look("when its policy has changed", 1, "EPERM", "any")?;
    attack.ask("drop")?;
    wait("the other version's pins to go", || {
        attack.machine.fail(&["test", "-e", &format!("{PINS}/v0")]).ok()
    })?;
    attack.outlived(0).map(drop)
}
