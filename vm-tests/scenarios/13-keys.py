# host: keys
"""Providers' keys are with nginx, and never with the agent.
A session of the real server under an empty list is completed; the provider, over TLS on the second host, got the real key, and nothing else that the agent sent as
one. The key is in no process, file or place that the agent can read, and in no memory of its processes, searched from outside. Each instance has its own key; the other's port
and token do not help it. A stream's pieces come as they are sent; 10 MB pass. Other paths, hosts, methods, queries, absolute URLs, CONNECT, two lengths, `..`, models and redirects are
refused."""

KEYS = {"a": "sk-real-key-of-a-0123456789", "b": "sk-real-key-of-b-9876543210", "own": "sk-real-key-of-own-555"}

# Says for each word whether it is in the memory of one of some processes.
SEARCH = """
import itertools, json, sys
pids, words = json.load(sys.stdin)
found = {word: False for word in words}
for pid in pids:
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/pagemap", "rb", 0) as pages:
            for line in maps:
                begin, end = (int(part, 16) // 4096 for part in line.split()[0].split("-"))
                while begin < end and begin < 1 << 51:
                    count = min(end - begin, 1 << 16)
                    pages.seek(begin * 8)
                    entries = pages.read(count * 8)
                    # Which pages are in memory, or swapped out; of most there are none.
                    there = [number for number, entry in enumerate(entries[7::8]) if entry & 0xC0] if any(entries[7::8]) else []
                    # One run of them after the other.
                    for _, run in itertools.groupby(there, lambda number, count=itertools.count(): number - next(count)):
                        run = list(run)
                        try:
                            memory.seek((begin + run[0]) * 4096)
                            read = memory.read(len(run) * 4096)
                            for word in words:
                                found[word] |= word.encode() in read
                        except OSError:
                            # It is gone since, or the kernel's own ([vvar]).
                            pass
                    begin += count
    except FileNotFoundError:
        pass
print(json.dumps(found))
"""


def in_memory(user, words):
    """Those of the words that are in the memory of a user's processes, read from outside."""
    pids = machine.succeed(f"pgrep -u {user}").split()
    assert pids, user
    data = base64.b64encode(json.dumps([pids, words]).encode()).decode()
    script = base64.b64encode(SEARCH.encode()).decode()
    found = json.loads(machine.succeed(f"base64 -d <<< {script} > /run/search.py", f"base64 -d <<< {data} | python3 /run/search.py"))
    return {word for word in words if found[word]}


A, B = start_keys(KEYS)

with subtest("a session under an empty list is completed, and the provider got the real key"):
    answer = message("a", "hello")
    assert said(answer).count("piece") == 5, answer
    requests = seen()
    assert len(requests) >= 2, requests
    for got in requests:
        assert got["line"] == "POST /v1/messages HTTP/1.1", got
        assert got["headers"]["x-api-key"] == KEYS["a"] and got["headers"]["Host"] == "llm.example.org", got
    cannot("a", tcp(ALLOWED), "curl -sS -m 5 https://llm.example.org/v1/models")

POST = "POST /anthropic/v1/messages HTTP/1.1\nHost: 127.0.0.1:%d\nx-api-key: TOKEN"
OWN = request("POST /own/chat/completions HTTP/1.1\nHost: 127.0.0.1:%d\nAuthorization: Bearer TOKEN" % B, '{"model":"small"}')

with subtest("each instance has its own key"):
    message("b", "hello")
    assert {request_["headers"]["x-api-key"] for request_ in seen()} == {KEYS["b"]}
    got = ask("b", B, OWN)
    assert got.startswith("200 "), got
    assert seen()[0]["headers"]["Authorization"] == f"Bearer {KEYS['own']}"

