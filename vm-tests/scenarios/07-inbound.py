# host: inbound
"""A server is reached where it is to listen, and the agent opens nothing else.
A server on every address of one family or of both answers loopback; the second host only when it is opened, and then on that port alone. One
that is configured nowhere is on 127.0.0.1 alone. What the agent binds for itself nobody else reaches, and a port that another instance lists it
cannot bind. Extra ports are for everybody on this host.
Without a bind there is no way in either, and the first lock alone keeps all that when the nftables table is gone."""

OPENED, CLOSED, OPENED6, CLOSED6, LOCAL, EXTRA, OTHER_PORT = 4101, 4102, 4103, 4104, 4105, 5173, 8080

LOOPBACK, BEYOND = ["127.0.0.1", "::1"], ["0.0.0.0", "192.0.2.1", "::"]

# By which of its addresses the machine offers which port to the second host, and by which it keeps it from that.
MACHINE, MACHINE6 = "192.0.2.1", "2001:db8::1"
WAYS_IN = [(MACHINE, OPENED), (MACHINE, OPENED6), (MACHINE6, OPENED6)]
CLOSED_WAYS = [(MACHINE, CLOSED), (MACHINE, CLOSED6), (MACHINE6, CLOSED6)]


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
    return f"curl -sf -m 2 http://{bracketed(host)}:{port}/global/health"


def answered():
    """The addresses and ports from which the second host has got something since it was last asked."""
    found = [re.search(r" (\S+)\.(\d+) > ", line) for line in arrived()]
    return {(match[1], int(match[2])) for match in found if match}


def listeners(port):
    """The addresses on which somebody listens on the port."""
    return {line.split()[3].rpartition(":")[0] for line in machine.succeed(f"ss -ltnH 'sport = :{port}'").splitlines()}


def let_in_as_configured():
    """The second host reaches what is opened, and gets nothing from what is not."""
    arrived()
    for way in WAYS_IN:
        witness.succeed(health(*way))
    assert set(WAYS_IN) <= answered()
    for way in CLOSED_WAYS:
        witness.fail(health(*way))
    assert not answered() & set(CLOSED_WAYS)


prepare("opened", "closed", "opened6", "closed6", "local")
start("opened", "closed", "opened6", "closed6", "local")

with subtest("those on every address listen there, and answer loopback"):
    for port in OPENED, CLOSED:
        assert listeners(port) == {"0.0.0.0"}, listeners(port)
        machine.succeed(health("127.0.0.1", port))
    for port in OPENED6, CLOSED6:
        assert listeners(port) <= {"*", "[::]"}, listeners(port)
        machine.succeed(health("127.0.0.1", port), health("::1", port))

with subtest("one that is configured nowhere listens on 127.0.0.1 alone, out of the second host's reach"):
    assert listeners(LOCAL) == {"127.0.0.1"}, listeners(LOCAL)
    machine.succeed(health("127.0.0.1", LOCAL))
    for host, port in (MACHINE, OPENED6), (MACHINE6, OPENED6):
        witness.succeed(health(host, port))
        witness.fail(health(host, LOCAL))

with subtest("the second host reaches those that are opened by both families, and the others not, which send it nothing"):
    let_in_as_configured()

with subtest("both locks keep them closed, and the first does so alone"):
    # It is the table that sees them first.
    machine.succeed(f"nft list chain inet opencode-egress input | grep -E 'dport {CLOSED} counter packets [1-9]'")
    machine.succeed("systemctl stop nftables")
    machine.fail("nft list table inet opencode-egress")
    let_in_as_configured()

with subtest("another port can be bound on loopback and wildcards, for the agent itself"):
    assert bound(machine.succeed(bind(OTHER_PORT, LOOPBACK + BEYOND))) == [True] * 5
    for name in "opened", "closed", "opened6", "closed6", "local":
        assert bound(agent(name, bind(OTHER_PORT, LOOPBACK + BEYOND))) == [True, True, True, False, True]
        assert bound(agent(name, bind(80, LOOPBACK + BEYOND))) == [False] * 5
    agent("closed", f"python3 -m http.server {OTHER_PORT} > /dev/null 2>&1 &")
    machine.wait_until_succeeds(f"ss -ltnH 'sport = :{OTHER_PORT}' | grep .")
    own = f"curl -sf -m 3 http://127.0.0.1:{OTHER_PORT}/"
    can("closed", own)
    cannot("opened", own)
    machine.fail(own, f"curl -sf -m 3 http://192.0.2.1:{OTHER_PORT}/")
    witness.fail(f"curl -sf -m 3 http://192.0.2.1:{OTHER_PORT}/")

with subtest("an extra port can be bound by the server that has it, and by no other"):
    assert bound(agent("opened", bind(EXTRA, LOOPBACK + BEYOND))) == [True, True, True, False, True]
    assert bound(agent("closed", bind(EXTRA, LOOPBACK + BEYOND))) == [False] * 5

with subtest("what listens there is reached from this host"):
    agent("opened", f"python3 -m http.server --bind 127.0.0.1 {EXTRA} > /dev/null 2>&1 &")
    machine.wait_for_open_port(EXTRA, "127.0.0.1")
    machine.succeed(f"curl -sf -m 3 http://127.0.0.1:{EXTRA}/")

with subtest("a listener that was never bound is out of the second host's reach"):
    listener = (
        "import socket, sys, time; s = socket.socket(); s.listen(); "
        "print(s.getsockname()[1], file=open(sys.argv[1], \"w\"), flush=True); time.sleep(600)"
    )
    machine.succeed(f"systemd-run -q python3 -c '{listener}' /run/port")
    agent("opened", f"python3 -c '{listener}' port > /dev/null 2>&1 &")
    ports = [machine.wait_until_succeeds(f"grep . {file}").strip() for file in ("/run/port", "/srv/opened/port")]
    for port in ports:
        assert listeners(port) == {"0.0.0.0"}, listeners(port)
    probe_port = "timeout 3 bash -c 'echo > /dev/tcp/192.0.2.1/{}'"
    # The probe reaches what is open, and such a listener where no policy is.
    witness.succeed(probe_port.format(OPENED), probe_port.format(ports[0]))
    witness.fail(probe_port.format(ports[1]))
