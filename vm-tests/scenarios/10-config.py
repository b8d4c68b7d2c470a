# host: config
"""The declared configuration is what the server has, beside the user's own; who has the last word is as documented.
opencode.json is a link in the state directory. Declared agents, commands and skills are found, and so are those that the user put
there. The worktree can widen the operator's permissions, by opencode.json and by .opencode/, but not the policy; where the remedies of
docs/opencode-json.md are in place it cannot, and neither can files in the home directory."""

from fnmatch import fnmatch

HOME = "/var/lib/opencode/instance-state"

# Where the agent may write what the operator denies, and the commands that it allows there.
WORKTREE = {"curl *": "opencode.json", "wget *": ".opencode/opencode.json"}
AT_HOME = {"nc *": "~/.config/opencode/opencode.jsonc", "ssh *": "~/.opencode/opencode.json"}


def get(name, path):
    return json.loads(machine.succeed(f"curl -sf -m 60 http://{address(name)}/{path}"))


def names(name, kind):
    """The names of a server's agents, commands or skills."""
    return {item["name"] for item in get(name, kind)}


def verdict(name, command, agent="build"):
    """What becomes of a shell command: the last of the agent's rules that matches."""
    [rules] = [item["permission"] for item in get(name, "agent") if item["name"] == agent]
    return [rule["action"] for rule in rules if fnmatch("bash", rule["permission"]) and fnmatch(command, rule["pattern"])][-1]


def widen(pattern, path):
    """The agent's command that allows what the pattern matches."""
    config = json.dumps({"permission": {"bash": {pattern: "allow"}}})
    return f"mkdir -p $(dirname {path}) && echo {shlex.quote(config)} > {path}"


def put(name, path, text):
    """Puts a file into an instance's configuration directory, as its user."""
    command = f"mkdir -p $(dirname {path}) && cat > {path}"
    user = f"setpriv --reuid opencode-{name} --regid opencode-{name} --clear-groups"
    machine.succeed(f"cd {HOME}/{name}/.config/opencode && {user} sh -c {shlex.quote(command)} <<< {shlex.quote(text)}")


prepare("plain", "firm")
start("plain", "firm")

with subtest("the configuration is a link in the state directory, and the server has it"):
    for name in ["plain", "firm"]:
        link = machine.succeed(f"readlink {HOME}/{name}/.config/opencode/opencode.json").strip()
        assert link == f"/etc/opencode-instances/{name}/opencode.json", link
        assert get(name, "config")["username"] == "operator"
        assert verdict(name, "git status") == "allow" and all(verdict(name, pattern) == "deny" for pattern in [*WORKTREE, *AT_HOME])

with subtest("declared agents, commands and skills are found"):
    for name in ["plain", "firm"]:
        assert "reviewer" in names(name, "agent"), names(name, "agent")
        assert "check" in names(name, "command"), names(name, "command")
        assert "release" in names(name, "skill"), names(name, "skill")

put("plain", "agents/own.md", "---\ndescription: Own\nmode: subagent\n---\nOwn.")
put("plain", "commands/own.md", "Own.")
put("plain", "skills/own/SKILL.md", "---\nname: own\ndescription: Own\n---\nOwn.")
machine.succeed(f"rm {HOME}/plain/.config/opencode/commands/check.md")
put("plain", "commands/check.md", "Instead.")

with subtest("the agent writes the worktree's configuration, and that in its home directory unless it is kept from it"):
    for name in ["plain", "firm"]:
        for pattern, path in WORKTREE.items():
            can(name, widen(pattern, path))
        can(name, "mkdir -p .opencode/agents && printf '%s\\n' --- 'description: Eager' --- Go. > .opencode/agents/eager.md")
    for pattern, path in AT_HOME.items():
        can("plain", widen(pattern, path))
        says("firm", f"({widen(pattern, path)}) 2>&1", "Read-only file system")

with subtest("it cannot put another directory in the place of one that it cannot write to"):
    for path in ["~/.config/opencode", "~/.config", "~/.opencode"]:
        cannot("firm", f"mv {path} ~/elsewhere")
        cannot("firm", f"rm -r {path}")
    can("firm", "mkdir ~/there && mv ~/there ~/elsewhere")

machine.succeed("systemctl restart opencode-plain opencode-firm")
healthy("plain")
healthy("firm")

with subtest("the user's own agents, commands and skills are found, and what he put in a declared one's place is kept"):
    assert {"own", "reviewer"} <= names("plain", "agent"), names("plain", "agent")
    assert {"own", "release"} <= names("plain", "skill"), names("plain", "skill")
    templates = {command["name"]: command["template"].strip() for command in get("plain", "command")}
    assert templates["own"] == "Own." and templates["check"] == "Instead.", templates
    machine.succeed("journalctl -u opencode-plain-setup | grep 'commands/check.md is kept as it is'")

with subtest("all that widens what the operator denies"):
    for pattern, path in (WORKTREE | AT_HOME).items():
        assert verdict("plain", pattern) == "allow", path
    assert verdict("plain", "rm x") == "deny"
    assert "eager" in names("plain", "agent")

with subtest("with the remedies nothing does"):
    for pattern, path in (WORKTREE | AT_HOME).items():
        assert verdict("firm", pattern) == "deny", path
    assert verdict("firm", "git status") == "allow"
    assert "eager" not in names("firm", "agent")

with subtest("what is wider is not the policy"):
    arrived()
    says("plain", "curl -sS -m 5 http://192.0.2.10/ 2>&1", "Failed to connect")
    assert not [line for line in arrived() if "192.0.2.10.80" in line]
    machine.succeed("curl -sf -m 5 http://192.0.2.10/")
    assert [line for line in arrived() if "192.0.2.10.80" in line]
