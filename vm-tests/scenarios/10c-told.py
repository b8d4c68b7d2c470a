# host: told told-otherwise
"""An agent is told of its policy, and its programs do not try again what that refuses.
The server has the text in its configuration, behind the operator's own instructions, and the prompt that reaches the model has it. Another list changes the text
without a restart. A plugin that npm would have to bring, which the policy refuses, costs the first message seconds, where npm's own tries take more than two
minutes. What the instance sets of the variables counts."""

# Answers as a model does, and shows on GET what it was asked last.
MODEL = """
import http.server, json

asked = ["null"]


class Model(http.server.BaseHTTPRequestHandler):
    def reply(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply("application/json", asked[0].encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        # What writes titles has a prompt of its own.
        if "title generator" not in body:
            asked[0] = body
        common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "left"}
        said = {**common, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "heard"}}]}
        end = {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        lines = "".join(f"data: {line}\\n\\n" for line in [json.dumps(said), json.dumps(end), "[DONE]"])
        self.reply("text/event-stream", lines.encode())


http.server.ThreadingHTTPServer(("192.0.2.20", 8080), Model).serve_forever()
"""

TOLD = "/etc/opencode-instructions/a/network.md"


def ask():
    """Has the agent ask its model; what the model was told beforehand, and how long that took."""
    began = time.monotonic()
    session = post("a", "/session", {})
    body = {"model": {"providerID": "second", "modelID": "left"}, "parts": [{"type": "text", "text": "hello"}]}
    answer = post("a", f"/session/{session['id']}/message", body)
    took = time.monotonic() - began
    assert [part["text"] for part in answer["parts"] if part["type"] == "text"] == ["heard"], answer
    asked = json.loads(witness.succeed("curl -sS -m 5 http://192.0.2.20:8080/"))
    return "\n".join(message["content"] for message in asked["messages"] if message["role"] == "system"), took


witness.succeed(f"(python3 -c {shlex.quote(MODEL)} > /dev/null 2>&1 &)")
witness.wait_until_succeeds("curl -sS -m 5 http://192.0.2.20:8080/")
machine.succeed("install -d -m 700 /run/secrets", "echo PIP_RETRIES=3 > /run/secrets/a")
prepare("a")
machine.succeed("echo 'Speak in rhymes.' > /srv/a/RULES.md", "chown opencode-a: /srv/a/RULES.md")
start("a")

with subtest("the first message does not wait for npm, though there is a plugin that it would have to bring"):
    prompt, took = ask()
    assert took < 40, f"it took {took:.0f} s"
    print(f"it took {took:.1f} s")
    machine.wait_until_succeeds("journalctl -q -t opencode-a-blocked -o cat | grep 'query=registry.npmjs.org '")

with subtest("the server has the text in its configuration, behind the operator's own instructions"):
    config = json.loads(machine.succeed(f"curl -sf -m 60 http://{address('a')}/config"))
    assert config["instructions"] == ["RULES.md", TOLD], config["instructions"]

with subtest("the prompt that reaches the model has it, whole"):
    text = machine.succeed(f"cat {TOLD}").strip()
    assert "- `listed.example.org`\n- `192.0.2.20/32:8080/tcp`\n" in text, text
    assert f"Instructions from: {TOLD}\n{text}" in prompt, prompt
    assert prompt.index("Speak in rhymes.") < prompt.index(TOLD), prompt

with subtest("programs are told not to try again, but for what the instance sets"):
    said = agent("a", "env; cat $WGETRC").splitlines()
    for line in "npm_config_fetch_retries=0", "OPENCODE_DISABLE_LSP_DOWNLOAD=1", "tries = 1", "CARGO_NET_RETRY=2", "PIP_RETRIES=3":
        assert line in said, (line, said)

with subtest("the command that the text names says what may be reached, what was refused, and what to ask for"):
    for part in "  listed.example.org\n", "  192.0.2.20/32:8080/tcp\n", "registry.npmjs.org name-not-allowed, ", "ask for `registry.npmjs.org:443`":
        says("a", "opencode-egress why", part)

with subtest("another list changes what is told, and the server goes on"):
    pid = main_pid("opencode-a")
    switch_to("told-otherwise")
    prompt, _ = ask()
    assert "`added.example.org`" in prompt, prompt
    assert main_pid("opencode-a") == pid

with subtest("the agent cannot change what it is told"):
    says("a", f"(echo x > {TOLD}) 2>&1", "Read-only file system")
