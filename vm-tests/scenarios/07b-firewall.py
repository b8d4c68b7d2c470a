# host: firewall
"""The host's firewall and the second lock are in one ruleset, and neither changes what the other says.
nixpkgs' own firewall is on, on nftables, beside isolated servers (`besideFirewall`). What is opened is open in both, by one rule of the firewall; what is
closed, and what the agent may not reach, is as it is without the firewall. The firewall goes on to keep the host's other ports, which the second
lock does not look at; either table alone does its own part."""

OPENED, CLOSED, LET_IN, KEPT_OUT = 4101, 4102, 8022, 8023
MACHINE = ["192.0.2.1", "2001:db8::1"]


def get(host, port):
    return f"curl -sf -m 2 -o /dev/null http://{bracketed(host)}:{port}/"


# What the agent tries, and whether its list has it.
OUTBOUND = [
    (tcp(ALLOWED), True),
    (tcp(OTHER), False),
    (tcp(ALLOWED, 81), False),
    (tcp(ALLOWED6), False),
    (udp(ALLOWED6, 9001), True),
    (udp(OTHER6, 9001), False),
]


def outbound():
    """Of each instance, which of the agent's attempts succeed."""
    commands = [command for command, _ in OUTBOUND]
    return [[status == 0 for _, status in probe(name, commands)] for name in ("opened", "closed")]


def inbound():
    """Port -> by which of the machine's addresses the second host gets an answer from it."""
    ports = OPENED, CLOSED, LET_IN, KEPT_OUT
    return {port: [witness.execute(get(host, port))[0] == 0 for host in MACHINE] for port in ports}


prepare("opened", "closed")
machine.succeed("systemctl restart nftables")
serve = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, http.server.ThreadingHTTPServer, port={}, bind='::')"
for port in LET_IN, KEPT_OUT:
    machine.succeed(f"systemd-run -q --unit host-{port} $(command -v python3) -c {shlex.quote(serve.format(port))}")
    machine.wait_for_open_port(port)
start("opened", "closed")

with subtest("both tables are there, and the port is opened in the host's once"):
    tables = machine.succeed("nft list tables").split()
    assert "nixos-fw" in tables and "opencode-egress" in tables, tables
    rules = machine.succeed("nft list table inet nixos-fw").splitlines()
    [rule] = [line for line in rules if str(OPENED) in line]
    assert rule.strip() == f"tcp dport {{ {OPENED}, {LET_IN} }} accept", rule
    assert not any(str(CLOSED) in line for line in rules), rules
    drops = machine.succeed("nft list chain inet opencode-egress input")
    assert f"dport {CLOSED} " in drops and f"dport {OPENED} " not in drops, drops

with subtest("what is opened is reached by both families, and what is closed is not; the host's own ports are as the firewall says"):
    before = inbound()
    assert before == {OPENED: [True, True], CLOSED: [False, False], LET_IN: [True, True], KEPT_OUT: [False, False]}, before

with subtest("the agents reach what their list has, and nothing else"):
    assert outbound() == [[allowed for _, allowed in OUTBOUND]] * 2, outbound()

with subtest("a server's own connections, and this host's to it, pass both"):
    healthy("closed")
    can("opened", get("127.0.0.1", OPENED) + " || [ $? = 22 ]")

with subtest("without the firewall the verdicts on servers and agents are the same, and the host's ports are open"):
    machine.succeed("nft delete table inet nixos-fw")
    after = inbound()
    assert after == {**before, KEPT_OUT: [True, True]}, after
    assert outbound() == [[allowed for _, allowed in OUTBOUND]] * 2, outbound()

with subtest("a reload puts it back, and leaves the second lock as it was"):
    machine.succeed("systemctl reload nftables")
    assert inbound() == before, inbound()
    machine.succeed("systemctl restart opencode-opened")
    healthy("opened")

with subtest("without the second lock the firewall and the first say the same"):
    machine.succeed("nft delete table inet opencode-egress")
    assert inbound() == before, inbound()
    assert outbound() == [[allowed for _, allowed in OUTBOUND]] * 2, outbound()
