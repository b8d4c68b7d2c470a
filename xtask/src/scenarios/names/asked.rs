//! What is resolved and reached, what is not, and who is told.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    super::{Scenario, Tell},
    units::{ADDRESS, Units},
};
use crate::machine::Machine;

/// Questions and answers.
pub(in crate::scenarios) const NAMES: &[Scenario] = &[
    Scenario {
        title: "names: listed ones are reached, others do not exist, and everybody says so",
        run: listed,
    },
    Scenario { title: "names: no question off the list gets out by any way", run: off_the_list },
    Scenario { title: "names: an answer brings no address that no name may bring", run: rebinding },
    Scenario {
        title: "names: what an answer brought to one instance is not another's",
        run: another_instance,
    },
    Scenario { title: "names: a unit in a network namespace of its own does not start", run: own_network },
];

const PYTHON: &str = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], 80)[0][4][0])";

/// Asks, and keeps its socket.
const HELD: &str = r#"import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("192.0.2.99", 53))
s.send(bytes([0, 7, 1, 0, 0, 1] + [0] * 6) + b"\4held\7example\0\0\1\0\1")
time.sleep(20)"#;

fn listed(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    let said = units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    ensure!(said.contains("upstream 192.0.2.20 got"), "{said}");
    let said = units.can("n", "curl -sS -m 5 -6 http://api.example.org./x")?;
    ensure!(said.contains("upstream 2001:db8::20 got"), "{said}");
    units.can("n", &format!("python3 -c '{PYTHON}' Deep.a.WILD.example.net"))?;

    units.cannot("n", "curl -sS -m 5 http://evil.example/", "Could not resolve host: evil.example")?;
    units.cannot(
        "n",
        &format!("python3 -c '{PYTHON}' evil.example"),
        "[Errno -2] Name or service not known",
    )?;
    units.cannot("n", "curl -sS -m 5 http://wild.example.net/", "Could not resolve host")?;
    let uid = units.can("n", "id -u")?;
    let uid = uid.lines().next().unwrap_or_default();
    // Of a client that had closed its socket when it was told.
    units.line(
        "n",
        &["query=evil.example type=A reason=name-not-allowed pid=", &format!(" comm=curl uid={uid} ")],
    )?;
    // Of one whose socket is still there to be looked at.
    units.can("n", &format!("(python3 -c '{HELD}' &)"))?;
    units.line(
        "n",
        &["query=held.example type=A ", &format!(" comm=python3 uid={uid} suppressed=0 exe=- ")],
    )?;
    let fields = [
        "EGRESS_QUERY=held.example",
        "EGRESS_TYPE=A",
        "EGRESS_REASON=name-not-allowed",
        "OPENCODE_INSTANCE=n",
    ];
    let mut words = vec!["journalctl", "-q", "--no-pager", "-o", "cat"];
    words.extend(fields);
    let field = format!("EGRESS_UID={uid}");
    words.push(&field);
    let line = units.machine.succeed(&words)?;
    ensure!(line.contains("query=held.example"), "by field the journal has: {line}");

    // Learned for port 80 and 443.
    units.cannot("n", &format!("curl -sS -m 5 http://{ADDRESS}:81/"), "Couldn't connect")?;
    units.line("n", &[&format!("dst={ADDRESS} dport=81 name="), "hook=connect4", "comm=curl"])?;

    let egress = |words: &[&str]| units.machine.succeed(&[&["opencode-egress"], words].concat());
    ensure!(units.seconds("n", "api.example.org", ADDRESS)? > Some(60), "names: {}", units.names("n")?);
    for (destination, says) in [
        ("api.example.org:443", "api.example.org:80,443"),
        ("evil.example", "name-not-allowed"),
        ("192.0.2.20:80", "api.example.org"),
    ] {
        let said = egress(&["explain", "n", destination])?;
        ensure!(said.contains(says), "explain n {destination}: {said}");
    }
    let suggested = egress(&["suggest", "n"])?;
    ensure!(suggested.contains("\"evil.example\""), "suggest: {suggested}");
    let events = egress(&["events", "n"])?;
    ensure!(events.contains("n: query=evil.example type=A reason=name-not-allowed"), "events: {events}");
    let status = units.status("n")?;
    ensure!(
        status["names"]["rules"] == 3
            && status["names"]["questions"]["refused_by_reason"]["name-not-allowed"].as_u64() > Some(0),
        "status: {status}"
    );
    ensure!(egress(&["status"])?.contains("name"), "status says nothing of names");
    Ok(())
}

