# host: two
"""Servers start, end and fail each for itself.
A crashed server comes back alone; a broken one does not stop the other; one that is turned off has no unit; a stop, of a server or of its
setup, leaves no links, processes, cgroup, temporary files or shared memory behind."""

# Shared memory of the user of `a` in the host's own IPC namespace.
SHARED = "awk -v user=$(id -u opencode-a) '$8 == user {found = 1} END {exit !found}' /proc/sysvipc/shm"


def stopped(unit, shows):
    """What is shown of it is there, and when it is stopped is no more. The daemon sees a moment later that links are of no use."""
    for show in shows:
        # Its processes take a moment to be its user's.
        machine.wait_until_succeeds(show)
    machine.succeed(f"systemctl stop {unit}")
    for show in shows:
        (machine.wait_until_fails if "/links/" in show else machine.fail)(show)

prepare("a", "b")
start("a", "b")

with subtest("one that is turned off has neither units nor a user, nor a policy"):
    for check in "systemctl cat opencode-{}", "systemctl cat opencode-{}-setup", "id opencode-{}":
        machine.succeed(check.format("a"))
        machine.fail(check.format("off"))
    assert set(status()) == {"a", "b"}, status()

with subtest("a server that crashes is restarted, and the other is not touched"):
    before = {name: machine.succeed(f"systemctl show -P MainPID opencode-{name}") for name in "ab"}
    machine.succeed("systemctl kill -s KILL opencode-a")
    machine.wait_until_succeeds("[ $(systemctl show -P NRestarts opencode-a) = 1 ]")
    healthy("a")
    after = {name: machine.succeed(f"systemctl show -P MainPID opencode-{name}") for name in "ab"}
    assert after["a"] != before["a"] and after["b"] == before["b"], (before, after)

with subtest("the restarted one is confined as before"):
    can("a", "curl -sS -m 5 http://192.0.2.10/")
    cannot("a", "curl -sS -m 5 http://192.0.2.20/")

with subtest("a broken server does not stop the other"):
    machine.succeed("rm -r /srv/a")
    machine.fail("systemctl restart opencode-a")
    healthy("b")
    machine.succeed("install -d -o opencode-a -g opencode-a /srv/a")
    machine.succeed("systemctl reset-failed opencode-a-setup")
    start("a")

with subtest("a stop leaves nothing behind"):
    own = ["ls /tmp/left", "ls /dev/shm/left", "[ $(wc -l < /proc/sysvipc/shm) = 2 ]"]
    can("a", "touch /tmp/left /dev/shm/left && ipcmk -M 4096", *own)
    machine.succeed("runuser -u opencode-a -- ipcmk -M 4096")
    stopped("opencode-a", [*traces("a").values(), SHARED])
    start("a")
    cannot("a", *own)
    healthy("b")

with subtest("nor does a stop of its setup"):
    machine.succeed("systemctl stop opencode-a")
    override("opencode-a-setup", "[Service]\nExecStartPost=/bin/sh -c 'exec sleep 600'\n")
    machine.succeed("systemctl start --no-block opencode-a-setup")
    machine.wait_until_succeeds("[ $(systemctl show -P SubState opencode-a-setup) = start-post ]")
    stopped("opencode-a-setup", traces("a", "-setup").values())
    override("opencode-a-setup", "")
