"""Attacks on what others know or left behind: the server's secrets, the host's identity, an earlier sandbox."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from ringfence.attack import programs
from ringfence.attack.host import digest
from ringfence.attack.own_server import OwnServer
from tests.attacks.conftest import Box, Held, Run, output
from tests.support.canaries import Canaries


@pytest.mark.row(103)
def test_the_servers_secrets_are_nowhere(held: Held) -> None:
    """Tokens planted in the server's environment and beside its files are in no file, no process and no memory."""
    held("host-secrets")
    held("host-secrets-root")


@pytest.mark.row(103, 143)
def test_keys_are_not_in_a_sandbox(run: Run, server: OwnServer) -> None:
    """Neither the key that started a run nor a part of it is in the sandbox's memory or files."""
    code = (
        programs.text("host_secrets")
        .replace("RF[C]ANARY-[0-9a-f]{32}", "r[f]_[A-Za-z0-9_-]{43}")
        .replace('"ANARY-" + os.urandom(16).hex().encode()', "b''")
    )
    facts = f'{{"canaries": ["{digest(server.key)}"]}}'
    assert server.key.encode() not in output(run(code, env={"PROBE_FACTS": facts}, timeout=60))


@pytest.mark.row(103)
def test_only_named_variables_are_in_the_environment(run: Run, canaries: Canaries) -> None:
    """A program's environment is made from a list, whatever the server's own holds."""
    names = set(output(run("import os; print(*os.environ)", env={"MINE": "1"})).decode().split())
    assert "MINE" in names
    assert not {name for name in names if name.startswith("RINGFENCE")}
    assert canaries.environment.encode() not in output(run("import os; print(os.environ)"))


@pytest.mark.row(104, 106)
def test_the_kernels_tables_show_only_the_sandbox(held: Held) -> None:
    """/proc shows own processes, own sockets and no identity of the host; /sys is empty."""
    held("proc-and-sys")


@pytest.mark.row(23, 58, 107, 155)
def test_nothing_is_left_for_the_next_sandbox(held: Held) -> None:
    """Files, System V objects, queues, environment and processes of one sandbox are invisible to seven others."""
    held("residue")


@pytest.mark.row(107)
def test_another_tenants_data_is_nowhere(http: httpx.Client, stranger: httpx.Client, boxes: Callable[..., Box]) -> None:
    """A token held by one tenant in files, memory, environment and arguments is not found by another beside it."""
    holder = boxes()
    token = "RFC" + "ANARY-" + "5a" * 16
    holder.put("secret.txt", token.encode())
    keep = f"import time; kept = {token!r}; open('/tmp/shared', 'w').write(kept); time.sleep(120)"
    holder.start({"argv": ["python3", "-c", keep, token], "env": {"TOKEN": token}, "detach": True})
    seeker = boxes(http=stranger)
    facts = f'{{"canaries": ["{digest(token)}"]}}'
    found = output(seeker.run(programs.text("host_secrets"), env={"PROBE_FACTS": facts}, timeout=60.0))
    assert b'"sighted": true' in found
    assert b'"found": []' in found


@pytest.mark.row(109)
def test_two_tenants_have_different_address_layouts(http: httpx.Client, stranger: httpx.Client) -> None:
    """The interpreter's layout, its hash secret and its stack differ between tenants."""
    code = """
import os
maps = open('/proc/self/maps').read().splitlines()
first = {name: next((m for m in maps if name in m), name).split('-')[0] for name in ('libc', 'stack', 'heap')}
print(hash('ringfence'), id(os), *first.values())
"""
    mine, theirs = (output(client.post("/v1/runs", json={"code": code}).json()).split() for client in (http, stranger))
    assert [a for a, b in zip(mine, theirs, strict=True) if a == b] == []


@pytest.mark.row(110)
def test_siblings_draw_different_random_numbers(held: Held) -> None:
    """Twenty forks of one interpreter draw different values from every source, ready-made generators included."""
    held("uniqueness")
    held("uniqueness-numpy")


@pytest.mark.row(110)
def test_two_programs_in_one_sandbox_draw_different_random_numbers(box: Box) -> None:
    """Forks of one warm interpreter within a sandbox do not repeat each other either."""
    code = "import random, uuid, tempfile; print(random.random(), uuid.uuid4(), next(tempfile._get_candidate_names()))"
    seen = [output(box.run(code)) for _ in range(8)]
    assert len(set(seen)) == 8
    assert len({line.split()[2] for line in seen}) == 8


@pytest.mark.row(155)
def test_a_used_sandbox_is_never_handed_out_again(run: Run) -> None:
    """Runs that end well, badly, by timeout or by memory leave no sandbox behind that a later run is given."""
    endings = {
        "print(1)": {},
        "1 / 0": {},
        "while True: pass": {"timeout": 0.5},
        "x = bytearray(300 << 20)": {"limits": {"memory_bytes": 64 << 20}},
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": {},
    }
    used = [run(code, **fields)["sandbox"] for _ in range(4) for code, fields in endings.items()]
    assert len(set(used)) == len(used)


@pytest.mark.row(114)
def test_what_one_program_imports_cannot_poison_anothers(run: Run) -> None:
    """A module written to every writable place of one sandbox is not what another one imports."""
    poison = "print('poisoned')"
    code = f"""
import os, sys
for folder in [*sys.path, os.getcwd(), "/tmp", "/usr/lib/python3.13", "/var/tmp"]:
    for name in ("json.py", "helper.py", "sitecustomize.py", "usercustomize.py"):
        try:
            open(os.path.join(folder or ".", name), "w").write({poison!r})
        except OSError:
            pass
"""
    run(code)
    assert output(run("import json\ntry:\n    import helper\nexcept ImportError:\n    print('clean')")) == b"clean\n"
