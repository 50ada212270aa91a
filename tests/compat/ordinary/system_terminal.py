"""A terminal of one's own: its size, raw mode, a child that thinks somebody is there."""

import os, pty, subprocess, termios, tty

master, slave = pty.openpty()
print(os.isatty(slave), os.ttyname(slave).startswith("/dev/pts/"))
termios.tcsetwinsize(slave, (40, 120))
print(os.get_terminal_size(slave), termios.tcgetwinsize(master))
tty.setraw(slave)
os.write(master, b"raw\n")
print(os.read(slave, 10))
code = "import sys, os; print(sys.stdout.isatty(), os.get_terminal_size().columns)"
subprocess.run(["python3", "-c", code], stdin=slave, stdout=slave, stderr=slave, check=True)
print(os.read(master, 100))
pid, fd = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", "stty -echo; read line; echo got $line; tty >/dev/null && exit 9"])
os.write(fd, b"typed\n")
seen = b""
while b"got typed" not in seen:
    seen += os.read(fd, 100)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
