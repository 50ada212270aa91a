"""Honest clients that keep a server busy, and remember every answer that was not the truth."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

PATIENCE = 100.0  # seconds until a request counts as hung
# What may be said of a run whose platform was killed under it. Anything else is a fate invented or a wrong refusal.
OUR_FAULTS = {
    "sandbox_lost",
    "node_lost",
    "node_unreachable",
    "no_capacity",
    "zygote_died",
    "zygote_stuck",
    "died_in_setup",
    "not_ready",
    "fork_failed",
    "group_refused",
    "api_restarted",
    "sandbox_not_found",
    "sandbox_ended",
    "draining",
    "platform_fault",
    "internal",
}


@dataclass
class Told:
    """What the clients saw."""

    good: int = 0
    killed: int = 0  # programs that were told to have died by SIGKILL, which is the truth when we killed them
    faults: dict[str, int] = field(default_factory=dict)
    cut: int = 0  # connections that broke
    wrong: list[str] = field(default_factory=list)


class Load:
    """A few clients in threads. Use it in a `with`; the address may change while it runs."""

    def __init__(self, url: str, key: str, clients: int = 3, *, programs_die: bool = False) -> None:
        self.url = url
        self._programs_die = programs_die
        self.told = Told()
        self._key = key
        self._stop = threading.Event()
        self._lock = threading.Lock()
        works = (self._runs, self._sandboxes, self._streams)
        self._threads = [threading.Thread(target=works[n % 3], args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self.told.wrong.append("a client still waits for an answer")

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self._key}"}, timeout=PATIENCE)

    def _count(self, answer: httpx.Response, right: bool, what: str) -> bool:
        with self._lock:
            if answer.status_code < 300 and right:
                self.told.good += 1
                return True
            body = answer.json()
            code = str(body.get("error", {}).get("code")) if answer.status_code >= 400 else ""
            if answer.status_code < 300 and self._was_killed(body):
                self.told.killed += 1
            elif code in OUR_FAULTS:
                self.told.faults[code] = self.told.faults.get(code, 0) + 1
            else:
                self.told.wrong.append(f"{what}: {answer.status_code} {answer.text[:300]}")
            return False

    def _was_killed(self, body: dict[str, Any]) -> bool:
        fate = body.get("exit") or {}
        return self._programs_die and (fate.get("signal") == 9 or fate.get("code") == 128 + 9)

    def _loop(self, once: Any) -> None:
        while not self._stop.is_set():
            try:
                with self._client() as client:
                    while not self._stop.is_set():
                        once(client)
            except httpx.TimeoutException as error:
                self.told.wrong.append(f"no answer: {error!r}")
            except (httpx.TransportError, ValueError):
                self.told.cut += 1
                time.sleep(0.05)

    def _runs(self, seed: int) -> None:
        dice = random.Random(seed)

        def once(client: httpx.Client) -> None:
            n, pause = dice.randrange(10**6), dice.choice([0, 0, 0.05, 0.3])
            code = f"import time\ntime.sleep({pause})\nprint({n} * 3)"
            answer = client.post("/v1/runs", json={"code": code, "template": "base"})
            right = answer.status_code == 200 and answer.json()["stdout"] == f"{n * 3}\n"
            self._count(answer, right, "run")

        self._loop(once)

    def _sandboxes(self, seed: int) -> None:
        dice = random.Random(seed)

        def once(client: httpx.Client) -> None:
            made = client.post("/v1/sandboxes", json={"template": "base", "ttl_seconds": 60})
            if not self._count(made, made.status_code == 201, "create"):
                return
            place = f"/v1/sandboxes/{made.json()['id']}"
            for _ in range(dice.randrange(1, 4)):
                n = dice.randrange(10**6)
                answer = client.post(f"{place}/processes", json={"shell": f"echo {n}; sleep {dice.choice([0, 0.1])}"})
                if not self._count(answer, answer.status_code == 200 and answer.json()["stdout"] == f"{n}\n", "exec"):
                    return
            if dice.random() < 0.5:
                self._count(client.delete(place), right=True, what="stop")

        self._loop(once)

    def _streams(self, seed: int) -> None:
        dice = random.Random(seed)

        def once(client: httpx.Client) -> None:
            size = dice.randrange(1, 3_000_000)
            body = {"argv": ["head", "-c", str(size), "/dev/zero"], "template": "base", "stream": True}
            with client.stream("POST", "/v1/runs", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    self._count(answer, right=False, what="stream")
                    return
                self._lines(answer, size)

        self._loop(once)

    def _lines(self, answer: httpx.Response, size: int) -> None:
        got, last = 0, ""
        for line in answer.iter_lines():
            last = line
            got += line.count("\\u0000") if line.startswith('{"stdout"') else 0
        if '"run"' in last[:10]:
            run = json.loads(last)["run"]
            if got == size and run["exit"]["how"] == "exited":
                self.told.good += 1
            elif self._was_killed(run):
                self.told.killed += 1
            else:
                self.told.wrong.append(f"stream: {got} of {size} bytes, then {last[:300]}")
        elif not any(f'"{code}"' in last for code in OUR_FAULTS):
            self.told.wrong.append(f"stream ended with {last[:300]}")
