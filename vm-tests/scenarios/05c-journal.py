# host: sandbox
"""A server that shouts pushes nothing out of the host's journal.
What servers and their set-up print goes to a journal namespace of each, of a limited size; what was refused to them stays in the host's, as long as before. Both are
found as docs/nixos.md says. The agent reaches neither journal's sockets."""

# The host's journal is small here, so that it would be full soon.
SMALL = "[Journal]\nSystemMaxUse=16M\nRuntimeMaxUse=16M\nSystemMaxFileSize=2M\nRuntimeMaxFileSize=2M\nRateLimitBurst=0\n"

def used(directory):
    """What the journal takes, in bytes."""
    return int(machine.succeed(f"(du -sb {directory} 2>/dev/null || true) | cut -f 1 | sort -n | tail -1") or 0)


def denials(name):
    return machine.succeed(f"journalctl -q -t opencode-{name}-blocked -o cat --no-pager").splitlines()


machine.succeed("mkdir -p /etc/systemd/journald.conf.d", f"printf %s {shlex.quote(SMALL)} > /etc/systemd/journald.conf.d/small.conf", "systemctl restart systemd-journald")
prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown")
# In the place of an agent that has taken its server over; lines that do not compress.
shouting = "ExecStartPost=/bin/sh -c 'line=$$(head -c 30000 /dev/urandom | base64 -w 0); for i in $$(seq 6000); do echo $$i x$$line; done; touch /srv/a/shouted'"
start("a", "b")

with subtest("what was refused to one stays, however much another says"):
    cannot("b", tcp(OTHER))
    machine.wait_until_succeeds("journalctl -q -t opencode-b-blocked -o cat | grep dst=")
    before = denials("b")
    override("opencode-a", f"[Service]\n{shouting}\n")
    machine.succeed("systemctl restart opencode-a")
    machine.wait_until_succeeds("ls /srv/a/shouted", timeout=120)
    machine.succeed("journalctl --sync")
    assert denials("b") == before, (before, denials("b"))

with subtest("its own journal keeps to its size, and has what was said last"):
    assert printed("a", "-u opencode-a | cut -c -20 | grep -c '^6000 x' || true").strip() == "1"
    places = "/var/log/journal/*.opencode-a /run/log/journal/*.opencode-a"
    assert 0 < used(places) <= 80 << 20, used(places)
    assert "1 x" not in printed("a", "-u opencode-a | cut -c -3").splitlines()

with subtest("the server's lines are there and not in the host's journal, which has what systemd says of it"):
    override("opencode-a", "")
    machine.succeed("systemctl restart opencode-a")
    healthy("a")
    assert "listening" in printed("a", "-u opencode-a -n 50")
    machine.succeed("journalctl -u opencode-a | grep 'Started opencode-a.service'")
    machine.fail("journalctl -u opencode-a -o cat | grep listening")
    machine.succeed("journalctl --namespace=+opencode-a -u opencode-a | grep 'Started opencode-a.service'")
    assert "listening" not in printed("b", "-u opencode-a")

with subtest("the agent reaches no socket of a journal"):
    for path in ["/run/systemd/journal/socket", "/run/systemd/journal/stdout", "/dev/log"]:
        cannot("a", f"ls {path}/", f"python3 -c 'import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(\"{path}\")'")
    found = agent("a", "find /run -type s 2>/dev/null; true").strip()
    assert not found, found

with subtest("nothing of that is left when the server has stopped"):
    machine.succeed("systemctl stop opencode-a")
    machine.wait_until_fails("systemctl is-active systemd-journald@opencode-a.service")
