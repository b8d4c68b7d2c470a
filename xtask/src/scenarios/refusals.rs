//! What the daemon refuses, and how it says so.

use anyhow::{Result, ensure};

use super::{A, POLICY, Scenario, TALK, Tell, get};
use crate::{machine::Machine, pins};

/// Scenarios of what the daemon refuses to do.
pub(super) const REFUSALS: &[Scenario] = &[
    Scenario { title: "a file with an error is not applied, and the running policy stays", run: bad_file },
    Scenario { title: "without a daemon no instance starts, and the journal says why", run: no_daemon },
    Scenario { title: "a unit that the instance does not list is not attached", run: unlisted_unit },
    Scenario {
        title: "only root may ask, and a confined process only for its own confinement",
        run: control_is_guarded,
    },
    Scenario { title: "a daemon that finds a foreign pin says which", run: foreign_pin },
];

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
    let unit = "[Service]\nExecStartPre=+/usr/bin/opencode-egress attach a --timeout 1\nExecStart=/bin/touch /run/it-ran\n";
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
    ensure!(said.contains("which is no system service's cgroup"), "{said}");
    // A user's own manager has units of any name.
    let of_user = "d=/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/opencode-a.service
                   mkdir -p $d && echo $$ > $d/cgroup.procs && exec opencode-egress attach a";
    let said = machine.fail(&["sh", "-c", of_user])?;
    ensure!(said.contains("opencode-a.service is a unit of user 1000's own systemd"), "{said}");
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
    ensure!(said.contains("only root may ask the daemon"), "{said}");
    let said = machine.fail(&[
        "sh",
        "-c",
        "echo $$ > /sys/fs/cgroup/system.slice/opencode-a.service/cgroup.procs; opencode-egress detach a",
    ])?;
    ensure!(said.contains("a process of a confined unit may ask for nothing but `attach`"), "{said}");
    let nonsense = format!("{TALK}s = connect(); s.sendall(b'{{}}' + bytes([10])); print(s.recv(999))");
    let said = machine.succeed(&["python3", "-c", &nonsense])?;
    ensure!(said.contains("this is no request"), "{said}");
    // One that says nothing is not waited for, and keeps nobody else from being answered.
    let silent = format!(
        "{TALK}s = connect(); import subprocess; subprocess.check_call(['opencode-egress', 'status']); print(s.recv(999))"
    );
    let silent = machine.succeed(&["python3", "-c", &silent])?;
    ensure!(silent.contains("1/1 confined") && silent.contains("no request came in time"), "{silent}");
    Ok(())
}

fn foreign_pin(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let (map, other) = (&pins::own("HEADS"), &pins::own("LIMITS"));
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    machine.succeed(&["mv", map, "/sys/fs/bpf/heads"])?;
    machine.succeed(&["cp", "-l", other, map]).or_else(|_| machine.succeed(&["ln", other, map]))?;
    let said = machine.fail(&["timeout", "5", "opencode-egress", "run"])?;
    ensure!(
        said.contains(&format!("{map} is pinned already and is not the map that this version")),
        "{said}"
    );
    machine.succeed(&["rm", map])?;
    machine.succeed(&["mv", "/sys/fs/bpf/heads", map])?;
    machine.succeed(&["systemctl", "start", "opencode-egress", "opencode-a", "opencode-b"])?;
    Ok(())
}
