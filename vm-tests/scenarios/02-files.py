# host: sandbox
"""A server sees its own files and those that it was given, and changes no others.
Files that everybody may read lie all over the host; of these the agent finds what its configuration lists. It can write to its directory, its state,
its own temporary directories and `readWritePaths`, also where its user could write to more. The host's sockets are out of its reach."""

STATE = "/var/lib/opencode/instance-state"
SEEN = ["/srv/a", f"{STATE}/a", "/srv/reference/shown", "/srv/exchange/shown"]
HIDDEN = [
    *["/etc", "/home/somebody", "/root", "/var/log", "/run", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"],
    *["/srv/b", f"{STATE}/b", "/srv/reference", "/srv/reference/hidden", "/srv/exchange", "/srv/exchange/hidden"],
]
# What docs/nixos.md says that there is of /etc, and where the declared files are.
ETC = "passwd group nsswitch.conf hosts host.conf resolv.conf localtime zoneinfo protocols services ssl opencode-egress opencode-instances opencode-instructions"


def outside(command):
    """Runs a command as the server's user, but outside its unit: what fails inside is not for want of permissions."""
    return machine.succeed(f"runuser -u opencode-a -- sh -c {shlex.quote(command)}")


def lines(text):
    return sorted(text.split())


prepare("a", "b")
for place in SEEN + HIDDEN:
    # Nothing can be written to a message queue.
    write = f"echo {place} >" if place != "/dev/mqueue" else "touch"
    machine.succeed(f"mkdir -p {place} && chmod a+rx {place} && {write} {place}/planted && chmod a+r {place}/planted")
machine.succeed("chown opencode-a /srv/reference/shown /srv/reference/shown/planted /srv/exchange /srv/exchange/shown")
start("a", "b")

with subtest("what is not listed is not there"):
    read = "; ".join(f"cat {place}/planted 2>/dev/null" for place in SEEN + HIDDEN) + "; true"
    assert set(SEEN + HIDDEN) - set(lines(outside(read))) == {"/dev/mqueue"}, outside(read)
    outside("ls /dev/mqueue/planted")
    assert lines(agent("a", read)) == sorted(SEEN), agent("a", read)
    found = agent("a", "find / \\( -path /proc -o -path /nix/store \\) -prune -o -name planted -print 2>/dev/null")
    assert lines(found) == sorted(f"{place}/planted" for place in SEEN), found

with subtest("nor are the directories around it"):
    show = "ls -d /home /root /var/log /srv/b 2>/dev/null; true"
    assert len(lines(outside(show))) == 4
    assert lines(agent("a", show)) == [], agent("a", show)
    assert lines(agent("a", f"ls {STATE} /srv/exchange")) == lines(f"{STATE}: a /srv/exchange: shown")

with subtest("of /etc there are a few files"):
    there = set(lines(agent("a", "ls -A /etc")))
    assert "passwd" in there and there <= set(ETC.split()), there
    # The program, and no policies.
    assert lines(agent("a", "ls -A /etc/opencode-egress /etc/opencode-egress/bin")) == lines("/etc/opencode-egress: bin /etc/opencode-egress/bin: opencode-egress")

with subtest("it writes to what is its own"):
    own = ["/srv/a", f"{STATE}/a", "/srv/exchange/shown", "/tmp", "/var/tmp", "/dev/shm"]
    can("a", "; ".join(["set -e"] + [f"echo x > {place}/written" for place in own]))
    for place in ("/srv/a", f"{STATE}/a", "/srv/exchange/shown"):
        machine.succeed(f"grep -q x {place}/written")
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        machine.fail(f"ls {place}/written")
    # What the kernel would let it write to, wherever that is; a queue is in its own IPC namespace.
    writable = agent("a", "find / \\( -path /proc -o -path /nix/store \\) -prune -o -type d -writable -print -prune -o -type f -writable -print 2>/dev/null")
    assert lines(writable) == sorted(own + ["/dev/mqueue"]), writable

with subtest("and to nothing else, where its user could as well"):
    for command in ("touch /srv/reference/shown/written", "echo x >> /srv/reference/shown/planted", "touch /srv/exchange/written"):
        outside(command)
        cannot("a", command)
    can("a", "cat /srv/reference/shown/planted")

with subtest("the store is there to read"):
    can("a", "cat /nix/store/*opencode*/bin/opencode > /dev/null")
    cannot("a", "touch /nix/store/written")
    read_only = "import os, sys; sys.exit(not os.statvfs(sys.argv[1]).f_flag & os.ST_RDONLY)"
    can("a", f"python3 -c '{read_only}' /nix/store")
    cannot("a", f"python3 -c '{read_only}' /srv/a")

with subtest("no socket of the host's is there"):
    listen = "import os, socket, time; os.umask(0); s = socket.socket(socket.AF_UNIX); s.bind('/run/planted.sock'); s.listen(); time.sleep(600)"
    machine.succeed(f'systemd-run --unit host-socket $(command -v python3) -c "{listen}"')
    connect = "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('/run/planted.sock')\""
    machine.wait_until_succeeds(f"runuser -u opencode-a -- {connect}")
    cannot("a", connect)
    # The search finds one that it makes itself, and no other.
    own = "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('/tmp/own.sock')\""
    found = agent("a", f"{own}; find / \\( -path /proc -o -path /nix/store \\) -prune -o -type s -print 2>/dev/null")
    assert lines(found) == ["/tmp/own.sock"], found
