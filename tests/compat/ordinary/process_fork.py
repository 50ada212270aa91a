"""fork, exec, wait, pipes, exit codes, orphans, process groups."""

import os, signal, sys


def child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work() or 0)
        except BaseException:
            os._exit(99)
    return pid


def fate(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


print(fate(child(lambda: 7)), fate(child(lambda: os.kill(os.getpid(), signal.SIGTERM))), fate(child(lambda: 1 / 0)))
r, w = os.pipe()
pid = child(lambda: os.write(w, b"from the child") * 0)
os.close(w)
print(os.read(r, 100), os.read(r, 100), fate(pid))
print(fate(child(lambda: os.execvp("sh", ["sh", "-c", "exit 5"]))))
print(fate(child(lambda: int(os.getppid() == parent) or 3)) if (parent := os.getpid()) else None)
print(fate(child(lambda: (os.setsid(), int(os.getsid(0) == os.getpid()))[1])))
pids = [child(lambda n=n: n) for n in range(20)]
print(sorted(fate(pid) for pid in pids))
try:
    os.wait()
except ChildProcessError as error:
    print(error.strerror)
print(
    os.system("exit 4") >> 8,
    os.popen("echo popen").read().strip(),
    os.WEXITSTATUS(os.spawnlp(os.P_WAIT, "true", "true")),
)
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 6"], os.environ)
print(fate(pid))
