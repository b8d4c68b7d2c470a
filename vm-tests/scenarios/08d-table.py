# host: listed listed-otherwise
"""A server starts with the second lock of its own configuration, or not at all.
A switch to another list whose nftables table cannot be loaded goes on, as NixOS' does, and `nftables.service` stays active, with the table from before.
The server that runs goes on, under the new list by the first lock; one that is started then is not, and the journal says why and what to do. The same where
somebody has removed the table."""

SAYS = "The nftables table inet opencode-egress in the kernel is not the one of this configuration"


def refused():
    """The server does not start, and the set-up's journal says why, and what to do."""
    machine.execute("systemctl reset-failed opencode-a opencode-a-setup")
    machine.fail("systemctl start opencode-a")
    machine.require_unit_state("opencode-a-setup", "failed")
    machine.require_unit_state("opencode-a", "inactive")
    said = printed("a", "-u opencode-a-setup -n 12")
    assert SAYS in said and "systemctl reload-or-restart nftables" in said, said
    machine.fail("pgrep -u opencode-a")


def starts():
    machine.execute("systemctl reset-failed opencode-a opencode-a-setup")
    start("a")


prepare("a")
machine.succeed("systemctl restart nftables")
start("a")

with subtest("a switch whose table is not loaded goes on, and so does the server that runs"):
    before = machine.succeed("nft list table inet opencode-egress")
    override("nftables", "[Service]\nExecReload=\nExecReload=false\n")
    pid = main_pid("opencode-a")
    switch_to("listed-otherwise", whole=False)
    machine.require_unit_state("nftables")
    assert machine.succeed("nft list table inet opencode-egress") == before
    assert main_pid("opencode-a") == pid

with subtest("one that is started then is not"):
    machine.succeed("systemctl stop opencode-a")
    refused()

with subtest("until the table is loaded, as the journal says"):
    override("nftables", "")
    machine.succeed("systemctl reload-or-restart nftables")
    starts()
    can("a", tcp(OTHER))
    cannot("a", tcp(ALLOWED))

with subtest("nor does one start without the table"):
    machine.succeed("systemctl stop opencode-a", "nft delete table inet opencode-egress")
    refused()
    machine.succeed("nft add table inet opencode-egress")
    refused()
    machine.succeed("systemctl reload-or-restart nftables")
    starts()
