# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Reach anything that is not ourselves: interfaces, routes, the host, metadata services, a resolver, Unix sockets."""

import contextlib
import ctypes
import os
import socket
import stat
import struct

from ringfence.attack.probes.prelude import attempt, call, facts, in_child, name_of, rewired, say, text_of

METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"]
METADATA6 = ["fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"]
RESOLVERS = ["1.1.1.1", "8.8.8.8", "9.9.9.9", "10.0.2.3", "169.254.1.1"]
PRIVATE = ["10.0.0.1", "172.17.0.1", "192.168.0.1", "192.168.122.1", "100.64.0.1"]
PORTS = [22, 53, 80, 443, 2375, 6443, 8080, 8642, 9090, 10250]
SOCKETS = [
    "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/run/systemd/notify",
    "/var/lib/ringfence/node/node.sock", "/run/ringfence/node.sock", "/run/user/1000/bus", "/tmp/.X11-unix/X0",
    *facts.get("sockets", []),
]  # fmt: skip


def connect(family: int, address: object, kind: int = socket.SOCK_STREAM) -> str:
    """Try to connect, and for datagrams to send as well."""
    with socket.socket(family, kind) as sock:
        sock.settimeout(0.3)
        try:
            sock.connect(address)  # type: ignore[arg-type]
            if kind == socket.SOCK_DGRAM:
                sock.send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")
        except TimeoutError:
            return "timed out"
        except OSError as error:
            return name_of(error.errno)
    return "ok"


def reached() -> dict[str, str]:
    """Every place off this sandbox that we try to reach."""
    tries: dict[str, str] = {}
    for address in [*METADATA, *PRIVATE, *facts.get("addresses", [])]:
        for port in PORTS[:4] if address in PRIVATE else [80, *facts.get("tcp_ports", [])]:
            tries[f"tcp {address}:{port}"] = connect(socket.AF_INET, (address, port))
    for address in METADATA6:
        tries[f"tcp [{address}]:80"] = connect(socket.AF_INET6, (address, 80))
    for address in RESOLVERS:
        tries[f"dns {address}"] = connect(socket.AF_INET, (address, 53), socket.SOCK_DGRAM)
        tries[f"dns over tls {address}"] = connect(socket.AF_INET, (address, 853))
    for port in [*PORTS, *facts.get("tcp_ports", [])]:
        tries[f"own loopback {port}"] = connect(socket.AF_INET, ("127.0.0.1", port))
        tries[f"own loopback6 {port}"] = connect(socket.AF_INET6, ("::1", port))
    tries["broadcast"] = connect(socket.AF_INET, ("255.255.255.255", 67), socket.SOCK_DGRAM)
    tries["multicast"] = connect(socket.AF_INET, ("224.0.0.251", 5353), socket.SOCK_DGRAM)
    tries["all nodes"] = connect(socket.AF_INET6, ("ff02::1", 5353, 0, 1), socket.SOCK_DGRAM)
    return tries


def unix() -> dict[str, str]:
    """Unix sockets by well-known path, by every path that is one, and by abstract name."""
    tries = {path: connect(socket.AF_UNIX, path) for path in SOCKETS}
    for name in facts.get("abstract", []):
        tries[f"@{name}"] = connect(socket.AF_UNIX, b"\0" + name.encode())
    for line in text_of("/proc/net/unix").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[7].startswith("@"):
            tries[fields[7]] = connect(socket.AF_UNIX, b"\0" + fields[7][1:].encode())
    for top in ("/run", "/tmp", "/var", "/home", "/dev"):
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        tries[path] = connect(socket.AF_UNIX, path)
    return tries


def interfaces() -> list[str]:
    """Interfaces other than the loopback, by every way to ask."""
    names = {name for _, name in socket.if_nameindex()}
    names |= {line.split(":")[0].strip() for line in text_of("/proc/net/dev").splitlines()[2:]}
    return sorted(names - {"lo"})


def routes() -> list[str]:
    """Routes that lead anywhere."""
    four = [line.split()[0] for line in text_of("/proc/net/route").splitlines()[1:]]
    six = [line.split()[-1] for line in text_of("/proc/net/ipv6_route").splitlines()]
    return sorted({name for name in four + six if name and name != "lo"})


def flags_of_lo() -> str:
    """Take an interface up and down with the old ioctl."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        data = ctypes.create_string_buffer(struct.pack("16sh22x", b"lo", 0), 40)
        return call(16, sock.fileno(), 0x8914, ctypes.addressof(data))


def own_server() -> str:
    """The control: what a program may do. Serve and connect on its own loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        return connect(socket.AF_INET, server.getsockname())


def by_name() -> dict[str, str]:
    """Names must not resolve: there is nobody to ask."""
    names = ["metadata.google.internal", "example.com", "host.docker.internal", "kubernetes.default.svc"]
    return {name: attempt(socket.getaddrinfo, name, 80) for name in names}


tries = reached() | unix()
changed = {**rewired(1), "set an interface's flags": in_child(flags_of_lo)}
names = by_name()
say(
    found=[f"reached {name}" for name, how in tries.items() if how in {"ok", "timed out"}]
    + [f"could {name}" for name, how in changed.items() if how == "ok"]
    + [f"resolved {name}" for name, how in names.items() if how == "ok"]
    + [f"interface {name}" for name in interfaces()]
    + [f"route by {name}" for name in routes()],
    tried=len(tries) + len(changed) + len(names) + 2,
    own_loopback=attempt(own_server) and own_server(),
    resolver=text_of("/etc/resolv.conf").split(),
    changed=changed,
)
