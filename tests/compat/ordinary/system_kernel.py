"""What the kernel offers by way of os and friends: descriptors, events, timers, notifications, priorities, usage."""

import ctypes, errno, fcntl, os, resource, select, signal

r, w = os.pipe()
print(fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 65536) >= 65536, os.get_inheritable(r))
os.set_blocking(r, False)
try:
    os.read(r, 1)
except BlockingIOError as error:
    print(errno.errorcode[error.errno])
event = os.eventfd(3)
print(os.eventfd_read(event))
poll = select.epoll()
poll.register(r, select.EPOLLIN)
os.write(w, b"x")
print(poll.poll(1) == [(r, select.EPOLLIN)])
fd = os.memfd_create("scratch", os.MFD_ALLOW_SEALING)
os.write(fd, b"sealed")
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
try:
    os.write(fd, b"more")
except PermissionError:
    print("sealed")
pid = os.fork()
if pid == 0:
    signal.pause()
handle = os.pidfd_open(pid)
signal.pidfd_send_signal(handle, signal.SIGTERM)
print(os.waitid(os.P_PIDFD, handle, os.WEXITED).si_status)
print(len(os.sched_getaffinity(0)) >= 1, os.cpu_count() >= 1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1000)
print(len(os.urandom(1000)), len(os.getrandom(16)), os.sysconf("SC_PAGE_SIZE"), os.pathconf(".", "PC_NAME_MAX"))
libc = ctypes.CDLL(None, use_errno=True)
print(libc.strlen(b"by ctypes"), libc.close(-1), os.strerror(ctypes.get_errno()))
os.sendfile(w, fd, 0, 6)
print(os.read(r, 10))
with open("a", "wb") as a, open("a", "rb") as b:
    os.posix_fallocate(a.fileno(), 0, 5000)
    print(os.fstat(b.fileno()).st_size)
os.setxattr("a", "user.note", b"kept") if hasattr(os, "setxattr") else None
print(os.getxattr("a", "user.note"), os.uname().sysname)
