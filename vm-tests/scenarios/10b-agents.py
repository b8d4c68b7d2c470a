# host: agents
"""A large configuration is what the server has: many agents, each with its own permissions, skills, and MCP servers.
Every agent of the example is there, and those that it turns off are not; each may do what its task takes and no more, and asks nothing.
Skills and commands are found. An MCP server of the project's runs in the unit, as its user and under its policy; one that cannot be
reached, and one that is turned off, keep the server from nothing."""

from fnmatch import fnmatch

AGENTS = "lead scout historian architect rust python nix shell tester reviewer security writer researcher release".split()

# An MCP server over its standard input and output.
TICKETS = '''
import json, os, socket, sys

def reach(address):
    try:
        socket.create_connection((address, 80), 5).close()
        return "reached"
    except OSError as error:
        return str(error)

with open("tickets.log", "w") as log:
    print(os.getuid(), os.environ["TICKETS_FILE"], reach("192.0.2.10"), file=log)

answers = {
    "initialize": lambda asked: {"protocolVersion": asked["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "tickets", "version": "1"}},
    "tools/list": lambda asked: {"tools": [{"name": "close", "description": "Closes one", "inputSchema": {"type": "object", "properties": {}}}]},
}
for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        answer = answers.get(request["method"], lambda asked: {})(request.get("params"))
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": answer}), flush=True)
'''


def get(path):
    return json.loads(machine.succeed(f"curl -sf -m 60 http://{address('workshop')}/{path}"))


def verdict(agent, tool, used_on):
    """What becomes of a tool used on something: the last of the agent's rules that matches."""
    rules = agents[agent]["permission"]
    return [rule["action"] for rule in rules if fnmatch(tool, rule["permission"]) and fnmatch(used_on, rule["pattern"])][-1]


prepare("workshop")
machine.succeed("install -d -m 700 /run/secrets", "echo SEARCH_TOKEN=unused > /run/secrets/opencode-workshop")
machine.succeed("mkdir /srv/workshop/tools", f"printf %s {shlex.quote(TICKETS)} > /srv/workshop/tools/tickets.py")
machine.succeed("touch /srv/workshop/CONTRIBUTING.md", "chown -R opencode-workshop: /srv/workshop")
# The example is for a machine with a network.
override("opencode-workshop", "[Service]\nEnvironment=OPENCODE_PURE=1 OPENCODE_DISABLE_MODELS_FETCH=1\n")
start("workshop")
agents = {agent["name"]: agent for agent in get("agent")}

with subtest("every agent is there, and what is turned off is not"):
    assert set(AGENTS) <= set(agents), sorted(agents)
    assert not {"build", "general"} & set(agents), sorted(agents)
    assert agents["lead"]["mode"] == "primary" and agents["scout"]["mode"] == "subagent"
    assert get("config")["default_agent"] == "lead"

with subtest("each may do what its task takes, and no more"):
    allowed = [
        ("lead", "task", "rust"),
        ("lead", "tickets_close", "*"),
        ("historian", "bash", "git log --oneline"),
        ("rust", "edit", "src/main.rs"),
        ("rust", "bash", "cargo test"),
        ("reviewer", "skill", "review"),
        ("release", "edit", "CHANGELOG.md"),
        ("writer", "edit", "docs/a.md"),
    ]
    denied = [
        ("lead", "edit", "src/main.rs"),
        ("historian", "bash", "git push"),
        ("rust", "edit", "CHANGELOG.md"),
        ("rust", "bash", "rm -r src"),
        ("rust", "tickets_close", "*"),
        ("reviewer", "skill", "release"),
        ("reviewer", "edit", "src/main.rs"),
        ("scout", "read", "prod.env"),
        ("scout", "webfetch", "*"),
    ]
    for agent, tool, used_on in allowed:
        assert verdict(agent, tool, used_on) == "allow", (agent, tool, used_on)
    for agent, tool, used_on in denied:
        assert verdict(agent, tool, used_on) == "deny", (agent, tool, used_on)
    assert all(verdict(agent, "read", "src/main.rs") == "allow" for agent in AGENTS)

with subtest("nothing is asked"):
    for agent in AGENTS:
        for tool in ["doom_loop", "external_directory", "question", "bash", "edit", "webfetch"]:
            assert verdict(agent, tool, "/elsewhere/x") != "ask", (agent, tool)
        assert verdict(agent, "read", ".env") == "deny", agent

with subtest("skills and commands are found"):
    assert {"commit", "review", "release"} <= {skill["name"] for skill in get("skill")}
    [check] = [command for command in get("command") if command["name"] == "check"]
    assert check["agent"] == "lead", check

with subtest("the project's MCP server runs in the unit; one that is out of reach, and one that is off, harm nothing"):
    servers = get("mcp")
    assert servers["tickets"]["status"] == "connected", servers
    assert servers["search"]["status"] == "failed", servers
    assert servers["browser"]["status"] == "disabled", servers
    user = machine.succeed("id -u opencode-workshop").strip()
    said = machine.succeed("cat /srv/workshop/tickets.log").strip()
    assert said == f"{user} tickets.json [Errno 1] Operation not permitted", said
    machine.succeed("journalctl -t opencode-workshop-blocked | grep 'dst=192.0.2.10 dport=80'")
