# host: open listed listed-otherwise
"""A host gets isolation, another list, and loses isolation again.
By what NixOS does when it is switched, which in namespaces `switch_to` does after its example: units that changed are stopped and started,
daemon and nftables reloaded. So the server is restarted, confined before its first instruction, and keeps its sessions; a changed list alone
reloads both locks, and the server goes on; without isolation nothing of it is left."""

prepare("a")
start("a")
session = post("a", "/session", {})["id"]


def reaches(addresses):
    """The server reaches these upstreams and no others."""
    arrived()
    for address in ALLOWED, OTHER, DENIED:
        (can if address in addresses else cannot)("a", tcp(address))
    packets = arrived()
    found = {address for address in (ALLOWED, OTHER, DENIED) if reached(packets, address, 80)}
    assert found == set(addresses), (found, packets)


def sessions():
    return [known["id"] for known in json.loads(machine.succeed(f"curl -sf -m 20 http://{address('a')}/session"))]


with subtest("without isolation it reaches everything, and there is no daemon"):
    reaches([ALLOWED, OTHER, DENIED])
    machine.fail("systemctl cat opencode-egress")

with subtest("with isolation it is another process, confined before it ran, with the sessions from before"):
    before = main_pid("opencode-a")
    switch_to("listed")
    healthy("a")
    assert main_pid("opencode-a") != before
    reaches([ALLOWED])
    assert session in sessions()
    assert {unit["unit"]: unit["late"] for unit in status()["a"]["units"] if unit["running"]} == {"opencode-a.service": False}, status()
    machine.succeed("nft list table inet opencode-egress")

with subtest("another list holds for the server that runs, in both locks"):
    before = [main_pid("opencode-a"), main_pid("opencode-egress")]
    generation = status()["a"]["generation"]
    switch_to("listed-otherwise")
    assert before == [main_pid("opencode-a"), main_pid("opencode-egress")]
    assert status()["a"]["generation"] > generation
    reaches([OTHER])

with subtest("without isolation it reaches everything again, and nothing of the locks is left"):
    switch_to("open")
    healthy("a")
    reaches([ALLOWED, OTHER, DENIED])
    assert session in sessions()
    machine.fail("systemctl is-active opencode-egress", "nft list table inet opencode-egress", "pgrep opencode-egress")
    # Where the daemon ended before the server did, nobody took its links off the pins; their cgroup is gone, and so they judge nothing.
    for cgroup in machine.succeed("find /sys/fs/bpf/opencode-egress -mindepth 4 -maxdepth 4 -type d -printf '%f\\n'").split():
        machine.fail(f"find /sys/fs/cgroup -inum {cgroup} | grep .")