/// Asks past every library: each server, each way, each kind of question.
const QUESTIONS: &str = r#"import json, random, socket, struct
def wire(name):
    return b''.join(bytes([len(label)]) + label for label in name.split(b'.')) + b'\0'
def question(*names, kind=1, more=b'', counts=(0, 0)):
    asked = b''.join(wire(name) + struct.pack('>HH', kind, 1) for name in names)
    return struct.pack('>HHHHHH', random.randrange(65536), 0x100, len(names), 0, *counts) + asked + more
options = b'\0' + struct.pack('>HHIH', 41, 1232, 0, 4 + 8) + struct.pack('>HH', 10, 8) + b'8 bytes!'
client_subnet = b'\0' + struct.pack('>HHIH', 41, 1232, 0, 4 + 7) + struct.pack('>HHHBB', 8, 7, 1, 24, 0) + b'\xc0\0\2'
longest = b'.'.join([b'a' * 63] * 3 + [b'b' * 48, b'evil', b'example'])
assert len(wire(longest)) == 255, len(wire(longest))
questions = {
    'plain': question(b'evil.example'),
    'mixed case': question(b'eViL.ExAmPlE'),
    'TXT': question(b'evil.example', kind=16),
    'TXT of a listed one': question(b'api.example.org', kind=16),
    'TXT below one': question(b'data.wild.example.net', kind=16),
    'ANY of a listed one': question(b'api.example.org', kind=255),
    'the longest': question(longest),
    'with a cookie': question(b'evil.example', more=options, counts=(0, 1)),
    'with a subnet': question(b'api.example.org.evil.example', more=client_subnet, counts=(0, 1)),
    'two at once': question(b'api.example.org', b'evil.example'),
    'the other way round': question(b'evil.example', b'api.example.org'),
    'none': question(),
    'more behind it': question(b'evil.example') + question(b'evil.example'),
    'chaos': question(b'evil.example')[:-1] + b'\3',
    'an update': b'\1\1\x28\0' + question(b'evil.example')[4:],
    'an answer': b'\1\1\x81\x80' + question(b'evil.example')[4:],
    'a loop': struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\xc0\x0c\0\1\0\1',
    'garbage': bytes(range(200)),
}
said = {}
for server in '192.0.2.30', '192.0.2.10', '192.0.2.20', '8.8.8.8', '2001:db8::30', '2001:db8::20', '::ffff:192.0.2.30':
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    for what, packet in questions.items():
        for how in 'connected', 'unconnected', 'tcp':
            s = socket.socket(family, socket.SOCK_STREAM if how == 'tcp' else socket.SOCK_DGRAM)
            s.settimeout(0.3 if what in ('an answer', 'garbage', 'none', 'a loop') else 3)
            try:
                if how == 'unconnected':
                    s.sendto(packet, (server, 53))
                    reply, peer = s.recvfrom(4096)
                elif how == 'connected':
                    s.connect((server, 53))
                    s.send(packet)
                    reply, peer = s.recv(4096), s.getpeername()
                else:
                    s.connect((server, 53))
                    s.sendall(struct.pack('>H', len(packet)) + packet)
                    reply, peer = s.recv(4096)[2:], s.getpeername()
                assert peer[0] == server, peer
                outcome = f'rcode {reply[3] & 15} answers {reply[7]}' if reply else 'closed'
            except OSError as e:
                outcome = type(e).__name__
            s.close()
            said.setdefault(f'{what}: {outcome}', []).append(f'{how} {server}')
print(json.dumps(said, indent=1))
"#;

fn off_the_list(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let mut units = Units::start(machine)?;
    units.machine.write("/run/names/questions.py", QUESTIONS)?;
    units.asked()?;
    units.can("n", "curl -sS -m 5 http://fresh.wild.example.net/x")?;
    let control = units.asked()?;
    let good =
        |line: &&String| line.contains("> 192.0.2.30.53: ") && line.contains("A? fresh.wild.example.net. ");
    ensure!(
        !control.is_empty() && control.iter().all(|line| good(&line)),
        "for a listed name was asked: {control:#?}"
    );
    let said = units.can("n", "python3 /run/names/questions.py")?;
    for (what, outcome) in [
        ("plain", "rcode 3 answers 0"),
        ("mixed case", "rcode 3 answers 0"),
        ("TXT", "rcode 3 answers 0"),
        ("TXT of a listed one", "rcode 0 answers 0"),
        ("the longest", "rcode 3 answers 0"),
        ("with a cookie", "rcode 3 answers 0"),
    ] {
        ensure!(said.contains(&format!("\"{what}: {outcome}\"")), "no `{what}: {outcome}` in {said}");
        ensure!(
            said.matches(&format!("\"{what}: ")).count() == 1,
            "`{what}` is answered in several ways: {said}"
        );
    }
    let asked = units.asked()?;
    ensure!(asked.is_empty(), "this was asked: {asked:#?}\n{said}");
    units.line("n", &["query=evil.example type=TXT reason=name-not-allowed"])?;
    units.line("n", &["query=api.example.org type=TXT reason=type-not-allowed"])?;
    Ok(())
}

