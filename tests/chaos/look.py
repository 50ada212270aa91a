"""What holds a sandbox, as a program inside it finds it: to compare one sandbox with another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ringfence.guest import frames
from ringfence.runtimes.base import Started

LOOK = r"""
import json, os, resource
status = dict(l.split(':\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\t' in l)
kept = ('Uid', 'Gid', 'Groups', 'NoNewPrivs', 'Seccomp', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'Umask')
def refused(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 'allowed'
mounts = [l.split(' - ') for l in open('/proc/self/mountinfo').read().splitlines()]
print(json.dumps({
    'status': {name: status[name].strip() for name in kept},
    'limits': [resource.getrlimit(n) for n in range(16)],
    'host': os.uname().nodename,
    'root': refused(os.mkdir, '/x'),
    'etc': refused(open, '/etc/x', 'w'),
    'sysctl': refused(open, '/proc/sys/kernel/hostname'),
    'unshare': refused(os.unshare, 0x10000000) if hasattr(os, 'unshare') else 0,
    'sys': os.path.exists('/sys/kernel'),
    'ports': refused(__import__('socket').create_server, ('127.0.0.1', 80)),
    'mounts': sorted(' '.join(sorted(m[0].split()[5].split(','))) + ' ' + m[0].split()[4] for m in mounts),
    'groups above': [l for l in open('/proc/self/cgroup').read().splitlines() if not l.endswith(':/')],
    'score': open('/proc/self/oom_score_adj').read().strip(),
}, sort_keys=True))
"""


async def look(started: Started) -> dict[str, Any]:
    """Run the program, and return what it saw; {"lost": ...} when the sandbox did not answer."""
    loop = asyncio.get_running_loop()
    request = json.dumps({"op": "run", "code": LOOK}).encode()
    await loop.sock_sendall(started.channel, frames.encode(frames.OPEN, 1, request))
    parser, out = frames.Parser(), b""
    while True:
        data = await loop.sock_recv(started.channel, 65536)
        if not data:
            return {"lost": "the channel ended"}
        for frame in parser.feed(data):
            out += frame.payload if frame.type in {frames.STDOUT, frames.STDERR} else b""
            if frame.type == frames.END:
                seen: dict[str, Any] = (
                    json.loads(out) if out.startswith(b"{") else {"lost": out.decode(errors="replace")}
                )
                return {**seen, "layers": sorted(started.layers)}
