# host: two
"""Servers start, end and fail each for itself.
A crashed server comes back alone; a broken one does not stop the other; one that is turned off has no unit; a stop leaves no links, no
processes and no cgroup behind."""

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
    machine.succeed("systemctl stop opencode-a")
    machine.fail("pgrep -u opencode-a")
    machine.wait_until_fails("ls /sys/fs/bpf/opencode-egress/v1/links | grep -q opencode-a,service")
    machine.fail("ls -d /sys/fs/cgroup/system.slice/opencode-a.service")
    healthy("b")