fn rebinding(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    let long = |address: &str| -> Result<String> {
        let address: std::net::Ipv6Addr = address.parse()?;
        Ok(format!("v6-{:032x}", u128::from(address)))
    };
    let short = |address: &str| -> Result<String> {
        let address: std::net::Ipv4Addr = address.parse()?;
        Ok(format!("v4-{:08x}", u32::from(address)))
    };
    for address in [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "192.0.2.1",
        "169.254.169.254",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "224.0.0.251",
        "255.255.255.255",
        "::",
        "::1",
        "2001:db8::1",
        "fe80::1",
        "fd00::1",
        "ff02::fb",
        "::ffff:127.0.0.1",
        "::ffff:192.0.2.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
    ] {
        let label = if address.contains(':') { long(address)? } else { short(address)? };
        let name = format!("{label}.wild.example.net");
        units.cannot("n", &format!("python3 -c '{PYTHON}' {name}"), "gaierror")?;
        let kind = if address.contains(':') { "AAAA" } else { "A" };
        let line = format!("query={name} type={kind} reason=forbidden-address address={address} ");
        units.line("n", &[&line])?;
    }
    ensure!(!units.names("n")?.contains("v4-"), "{}", units.names("n")?);
    // The control, and what a rule may say of private ones.
    units.can("n", &format!("python3 -c '{PYTHON}' {}.wild.example.net", short(ADDRESS)?))?;
    units.apply(|instances| {
        instances["n"]["allow"] = json!([{ "name": "*.wild.example.net", "private": true }]);
    })?;
    let said = units.can("n", &format!("python3 -c '{PYTHON}' {}.wild.example.net", short("10.1.2.3")?))?;
    ensure!(said.contains("10.1.2.3"), "{said}");
    units.cannot("n", &format!("python3 -c '{PYTHON}' {}.wild.example.net", short("127.0.0.1")?), "gaierror")
}

fn another_instance(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.can("n", "curl -sS -m 5 -4 http://api.example.org/x")?;
    units.cannot("m", &format!("curl -sS -m 5 http://{ADDRESS}/x"), "Couldn't connect")?;
    units.line("m", &["dst=192.0.2.20 dport=80 hook=connect4 reason=not-allowed"])?;
    units.cannot("m", "curl -sS -m 5 http://api.example.org/x", "Could not resolve host")?;
    units.can("m", "curl -sS -m 5 -4 http://other.example.org/x")?;
    let (own, other) = (units.port("m")?, units.port("n")?);
    ensure!(own != other, "both ask at {own}");
    // m lists all of 127.0.0.0/8.
    let ask = |port: u64, how: &str| {
        format!(
            "python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.{how}); s.settimeout(3); s.connect((\"127.0.0.1\", {port})); s.send(b\"x\"); print(\"sent\")'"
        )
    };
    for how in ["SOCK_STREAM", "SOCK_DGRAM"] {
        units.can("m", &ask(own, how))?;
        units.cannot("m", &ask(other, how), "Operation not permitted")?;
    }
    units.line("m", &[&format!("dst=127.0.0.1 dport={other} "), "reason=other-resolver"]).map(drop)
}

fn own_network(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let units = Units::start(machine)?;
    units.machine.succeed(&["mkdir", "-p", "/run/systemd/system/opencode-n.service.d"])?;
    units
        .machine
        .write("/run/systemd/system/opencode-n.service.d/own.conf", "[Service]\nPrivateNetwork=yes\n")?;
    units.machine.succeed(&["systemctl", "daemon-reload"])?;
    let tried = units.machine.fail(&["systemctl", "restart", "opencode-n"]);
    let said = units.machine.succeed(&[
        "journalctl",
        "-q",
        "-u",
        "opencode-n",
        "-n",
        "20",
        "--no-pager",
        "-o",
        "cat",
    ])?;
    units.machine.succeed(&["rm", "-r", "/run/systemd/system/opencode-n.service.d"])?;
    units.machine.succeed(&["systemctl", "daemon-reload"])?;
    tried?;
    let expect = "opencode-n.service has a network namespace of its own, where no resolver answers";
    ensure!(said.contains(expect), "{said}");
    units.machine.succeed(&["systemctl", "restart", "opencode-n"]).map(drop)
}
