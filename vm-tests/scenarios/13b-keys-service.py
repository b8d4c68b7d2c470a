# host: keys
"""What has providers' keys is a service that says what is wrong.
A line in the journal for each request, without bodies and keys, and counters for Prometheus. A changed key is read by itself, under load too: of 200 streams none is cut, and no request is
refused. A key that is missing, empty, readable by all, no key, or in the environment as well: the unit, its reload or the server's set-up fails, and says what to do. Without nginx the
server says so at once; nginx that is killed comes back. Limits hold. What it costs is printed: the time to the first byte, through it and without it."""

import os

KEYS = {"a": "sk-real-key-of-a-0123456789", "b": "sk-real-key-of-b-9876543210", "own": "sk-real-key-of-own-555"}

A, B = start_keys(KEYS)

POST = "POST /anthropic/v1/messages HTTP/1.1\nHost: 127.0.0.1:%d\nx-api-key: TOKEN"
OWN = request("POST /own/chat/completions HTTP/1.1\nHost: 127.0.0.1:%d\nAuthorization: Bearer TOKEN" % B, '{"model":"small"}')

with subtest("more requests a minute than the limit are answered 429"):
    machine.succeed("systemctl restart opencode-keys")
    got = [answer[:3] for answer in ask("b", B, OWN, OWN, OWN, OWN)]
    assert got == ["200", "200", "200", "429"], got

# Begins requests, does not end their bodies, says how each is answered meanwhile, and stays for some seconds.
PARTS = """
import json, socket, sys, time
port, path, header, count, seconds = sys.argv[1:]
token = open("/run/opencode/tokens/b").read()
head = f"POST {path} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n{header}{token}\\r\\ncontent-length: 2000\\r\\n\\r\\n"
peers, answers = [], []
for _ in range(int(count)):
    peer = socket.create_connection(("127.0.0.1", int(port)))
    peer.sendall(head.encode() + b"x" * 1000)
    peer.settimeout(1)
    peers.append(peer)
    try:
        answers.append(peer.recv(65536).decode()[9:12])
    except TimeoutError:
        answers.append("waits")
print(json.dumps(answers), flush=True)
time.sleep(int(seconds))
"""
machine.succeed(f"base64 -d <<< {base64.b64encode(PARTS.encode()).decode()} > /srv/b/parts.py")

with subtest("limits are held to before bodies are read, and are each instance's own"):
    machine.succeed("systemctl restart opencode-keys")
    got = agent("b", f"python3 /srv/b/parts.py {B} /own/chat/completions 'Authorization: Bearer ' 5 0")
    assert json.loads(got) == ["waits"] * 3 + ["429"] * 2, got
    agent("b", f"python3 /srv/b/parts.py {B} /anthropic/v1/messages 'x-api-key: ' 6 60 > /srv/b/parts 2>&1 &")
    got = machine.wait_until_succeeds("grep . /srv/b/parts")
    assert json.loads(got) == ["waits"] * 4 + ["429"] * 2, got
    assert ask("b", B, request(POST % B)).startswith("429 ")
    assert said(message("a", "hello")).count("piece") == 5
    # It is over when its client is gone.
    machine.succeed("pkill -f '[p]arts.py'")
    assert said(message("b", "hello")).count("piece") == 5

with subtest("each request has a line, without bodies and keys"):
    message("a", "hello")
    message("b", "hello")
    line = logged("model=claude-haiku-4-5")[-1]
    for word in "instance=b", "provider=anthropic", "status=200", "received=", "sent=", "seconds=":
        assert word in line, line
    assert logged("instance=a provider=anthropic") and not logged("\"messages\""), logged("\"messages\"")

with subtest("they are counted, for Prometheus"):
    machine.succeed("systemctl start opencode-keys-count")
    metrics = machine.succeed("cat /run/opencode-keys.prom")
    assert re.search(r'opencode_keys_requests_total{instance="b",provider="own",status="429"} 3', metrics), metrics
    assert int(re.search(r'opencode_keys_received_bytes_total{instance="a",provider="anthropic"} (\d+)', metrics)[1]) > 10_000, metrics
    machine.succeed("systemctl start opencode-keys-count")
    assert machine.succeed("cat /run/opencode-keys.prom") == metrics, "what was counted is counted again"

