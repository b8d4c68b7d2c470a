//! A resolver in somebody else's hands.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{Scenario, Tell, daemon_log},
    units::Units,
};
use crate::machine::{Machine, wait};

/// What it cannot do.
pub(in crate::scenarios) const HOSTILE: &[Scenario] = &[
    Scenario { title: "names: nobody but the resolver is believed to be it", run: impostors },
    Scenario {
        title: "names: a hostile resolver teaches the daemon nothing that is not listed, and neither stops it nor makes it grow",
        run: hostile,
    },
];

const SOCKET: &str = "/run/opencode-egress/resolver.sock";

fn impostors(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    let connect = format!(
        "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(\"{SOCKET}\"); print(\"heard\", len(s.recv(10)))"
    );
    let refusals = || {
        daemon_log(units.machine)
            .map(|said| said.matches("refused a process that would be the resolver").count())
    };
    let before = refusals()?;
    let said = units.can("n", &format!("python3 -c '{connect}'"))?;
    ensure!(said.contains("heard 0"), "in a confined unit: {said}");
    let said = units.machine.succeed(&[
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        &connect,
    ])?;
    ensure!(said.contains("heard 0"), "as another user: {said}");
    // Root, but in a unit that is confined.
    units.machine.write("/run/names/impostor.py", &connect)?;
    units.machine.succeed(&["mkdir", "-p", "/run/systemd/system/opencode-m.service.d"])?;
    units.machine.write(
        "/run/systemd/system/opencode-m.service.d/root.conf",
        "[Service]\nDynamicUser=no\nExecStart=\nExecStart=/usr/bin/python3 /run/names/impostor.py\n",
    )?;
    units.machine.succeed(&["systemctl", "daemon-reload"])?;
    units.machine.succeed(&["systemctl", "restart", "opencode-m"])?;
    let printed = || {
        units
            .machine
            .run(&["journalctl", "-q", "-u", "opencode-m", "-n", "5", "--no-pager", "-o", "cat"])
            .ok()
    };
    let said = wait("the impostor", || printed().filter(|said| said.contains("heard ")));
    units.machine.succeed(&["rm", "-r", "/run/systemd/system/opencode-m.service.d"])?;
    units.machine.succeed(&["systemctl", "daemon-reload"])?;
    let said = said.with_context(|| printed().unwrap_or_default())?;
    ensure!(said.contains("heard 0"), "as root in a confined unit: {said}");
    wait("three refusals", || refusals().ok().filter(|now| *now == before + 3))?;
    units.resolves()
}

const HOSTILE_RESOLVER: &str = r#"import json, socket, subprocess, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect('/run/opencode-egress/resolver.sock')
    return s, s.makefile('r')
def say(s, *messages):
    s.sendall(b''.join(json.dumps(message).encode() + b'\n' for message in messages))
def ends(s, lines):
    try:
        while lines.readline():
            pass
    except ConnectionResetError:
        pass
    return True
