# host: boot
"""Nothing leaves before enforcement, from the first moment of a boot.
The boot itself starts an instance whose setup and whose server, first of all and until there is a network, send datagrams and connect
to where they may not; and then send a datagram to where they may. The second host watches since before the machine had a network: from
both the latter arrives, and nothing else of the instance does. The machine itself reaches everything."""

# It boots with the first command. There is nothing else to start: the units are enabled.
machine.wait_until_succeeds("curl -sf -m 2 http://127.0.0.1:4096/global/health", timeout=120)
packets = arrived()

with subtest("both had a network, and used it"):
    assert reached(packets, ALLOWED, 9001), packets
    assert reached(packets, ALLOWED, 9002), packets

with subtest("nothing else arrived"):
    assert not any(f" > {OTHER}." in packet for packet in packets), packets

with subtest("calls were refused by the first lock"):
    for port in 9001, 9002:
        match = f"EGRESS_DST={OTHER} EGRESS_DPORT={port}"
        machine.wait_until_succeeds(f"journalctl -q -b -t opencode-boot-blocked {match} -o cat | grep reason=not-allowed")

with subtest("both locks were there before the instance's first process"):
    stamp = "systemctl show -P {} {}"
    began = int(machine.succeed(stamp.format("ExecMainStartTimestampMonotonic", "opencode-boot-setup")))
    for lock in "opencode-egress", "nftables":
        there = int(machine.succeed(stamp.format("ActiveEnterTimestampMonotonic", lock)))
        assert 0 < there < began, (lock, there, began)

with subtest("the instance's units asked for the first lock, and did not just get it soon after"):
    for unit in "opencode-boot-setup", "opencode-boot":
        machine.succeed(f"journalctl -b -u opencode-egress | grep '{unit}.service is confined, instance boot'")
    machine.fail("journalctl -b -u opencode-egress | grep 'did not ask to be confined'")

with subtest("the machine itself can send there"):
    machine.succeed(udp(OTHER, 9003))
    assert reached(arrived(), OTHER, 9003)