with subtest("it is hardened as a server's unit is"):
    exposure = machine.execute("systemd-analyze security opencode-keys --no-pager | tail -n 1")[1]
    assert float(re.search(r"level for .*: ([0-9.]+)", exposure)[1]) <= 2.0, exposure

# So many clients at a time, each of which asks for one stream after another: how many were asked for, and what was wrong with which.
LOAD = """
import http.client, json, sys, threading, time
port, count, seconds = (int(word) for word in sys.argv[1:])
token, end = open("/run/opencode/tokens/a").read(), time.monotonic() + seconds
lock, done, wrong = threading.Lock(), [0], []


def stream():
    peer = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < end:
        try:
            peer.request("POST", "/anthropic/v1/messages", "PIECES=10 GAP=200 ", {"x-api-key": token})
            answer = peer.getresponse()
            text = answer.read()
            good = answer.status == 200 and text.count(b"piece") == 10 and text.rstrip().endswith(b"}")
            with lock:
                done[0] += 1
                if not good:
                    wrong.append([answer.status, text[-200:].decode()])
        except (OSError, http.client.HTTPException) as error:
            with lock:
                wrong.append(repr(error))
            peer.close()


threads = [threading.Thread(target=stream) for _ in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([done[0], wrong]))
"""

with subtest("200 streams at a time, while the key changes: none is cut, none is refused, and the new key is in use"):
    machine.succeed(f"base64 -d <<< {base64.b64encode(LOAD.encode()).decode()} > /srv/a/load.py")
    seconds = int(os.environ.get("OPENCODE_EGRESS_STREAM_SECONDS", 15))
    seen()
    machine.succeed(f"((python3 /srv/a/load.py {A} 200 {seconds}; echo ended) > /run/load 2>&1 &)")
    changes = 0
    while "ended" not in machine.succeed("cat /run/load"):
        changes += 1
        write_key("a", f"sk-key-{changes}-under-load")
        machine.wait_until_succeeds(f"grep -q sk-key-{changes}-under-load /run/opencode-keys/keys.conf")
        time.sleep(2)
    done, wrong = json.loads(machine.succeed("head -n 1 /run/load"))
    assert not wrong, (len(wrong), wrong[:5])
    used = [got["headers"]["x-api-key"] for got in seen()]
    print(f"200 streams for {seconds} s: {done} requests, {changes} changes of the key, {len(set(used))} keys used, {len(wrong)} wrong")
    assert done >= 200 and len(used) == done and len(set(used)) >= 2, (done, len(used), set(used))

# Changes the key 60 times, with four streams more that stay each time, and asks once more.
CHANGES = """
import http.client, subprocess, sys


def ask(body):
    peer = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
    peer.request("POST", "/anthropic/v1/messages", body, {"x-api-key": open("/run/opencode/tokens/a").read()})
    return peer, peer.getresponse()


held = []
for _ in range(60):
    held += [ask("PIECES=2 GAP=900000 ") for _ in range(4)]
    subprocess.run(["systemctl", "reload", "opencode-keys"], check=True)
workers = subprocess.run(["pgrep", "-c", "-u", "opencode-keys"], stdout=subprocess.PIPE, text=True).stdout
print(ask("PIECES=1 GAP=0 ")[1].status, workers)
"""

with subtest("workers that keep their streams over many changes are in nobody's way"):
    machine.succeed(f"base64 -d <<< {base64.b64encode(CHANGES.encode()).decode()} > /run/changes.py")
    status_, workers = machine.succeed(f"python3 /run/changes.py {A}").split()
    print(f"after 60 changes, with streams from before each: {workers} processes of nginx")
    assert status_ == "200" and int(workers) > 128, (status_, workers)
    # For as long as they may.
    machine.succeed("grep -Fx 'worker_shutdown_timeout 1h;' /etc/opencode-keys/nginx.conf", "systemctl restart opencode-keys")

