//! Open connections that are denied, wherever their sockets are, and connections that are rewritten to what is denied.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{A, POLICY, Scenario, Tell};
use crate::machine::{Machine, wait};

/// What becomes of them.
pub(super) const CONNECTIONS: &[Scenario] = &[
    Scenario {
        title: "a reload resets what it denies in a unit's own network namespace, of a cgroup that is gone, and of MPTCP",
        run: resets,
    },
    Scenario {
        title: "a connection that is rewritten to a denied destination ends at once, and the line and `explain` say where it went",
        run: rewritten,
    },
];

/// Takes connections and keeps them: protocol and port.
const SERVER: &str = "import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[1]))
server.bind(('127.0.0.1', int(sys.argv[2])))
server.listen()
kept = []
while True:
    kept.append(server.accept())
";

/// Connects, waits for data, and writes what comes of it: file, protocol and port.
const CLIENT: &str = "import socket, sys
def say(what):
    with open(sys.argv[1], 'w') as file:
        file.write(what)
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[2]))
client.connect(('127.0.0.1', int(sys.argv[3])))
say('connected')
try:
    client.recv(1)
    say('ended')
except OSError as error:
    say('error %d' % error.errno)
";

/// One client's process leaves its cgroup, which is removed then; its socket stays.
const CLIENTS: &str = "cgroup=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
python3 /run/client.py /run/plain 6 9001 &
python3 /run/client.py /run/mptcp 262 9002 &
mkdir $cgroup/child
(echo $BASHPID > $cgroup/child/cgroup.procs; exec python3 /run/client.py /run/child 6 9003) &
until [ -e /run/go ]; do sleep 0.1; done
for pid in $(cat $cgroup/child/cgroup.procs); do echo $pid > $cgroup/cgroup.procs; done
rmdir $cgroup/child && touch /run/gone
exec sleep infinity
";

const UNIT: &str = "[Service]
NetworkNamespacePath=/run/netns/apart
Delegate=yes
ExecStartPre=+/usr/bin/opencode-egress attach b
ExecStart=/bin/bash /run/clients.sh
";

/// Puts what `edit` makes of the policy file in force, and returns what `reload` says.
fn apply(machine: &Machine, policy: &str, edit: impl FnOnce(&mut Value)) -> Result<String> {
    let mut policy: Value = serde_json::from_str(policy)?;
    edit(&mut policy["instances"]["b"]);
    machine.write(POLICY, &policy.to_string())?;
    machine.succeed(&["sh", "-c", "opencode-egress reload 2>&1"])
}

fn list_unit(instance: &mut Value) {
    if let Some(units) = instance["units"].as_array_mut() {
        units.push(json!("opencode-apart.service"));
    }
}

fn resets(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    for (path, content) in [
        ("/run/server.py", SERVER),
        ("/run/client.py", CLIENT),
        ("/run/clients.sh", CLIENTS),
        ("/run/systemd/system/opencode-apart.service", UNIT),
    ] {
        machine.write(path, content)?;
    }
    machine.succeed(&["ip", "netns", "add", "apart"])?;
    machine.succeed(&["ip", "-n", "apart", "link", "set", "lo", "up"])?;
    machine.succeed(&["ip", "netns", "exec", "apart", "sysctl", "-q", "-w", "net.mptcp.close_timeout=1"])?;
    for (protocol, port) in [("6", "9001"), ("262", "9002"), ("6", "9003")] {
        let unit = format!("--unit=server-{port}");
        let place = "--property=NetworkNamespacePath=/run/netns/apart";
        machine.succeed(&["systemd-run", &unit, place, "python3", "/run/server.py", protocol, port])?;
    }
    let listening = || machine.succeed(&["ip", "netns", "exec", "apart", "ss", "-Hltn"]).ok();
    wait("the servers", || listening().filter(|said| said.matches(":900").count() == 3))?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    apply(machine, &policy, |instance| {
        list_unit(instance);
        if let Some(allow) = instance["allow"].as_array_mut() {
            allow.push(json!("127.0.0.0/8"));
        }
    })?;
    machine.succeed(&["systemctl", "start", "opencode-apart"])?;
    let said = |client: &str| machine.succeed(&["cat", &format!("/run/{client}")]).unwrap_or_default();
    for client in ["plain", "mptcp", "child"] {
        wait("a client to connect", || (said(client) == "connected").then_some(()))?;
    }
    // The daemon sees the child cgroup while it is there.
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["touch", "/run/go"])?;
    wait("the child cgroup to go", || machine.succeed(&["ls", "/run/gone"]).ok())?;
    let reloaded = apply(machine, &policy, list_unit)?;
    for client in ["plain", "child"] {
        wait("a client to be told", || (said(client) == "error 103").then_some(()))?;
    }
    let of_mptcp = "parts of MPTCP connections that were reset: 1.";
    ensure!(reloaded.contains(of_mptcp), "{reloaded}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains(of_mptcp), "{status}");
    ensure!(super::daemon_log(machine)?.contains(of_mptcp), "the journal does not say so");
    wait("MPTCP's time-out", || said("mptcp").starts_with('e').then_some(()))?;
    // The next daemon cannot look there, and says so.
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    let reloaded = apply(machine, &policy, |instance| {
        list_unit(instance);
        instance["allow"] = json!(["192.0.2.30/32"]);
    })?;
    let unseen = "opencode-apart.service has a network namespace that this daemon has not seen";
    ensure!(reloaded.contains(unseen), "{reloaded}");
    machine.succeed(&["systemctl", "stop", "opencode-apart", "server-9001", "server-9002", "server-9003"])?;
    machine.succeed(&["ip", "netns", "del", "apart"])?;
    machine.write(POLICY, &policy)?;
    let reloaded = machine.succeed(&["sh", "-c", "opencode-egress reload 2>&1"])?;
    ensure!(!reloaded.contains("network namespace"), "{reloaded}");
    Ok(())
}

fn rewritten(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let rules = "table ip rewrite { chain output { type nat hook output priority -100;
        ip daddr 192.0.2.10 tcp dport 80 dnat to 192.0.2.20:80
    };
    }
    ";
    machine.write("/run/rewrite.nft", rules)?;
    machine.succeed(&["nft", "-f", "/run/rewrite.nft"])?;
    let said = machine.opencode_shell(
        A,
        "curl -sS -m 20 -w '%{time_total}' http://192.0.2.10:80/ 2>&1 || echo ' refused'",
    )?;
    ensure!(said.contains("refused") && said.contains("0."), "it is not told at once: {said}");
    let line = "dst=192.0.2.20 dport=80 asked=192.0.2.10:80 hook=egress reason=not-allowed";
    wait("the line", || {
        let journal = machine.succeed(&["journalctl", "-t", "opencode-a-blocked", "--no-pager"]).ok()?;
        journal.contains(line).then_some(())
    })?;
    let explained = machine.succeed(&["opencode-egress", "explain", "a", "192.0.2.10:80"])?;
    ensure!(explained.contains("the host sent such a flow to 192.0.2.20:80 instead"), "{explained}");
    machine.succeed(&["nft", "delete", "table", "ip", "rewrite"]).map(drop)
}
