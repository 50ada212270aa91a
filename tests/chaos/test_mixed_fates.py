"""Thousands of runs that end in every way there is, mixed, over eight connections (catalogue row 153).

Each is told its own fate and no other's. Afterwards the host is as before, and the server's processes hold as many
descriptors and as much memory as they did after the first few.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from ringfence.attack.own_server import OwnServer
from tests.chaos.conftest import NOWHERE, TEMPLATES
from tests.support import ledger
from tests.support.scale import RUNS

CONNECTIONS = 8
WARM_UP = 64  # runs before the first count: pools, caches and connections are there then
MIB = 1024 * 1024


@dataclass(frozen=True)
class Fate:
    """One kind of run, and what its answer must say."""

    body: dict[str, Any]
    how: str
    code: int | None = None
    signal: int | None = None
    output: Callable[[str], bool] = field(default=lambda _: True)

    @property
    def numbers(self) -> dict[str, int | None]:
        """Code and signal, where they are the program's own doing."""
        return {"code": self.code, "signal": self.signal}


FATES = {
    "ok": Fate({"code": "print(6 * 7)"}, "exited", 0, output=lambda text: text == "42\n"),
    "shell": Fate({"shell": "echo $((6 * 7)); exit 0"}, "exited", 0, output=lambda text: text == "42\n"),
    "error": Fate({"code": "print('x')\n1/0"}, "exited", 1, output=lambda text: text == "x\n"),
    "code": Fate({"code": "raise SystemExit(77)"}, "exited", 77),
    "not found": Fate({"argv": ["no-such-program"]}, "exited", 127),
    "timeout": Fate({"code": "while True: pass", "timeout": 0.3}, "timed_out"),
    "wall limit": Fate({"shell": "sleep 600", "limits": {"wall_seconds": 0.3}}, "timed_out"),
    "out of memory": Fate({"code": "x = bytearray(10**9)", "limits": {"memory_bytes": 48 * MIB}}, "out_of_memory"),
    "killed": Fate({"code": "import os\nos.kill(os.getpid(), 9)"}, "signalled", signal=9),
    "terminated": Fate({"shell": "kill -TERM $$"}, "signalled", signal=15),
    "crash": Fate({"code": "import ctypes\nctypes.string_at(0)"}, "signalled", signal=11),
    "flood": Fate(
        {"shell": "yes", "limits": {"output_bytes": 200_000}}, "output_capped", output=lambda text: len(text) == 200_000
    ),
    "disk full": Fate(
        {"shell": "head -c 9000000 /dev/zero > f || exit 5", "limits": {"scratch_bytes": 2 * MIB}}, "disk_full", 5
    ),
    "grandchildren": Fate(
        {"shell": "(sleep 600 &) ; (setsid sleep 600 &) ; echo left"}, "exited", 0, output=lambda text: text == "left\n"
    ),
    "files": Fate({"shell": "cat in.txt", "files": {"in.txt": "given"}, "collect": ["in.txt"]}, "exited", 0),
}
# The quick ones are most of what a server sees.
WEIGHTS = {"ok": 10, "shell": 4, "error": 4, "files": 2}


class Crowd:
    """Eight clients that work through one list of runs."""

    def __init__(self, server: OwnServer) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._server = server
        self._lock = threading.Lock()

    def work(self, count: int, seed: int) -> None:
        """So many runs."""
        dice = random.Random(seed)
        names = dice.choices(list(FATES), [WEIGHTS.get(name, 1) for name in FATES], k=count)
        names[: len(FATES)] = list(FATES)[:count]
        threads = [threading.Thread(target=self._client, args=(names, dice)) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, names: list[str], dice: random.Random) -> None:
        headers = {"Authorization": f"Bearer {self._server.key}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=90) as client:
            while True:
                with self._lock:
                    if not names:
                        return
                    name = names.pop()
                    leave = dice.random() < 0.02
                if leave:
                    self._cancel(client)
                else:
                    self._one(client, name)

    def _one(self, client: httpx.Client, kind: str) -> None:
        fate = FATES[kind]
        answer = client.post("/v1/runs", json={"template": "base", **fate.body})
        said = answer.json().get("exit") or {}
        right = said.get("how") == fate.how
        right = right and all(wanted is None or said.get(name) == wanted for name, wanted in fate.numbers.items())
        with self._lock:
            self.done[kind] += 1
            if not right or not fate.output(answer.json().get("stdout") or ""):
                self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:400]}")

    def _cancel(self, client: httpx.Client) -> None:
        """Leave in the middle: the run stops with its client."""
        body = {"template": "base", "shell": "echo begun; sleep 600", "stream": True}
        with client.stream("POST", "/v1/runs", json=body) as answer:
            for line in answer.iter_lines():
                if "begun" in line:
                    break
        with self._lock:
            self.done["cancelled"] += 1


def parts(server: OwnServer) -> dict[str, ledger.Process]:
    """Descriptors and memory of the server's own processes."""
    found: dict[str, ledger.Process] = {}
    assert server.process is not None
    for pid in ledger.tree(server.process.pid):
        words = ledger._text(f"/proc/{pid}/cmdline").replace("\0", " ")
        for name in ("ringfence.node", "ringfence.api", ledger.GATE):
            if f"-m {name}" in words:
                found[name] = ledger.process(pid)
    return found


def quiet(server: OwnServer) -> None:
    """Wait until no sandbox is being ended and every pool has what it wants."""
    deadline = time.monotonic() + 60
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=90) as client:
        while time.monotonic() < deadline:
            status = client.get("/v1/status").json()
            if not status.get("ending") and not status.get("sandboxes"):
                break
            time.sleep(0.2)
    time.sleep(7)  # recent demand, by which pools are sized, is forgotten after five


def test_every_fate_is_told_and_nothing_is_left() -> None:
    """Every run's answer is its own; then the ledger is even, descriptors are equal and memory is flat."""
    before = ledger.snapshot(NOWHERE)
    own = OwnServer(TEMPLATES)
    with own:
        crowd = Crowd(own)
        crowd.work(WARM_UP, seed=0)
        quiet(own)
        then, groups = parts(own), ledger.groups_of(ledger.instance_of(own.state))
        crowd.work(RUNS, seed=1)
        quiet(own)
        assert not crowd.wrong, "\n".join(crowd.wrong[:9])
        assert set(FATES) <= set(crowd.done)
        deadline = time.monotonic() + 60
        while True:  # on a busy machine the last of them are still on their way
            now = parts(own)
            spare = {name: now[name].descriptors - then[name].descriptors for name in now}
            more = len(ledger.groups_of(ledger.instance_of(own.state))) - len(groups)
            if (more <= 8 and max(spare.values()) <= 6) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        grown = {name: now[name].resident_bytes - then[name].resident_bytes for name in now}
        assert more <= 8, "groups pile up"
        assert max(spare.values()) <= 6, (spare, then, now)
        # An interpreter's heap settles over the first hundreds of runs; what counts is that it does not grow with them.
        assert max(grown.values()) <= 4 * MIB + RUNS * 200, grown
    assert ledger.settle(own.state, before) == []
