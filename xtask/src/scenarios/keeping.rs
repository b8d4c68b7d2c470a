//! What somebody takes away from the daemon, or puts beside it: pins, cgroups, another daemon, another version.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    A, B, POLICY, Scenario, Tell, daemon_log, get, health_request, healthy, pinned, places::COPY, status,
};
use crate::{
    endurance::Probes,
    machine::{Machine, wait},
    pins::{self, PINS, VERSION},
};

/// Scenarios of what stays confined, and counted, when daemons, pins and cgroups come and go.
pub(super) const KEEPING: &[Scenario] = &[
    Scenario {
        title: "a daemon of another ABI version takes over: new links before old, counters, generations and events go on",
        run: other_version,
    },
    Scenario { title: "a second daemon changes nothing", run: second_daemon },
    Scenario { title: "a link that somebody removed is put back, and reported", run: removed_link },
    Scenario { title: "so is everything that is pinned", run: removed_pins },
    Scenario { title: "links whose maps are gone are replaced by the next daemon", run: removed_maps },
    Scenario {
        title: "a cgroup of the unit's name elsewhere is confined too, and stays so when the unit restarts",
        run: cgroup_elsewhere,
    },
    Scenario { title: "detach takes the links away, and says so", run: detach },
];

/// Generation, denied packets and allowed packets of an instance.
fn counted(machine: &Machine, name: &str) -> Result<[u64; 3]> {
    let instance = &status(machine)?["instances"][name];
    let facts = [
        &instance["generation"],
        &instance["counters"]["denied_packets"],
        &instance["counters"]["allowed_packets"],
    ];
    let [generation, denied, allowed] = facts.map(serde_json::Value::as_u64);
    Ok([generation.context("no generation")?, denied.context("no denials")?, allowed.context("no packets")?])
}

/// How often the daemon has said that so many links of b were made again.
fn restored(machine: &Machine, links: usize) -> Result<usize> {
    let line = format!("links of opencode-b.service were gone, or the maps by which they judge: {links}. ");
    Ok(daemon_log(machine)?.matches(&line).count())
}

fn confined(machine: &Machine) -> Result<()> {
    wait("both to be confined by this daemon", || {
        let status = machine.succeed(&["opencode-egress", "status"]).ok()?;
        (status.matches("1/1 confined").count() == 2).then_some(())
    })
}

fn other_version(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = counted(machine, "a")?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let reply = get(machine, A, "192.0.2.20:7779/from-a")?;
    ensure!(reply.contains("refused"), "no daemon runs and this passes: {reply}");
    // As if the daemon that pinned them had been of another version.
    machine.succeed(&["mv", &format!("{PINS}/{VERSION}"), &format!("{PINS}/v0")])?;
    // One with a hook that this version does not have.
    let link = format!("for link in {PINS}/v0/links/*/*/connect4; do ln $link ${{link%4}}7 || exit 1; done");
    machine.succeed(&["sh", "-c", &link])?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "between versions this passes");
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let left = machine.succeed(&["ls", PINS])?;
    ensure!(left.trim() == VERSION, "pins of {left}");
    let line = ["journalctl", "-t", "opencode-a-blocked", "EGRESS_DPORT=7779", "--no-pager", "-o", "cat"];
    wait("the line that waited in the other version's ring", || {
        machine.run(&line).ok().filter(|lines| lines.contains("dst=192.0.2.20 dport=7779"))
    })?;
    let after = counted(machine, "a")?;
    ensure!(
        after[0] == before[0] + 1 && after[1] == before[1] + 2 && after[2] >= before[2],
        "generation, denied, allowed: {before:?} became {after:?}"
    );
    let status = || machine.succeed(&["opencode-egress", "status"]);
    // Until its resolver is connected, that needs attention.
    let good = |status: &String| status.matches("1/1 confined").count() == 2 && !status.contains('!');
    wait("a status without notices", || status().ok().filter(good))
        .with_context(|| status().unwrap_or_default())?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "after the upgrade this passes");
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "after the upgrade this is refused");
    // While probes try what is allowed and what is not, all the time.
    Probes::install(machine)?.takeovers(
        3,
        |_| Ok(()),
        |machine, _| {
            machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
            machine.succeed(&["mv", &format!("{PINS}/{VERSION}"), &format!("{PINS}/v0")])?;
            machine.succeed(&["systemctl", "start", "opencode-egress"])?;
            wait("the old pins to go", || machine.fail(&["test", "-e", &format!("{PINS}/v0")]).ok()).map(drop)
        },
    )?;
    // An instance that the file loses at the same time.
    let policy = machine.read(POLICY)?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["mv", &format!("{PINS}/{VERSION}"), &format!("{PINS}/v0")])?;
    let mut without: serde_json::Value = serde_json::from_str(&policy)?;
    without["instances"].as_object_mut().map(|instances| instances.remove("b"));
    machine.write(POLICY, &without.to_string())?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    // Everything is denied to it, its listener included.
    let answers = machine.run(&health_request(B))?;
    let left = machine.succeed(&["ls", PINS])?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(
        status.contains(
            "! b: opencode-b.service runs, and the policy file does not have this instance any more"
        ),
        "{status}"
    );
    ensure!(!answers.contains("healthy"), "b is not in the file, and answers");
    ensure!(left.trim() == VERSION, "pins of {left}");
    wait("b to answer", || healthy(machine.succeed(&health_request(B))))?;
    ensure!(get(machine, B, "192.0.2.20/from-b")?.contains("reached"), "b is back and this is refused");
    Ok(())
}

