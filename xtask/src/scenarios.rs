//! What is tried on the machine: the main job, step by step, and then what can go wrong.
//!
//! The demo tells the first part to a reader; the tests run all of it. A step that does not show what it says
//! fails with what was seen instead.

use anyhow::{Result, ensure};

use crate::machine::{Machine, wait};

/// One step.
pub(crate) struct Scenario {
    /// What it shows.
    pub(crate) title: &'static str,
    /// Shows it.
    pub(crate) run: fn(&mut Machine, Tell<'_>) -> Result<()>,
}

/// Where what the reader of the demo sees goes.
pub(crate) type Tell<'a> = &'a dyn Fn(&str);

/// The main job.
pub(crate) const MAIN_JOB: &[Scenario] = &[
    Scenario { title: "The policy: two instances, each with its own list", run: policy_is_checked },
    Scenario {
        title: "Two real opencode servers start, each confined before its first instruction",
        run: servers_start,
    },
    Scenario {
        title: "They answer whom they should: `a` is open to the second host, `b` only to loopback",
        run: health,
    },
    Scenario { title: "What is allowed flows, from the agent's own shell", run: allowed_flows },
    Scenario {
        title: "What is not is refused at once, and never reaches the second host",
        run: denied_is_refused,
    },
    Scenario { title: "The journal says what was refused, for each instance", run: journal_tells },
    Scenario { title: "status and explain", run: status_and_explain },
    Scenario { title: "A reload changes one instance's list, and nothing else", run: reload },
    Scenario { title: "The daemon is killed: nothing opens, nothing breaks", run: killed_daemon },
];

/// What can go wrong.
pub(crate) const TROUBLE: &[Scenario] = &[
    Scenario { title: "a file with an error is not applied, and the running policy stays", run: bad_file },
    Scenario { title: "without a daemon no instance starts, and the journal says why", run: no_daemon },
    Scenario { title: "a unit that the instance does not list is not attached", run: unlisted_unit },
    Scenario {
        title: "only root may ask, and a confined process only for its own confinement",
        run: control_is_guarded,
    },
    Scenario { title: "a restarted unit is confined again, and its old links are gone", run: restart },
    Scenario {
        title: "a unit that runs before the daemon is confined late, and reported so",
        run: late_unit,
    },
    Scenario { title: "a daemon that finds a foreign pin says which", run: foreign_pin },
    Scenario {
        title: "a daemon of another ABI version takes over, new links before old",
        run: other_version,
    },
    Scenario { title: "a link that somebody removed is put back, and reported", run: removed_link },
    Scenario {
        title: "a connection that a reload denies is reset at once, not left hanging",
        run: open_connection_is_reset,
    },
    Scenario { title: "detach takes the links away, and says so", run: detach },
];

const A: &str = "192.0.2.1:8787";
const B: &str = "127.0.0.1:8788";

/// A request from the agent's shell; it prints the answer and `reached`, or curl's error and `refused`.
fn get(machine: &Machine, server: &str, url: &str) -> Result<String> {
    machine
        .opencode_shell(server, &format!("curl -sS -g -m 5 http://{url} && echo ' reached' || echo refused"))
}

fn policy_is_checked(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let checked = machine.succeed(&["opencode-egress", "check"])?;
    ensure!(checked.contains("good; 2 instances"), "check said: {checked}");
    tell("$ opencode-egress check");
    tell(&checked);
    Ok(())
}

fn servers_start(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["systemctl", "start", "opencode-a", "opencode-b"])?;
    tell("$ systemctl start opencode-a opencode-b");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.matches("1/1 confined").count() == 2, "status said: {status}");
    tell("$ opencode-egress status");
    tell(&status);
    Ok(())
}

fn health(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let a = wait("opencode a's health from the second host", || healthy(machine.host(&health_request(A))))?;
    tell(&format!("second host> curl http://{A}/global/health\n{a}"));
    let b = wait("opencode b's health", || healthy(machine.succeed(&health_request(B))))?;
    tell(&format!("machine> curl http://{B}/global/health\n{b}"));
    Ok(())
}

/// A server that is just starting takes a request and never answers it, so curl's patience is short.
fn health_request(server: &str) -> [&str; 5] {
    match server {
        A => ["curl", "-sf", "-m", "1", "http://192.0.2.1:8787/global/health"],
        _ => ["curl", "-sf", "-m", "1", "http://127.0.0.1:8788/global/health"],
    }
}

fn healthy(reply: Result<String>) -> Option<String> {
    reply.ok().filter(|reply| reply.contains("\"healthy\":true"))
}