with subtest("neither the other's port nor its token is of use"):
    got = ask("b", A, request(POST % A))
    assert "Operation not permitted" in got, got
    # Another user of the host reaches the port, and has no token.
    got = ask("free", A, request(POST.replace("TOKEN", "0" * 64) % A))
    assert got.startswith("401 "), got
    other = machine.succeed("cat /run/opencode/tokens/b").strip()
    own = machine.succeed("cat /run/opencode/tokens/a").strip()
    for name, port_, token in ("a", A, other), ("free", A, other), ("b", B, own), ("free", B, own):
        got = ask(name, port_, request(POST.replace("TOKEN", token) % port_))
        assert got.startswith("401 "), (name, port_, got)
    cannot("free", "ls /run/opencode/tokens")
    cannot("b", "cat /run/opencode/tokens/a")
    assert machine.succeed("stat -c '%a %U' /run/opencode/tokens/a").split() == ["400", "opencode-a"]
    assert not seen()

with subtest("each API's requests are passed on, and what the provider says is wrong comes back as it is"):
    seen()
    for name, port_, head, body in [
        ("a", A, f"POST /anthropic/v1/messages/count_tokens HTTP/1.1\nHost: 127.0.0.1:{A}\nx-api-key: TOKEN", "{}"),
        ("a", A, f"GET /anthropic/v1/models HTTP/1.1\nHost: 127.0.0.1:{A}\nx-api-key: TOKEN", ""),
        ("b", B, f"POST /own/responses HTTP/1.1\nHost: 127.0.0.1:{B}\nAuthorization: Bearer TOKEN", '{"model":"small"}'),
        ("b", B, f"POST /google/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse HTTP/1.1\nHost: 127.0.0.1:{B}\nx-goog-api-key: TOKEN", "{}"),
    ]:
        got = ask(name, port_, request(head, body))
        assert got.startswith("200 "), (head, got)
    lines = ["POST /v1/messages/count_tokens", "GET /v1/models", "POST /responses", "POST /v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"]
    requests = seen()
    assert [got["line"] for got in requests] == [f"{line} HTTP/1.1" for line in lines], requests
    assert requests[-1]["headers"]["x-goog-api-key"] == KEYS["own"], requests[-1]
    for model in "gemini-2.5-pro", "gemini-2.5-flash/x", "gemini-2x5-flash":
        got = ask("b", B, request(f"POST /google/v1beta/models/{model}:generateContent HTTP/1.1\nHost: 127.0.0.1:{B}\nx-goog-api-key: TOKEN"))
        assert got.startswith("404 "), (model, got)
    assert not seen()
    for name, port_, body in ("a", A, '"STATUS=%d "'), ("b", B, '{"model":"claude-haiku-4-5","messages":"STATUS=%d "}'):
        for code in 400, 401, 404, 413, 429, 500, 529:
            got = ask(name, port_, request(POST % port_, body % code))
            assert got == f'{code} {{"data":[]}}', (name, code, got)
    assert len(seen()) == 14

with subtest("an address of the provider's where the host gets no connection is in nobody's way"):
    got = {ask("a", A, request(POST % A, "PIECES=1 GAP=0 "))[:3] for _ in range(12)}
    assert got == {"200"} and logged("[2001:db8::10]") and len(seen()) == 12, got
    assert not logged("first=-, ") and not logged("first=0.000, "), logged("first=-")

with subtest("an answer's headers may be as many as a client takes"):
    got = ask("a", A, request(POST % A, "BIG=14000 "))
    assert got.startswith("200 "), got
    seen()

with subtest("of what a client sends nothing goes on but what the provider needs"):
    credentials = "Authorization: Bearer mine\nX-Goog-Api-Key: mine\nApi-Key: mine\nCookie: mine\nX-Whatever-Token: mine\nAnthropic-Version: 2023-06-01"
    got = ask("a", A, request(POST % A + "\n" + credentials))
    assert got.startswith("200 "), got
    [request_] = seen()
    headers = {name.lower(): value for name, value in request_["headers"].items()}
    assert "mine" not in json.dumps(headers), headers
    assert headers["x-api-key"] == KEYS["a"] and headers["anthropic-version"] == "2023-06-01", headers

