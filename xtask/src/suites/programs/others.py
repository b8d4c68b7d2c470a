"""Tries ports on loopback that are somebody else's, by TCP and, where the number is below zero, by UDP. Each must be refused with EPERM."""

import socket
import sys

for argument in sys.argv[1:]:
    number = int(argument)
    kind = socket.SOCK_STREAM if number > 0 else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        try:
            client.connect(("127.0.0.1", abs(number)))
            client.send(b"data")
        except PermissionError:
            continue
    sys.exit(f"LEAK: {number} of somebody else's is reached")
