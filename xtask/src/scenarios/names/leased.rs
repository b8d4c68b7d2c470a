//! Leases: a rule that an instance has for a time, from its grant to its end, and what ends it before.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{Scenario, TALK, Tell},
    held::{self, keep, kept_says},
    units::{ADDRESS as FAR, Units},
};
use crate::machine::{Machine, wait};

/// The life of leases.
pub(in crate::scenarios) const LEASES: &[Scenario] = &[
    Scenario {
        title: "leases: a network is reached for as long as it is leased; what began goes on, unless the end is hard",
        run: network,
    },
    Scenario {
        title: "leases: a name is resolved for as long as it is leased, also by an instance that had none",
        run: name,
    },
    Scenario {
        title: "leases: they outlive a reload, a kill of the daemon and its absence, end without it, and not with another boot",
        run: kept,
    },
    Scenario { title: "leases: what may not be granted is refused, and says why", run: refused },
    Scenario { title: "leases: the most of them, and audit mode by one", run: most },
];

const DENIED: &str = "Couldn't connect";

/// The units, of which `m` lists nothing.
fn start(machine: &mut Machine) -> Result<Units<'_>> {
    let units = Units::start(machine)?;
    held::prepare(units.machine)?;
    nothing_listed(&units)?;
    Ok(units)
}

fn nothing_listed(units: &Units<'_>) -> Result<String> {
    units.apply(|instances| instances["m"]["allow"] = json!([]))
}

fn get(to: &str) -> String {
    format!("curl -sS -m 5 http://{to}/x")
}

fn egress(units: &Units<'_>, words: &[&str]) -> Result<String> {
    units.machine.succeed(&[&["opencode-egress"], words].concat())
}