# When each piece of a stream comes.
STREAM = """
import http.client, sys, time
peer = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
peer.request("POST", "/anthropic/v1/messages", "PIECES=6 GAP=400 " + sys.argv[2], {"x-api-key": open("/run/opencode/tokens/a").read()})
for line in peer.getresponse():
    if b"piece" in line:
        print(time.monotonic())
"""

with subtest("a stream's pieces come as they are sent"):
    machine.succeed(f"base64 -d <<< {base64.b64encode(STREAM.encode()).decode()} > /srv/a/stream.py")
    for framing in "CHUNKED", "RAW":
        times = [float(line) for line in agent("a", f"python3 /srv/a/stream.py {A} {framing}").split()]
        gaps = [after - before for before, after in zip(times, times[1:])]
        assert len(gaps) == 5 and min(gaps) > 0.2 and max(gaps) < 1, (framing, gaps)

with subtest("10 MB pass, and more than the limit does not"):
    def send(name, port_, path, header, count):
        made = f"head -c {count} /dev/zero | tr '\\0' x"
        return agent(name, f"{made} | curl -sS -o /dev/null -w '%{{http_code}}' -H \"{header}$(cat /run/opencode/tokens/{name})\" --data-binary @- http://127.0.0.1:{port_}{path}").strip()
    seen()
    assert send("a", A, "/anthropic/v1/messages", "x-api-key: ", 10_000_000) == "200"
    assert [request["bytes"] for request in seen()] == [10_000_000]
    assert send("a", A, "/anthropic/v1/messages", "x-api-key: ", 70_000_000) == "413"
    assert send("b", B, "/own/chat/completions", "Authorization: Bearer ", 2_000_000) == "413"

with subtest("what is no request of the provider's API is refused, and the provider hears nothing of it"):
    seen()
    host = f"Host: 127.0.0.1:{A}\nx-api-key: TOKEN"
    refused = [
        ("404", f"POST /anthropic/v1/files HTTP/1.1\n{host}"),
        ("404", f"DELETE /anthropic/v1/messages HTTP/1.1\n{host}"),
        ("404", f"POST /openai/v1/responses HTTP/1.1\n{host}"),
        ("400", f"GET /anthropic/v1/models HTTP/1.1\n{host}"),
        ("404", f"POST /v1/messages HTTP/1.1\n{host}"),
        ("421", "POST /anthropic/v1/messages HTTP/1.1\nHost: llm.example.org\nx-api-key: TOKEN"),
        ("421", f"POST /anthropic/v1/messages HTTP/1.1\nHost: localhost:{A}\nx-api-key: TOKEN"),
        ("400", f"POST http://127.0.0.1:{A}/anthropic/v1/messages HTTP/1.1\n{host}"),
        ("400", f"POST https://llm.example.org/anthropic/v1/messages HTTP/1.1\n{host}"),
        ("400", f"CONNECT llm.example.org:443 HTTP/1.1\n{host}"),
        ("400", f"POST /anthropic/v1/x/../messages HTTP/1.1\n{host}"),
        ("400", f"POST /anthropic/v1/%2e%2e/v1/messages HTTP/1.1\n{host}"),
        ("400", f"POST //anthropic/v1/messages HTTP/1.1\n{host}"),
        ("400", f"POST /anthropic/v1/messages?key=mine HTTP/1.1\n{host}"),
        ("400", f"POST /anthropic/v1/messages HTTP/1.1\n{host}\nConnection: upgrade\nUpgrade: websocket"),
        ("400", f"POST /anthropic/v1/messages HTTP/1.1\n{host}\nX-Folded: a\n b"),
        ("404", f"POST /anthropic HTTP/1.1\n{host}"),
        ("421", "POST /anthropic/v1/messages HTTP/1.0\nx-api-key: TOKEN"),
        ("400", f"POST /anthropic/v1/messages HTTP/1.1\n{host}\ntransfer-encoding: chunked"),
        ("400", f"POST /anthropic/v1/messages HTTP/1.1\n{host}\ncontent-length: 50"),
        ("400", f"POST /anthropic/v1/messages HTTP/1.1\n{host}\nHost: llm.example.org"),
        ("400", f"POST /../../anthropic/v1/messages HTTP/1.1\n{host}"),
        ("401", f"POST /anthropic/v1/messages HTTP/1.1\nHost: 127.0.0.1:{A}\nAuthorization: Bearer TOKEN"),
        ("401", f"POST /anthropic/v1/messages HTTP/1.1\nHost: 127.0.0.1:{A}\nx-api-key: {'0' * 64}"),
    ]
    for (expected, head), got in zip(refused, ask("a", A, *(request(head) for _, head in refused))):
        assert got.startswith(expected + " "), (head, got)
    assert not seen()

