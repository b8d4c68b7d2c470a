"""The second host's servers: HTTP on port 80 of each address, saying where a request arrived."""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.request.getsockname()[0].removeprefix("::ffff:")
        body = f"upstream {address} got {self.requestline}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    # With IPv4 as well.
    address_family = socket.AF_INET6


Server(("::", 80), Handler).serve_forever()
