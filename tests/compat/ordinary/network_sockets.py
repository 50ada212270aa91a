"""Sockets on the loopback: stream, datagram, pairs, timeouts, a refused port, names, IPv6, passing descriptors."""

import array, os, selectors, socket, threading

with socket.create_server(("127.0.0.1", 0)) as server:

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(100) * 3)

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.create_connection(server.getsockname(), 10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        print(client.makefile("rb").read())
    thread.join()
    port = server.getsockname()[1]
try:
    socket.create_connection(("127.0.0.1", port), 5)
except ConnectionRefusedError:
    print("refused")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
    a.bind(("127.0.0.1", 0))
    b.sendto(b"x" * 1000, a.getsockname())
    print(len(a.recv(2000)))
    a.settimeout(0.05)
    try:
        a.recv(1)
    except TimeoutError:
        print("timeout")
left, right = socket.socketpair()
r, w = os.pipe()
socket.send_fds(left, [b"fds"], [w])
_, fds, _, _ = socket.recv_fds(right, 10, 1)
os.write(fds[0], b"by a passed descriptor")
print(os.read(r, 100))
chooser = selectors.DefaultSelector()
chooser.register(right, selectors.EVENT_READ)
print(len(chooser.select(0)), left.send(b"now"), len(chooser.select(1)))
print(
    socket.gethostbyname("localhost"),
    socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[0][4],
    socket.inet_aton("10.1.2.3"),
)
with (
    socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
    socket.create_connection(("::1", server.getsockname()[1]), 5),
):
    print("IPv6 on the loopback")
print(socket.has_ipv6, socket.htons(1), [name for _, name in socket.if_nameindex()].count("lo"))
