"""Bytes laid out by hand: struct, array, memoryview, int, base64."""

import array, base64, binascii, struct

head = struct.pack("<4sHBQd", b"RIFF", 513, 7, 2**40, -0.5)
print(head.hex(), struct.unpack("<4sHBQd", head), struct.calcsize("@cq"))
numbers = array.array("i", range(10))
view = memoryview(numbers)[2:8:2]
print(view.tolist(), numbers.tobytes()[:8], numbers.itemsize)
numbers.byteswap()
print(numbers[:3].tolist(), (1000).to_bytes(3, "big"), int.from_bytes(b"\xff\xfe", "little", signed=True))
print(base64.b64encode(bytes(range(20))), base64.b85encode(b"hello world"), binascii.crc32(b"hello"))
print(base64.b32decode(base64.b32encode(b"x" * 11)), (0.1).hex(), float.fromhex("0x1.8p3"))