# The time to an answer's first piece, in milliseconds, the median of 100: straight from the provider on a connection of its own, on one that is kept, and through nginx.
MEASURE = """
import http.client, json, ssl, statistics, sys, time
port, address, token = int(sys.argv[1]), sys.argv[2], open("/run/opencode/tokens/a").read()
trusted = ssl.create_default_context()


class Direct(http.client.HTTPSConnection):
    def connect(self):
        self.host, name = address, self.host
        http.client.HTTPConnection.connect(self)
        self.sock = trusted.wrap_socket(self.sock, server_hostname=name)


def first(peer, path):
    began = time.monotonic()
    peer.request("POST", path, "PIECES=1 GAP=0 ", {"x-api-key": token, "Host": "llm.example.org" if path[1] == "v" else f"127.0.0.1:{port}"})
    answer = peer.getresponse()
    answer.read(1)
    took = 1000 * (time.monotonic() - began)
    answer.read()
    return took


kept = Direct("llm.example.org")
measured = {
    "straight": lambda: first(Direct("llm.example.org"), "/v1/messages"),
    "kept": lambda: first(kept, "/v1/messages"),
    "through": lambda: first(http.client.HTTPConnection("127.0.0.1", port), "/anthropic/v1/messages"),
}
print(json.dumps({name: statistics.median(sorted(one() for _ in range(100))) for name, one in measured.items()}))
"""

with subtest("what it costs is about the time of a connection with TLS"):
    machine.succeed(f"base64 -d <<< {base64.b64encode(MEASURE.encode()).decode()} > /run/measure.py")
    times = json.loads(machine.succeed(f"python3 /run/measure.py {A} {ALLOWED}"))
    print("to the first byte: " + ", ".join(f"{name} {value:.1f} ms" for name, value in times.items()))
    assert times["through"] < times["straight"] + 50, times

with subtest("a changed key is read by itself, and a bad one is not"):
    write_key("a", "sk-second-key-of-a")
    machine.wait_until_succeeds("grep -q sk-second-key-of-a /run/opencode-keys/keys.conf")

    def second():
        seen()
        ask("a", A, request(POST % A))
        return seen()[0]["headers"]["x-api-key"] == "sk-second-key-of-a"

    def wait_for_second():
        deadline = time.monotonic() + 30
        while not second():
            assert time.monotonic() < deadline, "the key of before is still sent"

    wait_for_second()
    for text, mode, expected in ("", "0400", "is empty"), ("sk-x", "0444", "everybody"), ("ANTHROPIC_API_KEY=x", "0400", "`NAME=`"), ("two\nlines", "0400", "no second line"):
        write_key("a", text, mode)
        machine.fail("systemctl reload opencode-keys")
        assert logged(expected), expected
        assert second(), f"after a reload that failed ({expected}) the key is not the one of before"
        # The watch may try once more.
        machine.wait_until_fails("systemctl is-active opencode-keys-reload")
    for owner, mode in ("opencode-a:root", "0400"), ("root:opencode-b", "0440"):
        write_key("a", "sk-second-key-of-a", mode)
        machine.succeed(f"chown {owner} /run/secrets/a")
        machine.fail("systemctl reload opencode-keys")
        assert logged(f"can be read by opencode-{owner[-1] if owner[0] == 'r' else 'a'}"), owner
        machine.wait_until_fails("systemctl is-active opencode-keys-reload")
    write_key("a", "sk-second-key-of-a")
    machine.succeed("systemctl reload opencode-keys")



def generation(number):
    """Has /run/secrets lead to other files, as sops-nix does; each is a copy of the ones of before."""
    machine.succeed(
        f"mkdir -p /run/secrets.d && cp -aT /run/secrets/ /run/secrets.d/{number}",
        f"ln -sfn secrets.d/{number} /run/secrets.new && mv -T /run/secrets.new /run/secrets",
    )


def read():
    """Which of the files of keys that root made nginx has: another one after each reload."""
    return machine.succeed("stat -c '%i %z' /run/opencode-keys/keys.conf")


def looks():
    """Has the keys looked at, without waiting for the timer. What is said of that."""
    begin = machine.succeed("date +%s.%N").strip()
    machine.execute("systemctl start opencode-keys-reload")
    return machine.succeed("journalctl --sync", f"journalctl -q -o cat --no-pager --since=@{begin} -u opencode-keys-reload")


