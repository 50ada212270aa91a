"""What programs look up in /proc and /dev about themselves."""

import os

print(
    os.readlink("/proc/self") == str(os.getpid()),
    os.readlink("/proc/self/cwd"),
    os.path.basename(os.readlink("/proc/self/exe")),
)
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print(int(status["VmRSS"].split()[0]) > 1000, status["Threads"], status["Pid"] == str(os.getpid()))
print(int(open("/proc/self/statm").read().split()[0]) > 1000, len(open("/proc/self/stat").read().split()) > 40)
print(
    any("libc.so" in line or "ld-linux" in line for line in open("/proc/self/maps")), os.path.exists("/proc/self/fd/1")
)
print(open("/proc/self/cmdline", "rb").read() != b"", sorted(map(int, os.listdir("/proc/self/fd")))[:3])
for name in ("null", "zero", "full", "random", "urandom", "stdin", "stdout", "fd"):
    print(name, os.path.exists(f"/dev/{name}"))
try:
    with open("/dev/full", "wb", 0) as full:
        full.write(b"x")
except OSError as error:
    print(error.strerror)
print(open("/dev/zero", "rb").read(4), open("/dev/null").read() == "", len(open("/dev/urandom", "rb").read(8)))
