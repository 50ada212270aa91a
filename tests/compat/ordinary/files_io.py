"""Reading and writing: modes, seeking, buffering, encodings, line ends, memory maps, sparse files, locks."""

import fcntl, io, mmap, os

with open("x", "w", encoding="utf-16", newline="\r\n") as file:
    file.write("one\ntw\u00f6\n")
print(open("x", "rb").read())
with open("x", "r+b") as file:
    file.seek(-4, os.SEEK_END)
    print(file.tell(), file.read(2), file.truncate(6), os.fstat(file.fileno()).st_size)
with open("big", "wb") as file:
    file.seek(10_000_000)
    file.write(b"end")
print(os.stat("big").st_size, os.stat("big").st_blocks * 512 < 1_000_000)
with open("big", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    memory[100:105] = b"hello"
    print(memory.find(b"end"), memory[98:107])
with open("log", "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("a line", file=file, flush=True)
    with open("log") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("locked")
try:
    open("x", encoding="ascii").read()
except UnicodeDecodeError as error:
    print(error.reason)
fd = os.open("raw", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
print(os.write(fd, b"0123456789"), os.pread(fd, 4, 3), os.pwritev(fd, [b"ab", b"cd"], 2), os.pread(fd, 99, 0))
os.close(fd)
print(io.TextIOWrapper(io.BytesIO("\u00fc".encode("latin-1")), "latin-1").read())
