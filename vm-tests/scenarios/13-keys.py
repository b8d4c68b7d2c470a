# host: keys
"""Providers' keys are with nginx, and never with the agent.
A session of the real server under an empty list is completed; the provider, over TLS on the second host, got the real key, and nothing else that the agent sent as
one. The key is in no process, file or place that the agent can read, and in no memory of its processes, searched from outside. Each instance has its own key; the other's port
and token do not help it. A stream's pieces come as they are sent; 10 MB pass. Other paths, hosts, methods, queries, absolute URLs, CONNECT, two lengths, `..`, models and redirects are
refused."""

KEYS = {"a": "sk-real-key-of-a-0123456789", "b": "sk-real-key-of-b-9876543210", "own": "sk-real-key-of-own-555"}

# Says for each word whether it is in the memory of one of some processes.
SEARCH = """
import json, struct, sys
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
                    # Where no page is in memory or swapped out there is nothing.
                    if any(entries[7::8]):
                        try:
                            memory.seek(begin * 4096)
                            read = memory.read(count * 4096)
                            for word in words:
                                found[word] |= word.encode() in read
                        except (OSError, ValueError):
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
OWN = request("POST /own/chat/completions HTTP/1.1\nHost: 127.0.0.1:%d\nAuthorization: Bearer TOKEN" % B)

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
    got = ask("a", A, request(POST.replace("TOKEN", other) % A))
    assert got.startswith("401 "), got
    cannot("free", "ls /run/opencode/tokens")
    cannot("b", "cat /run/opencode/tokens/a")
    assert machine.succeed("stat -c '%a %U' /run/opencode/tokens/a").split() == ["400", "opencode-a"]
    assert not seen()

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

with subtest("what the provider answers elsewhere is not followed, and not passed on"):
    got = ask("a", A, request(POST % A, "REDIRECT"))
    assert got.startswith("403 ") and "elsewhere.example" not in got, got
    got = agent("a", f"curl -sS -D - -o /dev/null -H \"x-api-key: $(cat /run/opencode/tokens/a)\" -d x http://127.0.0.1:{A}/anthropic/v1/messages").lower()
    assert "200 ok" in got and "elsewhere" not in got and "cookie" not in got, got

with subtest("only listed models are asked for"):
    seen()
    bodies = [
        ("200", '{"model":"claude-haiku-4-5"}'),
        ("200", '{"messages":[{"content":"\\"model\\":\\"x\\" \\\\"}], "model" : "claude-haiku-4-5","tools":[{"model":{}}]}'),
        ("403", '{"model":"claude-opus-4-5"}'),
        ("403", "{}"),
        ("403", '{"model":"claude-haiku-4-5","model":"claude-opus-4-5"}'),
        ("403", '{"model":"claude-opus-4-5","model":"claude-haiku-4-5"}'),
        ("403", '{"model":"claude-haiku-4-5","mod\\u0065l":"claude-opus-4-5"}'),
        ("403", '{"model":"claude-haiku-4-5","Model":"claude-opus-4-5"}'),
        ("403", '{"a":{"model":"claude-haiku-4-5"},"model":"claude-opus-4-5"}'),
        ("403", '{"model":"claude-haiku-4-5"}{"model":"claude-opus-4-5"}'),
    ]
    for (expected, body), got in zip(bodies, ask("b", B, *(request(POST % B, body) for _, body in bodies))):
        assert got.startswith(expected), (body, got)
    assert len(seen()) == 2
    got = ask("b", B, request(f"GET /anthropic/v1/models HTTP/1.1\nHost: 127.0.0.1:{B}\nx-api-key: TOKEN", ""))
    assert got.startswith("200 "), got

with subtest("the key is nowhere that the agent can look, nor anybody else"):
    keys = list(KEYS.values())
    assert in_memory("opencode-keys", keys) == set(keys), "the search does not find what is there"
    for name in "a", "b", "free":
        assert not in_memory(f"opencode-{name}", keys)
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

with subtest("nginx reaches the provider, and nothing else"):
    assert status()["keys"]["mode"] == "enforce"
    machine.succeed(f"opencode-egress explain keys llm.example.org:443 | grep -i allow", f"opencode-egress explain keys {OTHER}:80/tcp | grep -i den")

