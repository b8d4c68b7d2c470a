# host: config
"""The declared configuration is what the server has, beside the user's own; who has the last word is as documented.
opencode.json is a link in the state directory. Declared agents, commands and skills are found, and so are those that the user put
there; so is what the machine says in /etc/opencode. The worktree can widen the operator's permissions, by opencode.json and by .opencode/, but not the policy; where the remedies of
docs/opencode-json.md are in place it cannot, and neither can files in the home directory. The server's own API is open to the agent all the same,
and does not ask the permissions. Plugins are tried nowhere: all servers here leave them out (`OPENCODE_PURE=1`)."""

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


def api(name, method, path, body):
    """The agent's own request to its server: the status, and what is answered."""
    data = shlex.quote(json.dumps(body))
    url = f"http://{address(name)}{path}"
    curl = f"curl -s -m 20 -w '\\n%{{http_code}}' -X {method} -H 'content-type: application/json' -d {data} {url}"
    # A server that takes another configuration ends what its shell tool runs.
    agent(name, f"setsid -f sh -c {shlex.quote(f'{curl} > answer.part; mv answer.part answer')}")
    said = machine.wait_until_succeeds(f"cat /srv/{name}/answer && rm /srv/{name}/answer")
    answer, _, code = said.strip().rpartition("\n")
    return int(code), answer


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

machine.succeed(
    "mkdir -p /etc/opencode && cd /etc/opencode && echo '{\"share\": \"disabled\"}' > opencode.json",
    "cd /etc/opencode && echo '{\"snapshot\": true} // more' > opencode.jsonc",
)
machine.succeed("systemctl restart opencode-plain opencode-firm")
healthy("plain")
healthy("firm")

with subtest("the machine's configuration is seen, and not changed"):
    for name in ["plain", "firm"]:
        config = get(name, "config")
        assert config["share"] == "disabled" and config["snapshot"] is True, config
        says(name, "(echo '{}' > /etc/opencode/opencode.json) 2>&1", "Read-only file system")

with subtest("the user's own agents, commands and skills are found, and what he put in a declared one's place is kept"):
    assert {"own", "reviewer"} <= names("plain", "agent"), names("plain", "agent")
    assert {"own", "release"} <= names("plain", "skill"), names("plain", "skill")
    templates = {command["name"]: command["template"].strip() for command in get("plain", "command")}
    assert templates["own"] == "Own." and templates["check"] == "Instead.", templates
    assert "commands/check.md is kept as it is" in printed("plain", "-u opencode-plain-setup")

with subtest("all that widens what the operator denies"):
    for pattern, path in (WORKTREE | AT_HOME).items():
        assert verdict("plain", pattern) == "allow", path
    assert verdict("plain", "rm x") == "deny"
    assert "eager" in names("plain", "agent")

with subtest("with the remedies none of these files does"):
    for pattern, path in (WORKTREE | AT_HOME).items():
        assert verdict("firm", pattern) == "deny", path
    assert verdict("firm", "git status") == "allow"
    assert "eager" not in names("firm", "agent")

with subtest("by the API the agent changes the user's configuration, at once, unless it is kept from the files"):
    change = {"permission": {"bash": {"scp *": "allow"}}}
    for name in ["plain", "firm"]:
        assert verdict(name, "scp x") == "deny", name
    assert api("plain", "PATCH", "/global/config", change)[0] == 200
    assert verdict("plain", "scp x") == "allow"
    assert api("firm", "PATCH", "/global/config", change)[0] == 500
    assert verdict("firm", "scp x") == "deny"

with subtest("and the worktree's config.json, which no server reads"):
    change = {"permission": {"bash": {"rsync *": "allow"}}}
    for name in ["plain", "firm"]:
        assert api(name, "PATCH", "/config", change)[0] == 200
        machine.succeed(f"grep -F 'rsync *' /srv/{name}/config.json", f"systemctl restart opencode-{name}")
        healthy(name)
        assert verdict(name, "rsync x") == "deny", name

with subtest("it starts sessions with rules of its own, and runs what the permissions deny, remedies or not"):
    rule = {"permission": "bash", "pattern": "*", "action": "allow"}
    for name in ["plain", "firm"]:
        code, answer = api(name, "POST", "/session", {"permission": [rule]})
        assert code == 200 and json.loads(answer)["permission"] == [rule], answer
        assert verdict(name, "id -un") == "deny"
        code, answer = api(name, "POST", f"/session/{json.loads(answer)['id']}/shell", {"agent": "build", "command": "id -un"})
        assert code == 200 and f"opencode-{name}" in answer, answer

with subtest("what is wider is not the policy"):
    arrived()
    says("plain", "curl -sS -m 5 http://192.0.2.10/ 2>&1", "Failed to connect")
    assert not [line for line in arrived() if "192.0.2.10.80" in line]
    machine.succeed("curl -sf -m 5 http://192.0.2.10/")
    assert [line for line in arrived() if "192.0.2.10.80" in line]
