//! What daemon and resolver keep when one of them ends, or both.

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{Scenario, Tell, places::COPY},
    units::{ADDRESS, Units},
};
use crate::machine::{Machine, wait};

/// Ends of the daemon and of the resolver.
pub(in crate::scenarios) const KEPT: &[Scenario] = &[
    Scenario {
        title: "names: a daemon that is killed leaves the next one names and sockets",
        run: killed_daemon,
    },
    Scenario { title: "names: without the daemon what is known goes on, and nothing opens", run: no_daemon },
    Scenario { title: "names: a resolver that is killed or hangs loses no question", run: killed_resolver },
    Scenario {
        title: "names: a flow outlives the time of what brought its address; new ones do not begin",
        run: over,
    },
];

const DAEMON: &str = "opencode-egress";
const RESOLVER: &str = "opencode-egress-resolver";

/// To an address that was learned, without a question.
fn known() -> String {
    format!("curl -sS -m 5 --resolve api.example.org:80:{ADDRESS} http://api.example.org/x")
}

/// The sockets of an instance's port, by their inodes.
fn sockets(units: &Units<'_>, port: u64) -> Result<Vec<String>> {
    let said = units.machine.succeed(&["ss", "-Hlntue", "sport", "=", &format!(":{port}")])?;
    let inodes = said.split_whitespace().filter(|word| word.starts_with("ino:"));
    let mut inodes: Vec<_> = inodes.map(str::to_owned).collect();
    inodes.sort();
    Ok(inodes)
}

fn killed_daemon(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    let port = units.port("n")?;
    let before = sockets(&units, port)?;
    ensure!(before.len() == 4, "at {port} there are {before:?}");
    for _ in 0..3 {
        units.signal(DAEMON, "KILL")?;
        // Also in between.
        units.can("n", &known())?;
        units.whole()?;
        let after = (units.port("n")?, sockets(&units, port)?);
        ensure!(after == (port, before.clone()), "at {port} there were {before:?} and then {after:?}");
        let seconds = units.seconds("n", "api.example.org", ADDRESS)?;
        ensure!(seconds > Some(0), "the next daemon knows {}", units.names("n")?);
        units.can("n", &known())?;
        units.can("n", "curl -sS -m 5 http://api.example.org/x")?;
    }
    Ok(())
}

fn no_daemon(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let mut units = Units::start(machine)?;
    units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    for stopped in [&[DAEMON][..], &[DAEMON, RESOLVER]] {
        units.machine.succeed(&[&["systemctl", "stop"], stopped].concat())?;
        units.asked()?;
        let tried = (|| {
            units.can("n", &known())?;
            units.cannot("n", "curl -sS -m 5 http://new.wild.example.net/", "Could not resolve host")?;
            units.cannot("n", "curl -sS -m 5 http://evil.example/", "Could not resolve host")?;
            units.cannot("n", &format!("curl -sS -m 5 http://{ADDRESS}:81/"), "Couldn't connect")?;
            units.cannot("n", "curl -sS -m 5 http://192.0.2.30/", "Couldn't connect")?;
            units.cannot("m", &format!("curl -sS -m 5 http://{ADDRESS}/"), "Couldn't connect")
        })();
        units.machine.succeed(&["systemctl", "start", DAEMON, RESOLVER])?;
        tried.with_context(|| format!("without {stopped:?}"))?;
        let asked = units.asked()?;
        ensure!(asked.is_empty(), "without {stopped:?} this was asked: {asked:#?}");
        units.whole()?;
        units.can("n", &known())?;
    }
    Ok(())
}

/// Sends questions, says so, and counts the answers.
const MANY: &str = r"import socket, struct, sys
first, count = sys.argv[1], int(sys.argv[2])
sockets = []
for number in range(count):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(30)
    name = f'{first}{number}.wild.example.net'
    wire = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.')) + b'\0'
    s.connect(('192.0.2.99', 53))
    s.send(struct.pack('>HHHHHH', number, 0x100, 1, 0, 0, 0) + wire + b'\0\1\0\1')
    sockets.append(s)