fn allowed_flows(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    for (server, url) in [(A, "192.0.2.10/from-a"), (B, "192.0.2.20/from-b"), (B, "[2001:db8::20]/from-b")] {
        let reply = get(machine, server, url)?;
        ensure!(reply.contains("upstream") && reply.contains("reached"), "{server} -> {url}: {reply}");
        tell(&format!("agent at {server}> curl http://{url}\n{reply}"));
    }
    let seen = machine.witnessed()?;
    ensure!(seen.iter().any(|line| line.contains("> 192.0.2.10.80")), "the witness saw only {seen:#?}");
    Ok(())
}

fn denied_is_refused(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    machine.witnessed()?;
    let denied = [
        (A, "192.0.2.20/from-a"),
        (A, "192.0.2.10:81/from-a"),
        (A, "[2001:db8::20]/from-a"),
        (B, "192.0.2.10/from-b"),
        (B, "[2001:db8::30]/from-b"),
        (B, "192.0.2.30/from-b"),
    ];
    for (server, url) in denied {
        let reply = get(machine, server, url)?;
        // At once: curl was not left to run out of time.
        let quick = reply.contains("after 0 ms") || reply.contains("after 1 ms");
        ensure!(reply.contains("refused") && quick, "{server} -> {url}: {reply}");
        tell(&format!("agent at {server}> curl http://{url}\n{reply}"));
    }
    let datagram = machine.opencode_shell(A, "echo x > /dev/udp/192.0.2.30/53")?;
    ensure!(datagram.contains("not permitted"), "a datagram was answered: {datagram}");
    let seen = machine.witnessed()?;
    let own = |line: &&String| !line.contains("neighbor") && !line.contains("router");
    let leaked: Vec<_> = seen.iter().filter(own).filter(|line| !line.contains("8787")).collect();
    ensure!(leaked.is_empty(), "these packets arrived and should not: {leaked:#?}");
    tell("The witness on the second host's interface saw none of it.");
    Ok(())
}

fn journal_tells(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    for (instance, expect) in
        [("a", "proto=tcp dst=192.0.2.20 dport=80"), ("b", "proto=tcp dst=192.0.2.10 dport=80")]
    {
        let identifier = format!("opencode-{instance}-blocked");
        let words = ["journalctl", "-t", &identifier, "--no-pager", "-o", "short"];
        let lines = wait("the journal", || machine.run(&words).ok().filter(|lines| lines.contains(expect)))?;
        let mode = "hook=connect4 reason=not-allowed";
        ensure!(lines.contains(mode) && lines.contains("comm=curl"), "the journal has: {lines}");
        tell(&format!("$ {}\n{lines}", words.join(" ")));
    }
    let field = machine.succeed(&[
        "journalctl",
        "EGRESS_DST=2001:db8::30",
        "OPENCODE_INSTANCE=b",
        "--no-pager",
        "-o",
        "cat",
    ])?;
    ensure!(field.contains("reason=deny-rule"), "by field the journal has: {field}");
    Ok(())
}

fn status_and_explain(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("192.0.2.30"), "status does not show the last denial: {status}");
    tell("$ opencode-egress status");
    tell(&status);
    for (instance, destination, expect) in [
        ("a", "192.0.2.10:443", "denied (port-not-allowed)"),
        ("b", "[2001:db8::30]:80", "deny 2001:db8::30/128"),
        ("b", "127.0.0.1:8788", "own listener"),
    ] {
        let explained = machine.succeed(&["opencode-egress", "explain", instance, destination])?;
        ensure!(explained.contains(expect), "explain {instance} {destination}: {explained}");
        tell(&format!("$ opencode-egress explain {instance} {destination}\n{explained}"));
    }
    Ok(())
}

const POLICY: &str = "/etc/opencode-egress/policy.json";

