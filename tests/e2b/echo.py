"""A server for a sandbox: it answers a GET with the path, and a WebSocket with what that says.

It is no test file: the clients' programs send it into a sandbox and start it there with the port to listen at.
"""

from __future__ import annotations

import base64
import hashlib
import socketserver
import sys

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Echo(socketserver.StreamRequestHandler):
    """One connection, one request."""

    def handle(self) -> None:
        """See BaseRequestHandler."""
        path = self.rfile.readline().split(b" ")[1]
        head = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.partition(b":")
            head[name.strip().lower()] = value.strip()
        if head.get(b"upgrade", b"").lower() != b"websocket":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(path) + path)
            return
        key = base64.b64encode(hashlib.sha1(head[b"sec-websocket-key"] + GUID).digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        self.wfile.write(b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n")
        while self.returned():
            pass

    def returned(self) -> bool:
        """Send one short frame back as it came; whether more may come."""
        kind, size = self.rfile.read(2)
        mask, size = self.rfile.read(4), size & 0x7F
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(size)))
        self.wfile.write(bytes((kind, size)) + data)
        return kind & 0x0F != 8


class Server(socketserver.ThreadingTCPServer):
    """Each connection on a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(sys.argv[1])), Echo) as server:
    server.serve_forever()
