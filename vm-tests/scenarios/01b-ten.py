# host: ten
"""Ten servers from one list run beside each other.
All answer, each as a user of its own; one that crashes comes back and one that cannot start fails, while the others stay as they are; a
stop of them all leaves no process, cgroup, link or temporary file behind, and the policies stay in force for the next start."""

names = "atlas beacon cedar delta ember fjord grove harbor iris juniper".split()
units = " ".join(f"opencode-{name}" for name in names)


def pids(which):
    return {name: main_pid(f"opencode-{name}") for name in which}


prepare(*names)
machine.succeed("install -d -m 700 /run/secrets", "touch /run/secrets/opencode")
# Ten take their time on a small machine.
start(*names, timeout=300)

with subtest("all run, each as its own user, confined by its own policy"):
    users = machine.succeed("ps -o user:40= -p " + ",".join(pids(names).values())).split()
    assert sorted(users) == sorted(f"opencode-{name}" for name in names), users
    assert set(status()) == set(names)
    for name in names:
        machine.succeed(*traces(name).values())

with subtest("one that crashes comes back, and no other is restarted"):
    before = pids(names)
    machine.succeed("systemctl kill -s KILL opencode-cedar")
    machine.wait_until_succeeds("[ $(systemctl show -P NRestarts opencode-cedar) = 1 ]")
    healthy("cedar")
    after = pids(names)
    assert {name for name in names if before[name] != after[name]} == {"cedar"}, (before, after)

with subtest("one that cannot start fails, and the others go on"):
    machine.succeed("systemctl stop opencode-delta", "mv /srv/delta /srv/elsewhere")
    machine.fail("systemctl start opencode-delta")
    machine.require_unit_state("opencode-delta-paths", "failed")
    others = [name for name in names if name != "delta"]
    for name in others:
        healthy(name)
    assert pids(others) == {name: after[name] for name in others}
    machine.succeed("mv /srv/elsewhere /srv/delta", "systemctl reset-failed opencode-delta-paths")
    start("delta")

with subtest("stopped, they leave nothing behind"):
    machine.succeed(f"systemctl stop {units}")
    for name in names:
        machine.wait_until_fails(traces(name)["links"])
        machine.fail(*traces(name).values())
    machine.fail("ls /sys/fs/bpf/opencode-egress/v1/links | grep opencode-")
    assert set(status()) == set(names)
    machine.require_unit_state("opencode-egress")