fn second_daemon(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = counted(machine, "a")?[0];
    machine.write("/run/try.json", r#"{ "version": 1, "instances": {} }"#)?;
    let said = machine.fail(&[
        "opencode-egress",
        "run",
        "--config",
        "/run/try.json",
        "--socket",
        "/run/try/control.sock",
    ])?;
    ensure!(
        said.contains("another opencode-egress keeps what is pinned in /sys/fs/bpf/opencode-egress"),
        "{said}"
    );
    let said = machine.fail(&[
        "opencode-egress",
        "run",
        "--config",
        "/run/try.json",
        "--pins",
        "/sys/fs/bpf/try",
    ])?;
    ensure!(said.contains("/run/opencode-egress/control.sock: another process listens there"), "{said}");
    let kept = machine.read(COPY)?;
    ensure!(kept == machine.read(POLICY)?, "what was applied last is now {kept}");
    ensure!(counted(machine, "a")?[0] == before, "it has changed the policy");
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "it has changed the policy");
    Ok(())
}

fn removed_link(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let cgroup = pinned(machine, "opencode-b.service")?.join("");
    let link = pins::own(&format!("links/opencode-b,service/{cgroup}/egress"));
    let reports = || restored(machine, 1);
    let before = reports()?;
    machine.succeed(&["rm", &link])?;
    let begin = Instant::now();
    wait("the link to come back", || machine.succeed(&["test", "-e", &link]).ok())?;
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(2), "the link was away for {took:?}");
    wait("the report", || reports().ok().filter(|now| *now == before + 1))?;
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "b reaches what it may not");
    Ok(())
}

fn removed_pins(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let there = || machine.succeed(&["find", PINS]).map(|found| found.lines().count());
    let before = there()?;
    // In one step: the daemon puts back what goes while the rest is still going.
    machine.succeed(&["mv", PINS, "/sys/fs/bpf/gone"])?;
    machine.succeed(&["rm", "-r", "/sys/fs/bpf/gone"])?;
    wait("the pins to come back", || there().ok().filter(|count| *count == before))?;
    confined(machine)?;
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "b reaches what it may not");
    // What is pinned is what judges: the next daemon goes on with it.
    let counted_before = counted(machine, "b")?;
    machine.succeed(&["systemctl", "restart", "opencode-egress"])?;
    let counted_after = counted(machine, "b")?;
    ensure!(
        counted_after[0] > counted_before[0] && counted_after[1] == counted_before[1],
        "{counted_before:?} became {counted_after:?}"
    );
    let said = machine.fail(&["opencode-egress", "run", "--socket", "/run/try/control.sock"])?;
    ensure!(said.contains("another opencode-egress keeps"), "the new directory is not locked: {said}");
    confined(machine)
}

