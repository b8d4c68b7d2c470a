"""An editor's way to a language server over TCP: starts it on a port, asks it to begin, and for the symbols of a file."""

import json
import socket
import subprocess
import sys
import time

probe = socket.create_server(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
server = subprocess.Popen([sys.executable, "-m", "pylsp", "--tcp", "--host", "127.0.0.1", "--port", str(port)])


def connect():
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            # It is starting. Where it cannot, this says so.
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


try:
    stream = connect().makefile("rwb")

    def send(message):
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        stream.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        stream.flush()

    def ask(number, method, params):
        send({"id": number, "method": method, "params": params})
        while True:
            length = 0
            while line := stream.readline().strip():
                name, value = line.split(b": ")
                length = int(value) if name == b"Content-Length" else length
            answer = json.loads(stream.read(length))
            if answer.get("id") == number:
                return answer["result"]

    assert "capabilities" in ask(1, "initialize", {"processId": None, "rootUri": None, "capabilities": {}})
    document = {"uri": "file:///left.py", "languageId": "python", "version": 1, "text": "def left():\n    pass\n"}
    send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
    symbols = ask(2, "textDocument/documentSymbol", {"textDocument": {"uri": document["uri"]}})
    assert [symbol["name"] for symbol in symbols] == ["left"], symbols
finally:
    server.kill()
