"""How much room there is, and how file names may look."""

import os, shutil

total, _, free = shutil.disk_usage(".")
print(total >= free > 10_000_000, os.statvfs(".").f_namemax)
for name in ("plain", "with space", "\u00fcn\u00efc\u00f6de", "-dash", "new\nline", "x" * 255):
    open(name, "w").close()
    print(os.path.exists(name), len(os.fsencode(name)))
open(b"\xff\xfe", "w").close()
print(sorted(os.listdir(b"."))[-2:])
try:
    open("x" * 256, "w")
except OSError as error:
    print(error.strerror)
for n in range(500):
    open(f"many-{n}", "w").close()
print(len([name for name in os.listdir() if name.startswith("many-")]))