with subtest("who has no certificate of the provider's name gets no key"):
    ask("a", A, request(POST % A))
    assert [got["sni"] for got in seen()] == ["llm.example.org"]
    for name in "misnamed", "untrusted":
        got = ask("b", B, request(f"POST /{name}/chat/completions HTTP/1.1\nHost: 127.0.0.1:{B}\nAuthorization: Bearer TOKEN"))
        assert got.startswith("502 ") and KEYS["own"] not in got, got
    # One a minute is what it may be asked.
    got = ask("b", B, request(f"POST /misnamed/chat/completions HTTP/1.1\nHost: 127.0.0.1:{B}\nAuthorization: Bearer TOKEN"))
    assert got.startswith("429 "), got
    assert logged("certificate does not match") and logged("certificate verify error"), logged("certificate")
    assert not seen() and not logged(KEYS["own"])

with subtest("what the provider answers elsewhere is not followed, and not passed on"):
    got = ask("a", A, request(POST % A, "REDIRECT"))
    assert got.startswith("403 ") and "elsewhere.example" not in got, got
    got = agent("a", f"curl -sS -D - -o /dev/null -H \"x-api-key: $(cat /run/opencode/tokens/a)\" -d x http://127.0.0.1:{A}/anthropic/v1/messages").lower()
    assert "200 ok" in got and "elsewhere" not in got and "cookie" not in got, got

# A tool of an agent's own, whose parameters have the names that matter.
TOOLS = (
    '[{"name":"pick","input_schema":{"type":"object","properties":{"model":{"type":"string"},"Models":{"type":"array"},"fallbacks":{},"gr\u00f6\u00dfe":{}},'
    '"patternProperties":{"^\\\\w+$":{}},"required":["model"],"$defs":{"Model":{}}}}]'
)
CALLED = '[{"role":"assistant","content":[{"type":"tool_use","input":{"model":"x","models":["y"],"mod\\u0065l":"z"}}]}]'
LISTED = '"model":"claude-haiku-4-5"'

