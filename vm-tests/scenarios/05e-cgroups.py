# host: sandbox
"""A server sees its own cgroup and no other unit's.
Neither names of units nor their processes are in `/sys/fs/cgroup`, while its own limits are. What systemd cannot hide is in docs/nixos.md's table: the sockets in `/proc/net`, which the
test holds against it."""

prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown")
start("a", "b")

with subtest("the sockets of the host are to be seen, as docs/nixos.md says"):
    port = f"{4102:04X}"
    machine.succeed(f"grep -q ':{port} ' /proc/net/tcp")
    can("a", f"grep -q ':{port} ' /proc/net/tcp")

version = int(re.match(r"systemd (\d+)", machine.succeed("systemctl --version"))[1])
if version < 257:
    not_shown("other units' cgroups: systemd hides them since 257")
else:
    with subtest("other units are not there"):
        machine.succeed("find /sys/fs/cgroup -name 'opencode-b.service' | grep .")
        found = agent("a", "find /sys/fs/cgroup -name '*.service' -o -name '*.slice' -o -name '*.scope'").split()
        assert not found, found
        assert main_pid("opencode-a") in agent("a", "cat /sys/fs/cgroup/cgroup.procs").split()
        says("a", "cat /proc/self/cgroup", "0::/\n")

    with subtest("and its own cannot be changed"):
        cannot("a", "echo $$ > /sys/fs/cgroup/cgroup.procs", "mkdir /sys/fs/cgroup/x")