fn removed_maps(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let status = machine.succeed(&["opencode-egress", "status", "--json"])?;
    let hooks = &serde_json::from_str::<serde_json::Value>(&status)?["instances"]["b"]["units"][0]["hooks"];
    let hooks = usize::try_from(hooks.as_u64().context("the number of hooks")?)?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["find", &format!("{PINS}/{VERSION}"), "-maxdepth", "1", "-type", "f", "-delete"])?;
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "without pinned maps this passes");
    // With another instance before them, so that theirs are other numbers.
    let policy = machine.read(POLICY)?;
    let first = "\"instances\": { \"A\": { \"units\": [\"opencode-first.service\"] },";
    machine.write(POLICY, &policy.replacen("\"instances\": {", first, 1))?;
    let before = restored(machine, hooks)?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    confined(machine)?;
    wait("the report", || restored(machine, hooks).ok().filter(|now| *now == before + 1))?;
    // They judge by what this daemon writes.
    machine.write(POLICY, &policy.replace("192.0.2.20/32", "192.0.2.30/32"))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let (now, before) = (get(machine, B, "192.0.2.30/from-b")?, get(machine, B, "192.0.2.20/from-b")?);
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(now.contains("reached") && before.contains("refused"), "allowed: {now}\nand no longer: {before}");
    Ok(())
}

fn cgroup_elsewhere(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let elsewhere = "/sys/fs/cgroup/other.slice/opencode-b.service";
    // A process of before that the unit left behind in another slice, sending where b may not.
    let leave = format!(
        "mkdir -p {elsewhere} && (echo 0 > {elsewhere}/cgroup.procs; exec setsid bash -c 'while sleep 0.05; do echo x > /dev/udp/192.0.2.10/9; done') > /dev/null 2>&1 &"
    );
    machine.succeed(&["sh", "-c", &leave])?;
    wait("both cgroups to have links", || {
        (pinned(machine, "opencode-b.service").ok()?.len() == 2).then_some(())
    })?;
    machine.succeed(&["systemctl", "restart", "opencode-b"])?;
    machine.witnessed()?;
    let before = counted(machine, "b")?[1];
    wait("it to be denied", || counted(machine, "b").ok().filter(|now| now[1] >= before + 5))?;
    let seen = machine.witnessed()?;
    let leaked: Vec<_> = seen.iter().filter(|line| line.contains("> 192.0.2.10.9:")).collect();
    ensure!(leaked.is_empty(), "the one left behind got out when the unit restarted: {leaked:#?}");
    // Those of the unit's start before go when the kernel has let go of that cgroup.
    let links = || pinned(machine, "opencode-b.service");
    wait("the old start's links to go, and its own to stay", || (links().ok()?.len() == 2).then_some(()))
        .with_context(|| format!("{:?} are pinned", links()))?;
    machine.succeed(&["sh", "-c", &format!("kill -KILL $(cat {elsewhere}/cgroup.procs) || true")])?;
    wait("its cgroup to go", || machine.succeed(&["rmdir", elsewhere]).ok())?;
    wait("its links to go", || (pinned(machine, "opencode-b.service").ok()?.len() == 1).then_some(()))
}

fn detach(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let sockets = |machine: &Machine| -> Result<u64> {
        status(machine)?["instances"]["a"]["sockets"]["open"].as_u64().context("no number of sockets")
    };
    // Its sockets are from before the maps in which they are counted.
    machine.succeed(&["systemctl", "restart", "opencode-a"])?;
    wait("a to answer", || healthy(machine.succeed(&health_request(A))))?;
    ensure!(sockets(machine)? > 0, "a's server listens, and has no socket");
    let said = machine.succeed(&["opencode-egress", "detach", "a"])?;
    ensure!(said.contains("opencode-a.service is no longer confined"), "{said}");
    ensure!(
        pinned(machine, "opencode-a.service")?
            .iter()
            .all(|name| !name.starts_with(|c: char| c.is_ascii_digit())),
        "links are left"
    );
    // Nobody sees them close now.
    ensure!(sockets(machine)? == 0, "{} sockets are counted", sockets(machine)?);
    let explained = machine.succeed(&["opencode-egress", "explain", "a", "192.0.2.20:80"])?;
    ensure!(explained.contains("! the instance was detached on request"), "{explained}");
    let said = machine.fail(&["opencode-egress", "detach", "a"])?;
    ensure!(said.contains("nothing to detach"), "{said}");
    let journal = daemon_log(machine)?;
    ensure!(journal.contains("opencode-a.service is no longer confined: detached on request"), "{journal}");
    machine.succeed(&["opencode-egress", "reload"])?;
    confined(machine)?;
    let explained = machine.succeed(&["opencode-egress", "explain", "a", "192.0.2.20:80"])?;
    ensure!(!explained.contains("detached"), "{explained}");
    ensure!(sockets(machine)? == 0, "{} sockets of before are counted", sockets(machine)?);
    Ok(())
}