ACCEPTED = [
    "{%s}" % LISTED,
    ' { "model" : "claude-haiku-4-5" } \n',
    '{"messages":[{"content":"\\"model\\":\\"x\\" \\\\"}], %s}' % LISTED,
    '{%s,"tools":%s,"tool_choice":{"type":"tool","name":"pick"},"messages":%s}' % (LISTED, TOOLS, CALLED),
    '{%s,"thinking":{"type":"enabled","budget_tokens":1},"metadata":{"user_id":"x"},"system":[],"temperature":1.5e-3,"stop":null}' % LISTED,
    '{"stream":true,"stream_options":{"include_usage":true},"provider":{"order":["x"],"allow_fallbacks":false},%s}' % LISTED,
    '{%s,"input":%s}' % (LISTED, CALLED),
    '{%s,"messages":%s}' % (LISTED, "[" * 500 + "]" * 500),
]
REFUSED = [
    # None, another, or none that is one.
    "",
    "{}",
    '{"model":"claude-opus-4-5"}',
    '{"model":"Claude-Haiku-4-5"}',
    '{"model":"claude-haiku-4-5 "}',
    '{"model":["claude-haiku-4-5"]}',
    '{"a":{%s}}' % LISTED,
    # Two, for parsers that take the first or the last, regard no case, or read escapes that there are not.
    '{%s,%s}' % (LISTED, LISTED),
    '{%s,"model":"claude-opus-4-5"}' % LISTED,
    '{"model":"claude-opus-4-5",%s}' % LISTED,
    '{%s,"mod\\u0065l":"claude-opus-4-5"}' % LISTED,
    '{%s,"mo\\del":"claude-opus-4-5"}' % LISTED,
    '{%s,"Model":"claude-opus-4-5"}' % LISTED,
    # By another name.
    '{%s,"models":["claude-opus-4-5"]}' % LISTED,
    '{"MODELS":["claude-opus-4-5"],%s}' % LISTED,
    '{%s,"fallbacks":[{"model":"claude-opus-4-5"}]}' % LISTED,
    '{%s,"Fallback":"claude-opus-4-5"}' % LISTED,
    '{%s,"fallback\u017f":["claude-opus-4-5"]}' % LISTED,
    '{%s,"route":"fallback"}' % LISTED,
    '{%s,"preset":"mine"}' % LISTED,
    '{%s,"plugins":[{"id":"fusion"}]}' % LISTED,
    # Somewhere below.
    '{%s,"tools":[{"type":"advisor_20260301","name":"advisor","model":"claude-opus-4-5"}]}' % LISTED,
    '{%s,"tools":[{"parameters":{"Model" : "claude-opus-4-5"}}]}' % LISTED,
    '{%s,"tools":[{"parameters":{"analysis_models":["claude-opus-4-5"]}}]}' % LISTED,
    '{%s,"tools":[{"mod\\u0065l":"claude-opus-4-5"}]}' % LISTED,
    '{%s,"tools":[{"mo\\del":"claude-opus-4-5"}]}' % LISTED,
    '{%s,"x":{"messages":{"model":"claude-opus-4-5"}}}' % LISTED,
    '{%s,"Messages":{"model":"claude-opus-4-5"}}' % LISTED,
    # What some parsers take for JSON: two values, a mark of the byte order, comments, other quotes or none, commas too many.
    '{%s}{"model":"claude-opus-4-5"}' % LISTED,
    "\ufeff{%s}" % LISTED,
    '{/*"*/"model":"claude-opus-4-5",/*"*/%s}' % LISTED,
    "{%s,'model':'claude-opus-4-5'}" % LISTED,
    '{%s,model:"claude-opus-4-5"}' % LISTED,
    "{%s,}" % LISTED,
    "[{%s}]" % LISTED,
    # Bytes that are not UTF-8, of which some decoder takes two for a quote, and another leaves one out.
    '{%s,"x":"\udcc0\udca2,\udcc0\udca2model\udcc0\udca2:\udcc0\udca2claude-opus-4-5"}' % LISTED,
    '{%s,"x":{"mod\udcffel":"claude-opus-4-5"}}' % LISTED,
    # Too deep.
    '{%s,"messages":%s}' % (LISTED, "[" * 6000 + "]" * 6000),
]

