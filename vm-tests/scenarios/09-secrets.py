# host: secrets
"""Secrets reach the server that they are for, and nobody else.
The three sources of the environment and their precedence, values with a percent sign, and variables that would have root's `attach` write or load what
they name, which nothing of the unit gets. A file as sops-nix makes it, root:keys 0400 in a directory of 0751, is read
by systemd; neither the agent nor another instance sees it. What is in it is not in the store, in units, in the journal or in command lines."""

SECRET, LAST = "hunter2-of-keyed", "hunter2-of-the-last"

# Has the dynamic linker of whatever is started write here.
TRACE = "/srv/keyed/trace"

FILES = {
    "keyed": f"API_KEY={SECRET}\nFROM_FILE=file\nFROM_LAST=file\nLD_DEBUG=libs\nLD_DEBUG_OUTPUT={TRACE}\n",
    "keyed-more": f"FROM_LAST={LAST}\n",
}

machine.succeed("getent group keys || groupadd --system keys", "install -d -m 0751 -o root -g keys /run/secrets")
for name, text in FILES.items():
    machine.succeed(f"install -m 0400 -o root -g keys /dev/stdin /run/secrets/{name} <<< {shlex.quote(text)}")
prepare("keyed", "other")
start("keyed", "other")

with subtest("the module's own variables, those of `environment` over them, and those of files over these, in order"):
    expected = {
        "HOME": "/var/lib/opencode/instance-state/keyed",
        "OPENCODE_DISABLE_AUTOUPDATE": "environment",
        "API_KEY": SECRET,
        "PROXY": "http://me%40example.org:50%25@proxy.example",
        "FROM_FILE": "file",
        "FROM_LAST": LAST,
    }
    said = agent("keyed", f"printenv {' '.join(expected)}")
    assert said.split() == list(expected.values()), said
    assert agent("other", "printenv OPENCODE_DISABLE_AUTOUPDATE").strip() == "1"

with subtest("variables by which the dynamic linker loads and writes reach neither `attach`, nor the set-up, nor the server"):
    machine.fail(f"ls {TRACE}.*")
    cannot("keyed", "printenv LD_DEBUG_OUTPUT")
    # They are in the file, and would.
    program = "systemd-run -q --wait -p EnvironmentFile=/run/secrets/keyed {} /etc/opencode-egress/bin/opencode-egress help"
    machine.succeed(program.format("-p 'UnsetEnvironment=LD_DEBUG LD_DEBUG_OUTPUT'"))
    machine.fail(f"ls {TRACE}.*")
    machine.succeed(program.format(""), f"ls {TRACE}.*", f"rm {TRACE}.*")

with subtest("`{env:NAME}` in the configuration is the variable's value"):
    machine.succeed(f"curl -sf http://{address('keyed')}/config | grep -F '\"username\":\"{SECRET}\"'")

with subtest("the secrets are nowhere where everybody can look"):
    machine.succeed(
        "systemd-run -q --unit control -p Environment=WORD=a-control sh -c 'echo a-control; sleep 600'",
        "journalctl --sync",
    )
    assert places("a-control") == {"units", "properties", "journal", "command lines"}, places("a-control")
    assert "store" in places("{env:API_KEY}")
    for secret in [SECRET, LAST]:
        assert not places(secret), places(secret)

with subtest("the files are root's: neither the agent nor its user reads them"):
    machine.succeed("cat /run/secrets/keyed")
    machine.fail("setpriv --reuid opencode-keyed --clear-groups cat /run/secrets/keyed")
    for name in ["keyed", "other"]:
        says(name, "ls /run/secrets 2>&1", "No such file or directory")

with subtest("another instance sees nothing of it"):
    server = machine.succeed("systemctl show -P MainPID opencode-keyed").strip()
    can("keyed", f"grep -qa API_KEY /proc/{server}/environ")
    cannot("other", f"grep -qa API_KEY /proc/{server}/environ")
    can("keyed", "printenv API_KEY")
    cannot("other", "printenv API_KEY")
    cannot("other", "ls /srv/keyed /var/lib/opencode/instance-state/keyed")
