"""The second host: a web server with what the clients ask for, with TLS and without, and whatever else they connect to.

Writes a line for each connection that got as far as its protocol: the port, and the name that it is for.
"""

import http.server
import json
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
import zipfile

certificate, key, log_path, directory = sys.argv[1:]
root = pathlib.Path(directory)
log = open(log_path, "a", buffering=1)


def file(path, text):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files():
    file("index.html", "reached\n")
    # A page that asks for something more when it knows what the server speaks, and has by what that came and how many seconds it took.
    file("quic/more.js", "")
    measured = 'performance.getEntriesByName(location.origin + "/quic/more.js")[0]'
    script = f"const more = {measured}; document.body.textContent = `${{more.nextHopProtocol}} ${{more.duration / 1000}}`"
    file("quic/index.html", f'<body><script src="more.js"></script><script>{script}</script></body>')
    # npm's registry.
    package = {"name": "left", "version": "1.0.0", "dist": {"tarball": "https://left/", "shasum": "0" * 40}}
    file("left", json.dumps({"name": "left", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package}}))
    # PyPI's, with a package.
    wheel = "left-1.0.0-py3-none-any.whl"
    file("simple/left/index.html", f'<a href="{wheel}">{wheel}</a>')
    with zipfile.ZipFile(root / "simple/left" / wheel, "w") as archive:
        archive.writestr("left-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: left\nVersion: 1.0.0\n")
        archive.writestr("left-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("left-1.0.0.dist-info/RECORD", "")
    # A Maven repository.
    pom = "<project><modelVersion>4.0.0</modelVersion><groupId>left</groupId><artifactId>left</artifactId><version>1.0.0</version></project>"
    file("maven/left/left/1.0.0/left-1.0.0.pom", pom)
    with zipfile.ZipFile(root / "maven/left/left/1.0.0/left-1.0.0.jar", "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    # A registry of crates.
    crate = {"name": "left", "vers": "1.0.0", "deps": [], "cksum": "0" * 64, "features": {}, "yanked": False}
    file("index/config.json", json.dumps({"dl": "https://left/"}))
    file("index/le/ft/left", json.dumps(crate))
    # A repository, for clients without Git's own protocol.
    git = ["git", "-C", directory]
    author = ["-c", "user.name=left", "-c", "user.email=left"]
    subprocess.run([*git, "init", "--quiet", "left.git"], check=True)
    subprocess.run([*git[:2], f"{directory}/left.git", *author, "commit", "--quiet", "--allow-empty", "-m", "left"], check=True)
    subprocess.run([*git[:2], f"{directory}/left.git", "update-server-info"], check=True)


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The times of clients are measured.
    disable_nagle_algorithm = True

    def __init__(self, *words):
        super().__init__(*words, directory=directory)

    def end_headers(self):
        if self.server.context and self.path.startswith("/quic/"):
            self.send_header("Alt-Svc", 'h3=":443"')
        super().end_headers()

    def log_request(self, *_):
        log.write(f"{self.server.server_port} {self.headers['Host']} {self.command} {self.path}\n")

    def log_message(self, *_):
        pass

    def do_POST(self):
        """What a model says, in OpenAI's form."""
        self.rfile.read(int(self.headers["Content-Length"]))
        common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "left"}
        said = {**common, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "reached"}}]}
        end = {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        body = "".join(f"data: {line}\n\n" for line in [json.dumps(said), json.dumps(end), "[DONE]"]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    context = None

    def server_bind(self):
        # By IPv4 too. Not the base's, which asks for this host's name.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_port = self.server_address[1]

    def finish_request(self, request, client):
        # In the connection's thread: a client may not go on with the handshake.
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client)

    def handle_error(self, *_):
        pass


def hang_up(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            connection, _ = server.accept()
            log.write(f"{port}\n")
            connection.close()


files()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
plain, secure = Server(("::", 80), Handler), Server(("::", 443), Handler)
secure.context = context
threading.Thread(target=plain.serve_forever).start()
threading.Thread(target=secure.serve_forever).start()
threading.Thread(target=hang_up, args=[22]).start()
log.write("ready\n")
