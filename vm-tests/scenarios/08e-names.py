# host: names
"""A server reaches the names on its list, whatever resolver it asks, and nobody is asked for another.
By both families, exact names and names below one; each server its own. A name that is not listed fails at once, as one that does not exist. Resolvers
with a fixed address, over UDP and TCP, v4 and v6, are asked nothing; the one that this host asks writes down every question. Answers bring
nothing that is denied, and nothing of this machine's. A resolver that is killed comes back; without the daemon what is known goes on. Each of
the two locks refuses flows to names where the other is missing."""

# On every address of the second host, by UDP and TCP; what was asked, where and how, it says on port 8053.
RESOLVER = """
import http.server, json, socket, struct, threading

ADDRESSES = {
    "other.example.org": ["192.0.2.20", "2001:db8::20"],
    "denied.example.net": ["192.0.2.30", "2001:db8::30"],
    "rebound.example.net": ["127.0.0.1", "::1"],
    "own.example.net": ["192.0.2.1", "2001:db8::1"],
}
asked = []


def answer(query, where):
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1:at + 1 + length].decode())
        at += 1 + length
    name, kind, question = ".".join(labels), query[at + 2], query[12:at + 5]
    asked.append([name, kind, where])
    family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
    found = ADDRESSES.get(name.lower(), ["192.0.2.10", "2001:db8::10"])
    found = [socket.inet_pton(family, address) for address in found if family and (":" in address) == (kind == 28)]
    records = b"".join(struct.pack(">HHHIH", 0xc00c, kind, 1, 60, len(address)) + address for address in found)
    return query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0) + question + records


def datagrams(server, where):
    while True:
        query, peer = server.recvfrom(4096)
        server.sendto(answer(query, where), peer)


def streams(server, where):
    while True:
        stream = server.accept()[0]
        query = stream.makefile("rb")
        while size := query.read(2):
            reply = answer(query.read(int.from_bytes(size, "big")), where)
            stream.sendall(len(reply).to_bytes(2, "big") + reply)
        stream.close()


for address in "192.0.2.10", "192.0.2.20", "2001:db8::10", "2001:db8::20":
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind, serve in (socket.SOCK_DGRAM, datagrams), (socket.SOCK_STREAM, streams):
        server = socket.socket(family, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, 53))
        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=serve, args=(server, f"{serve.__name__} at {address}")).start()


class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(asked).encode())


http.server.HTTPServer(("192.0.2.20", 8053), Asked).serve_forever()
"""

# Asks a server for the address of a name, past the libraries: what it is answered, and by whom.
QUESTION = """
import socket, struct, sys
how, server, name = sys.argv[1:]
query = struct.pack(">HHHHHH", 4242, 0x100, 1, 0, 0, 0)
query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\\0\\0\\1\\0\\1"
kind = socket.SOCK_STREAM if how == "tcp" else socket.SOCK_DGRAM
asking = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
asking.settimeout(5)
if how == "unconnected":
    asking.sendto(query, (server, 53))
    reply, peer = asking.recvfrom(4096)
elif how == "connected":
    asking.connect((server, 53))
    asking.send(query)
    reply, peer = asking.recv(4096), asking.getpeername()
else:
    asking.connect((server, 53))
    asking.sendall(len(query).to_bytes(2, "big") + query)
    answer = asking.makefile("rb")
    reply, peer = answer.read(int.from_bytes(answer.read(2), "big")), asking.getpeername()
print("rcode", reply[3] & 15, "answers", int.from_bytes(reply[6:8], "big"), "from", peer[0])
"""

LISTED = "curl -sS -m 10 http://listed.example.org/"
# Without a question.
KNOWN = f"curl -sS -m 5 --resolve listed.example.org:80:{ALLOWED} http://listed.example.org/"
# Where nobody is.
NOWHERE = "192.0.2.99"


def questions():
    """What the second host's resolver was asked, ever: names, types, and where."""
    return json.loads(witness.succeed("curl -sS -m 5 http://192.0.2.20:8053/"))


def question(how, server, name):
    """A command that asks a server by a socket of its own."""
    return f"python3 -c {shlex.quote(QUESTION)} {how} {server} {name}"


def unknown(name, *urls):
    """To the agent the hosts of URLs do not exist, and it finds out at once."""
    commands = [f"curl -sS -m 10 -o /dev/null -w '%{{time_total}}' {url}" for url in urls]
    for url, (said, status) in zip(urls, probe(name, commands)):
        assert status == 6 and "Could not resolve host" in said, (url, said, status)
        assert float(said.split()[-1]) < 1, f"{url} takes its time: {said}"


def rejected(name):
    """How many packets of an instance the second lock has refused."""
    return int(re.search(r"counter packets (\d+)", machine.succeed(f"nft list chain inet opencode-egress refuse-{name}"))[1])