/// The lines of the journal about leases of `m`, since the last look: what became of which.
fn told(units: &Units<'_>) -> Result<Vec<Value>> {
    let message = "MESSAGE_ID=2fce01b5c22a49a3b8fb37dd1a3fd38e";
    let words = ["journalctl", "-q", "--no-pager", "-o", "json", message, "OPENCODE_INSTANCE=m"];
    let lines = units.machine.run(&words)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn waits_for(units: &Units<'_>, what: &str, rule: &str) -> Result<Value> {
    let is = |entry: &Value| entry["EGRESS_LEASE"] == what && entry["EGRESS_RULE"] == rule;
    wait("a line of the journal", || told(units).ok()?.into_iter().rev().find(is))
        .with_context(|| format!("{what} {rule}: {:?}", told(units)))
}

fn over(units: &Units<'_>, to: &str) -> Result<()> {
    wait("the end of the lease", || units.cannot("m", &get(to), DENIED).ok())
        .with_context(|| units.run("m", &get(to)).unwrap_or_default())
}

fn network(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = start(machine)?;
    let rule = "192.0.2.20/32:80/tcp";
    units.cannot("m", &get(FAR), DENIED)?;
    // As pam_loginuid(8) and sudo(8) leave it.
    let by_alice = format!(
        "echo 4711 > /proc/self/loginuid; SUDO_USER=alice exec opencode-egress allow m {rule} --for 1h --reason 'ticket 4711'"
    );
    let said = units.machine.succeed(&["sh", "-c", &by_alice])?;
    ensure!(
        said.contains("m: 192.0.2.20/32:80/tcp is allowed until ") && said.contains("goes on then"),
        "{said}"
    );
    units.can("m", &get(FAR))?;
    units.cannot("m", &get("192.0.2.30"), DENIED)?;
    units.cannot("m", &get("192.0.2.20:81"), DENIED)?;
    keep(&units, "m", "soft", &[FAR])?;
    let explained = egress(&units, &["explain", "m", "192.0.2.20:80"])?;
    ensure!(
        explained.contains("allowed\n  lease 192.0.2.20/32:80/tcp until ")
            && explained.contains(": ticket 4711"),
        "{explained}"
    );
    let leases = egress(&units, &["leases"])?;
    ensure!(
        leases.starts_with("m: 192.0.2.20/32:80/tcp until ") && leases.contains("ticket 4711"),
        "{leases}"
    );
    ensure!(units.status("m")?["leases"][0]["grants"]["rule"] == rule, "{}", units.status("m")?);
    let text = egress(&units, &["status"])?;
    ensure!(text.contains("m: 1 lease: 192.0.2.20/32:80/tcp ("), "{text}");
    let events = egress(&units, &["events", "m"])?;
    ensure!(events.contains(" m: lease granted: 192.0.2.20/32:80/tcp, until "), "{events}");
    let options = egress(&units, &["suggest", "m", "--nix"])?;
    ensure!(
        options
            .contains("cidr = \"192.0.2.20/32\"; protocol = \"tcp\"; ports = [ \"80\" ]; } # leased until "),
        "{options}"
    );
    let metrics = egress(&units, &["metrics"])?;
    ensure!(metrics.contains("opencode_egress_leases{opencode_instance=\"m\"} 1"), "{metrics}");
    let granted = waits_for(&units, "granted", rule)?;
    let fields = [
        ("EGRESS_UID", "0"),
        ("EGRESS_LOGINUID", "4711"),
        ("EGRESS_SUDO_USER", "alice"),
        ("EGRESS_LEASE_REASON", "ticket 4711"),
        ("EGRESS_HARD", "0"),
    ];
    for (field, value) in fields {
        ensure!(granted[field] == value, "{field} in {granted}");
    }
    ensure!(granted["EGRESS_FROM"].is_string() && granted["EGRESS_UNTIL"].is_string(), "{granted}");
    egress(&units, &["allow", "m", rule, "--for", "2s"])?;
    over(&units, FAR)?;
    waits_for(&units, "ended", rule)?;
    ensure!(
        egress(&units, &["leases", "--json"])?.trim() == "{}",
        "{}",
        egress(&units, &["leases", "--json"])?
    );
    // Through a later change of the policy, too.
    units.apply(|instances| instances["m"]["allow"] = json!(["203.0.113.7/32"]))?;
    let said = kept_says(&units, "m", "soft")?;
    ensure!(said.contains("192.0.2.20 upstream 192.0.2.20 got GET /kept"), "{said}");
    // A hard end, and one before the time, end what began.
    egress(&units, &["allow", "m", rule, "--for", "1h", "--hard"])?;
    keep(&units, "m", "hard", &[FAR])?;
    egress(&units, &["allow", "m", rule, "--for", "2s", "--hard"])?;
    over(&units, FAR)?;
    let hard = |entry: &Value| entry["EGRESS_LEASE"] == "ended" && entry["EGRESS_HARD"] == "1";
    wait("the hard end", || told(&units).ok()?.iter().any(hard).then_some(()))?;
    let said = kept_says(&units, "m", "hard")?;
    ensure!(said.contains("192.0.2.20 ConnectionAbortedError"), "{said}");
    egress(&units, &["allow", "m", rule, "--for", "1h"])?;
    let again = egress(&units, &["allow", "m", rule, "--until", "23:59:59"])?;
    ensure!(again.contains("instead of the lease that there was"), "{again}");
    keep(&units, "m", "revoked", &[FAR])?;
    egress(&units, &["revoke", "m", rule])?;
    units.cannot("m", &get(FAR), DENIED)?;
    let said = kept_says(&units, "m", "revoked")?;
    ensure!(said.contains("192.0.2.20 ConnectionAbortedError"), "{said}");
    waits_for(&units, "revoked", rule)?;
    let said = units.machine.fail(&["opencode-egress", "revoke", "m", rule])?;
    ensure!(said.contains("instance `m` has no lease of `192.0.2.20/32:80/tcp`"), "{said}");
    // Nothing of a detached unit is reset.
    egress(&units, &["allow", "m", rule, "--for", "1h"])?;
    keep(&units, "m", "free", &[FAR])?;
    egress(&units, &["detach", "m"])?;
    egress(&units, &["revoke", "m", rule])?;
    let said = kept_says(&units, "m", "free")?;
    ensure!(said.contains("192.0.2.20 upstream 192.0.2.20 got GET /kept"), "{said}");
    Ok(())
}

fn name(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = start(machine)?;
    let listed = get("api.example.org");
    units.cannot("m", &listed, "Could not resolve host")?;
    egress(&units, &["allow", "m", "api.example.org:80", "--for", "1h"])?;
    wait("the name to be resolved", || units.can("m", &listed).ok())
        .with_context(|| units.run("m", &listed).unwrap_or_default())?;
    units.cannot("m", &get("other.example.org"), "Could not resolve host")?;
    units.cannot("m", &get("192.0.2.30"), DENIED)?;
    keep(&units, "m", "named", &[FAR])?;
    let explained = egress(&units, &["explain", "m", "api.example.org:80"])?;
    ensure!(explained.contains("lease api.example.org:80 until "), "{explained}");
    let explained = egress(&units, &["explain", "m", "192.0.2.20:80"])?;
    ensure!(explained.contains("; api.example.org has this address"), "{explained}");
    egress(&units, &["allow", "m", "api.example.org:80", "--for", "2s"])?;
    wait("the end of the lease", || units.cannot("m", &listed, "Could not resolve host").ok())
        .with_context(|| units.run("m", &listed).unwrap_or_default())?;
    units.cannot("m", &get(FAR), DENIED)?;
    waits_for(&units, "ended", "api.example.org:80")?;
    ensure!(units.status("m")?["names"].is_null(), "{}", units.status("m")?);
    // Through a later change of the policy, too.
    units.apply(|instances| instances["m"]["allow"] = json!(["203.0.113.7/32"]))?;
    let said = kept_says(&units, "m", "named")?;
    ensure!(said.contains("192.0.2.20 upstream 192.0.2.20 got GET /kept"), "{said}");
    // And where other names are listed, so that there is a resolver before and after.
    units.apply(|instances| instances["m"]["allow"] = json!(["stays.example.org:80"]))?;
    egress(&units, &["allow", "m", "api.example.org:80", "--for", "1h"])?;
    wait("the name to be resolved", || units.can("m", &listed).ok())
        .with_context(|| units.run("m", &listed).unwrap_or_default())?;
    keep(&units, "m", "beside", &[FAR])?;
    egress(&units, &["allow", "m", "api.example.org:80", "--for", "2s"])?;
    wait("the end of the lease, again", || {
        let ended =
            |entry: &&Value| entry["EGRESS_LEASE"] == "ended" && entry["EGRESS_RULE"] == "api.example.org:80";
        (told(&units).ok()?.iter().filter(ended).count() == 2).then_some(())
    })?;
    units.apply(|instances| instances["m"]["allow"] = json!(["stays.example.org:80", "203.0.113.7/32"]))?;
    let said = kept_says(&units, "m", "beside")?;
    ensure!(said.contains("192.0.2.20 upstream 192.0.2.20 got GET /kept"), "{said}");
    Ok(())
}

fn kept(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = start(machine)?;
    let rule = "192.0.2.20/32:80";
    egress(&units, &["allow", "m", rule, "--for", "1h"])?;
    keep(&units, "m", "held", &[FAR])?;
    units.apply(|instances| instances["m"]["allow"] = json!(["203.0.113.7/32"]))?;
    units.can("m", &get(FAR))?;
    units.signal("opencode-egress", "KILL")?;
    wait("the daemon to be back", || {
        egress(&units, &["leases", "m"]).ok().filter(|said| said.contains(rule))
    })?;
    units.can("m", &get(FAR))?;
    waits_for(&units, "kept", rule)?;
    let said = kept_says(&units, "m", "held")?;
    ensure!(said.contains("got GET /kept"), "{said}");
    // A deny rule that comes later is above it.
    units.apply(|instances| instances["m"]["deny"] = json!(["192.0.2.20/32"]))?;
    units.cannot("m", &get(FAR), DENIED)?;
    nothing_listed(&units)?;
    units.can("m", &get(FAR))?;
    // Without a daemon it ends all the same.
    egress(&units, &["allow", "m", rule, "--for", "9s"])?;
    units.machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    units.can("m", &get(FAR))?;
    over(&units, FAR)?;
    units.machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    waits_for(&units, "ended", rule)?;
    units.cannot("m", &get(FAR), DENIED)?;
    // One of another boot is none.
    egress(&units, &["allow", "m", rule, "--for", "1h"])?;
    units.machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let other = "sed -i 's/\"boot\":\"[^\"]*\"/\"boot\":\"other\"/' /run/opencode-egress/*.leases";
    units.machine.succeed(&["sh", "-c", other])?;
    units.machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    units.cannot("m", &get(FAR), DENIED)?;
    // One that was on its way out when the daemon was killed does not come back, and one in the file alone does.
    egress(&units, &["allow", "m", rule, "--for", "1h"])?;
    units.machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let ending = "import glob, json
path, = glob.glob('/run/opencode-egress/*.leases')
leases = json.load(open(path))
m = leases['instances']['m']
m['ending'], m['active'] = m['active'], [dict(m['active'][0], grants={'rule': '192.0.2.30/32:80'})]
json.dump(leases, open(path, 'w'))
";
    units.machine.succeed(&["python3", "-c", ending])?;
    units.machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    units.cannot("m", &get(FAR), DENIED)?;
    units.can("m", &get("192.0.2.30"))?;
    // While the file cannot be written none is granted, and what is revoked is over all the same.
    let taken = "mkdir $(ls /run/opencode-egress/*.leases).new";
    units.machine.succeed(&["sh", "-c", taken])?;
    let said = units.machine.fail(&["opencode-egress", "allow", "m", "192.0.2.20/32:80", "--for", "1h"])?;
    ensure!(said.contains("the lease is not granted: /run/opencode-egress/"), "{said}");
    units.can("m", &get("192.0.2.30"))?;
    let revoke = "opencode-egress revoke m 192.0.2.30/32:80 2>&1";
    let said = units.machine.succeed(&["sh", "-c", revoke])?;
    ensure!(said.contains("has leases in force again that were revoked since"), "{said}");
    units.cannot("m", &get("192.0.2.30"), DENIED)?;
    units.machine.succeed(&["sh", "-c", "rmdir /run/opencode-egress/*.leases.new"])?;
    wait("the file to be written", || {
        (!egress(&units, &["status"]).ok()?.contains("cannot write to")).then_some(())
    })?;
    units.signal("opencode-egress", "KILL")?;
    wait("the daemon to be back", || egress(&units, &["leases", "m"]).ok())?;
    units.cannot("m", &get("192.0.2.30"), DENIED)?;
    egress(&units, &["allow", "m", "192.0.2.30/32:80", "--for", "1h"])?;
    // The file has the rule now, and then the instance no more.
    units.apply(|instances| instances["m"]["allow"] = json!(["192.0.2.30/32:80"]))?;
    units.can("m", &get("192.0.2.30"))?;
    units.apply(|instances| {
        instances.as_object_mut().map(|instances| instances.remove("m"));
    })?;
    nothing_listed(&units)?;
    waits_for(&units, "dropped", "192.0.2.30/32:80")?;
    units.cannot("m", &get("192.0.2.30"), DENIED)
}

fn refused(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = start(machine)?;
    units.apply(|instances| {
        instances["m"]["allow"] = json!(["203.0.113.7/32"]);
        instances["m"]["deny"] = json!(["192.0.2.0/28"]);
    })?;
    let ten_thousand = "x".repeat(10_000);
    for (words, says) in [
        (&["m", "192.0.2.10/32", "--for", "1h"][..], "denies all of `192.0.2.10/32`, by 192.0.2.0/28"),
        (&["m", "203.0.113.7/32", "--for", "1h"], "allows `203.0.113.7/32` already"),
        (&["m", "203.0.113.8/32/icmp", "--for", "1h"], "a lease is for TCP and UDP"),
        (&["m", "239.1.2.3/32:5000/udp", "--for", "1h"], "for multicast groups"),
        (&["m", "192.0.2.20/24", "--for", "1h"], "has host bits set; write `192.0.2.0/24`"),
        (&["m", "203.0.113.8/32", "--for", "25h"], "24 hours at most"),
        (&["m", "203.0.113.8/32", "--for", "0s"], "grants nothing"),
        (&["m", "203.0.113.8/32"], "--for <TIME>|--until <WHEN>"),
        (&["m", "203.0.113.8/32", "--for", "1h", "--until", "23:00"], "cannot be used with"),
        (&["m", "203.0.113.8/32", "--until", "2020-01-01 00:00"], "in the past"),
        (&["m", "203.0.113.8/32", "--until", "23:00+01:00"], "is no time"),
        (&["nobody", "203.0.113.8/32", "--for", "1h"], "no instance `nobody`"),
        (&["m", "203.0.113.8/32", "--for", "1h", "--reason", "a\nb"], "one line, without control characters"),
        (&["m", "203.0.113.8/32", "--for", "1h", "--reason", &ten_thousand], "at most 400 bytes"),
    ] {
        let said = units.machine.fail(&[&["opencode-egress", "allow"], words].concat())?;
        ensure!(said.contains(says), "{words:?} does not say `{says}`: {said}");
    }
    let of_nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "opencode-egress",
        "allow",
        "m",
        "203.0.113.8/32",
        "--for",
        "1h",
    ];
    let said = units.machine.fail(&of_nobody)?;
    ensure!(said.contains("only root may ask the daemon"), "{said}");
    for command in ["allow m 203.0.113.8/32 --for 1h", "revoke m 203.0.113.8/32", "leases"] {
        let inside = format!(
            "echo $$ > /sys/fs/cgroup/system.slice/opencode-m.service/cgroup.procs; opencode-egress {command}"
        );
        let said = units.machine.fail(&["sh", "-c", &inside])?;
        ensure!(said.contains("a process of a confined unit may ask for nothing but `attach`"), "{said}");
    }
    ensure!(egress(&units, &["leases", "--json"])?.trim() == "{}", "something was granted");
    // What is denied in part is granted, and says so.
    let part = "opencode-egress allow m 192.0.2.0/24:80 --for 1h 2>&1";
    let said = units.machine.succeed(&["sh", "-c", part])?;
    ensure!(said.contains("the policy denies 192.0.2.0/28, and still does"), "{said}");
    units.can("m", &get(FAR))?;
    units.cannot("m", &get("192.0.2.10"), DENIED)
}

