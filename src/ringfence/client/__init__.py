"""The SDK: the same verbs for synchronous and asynchronous programs.

from ringfence import Sandbox

with Sandbox.create(template="python") as sb:
    print(sb.run("print(6 * 7)").stdout)
"""

from ringfence.client._async.client import AsyncClient
from ringfence.client._async.files import AsyncFiles, AsyncWatch
from ringfence.client._async.process import AsyncProcess
from ringfence.client._async.sandbox import AsyncSandbox
from ringfence.client._async.stream import AsyncStream
from ringfence.client._async.terminal import AsyncTerminal, AsyncTunnelLink
from ringfence.client._sync.client import Client
from ringfence.client._sync.files import Files, Watch
from ringfence.client._sync.process import Process
from ringfence.client._sync.sandbox import Sandbox
from ringfence.client._sync.stream import Stream
from ringfence.client._sync.terminal import Terminal, TunnelLink
from ringfence.client.errors import DeadlineExceeded, ProgramFailed, Unreachable
from ringfence.client.results import Chunk, ProcessResult, RunResult
from ringfence.client.tunnel import Tunnel

__all__ = [
    "AsyncClient",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncSandbox",
    "AsyncStream",
    "AsyncTerminal",
    "AsyncTunnelLink",
    "AsyncWatch",
    "Chunk",
    "Client",
    "DeadlineExceeded",
    "Files",
    "Process",
    "ProcessResult",
    "ProgramFailed",
    "RunResult",
    "Sandbox",
    "Stream",
    "Terminal",
    "Tunnel",
    "TunnelLink",
    "Unreachable",
    "Watch",
]
