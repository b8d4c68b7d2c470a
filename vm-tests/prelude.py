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
        "links": f"ls -d /sys/fs/bpf/opencode-egress/v4/links/{unit},service",
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
