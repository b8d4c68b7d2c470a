"""What the scenarios share. It is read before each, in every environment; `machine`, `witness`, `subtest`, `arrived`, `switch_to`, `skip` and
`PROVIDER` are there.

`arrived()` gives what has arrived at the second host since it was last called, a line a packet as tcpdump prints it.
`switch_to(name)` makes the machine another host, as `switch-to-configuration switch` does; with `whole=False` as it does when `nftables` cannot be
reloaded: it goes on.
`PROVIDER` is the text of provider.py. `skip(why)` ends a scenario that cannot be run here.

Programs that scripts may run, beside NixOS' own (coreutils, findutils, grep, sed, awk, procps, util-linux, iproute2, systemd, nft):
on the machine curl, git, postgres, python3, sqlite3, and what opencode-egress brings. The agent has coreutils, findutils, grep, sed, and:
bash, curl, git, gzip, pgrep, postgres, python3, rg, tar, util-linux. Who needs another one adds it to nixos-test.nix.
Where the store is, is not searched: a NixOS machine has it from the host, file by file over 9p, and `find /` would take minutes.
"""

import base64
import json
import re
import shlex
import time

# The second host's addresses, as hosts/ lists them.
ALLOWED, ALLOWED6 = "192.0.2.10", "2001:db8::10"
OTHER, OTHER6 = "192.0.2.20", "2001:db8::20"
DENIED, DENIED6 = "192.0.2.30", "2001:db8::30"


def prepare(*directories):
    """Makes what an installation makes: users, state directories, the second lock; and worktrees for the servers."""
    machine.succeed("systemd-sysusers", "systemd-tmpfiles --create /etc/tmpfiles.d/opencode.conf")
    for name in directories:
        machine.succeed(f"install -d -o opencode-{name} -g opencode-{name} /srv/{name}")


def address(name):
    """Where an instance listens, from its unit."""
    words = machine.succeed(f"systemctl show -P ExecStart opencode-{name}").split()
    return bracketed(words[words.index("--hostname") + 1]) + ":" + words[words.index("--port") + 1]


def bracketed(address):
    """An address as URLs have it."""
    return f"[{address}]" if ":" in address else address


def healthy(name, timeout=120):
    """Waits until an instance answers. One that is just starting takes a request and never answers it."""
    url = f"http://{address(name)}/global/health"
    return machine.wait_until_succeeds(f"curl -sf -m 2 {url} | grep '\"healthy\":true'", timeout)


def start(*names, timeout=120):
    """Starts instances and waits until each answers."""
    machine.succeed("systemctl start " + " ".join(f"opencode-{name}" for name in names))
    for name in names:
        healthy(name, timeout)


def post(name, path, body):
    data = shlex.quote(json.dumps(body))
    url = f"http://{address(name)}{path}"
    return json.loads(machine.succeed(f"curl -sf -m 60 -H 'content-type: application/json' -d {data} {url}"))


def agent(name, command):
    """Runs a shell command through a server's own shell tool: in its unit, as its user. Returns what it prints."""
    session = post(name, "/session", {})
    message = post(name, f"/session/{session['id']}/shell", {"agent": "build", "command": command})
    return message["parts"][0]["state"]["output"]


def says(name, command, expected):
    """The agent's command prints what is expected."""
    said = agent(name, command)
    assert expected in said, f"{name}: `{command}` prints {said!r}, without {expected!r}"


def probe(name, commands):
    """Runs commands through one call of a server's own shell tool. Returns of each what it prints, and the status that it ends with."""
    mark = "=== "
    script = "".join(f"({command}) 2>&1; printf '\\n%s%s\\n' '{mark}' $?\n" for command in commands)
    # The tool's own shell reads the text twice.
    said = agent(name, f"echo {base64.b64encode(script.encode()).decode()} | base64 -d | sh")
    found = re.findall(f"(.*?)\n{mark}(\\d+)\n?", said, re.DOTALL)
    assert len(found) == len(commands), f"{name}: not every command ended: {said}"
    return [(output, int(status)) for output, status in found]


