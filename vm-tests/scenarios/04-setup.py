# host: setup
"""The setup makes what is missing, keeps what is there, and stops a server whose hooks fail.
A first run makes directories and links, a second changes nothing, one after a part was lost makes that part. A user's own files stay, and the
journal says so. `preInitScript` runs before that and `postInitScript` after it, both before the server; when one fails, the server does not
start and the journal says why. The server takes every flag that the module has for it. The project's directory is never touched."""

STATE = "/var/lib/opencode/instance-state/a"
SETUP = "opencode-a-setup"


def listing(directory, what="%p %y %m %U %l %i %T@"):
    return machine.succeed(f"find {directory} -printf '{what}\\n' | sort").splitlines()


def tree():
    """What there is, without when it was made."""
    return listing(STATE, "%p %y %m %U %l")


def rested():
    """systemd has a limit on starts in a short time, which is not what this is about."""
    machine.execute(f"systemctl reset-failed {SETUP} opencode-a")


def run_setup():
    """Runs the setup alone. Returns what it says."""
    rested()
    before = len(printed("a", f"-u {SETUP}").splitlines())
    machine.execute(f"systemctl start {SETUP}")
    return "\n".join(printed("a", f"-u {SETUP}").splitlines()[before:])


def refused(reason):
    """The server does not start, and the setup's journal says why."""
    rested()
    machine.fail("systemctl start opencode-a")
    machine.require_unit_state(SETUP, "failed")
    machine.require_unit_state("opencode-a", "inactive")
    said = printed("a", f"-u {SETUP} -n 12")
    assert reason in said, said
    machine.fail("pgrep -u opencode-a")


prepare("a")
machine.succeed("runuser -u opencode-a -- sh -c 'cd /srv/a; mkdir src; echo {} > opencode.json; touch src/main'")
directory = listing("/srv/a")

with subtest("the first run makes everything, between the hooks"):
    said = run_setup()
    machine.succeed(f"systemctl show -P Result {SETUP} | grep -qx success")
    order = [said.find(words) for words in ("nothing is there", "post-init: links are there", "post-init: done")]
    assert -1 < order[0] < order[1] < order[2], said
    made = tree()
    for path in ("opencode.json", "agents/reviewer.md", "commands/hello.md", "skills/greeting/SKILL.md"):
        machine.succeed(f"[ -L {STATE}/.config/opencode/{path} ]")
    for path in (".config/opencode", ".cache", ".local/share/opencode", ".local/state"):
        machine.succeed(f"[ $(stat -c %U {STATE}/{path}) = opencode-a ]")

with subtest("the second changes nothing"):
    before = listing(STATE)
    said = run_setup()
    assert "links are there" in said and "kept" not in said, said
    assert listing(STATE) == before, set(listing(STATE)) ^ set(before)

with subtest("one after a part was lost makes that part"):
    link = f"stat -c '%i %y' {STATE}/.config/opencode/agents/reviewer.md"
    before = machine.succeed(link)
    machine.succeed(f"cd {STATE}; rm -r .cache .local/state .config/opencode/skills .config/opencode/opencode.json")
    assert tree() != made
    run_setup()
    assert tree() == made, set(tree()) ^ set(made)
    assert machine.succeed(link) == before

with subtest("a user's files are kept, and told of"):
    config = f"{STATE}/.config/opencode"
    machine.succeed(
        f"cd {config}; rm opencode.json commands/hello.md; echo '{{}}' > opencode.json; ln -s /nowhere commands/hello.md; echo mine > agents/mine.md",
        f"chown -h opencode-a {config}/opencode.json {config}/commands/hello.md {config}/agents/mine.md",
    )
    before = listing(STATE)
    said = run_setup()
    assert listing(STATE) == before, set(listing(STATE)) ^ set(before)
    kept = [line.split()[0] for line in said.splitlines() if "is kept as it is" in line]
    assert kept == [f"{config}/opencode.json", f"{config}/commands/hello.md"], said
    machine.succeed(f"rm {config}/opencode.json {config}/commands/hello.md {config}/agents/mine.md")

