//! The main job, step by step: the demo.

use anyhow::{Result, ensure};

use super::{A, B, POLICY, Scenario, Tell, get, health_request, healthy};
use crate::machine::{Machine, wait};

/// Two servers, each under its own list: what the demo shows, step by step.
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
    Scenario {
        title: "A listed name is reached; another one does not exist, and nobody is asked for it",
        run: names,
    },
    Scenario { title: "What is allowed flows, from the agent's own shell", run: allowed_flows },
    Scenario {
        title: "What is not is denied at once, and never reaches the second host",
        run: denied_gets_an_error,
    },
    Scenario { title: "The journal says what was denied, for each instance", run: journal_tells },
    Scenario { title: "status, explain and suggest", run: status_explain_suggest },
    Scenario { title: "A reload changes one instance's list, and nothing else", run: reload },
    Scenario { title: "The daemon is killed: nothing opens, nothing breaks", run: killed_daemon },
];

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

fn names(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    machine.witnessed()?;
    let listed = get(machine, A, "provider.example.org/from-a")?;
    ensure!(listed.contains("upstream") && listed.contains("reached"), "the listed name: {listed}");
    tell(&format!("agent at {A}> curl http://provider.example.org/from-a\n{listed}"));
    let unlisted = get(machine, A, "evil.example/from-a")?;
    ensure!(unlisted.contains("Could not resolve host: evil.example"), "another name: {unlisted}");
    tell(&format!("agent at {A}> curl http://evil.example/from-a\n{unlisted}"));
    let (asked, others): (Vec<_>, Vec<_>) =
        machine.witnessed()?.into_iter().filter(|line| line.contains(".53: ")).partition(|line| {
            line.contains("> 192.0.2.30.53: ") && line.contains("? provider.example.org. ")
        });
    ensure!(!asked.is_empty() && others.is_empty(), "{asked:#?} was asked, and {others:#?}");
    tell(
        "The witness on the second host's interface saw questions for provider.example.org, and for no other name.",
    );
    let words =
        ["journalctl", "-t", "opencode-a-blocked", "EGRESS_QUERY=evil.example", "--no-pager", "-o", "short"];
    let expect = "query=evil.example type=A reason=name-not-allowed";
    let lines = wait("the journal", || machine.run(&words).ok().filter(|lines| lines.contains(expect)))?;
    tell(&format!("$ {}\n{lines}", words.join(" ")));
    for (words, expect) in [(["names", "a"], "provider.example.org"), (["suggest", "a"], "\"evil.example\"")]
    {
        let said = machine.succeed(&[&["opencode-egress"], &words[..]].concat())?;
        ensure!(said.contains(expect), "{}: {said}", words.join(" "));
        tell(&format!("$ opencode-egress {}\n{said}", words.join(" ")));
    }
    Ok(())
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

fn denied_gets_an_error(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
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
    let datagram = machine.opencode_shell(A, "echo x > /dev/udp/192.0.2.30/5300")?;
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
        ensure!(
            lines.contains("exe=/usr/bin/curl via=curl,"),
            "the journal does not know who asked: {lines}"
        );
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

fn status_explain_suggest(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("192.0.2.30"), "status does not show the last denial: {status}");
    tell("$ opencode-egress status");
    tell(&status);
    for (instance, destination, expect) in [
        ("a", "provider.example.org:80", "provider.example.org:80"),
        ("a", "192.0.2.10:443", "denied (port-not-allowed)"),
        ("b", "[2001:db8::30]:80", "deny 2001:db8::30/128"),
        ("b", "127.0.0.1:8788", "own listener"),
    ] {
        let explained = machine.succeed(&["opencode-egress", "explain", instance, destination])?;
        ensure!(explained.contains(expect), "explain {instance} {destination}: {explained}");
        tell(&format!("$ opencode-egress explain {instance} {destination}\n{explained}"));
    }
    // From what the kernel remembers, and from the journal.
    for suggest in
        [&["opencode-egress", "suggest", "a"][..], &["opencode-egress", "suggest", "a", "--since=-1h"]]
    {
        let suggested = machine.succeed(suggest)?;
        let expect = r#""192.0.2.10/32:81/tcp""#;
        ensure!(suggested.contains(expect), "{}: {suggested}", suggest.join(" "));
        tell(&format!("$ {}\n{suggested}", suggest.join(" ")));
    }
    Ok(())
}

fn reload(machine: &mut Machine, tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    machine.write(POLICY, &policy.replace("192.0.2.10/32", "192.0.2.30/32"))?;
    let explained = machine.succeed(&["opencode-egress", "explain", "a", "192.0.2.10:80"])?;
    ensure!(explained.contains("says otherwise; `opencode-egress reload`"), "before the reload: {explained}");
    let changes = machine.succeed(&["opencode-egress", "reload"])?;
    ensure!(changes.contains("+ a: allow 192.0.2.30/32:80/tcp"), "reload said: {changes}");
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