# It ends with the second host, which has no systemd everywhere.
witness.succeed(f"(python3 -c {shlex.quote(RESOLVER)} > /dev/null 2>&1 &)")
witness.wait_until_succeeds("curl -sS -m 5 http://192.0.2.20:8053/")
machine.succeed(f"printf 'nameserver {NOWHERE}\\nsearch corp.example\\noptions ndots:3\\n' > /etc/resolv.conf")
prepare("a", "b")
start("a", "b")
machine.wait_for_unit("opencode-egress-resolver")

with subtest("listed names are reached, by both families and at any depth, though resolv.conf leads nowhere"):
    arrived()
    can("a", f"{LISTED} -4", f"{LISTED} -6", "curl -sS -m 10 http://a.b.example.net/", udp("a.example.net", 9001))
    packets = arrived()
    for flow in (ALLOWED, 80), (ALLOWED6, 80):
        assert reached(packets, *flow), (flow, packets)
    assert reached(packets, ALLOWED, 9001) or reached(packets, ALLOWED6, 9001), packets
    assert not any(f" > {NOWHERE}." in packet for packet in packets), packets

with subtest("a name without a port is TCP 443"):
    probe("a", ["curl -sS -m 5 -4 https://secure.example.org/"])
    assert reached(arrived(), ALLOWED, 443)
    cannot("a", "curl -sS -m 5 http://secure.example.org:81/")
    assert not reached(arrived(), ALLOWED, 81)

with subtest("others do not exist, and that is known at once"):
    others = "evil.example", "example.net", "other.example.org", "xlisted.example.org", "listed.example.org.evil.example"
    unknown("a", *(f"http://{name}/" for name in others))
    for name in others:
        machine.wait_until_succeeds(f"journalctl -q -t opencode-a-blocked -o cat | grep -F 'query={name} ' | grep reason=name-not-allowed")

with subtest("each server has names of its own"):
    can("b", "curl -sS -m 10 http://other.example.org/")
    unknown("b", "http://listed.example.org/", "http://a.b.example.net/")
    # a has learned the one, and b the other.
    cannot("b", KNOWN)
    cannot("a", tcp(OTHER))

with subtest("resolvers with a fixed address are asked nothing, and whoever asks one is answered by it"):
    arrived()
    servers = [
        (how, server)
        for server in (ALLOWED, OTHER, NOWHERE, "203.0.113.53", ALLOWED6, OTHER6)
        for how in ("connected", "unconnected", "tcp")
    ]
    for name, said in ("listed.example.org", "rcode 0 answers 1"), ("evil.example", "rcode 3 answers 0"):
        answers = probe("a", [question(how, server, name) for how, server in servers])
        for (how, server), (printed_, status) in zip(servers, answers):
            assert status == 0 and f"{said} from {server}" in printed_, (name, how, server, printed_)
    packets = arrived()
    for server in ALLOWED, ALLOWED6, OTHER6, NOWHERE, "203.0.113.53":
        assert not reached(packets, server, 53), (server, packets)

with subtest("answers bring nothing that is denied, and nothing of this machine's"):
    arrived()
    cannot("a", "curl -sS -m 5 http://denied.example.net/")
    packets = arrived()
    assert not reached(packets, DENIED, 80) and not reached(packets, DENIED6, 80), packets
    unknown("a", "http://rebound.example.net/", "http://own.example.net/")

with subtest("a resolver that is killed comes back"):
    for _ in range(3):
        machine.succeed("systemctl kill -s KILL opencode-egress-resolver")
        can("a", LISTED)

with subtest("without the daemon what is known goes on, and what is not fails at once"):
    override("opencode-egress", "[Service]\nRestart=no\n")
    machine.succeed("systemctl kill -s KILL opencode-egress")
    machine.wait_until_succeeds("systemctl is-failed opencode-egress")
    can("a", KNOWN)
    unknown("a", "http://new.example.net/", "http://evil.example/")
    override("opencode-egress", "")
    machine.succeed("systemctl reset-failed opencode-egress", "systemctl start opencode-egress")
    can("a", KNOWN, "curl -sS -m 10 http://new.example.net/")

with subtest("the second lock refuses what the first has not let pass"):
    machine.succeed("opencode-egress detach a")
    arrived()
    before = rejected("a")
    cannot("a", KNOWN, LISTED, question("connected", OTHER, "listed.example.org"))
    assert rejected("a") > before, "something else has refused them"
    packets = arrived()
    assert not any(reached(packets, address, port) for address in (ALLOWED, OTHER) for port in (53, 80)), packets
    machine.succeed("opencode-egress reload")
    can("a", LISTED, KNOWN)

with subtest("the first lock holds when the second is gone"):
    machine.succeed("nft delete table inet opencode-egress")
    can("a", LISTED)
    cannot("a", tcp(OTHER))
    unknown("a", "http://evil.example/")

with subtest("of all that was asked nothing was off the lists, and only where this host asks"):
    asked = questions()
    assert {where for _, _, where in asked} <= {f"datagrams at {OTHER}", f"streams at {OTHER}"}, asked
    exact = {"listed.example.org", "secure.example.org", "other.example.org"}
    off = [name for name, _, _ in asked if name not in exact and not name.endswith(".example.net")]
    assert not off, off
    assert {kind for _, kind, _ in asked} <= {1, 28}, asked