with subtest("only listed models are asked for"):
    seen()
    expected = ["200"] * len(ACCEPTED) + ["403"] * len(REFUSED)
    got = ask("b", B, *(request(POST % B, body) for body in ACCEPTED + REFUSED))
    wrong = [(body[:300], answer) for body, status_, answer in zip(ACCEPTED + REFUSED, expected, got) if not answer.startswith(status_)]
    assert not wrong, wrong
    assert len(seen()) == len(ACCEPTED)
    # However many are listed.
    many = f"POST /many/chat/completions HTTP/1.1\nHost: 127.0.0.1:{B}\nAuthorization: Bearer TOKEN"
    for model, status_ in ("0", "200"), ("119", "200"), ("120", "403"):
        got = ask("b", B, request(many, '{"model":"some-vendor/model-of-a-long-name-%s"}' % model))
        assert got.startswith(status_), (model, got)
    assert "name-2 and 117 others" in got, got
    assert len(seen()) == 2
    # In UTF-7, or as a form, it would be another body.
    for kind in "application/json; charset=utf-7", "application/x-www-form-urlencoded":
        ask("b", B, request(POST % B + f"\nContent-Type: {kind}", ACCEPTED[0]))
    assert [got["headers"]["Content-Type"] for got in seen()] == ["application/json"] * 2
    # Of the other API, from the server itself.
    answer = message("b", "hello", {"providerID": "own", "modelID": "small"})
    assert said(answer).count("piece") == 5, answer
    assert logged("instance=b provider=own model=small")
    # Such a body would be in nginx' own log.
    assert not logged("claude-opus")
    got = ask("b", B, request(f"GET /anthropic/v1/models HTTP/1.1\nHost: 127.0.0.1:{B}\nx-api-key: TOKEN", ""))
    assert got.startswith("200 "), got

with subtest("the key is nowhere that the agent can look, nor anybody else"):
    keys = list(KEYS.values())
    assert in_memory("opencode-keys", keys) == set(keys), "the search does not find what is there"
    for name in "a", "b":
        # The token is what a server has.
        token = machine.succeed(f"cat /run/opencode/tokens/{name}")
        assert in_memory(f"opencode-{name}", [token, *keys]) == {token}, name
    assert not in_memory("opencode-free", keys)
    for pid in machine.succeed("pgrep -u opencode-keys").split():
        machine.fail(f"grep -aF {' '.join(f'-e {key}' for key in keys)} /proc/{pid}/environ /proc/{pid}/cmdline")
    for key in keys:
        assert not places(key), places(key)
    # By parts, or the search would find itself in the agent's own command lines and log.
    words = " ".join(f"-e $(printf %s%s {key[:9]} {key[9:]})" for key in keys)
    for name in "a", "free":
        found = agent(name, f"grep -laF {words} /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null; grep -rlaF {words} /srv $HOME /run /etc /tmp /var /dev/shm 2> /dev/null").strip()
        assert not found, (name, found)
    says("a", "grep -rlaF $(cat /run/opencode/tokens/a) /run 2> /dev/null", "/run/opencode/tokens/a")
    cannot("a", "ls /run/opencode-keys", "ls /run/opencode/tokens/b", "cat /run/secrets/a", f"cat /proc/{main_pid('opencode-keys')}/environ", "ls /run/credentials")
    assert machine.succeed("stat -c %a /run/opencode-keys /run/opencode-keys/keys.conf").split() == ["2700", "440"]
    machine.fail("setpriv --reuid opencode-a --clear-groups cat /run/opencode-keys/keys.conf")

# Connects from where nginx is, and from where it is not.
FROM = """
import os, socket, sys
if sys.argv[1] == "inside":
    with open("/sys/fs/cgroup/system.slice/opencode-keys.service/cgroup.procs", "w") as processes:
        processes.write(str(os.getpid()))
for place in sys.argv[2:]:
    address, port = place.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), 5).close()
        print("connected")
    except OSError as error:
        print(error.strerror)
"""

with subtest("nginx reaches the provider, and nothing else"):
    machine.succeed(f"base64 -d <<< {base64.b64encode(FROM.encode()).decode()} > /run/from.py")
    [unit] = status()["keys"]["units"]
    assert status()["keys"]["mode"] == "enforce" and unit["links"] == unit["hooks"] > 0 and not unit["late"], unit
    ask("a", A, request(POST % A))
    places = f"{ALLOWED}:443 {ALLOWED}:80 {OTHER}:80 {OTHER}:8053"
    got = {where: machine.succeed(f"python3 /run/from.py {where} {places}").splitlines() for where in ("inside", "outside")}
    assert got == {"inside": ["connected"] + ["Operation not permitted"] * 3, "outside": ["connected"] * 4}, got
