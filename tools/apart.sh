#!/usr/bin/env bash
# Run a command as if alone on the machine: with processes, mounts, links, message queues and shared memory of its own.
# Tests that count everything before and after can so run beside others that do the same.
set -euo pipefail
# Process 1 stays a shell: it takes in orphans, which a test runner would leave as zombies.
exec unshare --pid --fork --kill-child --mount --propagation private --net --ipc --mount-proc bash -c '
  python3 -c "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack(\"16sh14x\", b\"lo\", 1))"
  mount -t tmpfs -o mode=1777 shm /dev/shm
  mount -t mqueue mqueue /dev/mqueue 2>/dev/null || true
  "$@"
  exit $?' -- "$@"
