# host: network
"""A server reaches what its list has, and nothing else.
By both families, TCP and UDP, ports, and networks that are denied in an allowed one; names are resolved only by a resolver on the
list. Refusals are errors at once, are in the journal of their instance, and a flood of them does not fill it. A changed list holds from
the reload on, and the server goes on. The second host is asked whether something arrived."""

RESOLVER = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.20", 53))
while True:
    query, peer = server.recvfrom(512)
    end = query.index(0, 12) + 5
    address = query[end - 4:end - 2] == bytes([0, 1])
    answer = bytes([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 10]) if address else b""
    server.sendto(query[:2] + bytes([0x81, 0x80, 0, 1, 0, int(address), 0, 0, 0, 0]) + query[12:end] + answer, peer)
"""


def lines(name, match=""):
    return machine.succeed(f"journalctl -q -t opencode-{name}-blocked {match} --no-pager -o short").splitlines()


def logged(name, match):
    machine.wait_until_succeeds(f"journalctl -q -t opencode-{name}-blocked {match} -o cat | grep proto=")


# It ends with the second host, which has no systemd everywhere.
witness.succeed(f"(python3 -c {shlex.quote(RESOLVER)} > /dev/null 2>&1 &)")
witness.wait_until_succeeds("ss -lunH | grep -F 192.0.2.20:53")
machine.succeed("echo nameserver 192.0.2.20 > /etc/resolv.conf")
prepare("a", "b")
start("a", "b")

with subtest("what is on a list is reached, by both families, TCP and UDP"):
    arrived()
    can("a", tcp(ALLOWED), udp(ALLOWED6, 9001))
    can("b", tcp(ALLOWED), tcp(ALLOWED6), tcp(OTHER6), udp(ALLOWED, 9002), udp(ALLOWED6, 9002))
    packets = arrived()
    for flow in (ALLOWED, 80), (ALLOWED6, 80), (OTHER6, 80), (ALLOWED6, 9001), (ALLOWED, 9002), (ALLOWED6, 9002):
        assert reached(packets, *flow), (flow, packets)

with subtest("another address, port, protocol or family is not, nor what is denied in an allowed network"):
    begin = time.monotonic()
    cannot("a", tcp(OTHER), tcp(ALLOWED, 90), udp(ALLOWED, 80), tcp(ALLOWED6), udp(ALLOWED6, 9003), udp(OTHER6, 9001))
    cannot("b", tcp(OTHER), tcp(DENIED), tcp(DENIED6), udp(DENIED, 9004), udp(DENIED6, 9004))
    assert time.monotonic() - begin < 20, "refusals take their time"
    packets = arrived()
    forbidden = [(OTHER, 80), (ALLOWED, 90), (ALLOWED, 80), (ALLOWED6, 80), (ALLOWED6, 9003), (OTHER6, 9001)]
    forbidden += [(DENIED, 80), (DENIED6, 80), (DENIED, 9004), (DENIED6, 9004)]
    assert not any(reached(packets, *flow) for flow in forbidden), packets

with subtest("names are resolved where the resolver is on the list"):
    can("a", "curl -sS -m 20 http://upstream.example/")
    assert reached(arrived(), "192.0.2.20", 53)
    cannot("b", "curl -sS -m 20 http://upstream.example/")
    assert not reached(arrived(), "192.0.2.20", 53)
    # It is the name that b lacks.
    can("b", "curl -sS -m 20 --resolve upstream.example:80:192.0.2.10 http://upstream.example/")

with subtest("a refusal is in the journal, under its instance, with where it was to go and why"):
    logged("a", "EGRESS_DST=192.0.2.20 EGRESS_DPORT=80")
    logged("a", "EGRESS_DST=192.0.2.10 EGRESS_DPORT=90")
    logged("b", "EGRESS_DST=2001:db8::30 EGRESS_DPORT=80")
    (line,) = [line for line in lines("a") if "proto=tcp dst=192.0.2.20 dport=80 " in line]
    assert "opencode-a-blocked[" in line and "reason=protocol-not-allowed" in line and "comm=curl" in line, line
    machine.succeed("journalctl -q -t opencode-a-blocked OPENCODE_INSTANCE=a -o cat | grep dst=192.0.2.20")
    assert any("dport=90 " in line and "reason=port-not-allowed" in line for line in lines("a")), lines("a")
    assert any("dst=2001:db8::30 " in line and "reason=deny-rule" in line for line in lines("b")), lines("b")
    assert not any("dst=192.0.2.30" in line for line in lines("a")), lines("a")

with subtest("a flood of refusals is counted and stopped, and does not fill the journal"):
    before, begin, already = status()["b"]["counters"]["denied_packets"], time.monotonic(), len(lines("b"))
    cannot("b", f"bash -c 'for port in $(seq 10001 12000); do echo x > /dev/tcp/{DENIED}/$port; done 2> /dev/null'")
    after = status()["b"]["counters"]["denied_packets"]
    assert after >= before + 2000, (before, after)
    packets = arrived()
    assert not any(f" > {DENIED}.1" in packet for packet in packets), packets
    machine.wait_until_succeeds("journalctl -q -t opencode-b-blocked -o cat | grep limited=")
    written, took = len(lines("b")) - already, time.monotonic() - begin
    # A burst of 20, 5 a second, and a summary every 10 seconds.
    assert 0 < written <= 20 + 6 * (took + 1), (written, took)

with subtest("a changed list holds from the reload on, and the servers go on"):
    before = [main_pid("opencode-a"), main_pid("opencode-b"), main_pid("opencode-egress")]
    text = machine.succeed("cat /etc/opencode-egress/policy.json")
    policy = json.loads(text)
    policy["instances"]["b"]["deny"].append("192.0.2.10/32")
    for content, outcome in (json.dumps(policy), cannot), (text, can):
        # On NixOS the file is a link.
        machine.succeed(
            f"printf %s {shlex.quote(content)} > /run/policy.json",
            "cp --remove-destination /run/policy.json /etc/opencode-egress/policy.json",
            "systemctl reload opencode-egress",
        )
        arrived()
        outcome("b", tcp(ALLOWED))
        assert reached(arrived(), ALLOWED, 80) == (outcome == can)
    can("a", tcp(ALLOWED))
    assert before == [main_pid("opencode-a"), main_pid("opencode-b"), main_pid("opencode-egress")]
