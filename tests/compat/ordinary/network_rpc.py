"""Calls between programs: XML-RPC, a socket server, a mail message, addresses."""

import email, email.message, ipaddress, socket, socketserver, threading, xmlrpc.client, xmlrpc.server

with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True) as server:
    server.register_function(lambda *numbers: sum(numbers), "add")
    server.register_function(lambda: 1 / 0, "fail")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = xmlrpc.client.ServerProxy("http://127.0.0.1:%d" % server.server_address[1])
    print(proxy.add(1, 2, 3.5))
    try:
        proxy.fail()
    except xmlrpc.client.Fault as fault:
        print(fault.faultString)
    server.shutdown()


class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())


with socketserver.ForkingTCPServer(("127.0.0.1", 0), Upper) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_connection(server.server_address) as client:
        client.sendall(b"forked\n")
        print(client.recv(100))
    server.shutdown()
message = email.message.EmailMessage()
message["Subject"], message["To"] = "Gr\u00fc\u00dfe", "a@example.org"
message.set_content("text\n")
message.add_attachment(b"\0\1", maintype="application", subtype="octet-stream", filename="x.bin")
again = email.message_from_bytes(bytes(message), policy=email.policy.default)
print(again["Subject"], [part.get_content_type() for part in again.walk()])
network = ipaddress.ip_network("10.0.0.0/22")
print(
    network.num_addresses,
    [str(n) for n in network.subnets(new_prefix=24)],
    ipaddress.ip_address("::ffff:1.2.3.4").ipv4_mapped,
)