open('sent', 'w').close()
answered = [s.recv(4096) for s in sockets]
print('answered', sum(reply[3] & 15 == 0 and reply[7] == 1 for reply in answered))
";

fn killed_resolver(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.machine.write("/run/names/many.py", MANY)?;
    let send = |first: &str| -> Result<()> {
        let command = format!("rm -f sent; (python3 /run/names/many.py {first} 150 > answers 2>&1 &)");
        units.can("n", &command)?;
        wait("the questions", || units.can("n", "test -e sent").ok()).map(drop)
    };
    let answered = || {
        wait("all answers", || units.can("n", "grep -x 'answered 150' answers").ok())
            .with_context(|| units.run("n", "cat answers").unwrap_or_default())
            .map(drop)
    };
    units.signal(RESOLVER, "STOP")?;
    send("stopped")?;
    units.signal(RESOLVER, "CONT")?;
    answered()?;
    // What waits in the sockets is the next one's.
    units.signal(RESOLVER, "STOP")?;
    send("killed")?;
    units.signal(RESOLVER, "KILL")?;
    answered()?;
    units.whole()?;
    // What it has read is asked again by whoever asked: here by the C library.
    let command =
        "(for i in $(seq 20); do getent ahostsv4 slow$i.wild.example.net & done > answers 2>&1; wait) & true";
    units.can("n", command)?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    units.signal(RESOLVER, "KILL")?;
    let count = "test $(grep -c 'STREAM slow' answers) = 20";
    wait("all answers", || units.can("n", count).ok())
        .with_context(|| units.run("n", "cat answers").unwrap_or_default())?;
    units.whole()
}

/// Keeps a connection, and uses it when it is told to.
const KEEPER: &str = r"import os, socket, time
s = socket.create_connection(('kept.wild.example.net', 80))
open('connected', 'w').write(s.getpeername()[0])
while not os.path.exists('go'):
    time.sleep(0.05)
s.sendall(b'GET /kept HTTP/1.1\n')
print(s.makefile().read(), flush=True)
";

fn over(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.machine.write("/run/names/keeper.py", KEEPER)?;
    units.can("n", "rm -f connected go; (python3 /run/names/keeper.py > kept 2>&1 &)")?;
    let peer = wait("the connection", || units.can("n", "grep . connected").ok())?;
    let peer = peer.lines().next().unwrap_or_default().to_owned();
    // Two minutes go by: in the file in which a daemon that starts finds what was learned.
    units.machine.succeed(&["systemctl", "stop", DAEMON])?;
    let file = COPY.replace(".json", ".names");
    let age = r#"import json, sys, time
lines = open(sys.argv[1]).read().splitlines()
now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
aged = [json.dumps(dict(json.loads(line), u=now + 1)) for line in lines[1:]]
open(sys.argv[1], 'w').write('\n'.join(lines[:1] + aged) + '\n')
"#;
    units.machine.succeed(&["python3", "-c", age, &file])?;
    units.machine.succeed(&["systemctl", "start", DAEMON])?;
    let seconds = || units.seconds("n", "kept.wild.example.net", &peer).ok();
    wait("the time to be over", || seconds().filter(|seconds| *seconds == Some(0)))
        .with_context(|| units.names("n").unwrap_or_default())?;
    let host = if peer.contains(':') { format!("[{peer}]") } else { peer.clone() };
    units.cannot("n", &format!("curl -sS -g -m 5 http://{host}/x"), "Couldn't connect")?;
    units.line("n", &[&format!("dst={peer} dport=80 name=kept.wild.example.net "), "reason=name-expired"])?;
    units.can("n", "touch go")?;
    let kept = wait("the old connection", || units.can("n", "grep upstream kept").ok())?;
    ensure!(kept.contains("GET /kept"), "the old connection: {kept}");
    units.can("n", "curl -sS -m 5 http://kept.wild.example.net/x").map(drop)
}
