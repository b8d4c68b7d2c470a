//! A flow that lives much longer than the answer that brought its address.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::units::Units;
use crate::machine::{Machine, wait};

/// The second host's address, by an answer that is good for a second.
const NAME: &str = "v6second-20010db8000000000000000000000020.wild.example.net";
const PEER: &str = "2001:db8::20";

/// Sends a byte of a request each second, so many, and then the rest.
const TRICKLE: &str = r"import socket, sys, time
s = socket.create_connection((sys.argv[1], 80))
s.sendall(b'GET /')
open('connected', 'w').write(s.getpeername()[0])
for _ in range(int(sys.argv[2])):
    time.sleep(1)
    s.sendall(b'x')
s.sendall(b' HTTP/1.1\n')
print(s.makefile().read(), flush=True)
";

/// How long after an answer new flows may begin, at most: a minute, and the grace behind it.
const GOOD: Duration = Duration::from_secs(180);

/// Has a flow go on for so many minutes, three or more, while a byte of it is sent each second. Returns what was seen.
pub(crate) fn long_flow(machine: &mut Machine, minutes: u64) -> Result<String> {
    ensure!(minutes >= 3, "three minutes at least: in fewer the address' time is not over");
    let units = Units::start(machine)?;
    units.machine.write("/run/names/trickle.py", TRICKLE)?;
    let count = usize::try_from(minutes * 60)?;
    let command = format!("rm -f connected; (python3 /run/names/trickle.py {NAME} {count} > long 2>&1 &)");
    units.can("n", &command)?;
    let begin = Instant::now();
    let peer = wait("the connection", || units.can("n", "grep . connected").ok())?;
    ensure!(peer.lines().next() == Some(PEER), "it is connected to {peer}");
    let is_good = || Ok::<_, anyhow::Error>(units.seconds("n", NAME, PEER)? > Some(0));
    ensure!(is_good()?, "what was learned of {NAME} is not known: {}", units.names("n")?);
    while is_good()? {
        ensure!(begin.elapsed() < GOOD, "{PEER} is good for longer than {GOOD:?}");
        sleep(Duration::from_secs(1));
    }
    let over = begin.elapsed().as_secs();
    units.cannot("n", &format!("curl -sS -g -m 5 http://[{PEER}]/x"), "Couldn't connect")?;
    let denial = format!("dst={PEER} dport=80 name={NAME} ");
    units.line("n", &[&denial, "reason=name-expired"])?;
    let said = units.machine.run(&["opencode-egress", "status"])?;
    ensure!(said.contains("keeps addresses longer than it was told"), "status says nothing of it: {said}");
    while begin.elapsed() < Duration::from_secs(minutes * 60) {
        sleep(Duration::from_secs(1));
    }
    let answer = wait("the flow's end", || units.can("n", "grep upstream long").ok())
        .with_context(|| units.run("n", "cat long").unwrap_or_default())?;
    ensure!(answer.contains(&format!("GET /{} ", "x".repeat(count))), "not all of it arrived: {answer}");
    units.can("n", &format!("curl -sS -m 5 http://{NAME}/x"))?;
    Ok(format!("new ones were refused after {over} s, and {count} bytes arrived, one a second"))
}
