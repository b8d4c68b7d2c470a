//! Units that may not start, and how they and `status` say so.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{A, POLICY, Scenario, Tell, daemon_log, get, health_request, healthy};
use crate::machine::{Machine, wait};

/// What does not start.
pub(super) const STARTS: &[Scenario] = &[
    Scenario {
        title: "a unit that runs something before `attach` does not start, and is told what to write",
        run: not_first,
    },
    Scenario {
        title: "`attach` does not start a unit of which systemd says nothing",
        run: systemd_is_silent,
    },
    Scenario {
        title: "a hook that another program keeps to itself is named, with the program",
        run: held_hook,
    },
    Scenario { title: "a unit with systemd's escapes in its name is confined", run: escaped_name },
    Scenario { title: "a unit of a user's own systemd that is listed is told of, once", run: users_unit },
];

const UNIT: &str = "/run/systemd/system/opencode-first.service";
const RAN: &str = "/run/first-ran";
/// Not systemctl, which the tests take away.
const MANAGER: &str =
    "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager";

/// An instance beside those that the machine has. It goes with this value.
struct Listed<'a> {
    machine: &'a Machine,
    before: String,
}

impl<'a> Listed<'a> {
    fn new(machine: &'a Machine, name: &str, unit: &str) -> Result<Self> {
        let before = machine.read(POLICY)?;
        let mut policy: Value = serde_json::from_str(&before)?;
        policy["instances"][name] = json!({ "units": [unit] });
        let listed = Self { machine, before };
        machine.write(POLICY, &policy.to_string())?;
        machine.succeed(&["opencode-egress", "reload"])?;
        Ok(listed)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        // The machine may be what failed.
        let _ = self.machine.write(POLICY, &self.before);
        let _ = self.machine.run(&["opencode-egress", "reload"]);
    }
}

fn attach(name: &str) -> String {
    format!("ExecStartPre=+/usr/bin/opencode-egress attach {name}\n")
}

/// Writes the unit, starts it, and says whether it ran, and what its journal has of this start.
fn start(machine: &Machine, service: &str) -> Result<(bool, String)> {
    machine.write(
        UNIT,
        &format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n{service}ExecStart=/bin/touch {RAN}\n"
        ),
    )?;
    machine.succeed(&["sh", "-c", &format!("{MANAGER} Reload")])?;
    machine.succeed(&["rm", "-f", RAN])?;
    let mark = machine.succeed(&["sh", "-c", "journalctl -n 0 --show-cursor | sed -n 's/-- cursor: //p'"])?;
    machine.succeed(&["sh", "-c", &format!("{MANAGER} StartUnit ss opencode-first.service replace")])?;
    let property = "busctl get-property org.freedesktop.systemd1 /org/freedesktop/systemd1/unit/opencode_2dfirst_2eservice org.freedesktop.systemd1.Unit ActiveState";
    wait("the unit's end", || {
        let state = machine.succeed(&["sh", "-c", property]).ok()?;
        (state.contains("\"inactive\"") || state.contains("\"failed\"")).then_some(())
    })?;
    let journal =
        ["journalctl", "--after-cursor", mark.trim(), "-u", "opencode-first", "--no-pager", "-o", "cat"];
    Ok((machine.read(RAN).is_ok(), machine.succeed(&journal)?))
}

