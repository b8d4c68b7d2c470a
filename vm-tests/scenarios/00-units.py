# host: ten
"""What the module makes is what systemd, nftables and the daemon take.
systemd finds nothing wrong in any unit and rates servers and their set-up at most 2.0, the daemon at most 2.5; nft takes the second lock; the daemon takes the policy."""

prepare()

names = machine.succeed("cd /etc/systemd/system && ls opencode-*.service").split()
servers = [name for name in names if name != "opencode-egress.service"]
assert len(servers) == 20, names

with subtest("systemd finds nothing wrong"):
    said = machine.succeed(f"systemd-analyze verify {' '.join(names)} 2>&1")
    assert "opencode" not in said, said
    # It would say so.
    machine.succeed("mkdir /tmp/wrong", "printf '[Service]\\nExecStart=/nowhere\\n' > /tmp/wrong/opencode-wrong.service")
    assert "opencode-wrong" in machine.execute("systemd-analyze verify /tmp/wrong/opencode-wrong.service 2>&1")[1]

with subtest("systemd rates them well"):
    for name in servers:
        machine.succeed(f"systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/{name}")
    daemon = "/etc/systemd/system/opencode-egress.service"
    machine.succeed(f"systemd-analyze security --offline=true --threshold=25 {daemon}")
    machine.fail(f"systemd-analyze security --offline=true --threshold=10 {daemon}")

with subtest("nftables takes the second lock"):
    # Where its file is, only the unit knows.
    machine.succeed("systemctl start nftables", "nft list table inet opencode-egress", "nft list ruleset | nft -c -f -")
    machine.fail("echo 'table inet x { chain y { nonsense } }' | nft -c -f -")

with subtest("the daemon takes the policy"):
    assert "good; 10 instances" in machine.succeed("opencode-egress check /etc/opencode-egress/policy.json")
