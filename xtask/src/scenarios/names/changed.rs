//! What a change of the policy does to names.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    super::{Scenario, Tell, daemon_log, pinned},
    held::{self, keep, kept_says},
    units::{ADDRESS, Units},
};
use crate::{
    machine::{Machine, wait},
    pins,
};

/// Changes.
pub(in crate::scenarios) const CHANGED: &[Scenario] = &[
    Scenario {
        title: "names: a reload adds one, takes one away with its connections, and leaves the others",
        run: reload,
    },
    Scenario {
        title: "names: a reload that takes a network away resets what is idle there, and nothing that goes by name",
        run: idle,
    },
    Scenario {
        title: "names: a lease of a network that is revoked resets what is idle there, and nothing that may go by name",
        run: idle_by_lease,
    },
    Scenario { title: "names: an instance that has none pays for none", run: none_and_back },
    Scenario { title: "names: in audit mode everything is resolved, and reported", run: audit },
];

fn reload(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    held::prepare(units.machine)?;
    // v4-c000021e is 192.0.2.30: an address of its own.
    let (goes, stays) = ("v4-c000021e.goes.example.org", "stays.example.org");
    let with = units.apply(|instances| {
        instances["n"]["allow"] = json!(["*.goes.example.org:80", "stays.example.org:80"]);
    })?;
    ensure!(with.contains("+ n: ") && with.contains("*.goes.example.org:80"), "reload said: {with}");
    units.can("n", &format!("curl -sS -m 5 -4 http://{goes}/x"))?;
    keep(&units, "n", "kept", &[goes, stays])?;
    units.apply(|instances| {
        instances["n"]["allow"] = json!(["added.example.org:80", "stays.example.org:80"])
    })?;
    units.can("n", "curl -sS -m 5 http://added.example.org/x")?;
    units.cannot("n", &format!("curl -sS -m 5 -4 http://{goes}/x"), "Could not resolve host")?;
    units.cannot("n", "curl -sS -m 5 http://192.0.2.30/x", "Couldn't connect")?;
    ensure!(!units.names("n")?.contains("goes"), "{}", units.names("n")?);
    let kept = kept_says(&units, "n", "kept")?;
    ensure!(kept.contains(&format!("{stays} upstream 192.0.2.20 got GET /kept")), "{kept}");
    ensure!(kept.contains(&format!("{goes} ConnectionAbortedError")), "{kept}");
    Ok(())
}

/// Keeps a connection to each place, and says of each when it ended; nothing is sent.
const IDLE: &str = r"import os, select, socket, sys
kept = {socket.create_connection((place, 80)): place for place in sys.argv[1:]}
open('connected', 'w').close()
while kept:
    for s in select.select(list(kept), [], [])[0]:
        try:
            said = 'closed' if s.recv(1) == b'' else 'answered'
        except OSError as e:
            said = type(e).__name__
        print(kept.pop(s), said, flush=True)
";

fn idle(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.apply(|instances| {
        instances["n"]["allow"] =
            json!(["192.0.2.30/32:80/tcp", "192.0.2.20/32:80/tcp", "stays.example.org:80"]);
    })?;
    keep_idle(&units)?;
    units.apply(|instances| instances["n"]["allow"] = json!(["stays.example.org:80"]))?;
    only_the_network_was_reset(&units)
}

fn idle_by_lease(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.apply(|instances| instances["n"]["allow"] = json!(["stays.example.org:80"]))?;
    let lease = "192.0.2.0/27:80/tcp";
    units.machine.succeed(&["opencode-egress", "allow", "n", lease, "--for", "1h"])?;
    keep_idle(&units)?;
    // The next daemon knows it as well.
    units.machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    let said = units.machine.succeed(&["opencode-egress", "revoke", "n", lease])?;
    ensure!(said.contains("ends now or at its next packet"), "{said}");
    only_the_network_was_reset(&units)
}

/// Has `n` keep connections to two addresses, one of which `stays` has.
fn keep_idle(units: &Units<'_>) -> Result<()> {
    units.machine.write("/run/names/idle.py", IDLE)?;
    units.can("n", "getent ahostsv4 stays.example.org")?;
    let keep = "(python3 /run/names/idle.py 192.0.2.30 192.0.2.20 > idle 2>&1 &)";
    units.can("n", &format!("rm -f connected idle; {keep}"))?;
    wait("the connections", || units.can("n", "test -e connected").ok())
        .with_context(|| units.run("n", "cat idle").unwrap_or_default())
        .map(drop)
}

fn only_the_network_was_reset(units: &Units<'_>) -> Result<()> {
    let said = wait("the reset", || units.can("n", "grep 192.0.2.30 idle").ok())?;
    ensure!(said.contains("192.0.2.30 ConnectionAbortedError"), "{said}");
    let said = units.can("n", "cat idle")?;
    ensure!(!said.contains("192.0.2.20"), "what goes by name was reset: {said}");
    Ok(())
}

fn none_and_back(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    let links = || -> Result<Vec<String>> {
        let cgroup = pinned(units.machine, "opencode-n.service")?.pop().context("no links")?;
        let directory = pins::own(&format!("links/opencode-n,service/{cgroup}"));
        Ok(units.machine.succeed(&["ls", &directory])?.split_whitespace().map(str::to_owned).collect())
    };
    let with = links()?;
    let port = units.port("n")?;
    ensure!(with.iter().any(|link| link == "recvmsg4"), "{with:?}");
    units.apply(|instances| instances["n"]["allow"] = json!([format!("{ADDRESS}/32:80/tcp")]))?;
    let gone = || links().ok().filter(|links| !links.iter().any(|link| link.starts_with("recvmsg")));
    let without = wait("the links to go", gone).with_context(|| format!("{:?}", links()))?;
    ensure!(without.len() < with.len(), "{with:?} became {without:?}");
    ensure!(units.status("n")?["names"].is_null(), "{}", units.status("n")?);
    let listening = format!("ss -Hlntu sport = :{port} | grep -q .");
    wait("its sockets to be closed", || units.machine.fail(&["sh", "-c", &listening]).ok())?;
    units.can("n", &format!("curl -sS -m 5 http://{ADDRESS}/x"))?;
    units.cannot("n", "curl -sS -m 5 http://api.example.org/x", "Could not resolve host")?;
    let said = units.machine.fail(&["opencode-egress", "names", "n"])?;
    ensure!(said.contains("names"), "{said}");
    units.apply(|_| {})?;
    ensure!(links()? == with, "{with:?} became {:?}", links()?);
    let said = daemon_log(units.machine)?;
    ensure!(!said.contains("links of opencode-n.service were gone"), "{said}");
    units.can("n", "curl -sS -m 5 http://api.example.org/x").map(drop)
}

fn audit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.apply(|instances| instances["n"]["mode"] = json!("audit"))?;
    let said = units.can("n", "curl -sS -m 5 -4 http://v4-c000021e.off.example/x")?;
    ensure!(said.contains("upstream 192.0.2.30 got"), "{said}");
    units.line("n", &["query=v4-c000021e.off.example type=A reason=name-not-allowed", "mode=audit"])?;
    units.line("n", &["dst=192.0.2.30 dport=80 ", "mode=audit"])?;
    units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    let suggested = units.machine.succeed(&["opencode-egress", "suggest", "n"])?;
    ensure!(suggested.contains("\"v4-c000021e.off.example:80\""), "suggest: {suggested}");
    units.apply(|_| {})?;
    units.cannot("n", "curl -sS -m 5 http://v4-c000021e.off.example/x", "Could not resolve host")
}