fn refused(machine: &Machine, service: &str, expect: &str) -> Result<()> {
    let (ran, journal) = start(machine, service)?;
    ensure!(!ran, "this unit started:\n{service}");
    ensure!(journal.contains(expect), "no `{expect}` in what the unit's journal has of\n{service}{journal}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    let told = status
        .lines()
        .find(|line| line.starts_with("! first: the last `attach` of opencode-first.service failed, at "));
    ensure!(told.is_some_and(|line| line.contains(expect)), "`status` does not tell of it: {status}");
    Ok(())
}

fn starts(machine: &Machine, service: &str) -> Result<()> {
    let (ran, journal) = start(machine, service)?;
    ensure!(ran, "this unit did not start:\n{service}{journal}");
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(!status.contains("! first: "), "{status}");
    Ok(())
}

fn not_first(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let machine = &*machine;
    let _listed = Listed::new(machine, "first", "opencode-first.service")?;
    let _other = Listed::new(machine, "second", "opencode-second.service")?;
    let attach = attach("first");
    let wanted = "ExecStartPre=+/usr/bin/opencode-egress attach first";
    starts(machine, &attach)?;
    refused(
        machine,
        &format!("ExecCondition=/bin/true\n{attach}"),
        "opencode-first.service has `ExecCondition=/bin/true`",
    )?;
    refused(
        machine,
        &format!("ExecStartPre=/bin/true with words\n{attach}"),
        "runs `ExecStartPre=/bin/true with words` before `attach`",
    )?;
    starts(machine, &format!("{attach}ExecStartPre=/bin/true\n"))?;
    let other = attach.replace("=+", "=-+").replace("first", "second");
    refused(
        machine,
        &format!("{other}{attach}"),
        "runs `ExecStartPre=-/usr/bin/opencode-egress attach second` before `attach`",
    )?;
    // It starts, confined.
    let (ran, journal) = start(machine, &attach.replace("=+", "=-+"))?;
    let told = "opencode-first.service starts also when `attach` fails: its line";
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(ran && journal.contains(told) && journal.contains("is confined, generation"), "{journal}");
    ensure!(status.contains(told), "{status}");
    refused(
        machine,
        "ExecStartPre=+/bin/sh -c 'exec /usr/bin/opencode-egress attach first'\n",
        &format!("write `{wanted}` as its first"),
    )?;
    starts(machine, &format!("{attach}Environment=PATH=/run/nothing\n"))?;
    // As `systemctl edit` makes it.
    let drop_in = "/run/systemd/system/opencode-first.service.d";
    machine.succeed(&["mkdir", "-p", drop_in])?;
    machine.write(
        &format!("{drop_in}/before.conf"),
        &format!("[Service]\nExecStartPre=\nExecStartPre=/bin/echo early\n{attach}"),
    )?;
    let result = refused(machine, &attach, "runs `ExecStartPre=/bin/echo early` before `attach`");
    machine.succeed(&["rm", "-r", drop_in])?;
    result?;
    starts(machine, &attach)
}

fn systemd_is_silent(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let machine = &*machine;
    let _listed = Listed::new(machine, "first", "opencode-first.service")?;
    let attach = attach("first").replace("attach", "attach --timeout 2");
    machine.succeed(&["mv", "/usr/bin/systemctl", "/usr/bin/systemctl.away"])?;
    let tried = || -> Result<Duration> {
        refused(
            machine,
            &attach,
            "systemd cannot be asked what opencode-first.service runs before `attach`",
        )?;
        machine.write("/usr/bin/systemctl", "#!/bin/sh\nsleep 60\n")?;
        machine.succeed(&["chmod", "755", "/usr/bin/systemctl"])?;
        let begin = Instant::now();
        refused(machine, &attach, "systemd did not say within 2.0s what opencode-first.service runs")?;
        let took = begin.elapsed();
        machine.write("/usr/bin/systemctl", "#!/bin/sh\n")?;
        refused(machine, &attach, "systemd does not say what opencode-first.service runs before `attach`")?;
        Ok(took)
    };
    let took = tried();
    machine.succeed(&["mv", "/usr/bin/systemctl.away", "/usr/bin/systemctl"])?;
    let took = took?;
    ensure!(took < Duration::from_secs(10), "it took {took:?} of a patience of 2 s");
    starts(machine, &attach)
}

/// Attaches a program of no use to a cgroup, as `bpftool cgroup attach` does without `multi`, or takes it away again.
const HOLDER: &str = r"import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)

def bpf(command, attr):
    attr = ctypes.create_string_buffer(attr, 128)
    result = libc.syscall({'x86_64': 321, 'aarch64': 280}[os.uname().machine], command, attr, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), 'bpf')
    return result