def can(name, *commands):
    """Each of the agent's commands succeeds."""
    for command, (said, status) in zip(commands, probe(name, commands)):
        assert status == 0, f"{name} cannot {command}: {said}"


def cannot(name, *commands):
    """Each of the agent's commands fails, and not for want of the program."""
    for command, (said, status) in zip(commands, probe(name, commands)):
        assert status not in (126, 127), f"{name} cannot even run {command}: {said}"
        assert status != 0, f"{name} can {command}: {said}"


def tcp(address, port=80):
    """A command that asks an HTTP server."""
    return f"curl -sS -m 5 http://{bracketed(address)}:{port}/"


def udp(address, port):
    """A command that sends a datagram."""
    return f"bash -c 'echo x > /dev/udp/{address}/{port}'"


def reached(packets, address, port):
    """Whether there is one for a port of an address among what has arrived."""
    return any(f" > {address}.{port}: " in packet for packet in packets)


def status():
    """What the daemon knows of each instance."""
    return json.loads(machine.succeed("opencode-egress status --json"))["instances"]


def main_pid(unit):
    """The process that is the unit's service; another one after each start."""
    return machine.succeed(f"systemctl show -P MainPID {unit}").strip()


def printed(name, words=""):
    """What an instance's units have printed; `words` choose."""
    journal = f"journalctl --namespace=opencode-{name}"
    # One that nobody writes to does not run, and has nothing to write.
    machine.execute(f"{journal} --sync")
    return machine.succeed(f"{journal} -o cat --no-pager {words}")


def traces(name, part=""):
    """What a server, or the setup of one (`-setup`), has on the host while it runs -> the command that shows it."""
    unit, user = f"opencode-{name}{part}", f"opencode-{name}"
    return {
        "processes": f"pgrep -u {user}",
        "cgroup": f"ls -d /sys/fs/cgroup/system.slice/{unit}.service",
        "links": f"ls -d /sys/fs/bpf/opencode-egress/v6/links/{unit},service",
        "temporary files": f"ls -d /tmp/systemd-private-*-{unit}.service-*",
    }


# Where everybody on the host can look.
PLACES = {
    "store": "cat /nix/store/*opencode-*{,/*,/*/*}",
    "units": "systemctl cat 'opencode-*' 'control*'",
    "properties": "systemctl show --all '*'",
    "journal": "journalctl --namespace='*' --no-pager -o export",
    "command lines": "cat /proc/[0-9]*/cmdline",
}


def places(word):
    """Those that have the word. It is read from a file, so that the search does not find itself."""
    machine.succeed(f"echo {shlex.quote(word)} > /run/word")
    counts = {place: machine.execute(f"({show}) 2>&1 | grep -caF -f /run/word")[1] for place, show in PLACES.items()}
    return {place for place, count in counts.items() if int(count) > 0}


def not_shown(why):
    """Says that a part cannot be shown where this runs."""
    print(f"SKIPPED: {why}")


def override(unit, text):
    """A drop-in for a unit, until the next boot; none if there is no text."""
    directory = f"/run/systemd/system/{unit}.service.d"
    machine.succeed(f"rm -rf {directory}")
    if text:
        machine.succeed(f"mkdir -p {directory}", f"printf %s {shlex.quote(text)} > {directory}/override.conf")
    machine.succeed("systemctl daemon-reload")


# With `providers`, on the host `keys`:

HAIKU = {"providerID": "anthropic", "modelID": "claude-haiku-4-5"}

