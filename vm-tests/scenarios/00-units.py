# host: ten
"""What the module makes is what systemd, nftables and the daemon take.
Of every host: systemd finds nothing wrong in any unit and rates servers and their set-up at most 2.0, the daemon at most 2.5, the resolver at most 1.5; nft takes the second lock as it
will be, and as the build checks it, where no instance's user exists; the daemon takes the policy. Of hosts other than this one only where their files are at hand."""

import shutil
from pathlib import Path

prepare()

names = machine.succeed("cd /etc/systemd/system && ls opencode-*.service").split()
assert len(names) == 42, names

# An older systemd does without these, and says so.
version = int(re.match(r"systemd (\d+)", machine.succeed("systemctl --version"))[1])
newer = {
    254: r".*/opencode-.*\.service:\d+: Unknown key '(RestartMode|MemoryPressureWatch)' in section \[Service\], ignoring\.",
    257: r".*/opencode-.*\.service:\d+: Failed to parse boolean value, ignoring: strict",
}
expected = "|".join(line for since, line in newer.items() if version < since)


def complaints(units):
    """What systemd says of units, a line each."""
    said = machine.execute(f"systemd-analyze verify --man=no {units} 2>&1")[1].splitlines()
    return [line for line in said if "opencode" in line and not re.fullmatch(expected, line)]


def accepted(directory):
    """systemd finds nothing wrong in units, and rates them well."""
    found = machine.succeed(f"ls {directory}/opencode-*.service").split()
    assert not complaints(" ".join(found)), complaints(" ".join(found))
    for unit in found:
        threshold = {"opencode-egress": 25, "opencode-egress-resolver": 15}.get(Path(unit).stem, 20)
        machine.succeed(f"systemd-analyze security --offline=true --threshold={threshold} {unit}")
    return len(found)


def locked(rules, script):
    """nft takes the rules as the build checks them: a copy without what is deleted first, with what `script` makes of that, and no user of an instance."""
    machine.succeed(
        "rm -rf /run/check; mkdir /run/check; grep -v ^opencode- /etc/passwd > /run/check/passwd",
        f"grep -v '^include' {rules} > /run/check/ruleset.conf",
    )
    check = "unshare --mount sh -c 'mount --bind /run/check/passwd /etc/passwd; cd /run/check; nft -c -f ruleset.conf'"
    machine.fail(check)
    machine.succeed(f"cd /run/check; sh {script}", check)


with subtest("systemd finds nothing wrong, and rates them well"):
    accepted("/etc/systemd/system")
    # It would say so.
    machine.succeed("mkdir /tmp/wrong", "printf '[Service]\\nExecStart=/nowhere\\n' > /tmp/wrong/opencode-wrong.service")
    assert "opencode-wrong" in complaints("/tmp/wrong/opencode-wrong.service")[0]
    machine.fail("systemd-analyze security --offline=true --threshold=10 /etc/systemd/system/opencode-egress.service")

with subtest("nftables takes the second lock"):
    # Where its file is, only the unit knows.
    machine.succeed("systemctl start nftables", "nft list table inet opencode-egress", "nft list ruleset | nft -c -f -")
    machine.fail("echo 'table inet x { chain y { nonsense } }' | nft -c -f -")

with subtest("the daemon takes the policy"):
    assert "good; 10 instances" in machine.succeed("opencode-egress check /etc/opencode-egress/policy.json")

if not hasattr(machine, "files"):
    not_shown("the other hosts, whose files are not here; nor the rules as the build checks them, which the build has done")
else:
    locked("/nix/store/nftables-rules", "/etc/nftables-pre-check")
    hosts = [path for path in sorted(machine.files.parent.iterdir()) if path.is_dir() and path != machine.files]
    assert len(hosts) >= 13, hosts
    for host in hosts:
        with subtest(f"nor on the host {host.name}"):
            shutil.copytree(host, machine.root / "run/hosts" / host.name)
            # The units name what is in the store.
            shutil.copytree(host / "nix", machine.root / "nix", dirs_exist_ok=True)
            if (host / "etc/opencode-keys").exists():
                shutil.copytree(host / "etc/opencode-keys", machine.root / "etc/opencode-keys")
            here = f"/run/hosts/{host.name}/etc"
            assert accepted(f"{here}/systemd/system") >= 2
            if (host / "etc/opencode-egress").exists():
                machine.succeed(f"opencode-egress check {here}/opencode-egress/policy.json")
                locked(f"/run/hosts/{host.name}/nix/store/nftables-rules", f"{here}/nftables-pre-check")