with subtest("a link on the way to a key that leads elsewhere, as with sops-nix and agenix, is followed by itself"):
    machine.succeed("mkdir /run/secrets.d", "mv -T /run/secrets /run/secrets.d/1", "ln -s secrets.d/1 /run/secrets")
    # By the timer alone: what the path unit has seen so far is over.
    machine.succeed("systemctl stop opencode-keys-reload.path", "systemctl start opencode-keys-reload")
    machine.succeed("cp -aT /run/secrets/ /run/secrets.d/2", "printf sk-of-generation-2 > /run/secrets.d/2/a")
    begin = time.monotonic()
    machine.succeed("ln -s secrets.d/2 /run/secrets.new", "mv -T /run/secrets.new /run/secrets")
    machine.wait_until_succeeds("grep -q sk-of-generation-2 /run/opencode-keys/keys.conf", timeout=60)
    print(f"after {time.monotonic() - begin:.0f} s the key of another generation is in use")
    machine.fail("ls /run/opencode-keys/*.new")
    machine.fail("grep -rlaF sk-of-generation-2 /run/opencode /run/opencode-keys-reload /tmp /var/tmp")

with subtest("what is the same is not read anew, nor is it said that it was looked at"):
    machine.succeed("systemctl stop opencode-keys-reload.timer")
    before = read()
    generation(3)
    assert not looks() and read() == before
    machine.fail("journalctl -q -o cat --no-pager -u opencode-keys-reload -u opencode-keys-count | grep -e Starting -e Finished -e Deactivated")

with subtest("a key that is gone for a moment, or bad, leaves the one of before in use, and it is said"):
    machine.succeed("mv /run/secrets/a /run/secrets/away")
    got = looks()
    assert "/run/secrets/a) is no file" in got and "keys of before stay in use" in got, got
    machine.succeed("mv /run/secrets/away /run/secrets/a")
    assert not looks() and read() == before
    for text, mode, expected in ("", "0400", "is empty"), ("two\nlines", "0400", "no second line"), ("sk-of-generation-2", "0444", "everybody"):
        write_key("a", text, mode)
        got = looks()
        assert expected in got and "two" not in got and read() == before, (expected, got)
        machine.succeed("systemctl is-failed opencode-keys-reload")
        machine.fail("grep -q two /run/opencode-keys/keys.conf")
    write_key("a", "sk-second-key-of-a")
    assert not looks() and read() != before
    wait_for_second()

with subtest("what is stopped stays so, and what failed for its key is started once that is good"):
    machine.succeed("systemctl stop opencode-keys")
    write_key("a", "")
    assert not looks()
    machine.fail("systemctl is-active opencode-keys", "systemctl start opencode-keys")
    machine.wait_until_succeeds("systemctl is-failed opencode-keys")
    assert "is empty" in looks()
    write_key("a", "sk-second-key-of-a")
    assert not looks() and second()
    machine.succeed("rm /run/secrets && mv -T /run/secrets.d/3 /run/secrets", "systemctl start opencode-keys-reload.path opencode-keys-reload.timer")

with subtest("a configuration that nginx does not take makes the reload fail"):
    machine.succeed("cp -a /etc/opencode-keys/nginx.conf /run/nginx.conf", "echo 'nonsense;' >> /etc/opencode-keys/nginx.conf")
    machine.fail("systemctl reload opencode-keys")
    assert logged("nonsense") and second()
    machine.succeed("cp -a --remove-destination /run/nginx.conf /etc/opencode-keys/nginx.conf", "systemctl reload opencode-keys")

with subtest("a token is its user's of now, and goes with its instance"):
    token = machine.succeed("cat /run/opencode/tokens/a")
    # Another file: the server keeps the one that it was shown.
    machine.succeed("install -o opencode-free -m 0400 /run/opencode/tokens/a /run/opencode/tokens/new", "mv -T /run/opencode/tokens/new /run/opencode/tokens/a")
    machine.succeed("echo x > /run/opencode/tokens/gone", "echo x > /run/opencode/tokens/.own/gone")
    machine.succeed("systemctl reload opencode-keys")
    assert machine.succeed("stat -c '%a %U' /run/opencode/tokens/a; cat /run/opencode/tokens/a") == f"400 opencode-a\n{token}"
    machine.fail("ls -A /run/opencode/tokens /run/opencode/tokens/.own | grep gone")
    assert second()