# A client as an agent would write one: each request goes as it is, byte for byte, with an instance's token for TOKEN. It prints what each is answered.
CLIENT = """
import json, socket, sys
answers = []
for port, request, name in json.load(sys.stdin):
    try:
        token = open("/run/opencode/tokens/" + name).read() if "TOKEN" in request else ""
        peer = socket.create_connection(("127.0.0.1", port), 10)
        peer.sendall(request.replace("TOKEN", token).encode(errors="surrogateescape"))
        reply = b""
        while piece := peer.recv(65536):
            reply += piece
        head, body = reply.decode(errors="replace").split("\\r\\n\\r\\n", 1)
        answers.append(head.split()[1] + " " + body[:300])
    except OSError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def start_provider():
    """A certificate authority of the test's own, which the machine trusts, and the provider."""
    directory = witness.succeed("mktemp -d").strip()
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for authority in "ca", "stranger":
        witness.succeed(
            f"cd {directory} && {new} -x509 -days 2 -subj /CN=authority -addext keyUsage=critical,keyCertSign,cRLSign -keyout {authority}.key -out {authority}.crt 2>&1"
        )
    witness.succeed(f"cd {directory} && {new} -subj /CN=provider -keyout server.key -out server.csr 2>&1")
    for name, host, authority in ("server", "llm", "ca"), ("misnamed", "other", "ca"), ("untrusted", "llm", "stranger"):
        witness.succeed(
            f"cd {directory} && openssl x509 -req -days 2 -in server.csr -CA {authority}.crt -CAkey {authority}.key -out {name}.crt "
            f"-extfile <(echo subjectAltName=DNS:{host}.example.org) 2>&1",
        )
    text = base64.b64encode(PROVIDER.encode()).decode()
    witness.succeed(f"base64 -d <<< {text} > {directory}/provider.py", f"(python3 {directory}/provider.py {directory} > {directory}/log 2>&1 &)")
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    authority = shlex.quote(witness.succeed(f"cat {directory}/ca.crt"))
    machine.succeed(f"cat {bundle} > /run/bundle || true", f"echo {authority} >> /run/bundle", f"cp --remove-destination /run/bundle {bundle}")
    return directory


def seen():
    """What the provider got since it was last asked."""
    return json.loads(witness.succeed("curl -sS -m 5 http://192.0.2.20:8053/"))


def write_key(name, key, mode="0400"):
    machine.succeed(f"install -D -m {mode} /dev/stdin /run/secrets/{name} <<< {shlex.quote(key)}")


def port(name):
    """Where an instance has its providers."""
    return int(json.loads(machine.succeed("cat /etc/opencode-egress/policy.json"))["instances"][name]["allow"][0]["ports"][0])


def request(head, body="{}"):
    """One that an agent's own client would send; `head` has its lines."""
    return head.replace("\n", "\r\n") + f"\r\ncontent-length: {len(body.encode(errors='surrogateescape'))}\r\nconnection: close\r\n\r\n{body}"


def ask(name, port_, *requests, token=None):
    """What an agent's own client is answered, status and body, to each request."""
    data = base64.b64encode(json.dumps([[port_, request_, token or name] for request_ in requests]).encode()).decode()
    answers = json.loads(agent(name, f"echo {data} | base64 -d | python3 /srv/{name}/client.py"))
    return answers if len(answers) > 1 else answers[0]


def message(name, text, model=HAIKU):
    """What the server answers to a message, from the session's beginning to its end."""
    session = post(name, "/session", {})["id"]
    return post(name, f"/session/{session}/message", {"model": model, "parts": [{"type": "text", "text": text}]})


def said(answer):
    return "".join(part.get("text", "") for part in answer["parts"])


def logged(words):
    """Lines of the unit in the journal that have the words."""
    journal = "journalctl -q --namespace=opencode-keys"
    machine.succeed(f"{journal} --sync")
    return machine.execute(f"{journal} -o cat --no-pager | grep -F -e {shlex.quote(words)}")[1].splitlines()


def start_keys(keys):
    """Starts the provider, nginx with the keys (name of the file -> key), and the servers. Returns where `a` and `b` have their providers."""
    start_provider()
    machine.succeed("printf 'nameserver 192.0.2.99\\n' > /etc/resolv.conf")
    for name, key in keys.items():
        write_key(name, key)
    prepare("a", "b", "free")
    for name in "a", "b", "free":
        machine.succeed(f"base64 -d <<< {base64.b64encode(CLIENT.encode()).decode()} > /srv/{name}/client.py")
    witness.wait_until_succeeds("curl -sS -m 5 http://192.0.2.20:8053/")
    start("a", "b", "free")
    machine.wait_for_unit("opencode-keys")
    return port("a"), port("b")
