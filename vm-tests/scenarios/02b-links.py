# host: paths
"""No link that an agent, or anybody but root, has put on the way has another directory of the host mounted into a server.
Before each start every path that is to be mounted is followed: the server does not start where a link on the way is not root's, or where the way leads through what
an agent may change, its own or another instance's; nor where something is missing. The journal says which path it is, and why. A link of root's is followed."""

REFERENCE = "/srv/reference"
JOURNAL = "/run/systemd/journal"


def refused(*words):
    """The server does not start, and the journal says why."""
    machine.execute("systemctl reset-failed 'opencode-*'")
    status, _ = machine.execute("systemctl start opencode-a")
    if status == 0:
        healthy("a")
        raise Exception(f"it starts, and the agent sees {agent('a', f'ls -A {REFERENCE}/ref')}")
    machine.succeed("journalctl --sync")
    said = machine.succeed("journalctl -u opencode-a-paths -o cat -n 12")
    for word in words:
        assert word in said, said
    machine.fail("pgrep -u opencode-a")


def laid(*commands):
    """The reference as it should be, and then changed."""
    machine.succeed("systemctl stop opencode-a", f"rm -rf {REFERENCE} /srv/elsewhere; mkdir -p {REFERENCE}/ref /srv/elsewhere/ref")
    machine.succeed(f"echo reference > {REFERENCE}/ref/which; echo elsewhere > /srv/elsewhere/ref/which; chmod -R a+rX {REFERENCE} /srv/elsewhere")
    machine.succeed(*commands)


serve = "import socket, time; socket.socket(socket.AF_UNIX).bind('/run/queue/in'); time.sleep(9999)"
machine.succeed("mkdir -p /run/queue", f"systemd-run -q --unit queue python3 -c {shlex.quote(serve)}")
machine.wait_until_succeeds("[ -S /run/queue/in ]")
prepare("a", "b")

with subtest("with nothing on the way it starts"):
    laid()
    start("a", "b")
    says("a", f"cat {REFERENCE}/ref/which", "reference")

with subtest("a link of root's is followed"):
    laid(f"rm -r {REFERENCE}; ln -s /srv/elsewhere {REFERENCE}")
    start("a")
    says("a", f"cat {REFERENCE}/ref/which", "elsewhere")

with subtest("somebody else's is not, at the end of the path or on the way"):
    laid(f"rm -r {REFERENCE}/ref; chown daemon {REFERENCE}; runuser -u daemon -- ln -s {JOURNAL} {REFERENCE}/ref")
    refused("sandbox.readOnlyPaths", f"{REFERENCE}/ref", "link", "daemon", "root")
    laid("install -d -o daemon /srv/daemon; runuser -u daemon -- ln -sfn /run/systemd /srv/daemon/way", f"rm -r {REFERENCE}; ln -s /srv/daemon/way {REFERENCE}")
    refused("sandbox.readOnlyPaths", f"{REFERENCE}/ref", "/srv/daemon/way", "daemon")

with subtest("nor is a way through what the agent may change, though all links are root's"):
    laid("install -d -o opencode-a /srv/a/vendor /srv/a/vendor/ref", f"rm -r {REFERENCE}; ln -s /srv/a/vendor {REFERENCE}")
    refused(f"{REFERENCE}/ref", "/srv/a/vendor", "instances.a.directory", "may change")

with subtest("or another agent"):
    laid("install -d -o opencode-b /srv/b/vendor", f"rm -r {REFERENCE}/ref; ln -s /srv/b/vendor {REFERENCE}/ref")
    refused(f"{REFERENCE}/ref", "/srv/b/vendor", "instances.b.directory", "may change")
    healthy("b")

with subtest("an agent that changes the way and ends its server has nothing mounted there"):
    laid()
    start("a")
    machine.succeed(f"chown opencode-a {REFERENCE}")
    machine.succeed(f"runuser -u opencode-a -- sh -c 'mv {REFERENCE}/ref {REFERENCE}/old && ln -s {JOURNAL} {REFERENCE}/ref'")
    machine.succeed("systemctl kill -s KILL opencode-a")
    machine.wait_until_succeeds("[ $(systemctl show -P Result opencode-a-paths) = exit-code ]")
    machine.wait_until_succeeds("[ $(systemctl show -P ActiveState opencode-a) != active ]")
    refused(f"{REFERENCE}/ref", "opencode-a")

with subtest("what is missing is named, with what it is for"):
    laid(f"rm -r {REFERENCE}/ref")
    refused("sandbox.readOnlyPaths", f"{REFERENCE}/ref", "does not exist")
    laid("mv /run/queue /run/queue-gone")
    refused("sandbox.unixSockets.allow", "/run/queue/in", "does not exist")
    machine.succeed("mv /run/queue-gone /run/queue; mv /srv/a /srv/a-gone")
    refused("instances.a.directory", "/srv/a", "does not exist")
    machine.succeed("touch /srv/a")
    refused("instances.a.directory", "/srv/a", "is no directory")
    machine.succeed("rm /srv/a; mv /srv/a-gone /srv/a")

with subtest("with everything in its place it starts again"):
    laid()
    machine.succeed("systemctl reset-failed 'opencode-*'")
    start("a")
    can("a", "touch /srv/a/written")
