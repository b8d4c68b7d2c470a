# host: inbound
"""A server is reached where it is to listen, and the agent opens nothing else.
A server on every address answers loopback; the second host only when it is opened, and then on that port alone. Any other bind
is refused with EPERM. Extra ports can be bound on loopback, and there only. Without a bind there is no way in either."""

OPENED, CLOSED, EXTRA, OTHER_PORT = 4101, 4102, 5173, 8080

LOOPBACK, BEYOND = ["127.0.0.1", "::1"], ["0.0.0.0", "192.0.2.1", "::"]


def bind(port, hosts):
    """The command that binds the port on one after the other, and prints what becomes of it."""
    bind = (
        "import socket, sys; host = sys.argv[1]; family = socket.AF_INET6 if \":\" in host else socket.AF_INET; "
        f"socket.create_server((host, {port}), family=family); print(\"bound\")"
    )
    return f"echo {' '.join(hosts)} | xargs -n 1 python3 -c '{bind}' 2>&1 | grep -e ^bound -e Error:"


def bound(said):
    """For each, whether it was bound; if not, it was refused."""
    words = [line.split(" (")[0] for line in said.splitlines()]
    assert set(words) <= {"bound", "PermissionError: [Errno 1] Operation not permitted"}, said
    return [word == "bound" for word in words]


def health(host, port):
    return f"curl -sf -m 3 http://{host}:{port}/global/health"


def answers(port):
    """What the second host has got from a port since it was last asked."""
    return [line for line in arrived() if f" 192.0.2.1.{port} > " in line]


prepare("opened", "closed")
start("opened", "closed")

with subtest("both listen on every address"):
    for port in [OPENED, CLOSED]:
        machine.succeed(f"ss -ltnH | grep -qF 0.0.0.0:{port}")
        machine.succeed(health("127.0.0.1", port))

with subtest("the second host reaches the one that is opened"):
    arrived()
    witness.succeed(health("192.0.2.1", OPENED))
    assert answers(OPENED)

with subtest("and not the other, which sends it nothing"):
    witness.fail(health("192.0.2.1", CLOSED))
    assert not answers(CLOSED)

with subtest("both locks keep it closed, and the first does so alone"):
    machine.succeed(f"nft list chain inet opencode-egress input | grep -E 'dport {CLOSED} counter packets [1-9]'")
    machine.succeed("systemctl stop nftables")
    witness.fail(health("192.0.2.1", CLOSED))
    witness.succeed(health("192.0.2.1", OPENED))

with subtest("no other port can be bound, on no address"):
    assert bound(machine.succeed(bind(OTHER_PORT, LOOPBACK + BEYOND))) == [True] * 5
    for name in ["opened", "closed"]:
        assert bound(agent(name, bind(OTHER_PORT, LOOPBACK + BEYOND))) == [False] * 5

with subtest("an extra port can be bound on loopback, by the server that has it"):
    assert bound(agent("opened", bind(EXTRA, LOOPBACK + BEYOND))) == [True, True, False, False, False]
    assert bound(agent("closed", bind(EXTRA, LOOPBACK + BEYOND))) == [False] * 5

with subtest("what listens there is reached from this host, and from the second one not"):
    agent("opened", f"python3 -m http.server --bind 127.0.0.1 {EXTRA} > /dev/null 2>&1 &")
    machine.wait_for_open_port(EXTRA, "127.0.0.1")
    machine.succeed(f"curl -sf -m 3 http://127.0.0.1:{EXTRA}/")
    witness.fail(f"curl -sf -m 3 http://192.0.2.1:{EXTRA}/")

with subtest("a listener that was never bound is out of the second host's reach"):
    listener = "import socket, time; s = socket.socket(); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(600)"
    agent("opened", f"python3 -c '{listener}' > port 2>&1 &")
    machine.wait_until_succeeds("[ -s /srv/opened/port ]")
    port = machine.succeed("cat /srv/opened/port").strip()
    machine.succeed(f"ss -ltnH | grep -qF 0.0.0.0:{port}")
    witness.fail(f"timeout 3 bash -c 'echo > /dev/tcp/192.0.2.1/{port}'")