fn most(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = start(machine)?;
    let grant = "for i in $(seq 0 255); do opencode-egress allow m 203.0.113.$i/32:$((1000 + i)) --for 1h > /dev/null || exit 1; done";
    units.machine.succeed(&["sh", "-c", grant])?;
    let said = units.machine.fail(&["opencode-egress", "allow", "m", "192.0.2.20/32", "--for", "1h"])?;
    ensure!(said.contains("instance `m` has 256 leases, which is the most"), "{said}");
    let text = egress(&units, &["status"])?;
    ensure!(text.contains("m: 256 leases; the first to end: 203.0.113.0/32:1000 ("), "{text}");
    // Audit mode by a lease is that of the policy, for its time.
    egress(&units, &["revoke", "m", "203.0.113.0/32:1000"])?;
    let audit = |seconds: u32| -> Result<()> {
        let request =
            json!({ "allow": { "instance": "m", "grants": "audit", "time": seconds, "hard": false } });
        let ask = format!(
            "{TALK}s = connect(); s.sendall({:?}.encode()); print(s.makefile().read())",
            format!("{request}\n")
        );
        let said = units.machine.succeed(&["python3", "-c", &ask])?;
        ensure!(said.contains("granted"), "{said}");
        Ok(())
    };
    audit(3600)?;
    units.can("m", &get(FAR))?;
    ensure!(units.status("m")?["mode"] == "audit", "{}", units.status("m")?);
    audit(2)?;
    over(&units, FAR)?;
    waits_for(&units, "ended", "audit mode")?;
    ensure!(units.status("m")?["mode"] == "enforce", "{}", units.status("m")?);
    // The same rule again is none more.
    egress(&units, &["allow", "m", "203.0.113.9/32:1009", "--for", "2h"])?;
    egress(&units, &["revoke", "m", "203.0.113.9/32:1009"])?;
    egress(&units, &["allow", "m", "192.0.2.20/32:80", "--for", "1h"])?;
    units.can("m", &get(FAR))?;
    units.cannot("m", &get("192.0.2.30"), DENIED)
}