def answers():
    begin = time.monotonic()
    subprocess.run(['opencode-egress', 'status'], check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - begin
    assert took < 3, f'status took {took}'

s, lines = connect()
numbers = {}
while True:
    message = json.loads(lines.readline())
    if message == 'all_told':
        break
    if 'instance' in message:
        for name in message['instance']['names']:
            numbers[name] = message['instance']['number']
n, m = numbers['api.example.org'], numbers['other.example.org']
assert n != m, numbers

def learn(name, addresses, instance=n, ttl=4294967295, id=[0]):
    id[0] += 1
    say(s, {'learn': {'id': id[0], 'instance': instance, 'name': name, 'addresses': addresses, 'ttl': ttl, 'source': '127.0.0.1:9'}})
    reply = json.loads(lines.readline())
    assert reply['learned']['id'] == id[0], reply
    return reply['learned']['addresses']
forbidden = ['127.0.0.1', '127.0.0.2', '0.0.0.0', '192.0.2.1', '10.0.0.1', '169.254.169.254', '224.0.0.1', '255.255.255.255', '::1', '::',
             '2001:db8::1', 'fe80::1', 'fc00::1', 'ff02::1', '::ffff:127.0.0.1', '::ffff:192.0.2.1', '64:ff9b::7f00:1']
assert learn('api.example.org', forbidden) == []
assert learn('api.example.org', forbidden + ['198.51.100.1']) == ['198.51.100.1']
for name, instance in [('other.example.org', n), ('api.example.org', m), ('evil.example', n), ('wild.example.net', n), ('', n),
                       ('*.wild.example.net', n), ('api.example.org', 0), ('api.example.org', 4294967295), ('API.example.org.evil.example', n)]:
    assert learn(name, ['203.0.113.66'], instance) == [], (name, instance)

# What is no message.
for bad in [b'\xff\xfe\n', b'{}\n', b'[' * 60000 + b'\n', b'{"learn": {"id": -1}}\n', b'x' * 70000, b'{"gone": {"number": 1}}\n']:
    other, its = connect()
    try:
        other.sendall(bad)
        assert ends(other, its)
    except (BrokenPipeError, ConnectionResetError):
        pass
    answers()
s, lines = connect()
def endless():
    try:
        while True:
            s.sendall(b'x' * 65536)
    except (BrokenPipeError, ConnectionResetError):
        return
endless()
answers()

# As many as like.
s, lines = connect()
while json.loads(lines.readline()) != 'all_told':
    pass
for number in range(100000):
    name = f'n{number}.evil\x1b[2K\nquery=forged' + 'x' * (number % 200)
    say(s, {'refused': {'instance': n, 'name': name, 'qtype': 'A' * 100, 'reason': 'name-not-allowed', 'source': f'127.0.0.1:{1 + number % 65535}'}})
    if number % 20000 == 0:
        answers()
say(s, {'counts': {'instance': n, **{what: 18446744073709551615 for what in ['questions', 'cached', 'answered', 'refused', 'failed', 'lost']}}})
for number in range(20):
    learn('other.example.org', [f'2001:db8:2:{number:x}::{address:x}' for address in range(1000)], m)
answers()
# It reads no answer.
s.setblocking(False)
deadline = time.monotonic() + 10
try:
    while time.monotonic() < deadline:
        try:
            say(s, {'learn': {'id': 7, 'instance': n, 'name': 'api.example.org', 'addresses': ['198.51.100.1'] * 1000, 'ttl': 1, 'source': '127.0.0.1:9'}})
        except BlockingIOError:
            time.sleep(0.01)
            # The rest of the line.
            s.setblocking(False)
except (BrokenPipeError, ConnectionResetError):
    pass
answers()
print('survived')
"#;

fn hostile(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.can("n", "curl -sS -m 5 http://api.example.org/x")?;
    let pid = units.machine.succeed(&["systemctl", "show", "-P", "MainPID", "opencode-egress"])?;
    let resident = || -> Result<u64> {
        let status = units.machine.read(&format!("/proc/{}/status", pid.trim()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("VmRSS is empty")?.parse()?)
    };
    units.machine.succeed(&["systemctl", "stop", "opencode-egress-resolver"])?;
    units.machine.write("/run/names/hostile.py", HOSTILE_RESOLVER)?;
    let before = resident()?;
    let said = units.machine.succeed(&["python3", "/run/names/hostile.py"])?;
    ensure!(said.contains("survived"), "{said}");
    let after = resident()?;
    ensure!(after < before + 16 * 1024, "the daemon had {before} KiB resident, and has {after} KiB");
    let names: Value =
        serde_json::from_str(&units.machine.succeed(&["opencode-egress", "names", "n", "--json"])?)?;
    let names = names.to_string();
    for address in ["127.", "10.0.0.1", "169.254", "203.0.113.66", "192.0.2.1\"", "fe80", "::1\""] {
        ensure!(!names.contains(address), "{address} is known to n: {names}");
    }
    units.cannot("n", "curl -sS -m 5 http://203.0.113.66/", "Couldn't connect")?;
    units.cannot("n", "curl -sS -m 5 http://10.0.0.1/", "Couldn't connect")?;
    let lines = units.machine.succeed(&[
        "journalctl",
        "-q",
        "-t",
        "opencode-n-blocked",
        "--no-pager",
        "-o",
        "cat",
    ])?;
    ensure!(!lines.lines().any(|line| line.starts_with("query=forged")), "a line was forged");
    units.machine.succeed(&["systemctl", "start", "opencode-egress-resolver"])?;
    units.whole()
}