with subtest("what another configuration has linked from the store is replaced, and told of"):
    store = "/nix/store/00000000000000000000000000000000-other"
    machine.succeed(
        f"mkdir -p {store}/skills/greeting; echo '{{}}' > {store}/opencode.json; echo other > {store}/skills/greeting/SKILL.md",
        f"cd {config}; rm -rf opencode.json agents commands skills; mkdir -m 700 agents",
        # One that is there, one whose store path is collected, and directories of both kinds.
        f"cd {config}; ln -s {store}/opencode.json opencode.json; ln -s /nix/store/gone/reviewer.md agents/reviewer.md",
        f"cd {config}; ln -s /nix/store/gone/commands commands; ln -s {store}/skills skills; echo mine > agents/mine.md",
        f"chown -hR opencode-a {config}",
    )
    said = run_setup()
    assert tree() == sorted(made + [line for line in tree() if "agents/mine.md" in line]), set(tree()) ^ set(made)
    told = [line.split()[0] for line in said.splitlines() if "is replaced" in line]
    assert sorted(told) == sorted(f"{config}/{name}" for name in ("opencode.json", "agents/reviewer.md", "commands", "skills")), said
    assert "is kept" not in said, said
    machine.succeed(f"cmp {store}/skills/greeting/SKILL.md <(echo other)", f"rm {config}/agents/mine.md")

with subtest("not where the agent has closed the directory, which is told of, and keeps no server from starting"):
    machine.succeed(f"ln -sfn /nix/store/gone/reviewer.md {config}/agents/reviewer.md; chmod 500 {config}/agents")
    said = run_setup()
    assert machine.succeed(f"systemctl show -P Result {SETUP}").strip() == "success", said
    assert f"{config}/agents/reviewer.md is kept as it is" in said and "is replaced" not in said, said
    machine.succeed(f"chmod 700 {config}/agents")
    assert f"{config}/agents/reviewer.md was a link to /nix/store/gone/reviewer.md" in run_setup()

with subtest("a server whose preInitScript fails does not start, and nothing is set up"):
    machine.succeed(f"rm -f {STATE}/.config/opencode/opencode.json; touch {STATE}/fail-pre")
    refused("pre-init: told to fail")
    machine.fail(f"[ -L {STATE}/.config/opencode/opencode.json ]")
    machine.succeed(f"rm {STATE}/fail-pre")

with subtest("nor does one whose postInitScript fails, at the first command that does"):
    machine.succeed(f"touch {STATE}/fail-post")
    refused("no-such-file: No such file or directory")
    machine.succeed(f"[ -L {STATE}/.config/opencode/opencode.json ]")
    assert "post-init: done" not in printed("a", f"-u {SETUP} -n 4")
    machine.succeed(f"rm {STATE}/fail-post")

with subtest("with hooks that succeed it starts, after them"):
    rested()
    start("a")
    moment = "systemctl show -P {} {}"
    ended = int(machine.succeed(moment.format("ExecMainExitTimestampMonotonic", SETUP)))
    started = int(machine.succeed(moment.format("ExecMainStartTimestampMonotonic", "opencode-a")))
    assert 0 < ended <= started, (ended, started)

with subtest("the project's directory is as it was, until the server is asked for something"):
    assert listing("/srv/a") == directory, set(listing("/srv/a")) ^ set(directory)
    can("a", "touch src/new")
    assert listing("/srv/a") != directory

with subtest("its shell is one, and what opencode needs is in its path"):
    says("a", "echo shell=$SHELL.", "/bin/bash.")
    can("a", "$SHELL -c true", "git --version", "bash -c true")

with subtest("it takes every flag, and they act"):
    asks = f"curl -sf -m 10 -o /dev/null -D - -H 'Origin: {{}}' http://{address('a')}/global/health"
    for origin in "https://one.example", "https://two.example":
        machine.succeed(f"{asks.format(origin)} | grep -ix 'access-control-allow-origin: {origin}.'")
    machine.fail(f"{asks.format('https://three.example')} | grep -qi access-control-allow-origin")
    machine.succeed(f"ss -Hulnp 'sport = 5353' | grep -q pid={main_pid('opencode-a')},")
    says("a", "tr '\\0' ' ' < /proc/$(pgrep -o -f 'opencode serve')/cmdline", "--mdns --mdns-domain project.local --pure")