with subtest("whose port another user has: it does not start, and what that user was told is of no use"):
    machine.succeed("systemctl stop opencode-keys-reload.path opencode-keys-reload.timer opencode-keys", "systemctl stop opencode-keys-gone")
    listen = f"import socket; s = socket.create_server(('127.0.0.1', {A})); input()"
    machine.succeed(f"(sleep inf | setpriv --reuid opencode-free --clear-groups python3 -c {shlex.quote(listen)} > /dev/null 2>&1 &)")
    machine.wait_until_succeeds(f"ss -Hltn sport = {A} | grep .")
    machine.fail("systemctl start opencode-keys")
    assert logged(f"port {A} of instance a is opencode-free's"), logged("port")
    assert machine.succeed("cat /run/opencode/tokens/a") != token
    machine.succeed("pkill -u opencode-free -f create_serve[r]", "systemctl reset-failed opencode-keys", "systemctl start opencode-keys opencode-keys-reload.path opencode-keys-reload.timer")
    # The server has what it read.
    assert ask("a", A, request(POST % A)).startswith("401 ")
    machine.succeed("systemctl restart opencode-a")
    healthy("a")
    assert second()

with subtest("with such a key it does not start, and says what to do; without nginx the server says so at once"):
    for text, expected in (None, "is no file"), ("", "is empty"):
        machine.succeed("systemctl stop opencode-keys-reload.path opencode-keys-reload.timer")
        machine.succeed("rm -f /run/secrets/a") if text is None else write_key("a", text)
        machine.fail("systemctl restart opencode-keys")
        assert logged(expected) and logged("/run/secrets/a"), expected
        machine.wait_for_unit("opencode-keys-gone")
        machine.wait_until_succeeds(f"curl -s -m 5 http://127.0.0.1:{A}/ | grep -F 'opencode-keys.service does not run'")
        begin = time.monotonic()
        answer = message("a", "hello")
        took = time.monotonic() - begin
        assert "opencode-keys.service does not run" in json.dumps(answer["info"]["error"]) and took < 5, (took, answer)
        machine.succeed("systemctl reset-failed opencode-keys")
    write_key("a", KEYS["a"])
    machine.succeed("systemctl start opencode-keys", "systemctl start opencode-keys-reload.path opencode-keys-reload.timer")
    machine.fail("systemctl is-active opencode-keys-gone")
    assert said(message("a", "hello")).count("piece") == 5

with subtest("it comes back when it is killed, and is stopped with an answer"):
    machine.succeed("systemctl kill -s KILL opencode-keys")
    machine.wait_until_succeeds(f"curl -s -m 5 http://127.0.0.1:{A}/ | grep -F 'no such provider'")
    machine.succeed("systemctl stop opencode-keys")
    machine.wait_until_succeeds(f"curl -s -m 5 http://127.0.0.1:{A}/ | grep -F 'does not run'")
    machine.succeed("systemctl start opencode-keys")

with subtest("a key in a file of the environment as well: the server does not start, and says so"):
    machine.succeed("systemctl stop opencode-a", "echo ANTHROPIC_API_KEY=x > /run/secrets/environment")
    override("opencode-a-setup", "[Service]\nEnvironmentFile=/run/secrets/environment\n")
    machine.fail("systemctl start opencode-a")
    assert "ANTHROPIC_API_KEY is in the environment" in printed("a"), printed("a")
    override("opencode-a-setup", "")
    machine.succeed("systemctl reset-failed 'opencode-a*'")
    start("a")

with subtest("without a token the server does not start, and says whose fault it is"):
    machine.succeed("systemctl stop opencode-a opencode-keys opencode-keys-reload.path opencode-keys-reload.timer", "rm /run/opencode/tokens/a")
    override("opencode-keys", "[Service]\nExecStartPre=\nExecStartPre=/bin/false\n")
    machine.fail("systemctl start opencode-a")
    assert "opencode-keys.service has made no token" in machine.succeed("journalctl -q -o cat --no-pager -u opencode-a-paths"), printed("a")
    # Otherwise it may be about to start again as it was.
    machine.succeed("systemctl stop opencode-keys")
    override("opencode-keys", "")
    machine.succeed("systemctl reset-failed 'opencode-*'", "systemctl start opencode-keys")
    start("a")

with subtest("after all that failed, no key is in a journal"):
    for key in [*KEYS.values(), "sk-second-key-of-a", "-under-load", "ANTHROPIC_API_KEY=x"]:
        assert not logged(key), key
        machine.fail(f"journalctl -q --namespace=* -o cat --no-pager | grep -F -e {key}")