fn reload(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.30/32"))?;
    let changes = machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(changes.contains("+ a: allow 192.0.2.30/32 tcp 80"), "reload said: {changes}");
    tell(&format!("$ opencode-egress reload\n{changes}"));
    let (now, before) = (get(machine, A, "192.0.2.30/from-a")?, get(machine, A, "192.0.2.10/from-a")?);
    ensure!(now.contains("upstream 192.0.2.30"), "allowed now, yet: {now}");
    ensure!(before.contains("refused"), "no longer allowed, yet: {before}");
    tell(&format!(
        "agent at {A}> curl http://192.0.2.30/from-a\n{now}\nagent at {A}> curl http://192.0.2.10/from-a\n{before}"
    ));
    let status = machine.succeed(&["opencode-egress", "status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let generation = |name: &str| status["instances"][name]["generation"].as_u64();
    ensure!(generation("a") == generation("b").map(|b| b + 1), "generations: {status}");
    machine.write(POLICY, &policy)?;
    machine.succeed(&["systemctl", "reload", "opencode-egress"])?;
    let again = get(machine, A, "192.0.2.10/from-a")?;
    ensure!(again.contains("reached"), "allowed again, yet: {again}");
    Ok(())
}

fn killed_daemon(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["systemctl", "kill", "-s", "KILL", "--kill-who=main", "opencode-egress"])?;
    let (denied, allowed) = (get(machine, A, "192.0.2.20/from-a")?, get(machine, A, "192.0.2.10/from-a")?);
    ensure!(denied.contains("refused"), "the daemon is gone and this passes: {denied}");
    ensure!(allowed.contains("reached"), "the daemon is gone and this is refused: {allowed}");
    tell(&format!(
        "$ systemctl kill -s KILL opencode-egress\nagent at {A}> curl http://192.0.2.20/from-a\n{denied}\nagent at {A}> curl http://192.0.2.10/from-a\n{allowed}"
    ));
    // systemd starts it again, and it takes over what it finds.
    wait("the daemon to come back", || {
        machine
            .succeed(&["opencode-egress", "status"])
            .ok()
            .filter(|status| status.matches("1/1 confined").count() == 2)
    })?;
    machine.witnessed()?;
    Ok(())
}

fn bad_file(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.10/24"))?;
    let said = machine.fail(&["opencode-egress", "reload"])?;
    ensure!(
        said.contains("policy.json:6:27: `192.0.2.10/24` has host bits set; write `192.0.2.0/24`"),
        "{said}"
    );
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("! the last reload was not applied"), "{status}");
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "another policy is in force");
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "no policy is in force");
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(!status.contains("! the last reload"), "{status}");
    Ok(())
}

fn no_daemon(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let unit = "[Service]\nExecStartPre=+/usr/local/bin/opencode-egress attach a --timeout 1\nExecStart=/bin/touch /run/it-ran\n";
    machine.write("/run/systemd/system/opencode-orphan.service", unit)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.fail(&["systemctl", "start", "opencode-orphan"])?;
    ensure!(machine.read("/run/it-ran").is_err(), "the unit ran without a daemon");
    let said = machine.succeed(&["journalctl", "-u", "opencode-orphan", "--no-pager", "-o", "cat"])?;
    ensure!(said.contains("no daemon answers at /run/opencode-egress/control.sock"), "{said}");
    machine.succeed(&["systemctl", "start", "opencode-egress", "opencode-a", "opencode-b"])?;
    Ok(())
}

fn unlisted_unit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    machine.fail(&["systemctl", "start", "opencode-orphan"])?;
    let said = machine.succeed(&["journalctl", "-u", "opencode-orphan", "--no-pager", "-o", "cat"])?;
    ensure!(said.contains("opencode-orphan.service asks for instance `a`, which does not list it"), "{said}");
    let said = machine.fail(&["opencode-egress", "attach", "a"])?;
    ensure!(said.contains("which is no service's cgroup"), "{said}");
    let said = machine.fail(&["opencode-egress", "attach", "nobody"])?;
    ensure!(
        said.contains("no instance `nobody` in /etc/opencode-egress/policy.json; it has: a, b"),
        "{said}"
    );
    Ok(())
}

fn control_is_guarded(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let said =
        machine.fail(&["setpriv", "--reuid", "65534", "--clear-groups", "opencode-egress", "detach", "a"])?;
    ensure!(said.contains("ermission denied"), "{said}");
    let said = machine.fail(&[
        "sh",
        "-c",
        "echo $$ > /sys/fs/cgroup/system.slice/opencode-a.service/cgroup.procs; opencode-egress detach a",
    ])?;
    ensure!(said.contains("a process of a confined unit may ask for nothing but `attach`"), "{said}");
    let said = machine.run(&[
        "sh",
        "-c",
        "echo '{\"detach\":{}}' | nc -U -w1 /run/opencode-egress/control.sock || true",
    ])?;
    ensure!(said.is_empty() || said.contains("this is no request") || said.contains("not found"), "{said}");
    Ok(())
}

/// The cgroups of a unit that have links pinned.
fn pinned(machine: &Machine, unit: &str) -> Result<Vec<String>> {
    let directory = format!("/sys/fs/bpf/opencode-egress/v1/links/{}", unit.replace('.', ","));
    Ok(machine.run(&["ls", &directory])?.split_whitespace().map(str::to_owned).collect())
}

fn restart(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let before = pinned(machine, "opencode-b.service")?;
    machine.succeed(&["systemctl", "restart", "opencode-b"])?;
    let after = pinned(machine, "opencode-b.service")?;
    ensure!(after.len() == 1, "links of {before:?} and then {after:?} are pinned");
    wait("b to answer", || healthy(machine.succeed(&health_request(B))))?;
    ensure!(get(machine, B, "192.0.2.20/from-b")?.contains("reached"), "b cannot reach what it may");
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "b reaches what it may not");
    Ok(())
}