cgroup = os.open('/sys/fs/cgroup/system.slice', os.O_RDONLY)
if sys.argv[1] == 'attach':
    # r0 = 1; exit
    code = ctypes.create_string_buffer(struct.pack('<BBhiBBhi', 0xb7, 0, 0, 1, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b'GPL')
    program = bpf(5, struct.pack('<IIQQIIQII16sII', 8, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0, b'holder', 0, 1))
    bpf(8, struct.pack('<IIII', cgroup, program, 1, 0))
else:
    bpf(9, struct.pack('<IIII', cgroup, 0, 1, 0))
";

fn held_hook(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    machine.succeed(&["systemctl", "stop", "opencode-b"])?;
    machine.succeed(&["python3", "-c", HOLDER, "attach"])?;
    let started = machine.fail(&["systemctl", "start", "opencode-b"]);
    let journal = machine.run(&["journalctl", "-u", "opencode-b", "-n", "20", "--no-pager", "-o", "cat"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    machine.succeed(&["python3", "-c", HOLDER, "detach"])?;
    started?;
    for said in [journal, status] {
        ensure!(
            said.contains(
                " (`holder`) is attached to /sys/fs/cgroup/system.slice for egress and lets nobody else be"
            ),
            "{said}"
        );
    }
    machine.succeed(&["systemctl", "reset-failed", "opencode-b"])?;
    machine.succeed(&["systemctl", "start", "opencode-b"])?;
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(!status.contains("the last `attach`"), "{status}");
    wait("b to answer", || healthy(machine.succeed(&health_request(super::B)))).map(drop)
}

fn escaped_name(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let unit = r"opencode-my\x2dproject.service";
    let service = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n{}ExecStart=/bin/bash -c 'echo x > /dev/udp/192.0.2.30/9 || sleep 1000 &'\n",
        attach("escaped")
    );
    machine.write(&format!("/run/systemd/system/{unit}"), &service)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.witnessed()?;
    let shown = {
        let _listed = Listed::new(machine, "escaped", unit)?;
        machine.succeed(&["systemctl", "start", unit])?;
        let log = ["journalctl", "-t", "opencode-escaped-blocked", "-o", "cat", "--no-pager"];
        wait("its denial", || machine.run(&log).ok().filter(|lines| lines.contains("dst=192.0.2.30")))?;
        let shown = machine.succeed(&["opencode-egress", "status", "--json"])?;
        machine.succeed(&["systemctl", "stop", unit])?;
        shown
    };
    let seen = machine.witnessed()?;
    ensure!(!seen.iter().any(|line| line.contains("> 192.0.2.30.")), "LEAK: {seen:#?}");
    let status: Value = serde_json::from_str(&shown)?;
    let shown = &status["instances"]["escaped"]["units"][0];
    ensure!(shown["unit"] == unit && shown["links"] == shown["hooks"], "{shown}");
    Ok(())
}

fn users_unit(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let place = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/opencode-a.service";
    // Root, and one without any privileges, as the units of a user's own systemd run.
    for user in ["", "setpriv --reuid 1000 --clear-groups "] {
        let joined = format!("mkdir -p {place} && echo $$ > {place}/cgroup.procs");
        let said =
            machine.fail(&["sh", "-c", &format!("{joined} && exec {user}opencode-egress attach a")])?;
        ensure!(
            said.contains("opencode-a.service is a unit of user 1000's own systemd (systemctl --user), and only system units"),
            "{said}"
        );
    }
    let stay = format!(
        "mkdir -p {place} && (echo 0 > {place}/cgroup.procs; exec setsid sleep 1000) > /dev/null 2>&1 &"
    );
    machine.succeed(&["sh", "-c", &stay])?;
    let line =
        "a opencode-a.service runs in user 1000's own systemd (systemctl --user), and nothing confines it";
    let told = || daemon_log(machine).map(|log| log.matches(line).count());
    wait("the daemon to tell of it", || told().ok().filter(|count| *count > 0))?;
    machine.succeed(&["opencode-egress", "reload"])?;
    // In which it looks again.
    std::thread::sleep(Duration::from_secs(6));
    ensure!(told()? == 1, "it is told {} times", told()?);
    let status = machine.succeed(&["opencode-egress", "status"])?;
    ensure!(status.contains("! a: a opencode-a.service runs in user 1000's own systemd"), "{status}");
    machine.succeed(&["sh", "-c", &format!("kill $(cat {place}/cgroup.procs)")])?;
    wait("its end", || machine.succeed(&["rmdir", place]).ok())?;
    wait("it to be forgotten", || {
        let status = machine.succeed(&["opencode-egress", "status"]).ok()?;
        (!status.contains("own systemd")).then_some(())
    })?;
    ensure!(get(machine, A, "192.0.2.10/from-a")?.contains("reached"), "the system's own is not what it was");
    Ok(())
}
