"""Temporary files and directories: where they are, who may read them, and that they go."""

import os, stat, tempfile

print(tempfile.gettempdir())
with tempfile.TemporaryDirectory(prefix="compat-") as place:
    print(os.path.dirname(place), oct(stat.S_IMODE(os.stat(place).st_mode)), os.listdir(place))
    with tempfile.NamedTemporaryFile("w+", dir=place, suffix=".txt") as file:
        file.write("x" * 100)
        file.flush()
        print(os.path.getsize(file.name), oct(stat.S_IMODE(os.stat(file.name).st_mode)))
    print(os.listdir(place))
print(os.path.exists(place))
with tempfile.TemporaryFile() as file:
    print(os.fstat(file.fileno()).st_nlink)
with tempfile.SpooledTemporaryFile(max_size=10) as file:
    file.write(b"123456789012")
    file.seek(0)
    print(file.read())
for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "."):
    with open(os.path.join(place, "mine"), "w") as file:
        print(place, file.write("ok"))
