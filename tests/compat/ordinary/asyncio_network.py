"""Servers and clients on the loopback and on a socket file, datagrams, a child process and signals, by asyncio."""

import asyncio, os, signal, sys


async def echo(reader, writer):
    while data := await reader.readline():
        writer.write(data.upper())
        await writer.drain()
    writer.close()


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.transport.sendto(data[::-1], addr)


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, addr):
        self.got.set_result(data)


async def talk(reader, writer):
    writer.write(b"one\ntwo\n")
    writer.write_eof()
    print(await reader.read())
    writer.close()
    await writer.wait_closed()


async def main():
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(talk(*await asyncio.open_connection("localhost", port)) for _ in range(3)))
    async with await asyncio.start_unix_server(echo, "sock"):
        await talk(*await asyncio.open_unix_connection("sock"))
    server, _ = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
    client, protocol = await loop.create_datagram_endpoint(Client, remote_addr=server.get_extra_info("sockname"))
    client.sendto(b"datagram")
    print(await asyncio.wait_for(protocol.got, 10))
    client.close()
    server.close()
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(input()[::-1])", stdin=pipe, stdout=pipe)
    print(await child.communicate(b"backwards\n"), child.returncode)
    child = await asyncio.create_subprocess_shell("sleep 100")
    child.terminate()
    print(await child.wait())
    heard = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    print(await asyncio.wait_for(heard.wait(), 10))


asyncio.run(main())
