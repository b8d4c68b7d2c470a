# host: network
"""Each of the two locks holds alone, and none depends on the daemon running.
A killed daemon opens nothing, and without one nothing starts, with a reason in the journal. Stopped or restarted, neither lock takes a server
down. With the eBPF programs detached the nftables table refuses, counts and logs, at a bounded rate, and the other way round; a process of the
same user outside the unit is the table's. At the end both are taken away: then the same probe gets out."""

import random

calls = [tcp(OTHER), tcp(DENIED6)]
# The kernel shows a connected socket's datagrams to the table before it shows them to the programs.
datagrams = [udp(OTHER, 9001), udp(DENIED6, 9001)]


def held(name, commands=calls + datagrams):
    """What is not on the list is refused and does not arrive, what is on it does."""
    arrived()
    cannot(name, *commands)
    can(name, tcp(ALLOWED))
    packets = arrived()
    assert reached(packets, ALLOWED, 80), packets
    assert not any(f" > {OTHER}." in packet or f" > {DENIED6}." in packet for packet in packets), packets


def rejected():
    """How many packets of b the second lock has refused."""
    return int(re.search(r"counter packets (\d+)", machine.succeed("nft list chain inet opencode-egress refuse-b"))[1])


# To a server of its own and back, by TCP and by UDP, where the first datagram is all that a program of the first lock sees of the call.
ITSELF = """python3 -c '
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].sendall(b"data")
assert client.recv(4) == b"data"
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
server.settimeout(3)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"data", server.getsockname())
assert server.recv(4) == b"data"
'"""

prepare("a", "b")
start("b")

with subtest("with both locks, calls are refused before there is a packet for the second"):
    held("b")
    before = rejected()
    held("b", calls)
    assert rejected() == before, "the first lock left packets to the second"

with subtest("both let the agent talk to itself over loopback"):
    can("b", ITSELF)
    assert rejected() == before, "the second lock does not know what the first one has judged"

with subtest("a daemon that is killed opens nothing"):
    override("opencode-egress", "[Service]\nRestart=no\n")
    machine.succeed("systemctl kill -s KILL opencode-egress")
    machine.wait_until_succeeds("systemctl is-failed opencode-egress")
    held("b", calls)
    assert rejected() == before, "the first lock is gone with the daemon"
    held("b")

with subtest("while the daemon cannot run nothing starts, and the journal says why"):
    override("opencode-egress", "[Service]\nRestart=no\nExecStart=\nExecStart=/bin/sh -c 'exit 1'\n")
    machine.fail("systemctl start opencode-a")
    machine.succeed("journalctl -u opencode-a | grep 'Dependency failed'")
    # And without the dependency, by what runs first in each unit; here it is not patient for a minute.
    attach = machine.succeed("systemctl cat opencode-a | grep ^ExecStartPre=+").strip()
    hurried = re.sub(r"--timeout \d+", "--timeout 2", attach)
    assert hurried != attach, attach
    for unit in "opencode-a-setup", "opencode-a":
        # Its journal is among the dependencies.
        override(unit, f"[Service]\nLogNamespace=\nExecStartPre=\n{hurried}\n")
        machine.fail(f"systemctl start --job-mode=ignore-dependencies {unit}")
        machine.succeed(f"systemctl stop {unit}")
        assert "control.sock" in machine.succeed(f"journalctl -o cat --no-pager -u {unit} -t opencode-egress")
        override(unit, "")
    machine.fail("pgrep -u opencode-a")
    held("b")

with subtest("with a daemon it starts"):
    override("opencode-egress", "")
    machine.succeed("systemctl reset-failed")
    start("a")
    held("b")

with subtest("a lock that is stopped or restarted leaves the servers running, and the other holds"):
    before = [main_pid("opencode-a"), main_pid("opencode-b")]
    for lock in "opencode-egress", "nftables":
        for command, state in ("stop", "inactive"), ("start", "active"), ("restart", "active"):
            machine.succeed(f"systemctl {command} {lock}")
            machine.require_unit_state(lock, state)
            assert before == [main_pid("opencode-a"), main_pid("opencode-b")], f"{command} {lock}"
            held("b")

with subtest("the second lock holds when the first is detached"):
    machine.succeed("opencode-egress detach b")
    # Where kernel and log are another machine's as well, there may be lines already.
    logged = f"$(journalctl -k | grep -c 'opencode-b-blocked: .* DST={OTHER} .* PROTO=TCP ')"
    before, lines = rejected(), int(machine.succeed(f"echo {logged}"))
    held("b")
    assert rejected() > before, "something else has refused them"
    cannot("b", ITSELF)

with subtest("what the second lock refuses is in the kernel's log"):
    machine.wait_until_succeeds(f"test {logged} -gt {lines}")

with subtest("a flood of that is counted, and does not fill the log"):
    # Nobody else's, where the log is another machine's as well.
    port, count = random.randrange(20000, 30000), 400
    before, begin = rejected(), time.monotonic()
    cannot("b", f"bash -c 'for i in $(seq {count}); do echo x > /dev/udp/{OTHER}/{port}; done 2> /dev/null'")
    took = time.monotonic() - begin
    assert rejected() >= before + count, (before, rejected())
    assert not any(f" > {OTHER}." in packet for packet in arrived())
    machine.succeed("journalctl --sync")
    written = int(machine.succeed(f"journalctl -k -o cat | grep -c 'opencode-b-blocked: .* DST={OTHER} .* DPT={port} '"))
    # A burst of 20, and 5 a second.
    assert 0 < written <= 20 + 5 * (took + 1) < count, (written, took)

with subtest("it holds a process of the same user outside the unit"):
    outside = "systemd-run -q --wait --pipe -p User={} "
    machine.succeed(outside.format("opencode-b") + tcp(ALLOWED), outside.format("root") + tcp(OTHER))
    assert reached(arrived(), OTHER, 80)
    for command in calls + datagrams:
        machine.fail(outside.format("opencode-b") + command)
    packets = arrived()
    assert not any(f" > {OTHER}." in packet or f" > {DENIED6}." in packet for packet in packets), packets

with subtest("the first lock holds when the second is gone"):
    machine.succeed("opencode-egress reload")
    can("b", ITSELF)
    machine.succeed("nft delete table inet opencode-egress")
    held("b")
    can("b", ITSELF)

with subtest("without both the probes get out"):
    machine.succeed("opencode-egress detach b")
    can("b", *calls, *datagrams)
    packets = arrived()
    assert all(reached(packets, *flow) for flow in [(OTHER, 80), (OTHER, 9001), (DENIED6, 80), (DENIED6, 9001)]), packets
