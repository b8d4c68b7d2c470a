# host: two
"""A daemon that fails at first keeps no server from starting.
Its first start fails and its second does not: a server that asked for it meanwhile starts, confined. When none of its starts succeeds, what waits
for it is told in a limited time, and does not start. The first half takes systemd 254 or newer."""

if int(re.match(r"systemd (\d+)", machine.succeed("systemctl --version"))[1]) < 254:
    skip("systemd has RestartMode=direct since 254; before that, a unit whose daemon fails once is not tried again")

prepare("a", "b")
machine.succeed("systemctl stop 'opencode-*'")
failing = "[Unit]\nJobRunningTimeoutSec={}\n[Service]\nExecStartPre=/bin/sh -c '{}'\n"

with subtest("the daemon's first start fails, and the server starts"):
    override("opencode-egress", failing.format(60, "test -e /run/opencode-egress/tried || { touch /run/opencode-egress/tried; exit 1; }"))
    start("a")
    assert int(machine.succeed("systemctl show -P NRestarts opencode-egress")) == 1
    cannot("a", tcp(OTHER))
    can("a", tcp(ALLOWED))

with subtest("all of its starts fail, and another server does not"):
    machine.succeed("systemctl stop opencode-a opencode-egress")
    override("opencode-egress", failing.format(3, "exit 1"))
    machine.fail("systemctl start opencode-b")
    machine.require_unit_state("opencode-b", "inactive")
    assert int(machine.succeed("systemctl show -P NRestarts opencode-egress")) > 1
    machine.succeed("journalctl -b -u opencode-b | grep 'Dependency failed'")

with subtest("when they succeed again it does"):
    override("opencode-egress", "")
    start("b")