fn late_unit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    // Stopping the daemon stops the units that require it; this one does not.
    let unit =
        "[Service]\nExecStart=/bin/bash -c 'while sleep 0.1; do echo x > /dev/tcp/192.0.2.10/80; done'\n";
    machine.write("/run/systemd/system/opencode-late.service", unit)?;
    let policy = machine.read(POLICY)?;
    machine.write(
        POLICY,
        &policy.replace("\"opencode-b.service\"", "\"opencode-b.service\", \"opencode-late.service\""),
    )?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["systemctl", "start", "opencode-late"])?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("! b: opencode-late.service was running before it was confined"), "{status}");
    machine.succeed(&["systemctl", "stop", "opencode-late"])?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    machine.succeed(&["systemctl", "start", "opencode-a", "opencode-b"])?;
    Ok(())
}

fn foreign_pin(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let map = "/sys/fs/bpf/opencode-egress/v1/HEADS";
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["mv", map, "/sys/fs/bpf/heads"])?;
    machine
        .succeed(&["cp", "-l", "/sys/fs/bpf/opencode-egress/v1/LIMITS", map])
        .or_else(|_| machine.succeed(&["ln", "/sys/fs/bpf/opencode-egress/v1/LIMITS", map]))?;
    let said = machine.fail(&["timeout", "5", "opencode-egress", "run"])?;
    ensure!(said.contains("v1/HEADS is pinned already and is not the map that this version"), "{said}");
    machine.succeed(&["rm", map])?;
    machine.succeed(&["mv", "/sys/fs/bpf/heads", map])?;
    machine.succeed(&["systemctl", "start", "opencode-egress", "opencode-a", "opencode-b"])?;
    Ok(())
}

fn other_version(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let pins = "/sys/fs/bpf/opencode-egress";
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    // As if the daemon that pinned them had been of another version.
    machine.succeed(&["mv", &format!("{pins}/v1"), &format!("{pins}/v0")])?;
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "between versions this passes");
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let left = machine.succeed(&["ls", pins])?;
    ensure!(left.trim() == "v1", "pins of {left}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.matches("1/1 confined").count() == 2 && !status.contains('!'), "{status}");
    ensure!(get(machine, A, "192.0.2.20/from-a")?.contains("refused"), "after the upgrade this passes");
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "after the upgrade this is refused");
    Ok(())
}

fn removed_link(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let cgroup = pinned(machine, "opencode-b.service")?.join("");
    let link = format!("/sys/fs/bpf/opencode-egress/v1/links/opencode-b,service/{cgroup}/egress");
    machine.succeed(&["rm", &link])?;
    wait("the link to come back", || machine.succeed(&["test", "-e", &link]).ok())?;
    let journal = machine.succeed(&["journalctl", "-u", "opencode-egress", "--no-pager", "-o", "cat"])?;
    ensure!(journal.contains("1 links of opencode-b.service were gone"), "{journal}");
    ensure!(get(machine, B, "192.0.2.10/from-b")?.contains("refused"), "b reaches what it may not");
    Ok(())
}

fn open_connection_is_reset(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    let agent = "(exec 3<>/dev/tcp/192.0.2.10/80; cat <&3) > ~/connection 2>&1 & true";
    machine.opencode_shell(A, agent)?;
    let connected = || machine.succeed(&["sh", "-c", "ss -Htn dst 192.0.2.10:80 | grep -q ESTAB"]).ok();
    wait("the agent to connect", connected)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.30/32"))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let said = machine.opencode_shell(A, "cat ~/connection")?;
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(said.contains("Software caused connection abort"), "the agent saw: {said}");
    Ok(())
}

fn detach(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let said = machine.succeed(&["opencode-egress", "detach", "a"])?;
    ensure!(said.contains("opencode-a.service is no longer confined"), "{said}");
    ensure!(
        pinned(machine, "opencode-a.service")?
            .iter()
            .all(|name| !name.starts_with(|c: char| c.is_ascii_digit())),
        "links are left"
    );
    let said = machine.fail(&["opencode-egress", "detach", "a"])?;
    ensure!(said.contains("nothing to detach"), "{said}");
    let journal = machine.succeed(&["journalctl", "-u", "opencode-egress", "--no-pager", "-o", "cat"])?;
    ensure!(journal.contains("opencode-a.service is no longer confined: detached on request"), "{journal}");
    machine.succeed(&["opencode-egress", "reload"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.matches("1/1 confined").count() == 2, "a reload did not confine it again: {status}");
    Ok(())
}
