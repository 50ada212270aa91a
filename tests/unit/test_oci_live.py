"""Sandboxes made by real container tools, at the moments where things go wrong, and from images that mean harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import MIB, Limits
from ringfence.domain.sandbox import new_id
from ringfence.domain.template import Image, Template
from ringfence.guest.boot import GVISOR, PLAIN, layers_of
from ringfence.runtimes.base import StartSpec
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.launcher import DEVICES
from ringfence.runtimes.oci import bundle, carried, runtime
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import THREADS, Boxed, Launch, Oci
from ringfence.runtimes.oci.versions import TOOLS, Found, choose, installed
from ringfence.templates.catalog import Catalog
from tests.support import ledger, scale
from tests.support.guestharness import Host
from tests.support.loops import LoopThread
from tests.support.subjects import SMALL, SUBJECTS, TEMPLATES, Subject

BUSYBOX = Path("/bin/busybox")
KERNELS = {"container": PLAIN, "gvisor": GVISOR}


@dataclass
class Bench:
    """A runtime of its own, and everything it could leave behind."""

    subject: Subject
    state: Path
    thread: LoopThread
    runtime: Oci

    def start(self, template: Template | None = None, root: Path | None = None, **fields: Any) -> tuple[Boxed, Host]:
        """A ready sandbox."""
        spec = self.spec(template, root, **fields)
        boxed = self.thread.do(self.runtime.start(spec))
        boxed.channel.setblocking(True)
        return boxed, Host(boxed.channel)

    def spec(
        self, template: Template | None = None, root: Path | None = None, limits: Limits = SMALL, **fields: Any
    ) -> StartSpec:
        """An order for one."""
        base, base_root, digest = self.subject.template()
        return StartSpec(new_id("s"), "tenant-a", template or base, root or base_root, digest, limits, **fields)

    def left(self) -> set[str]:
        """What the runtime still sees."""
        return self.thread.do(self.runtime.found())


def opened(subject: Subject, state: Path, **fields: Any) -> Bench:
    """A runtime whose groups bear the state directory's name."""
    thread = LoopThread()

    def make() -> Oci:
        tool = fields.pop("tool", None) or choose(subject.name, installed())
        return Oci(tool, detect(ledger.instance_of(state), root=True), Carried(TEMPLATES), **fields)

    return Bench(subject, state, thread, thread.call(make))


Opener = Callable[..., Bench]


@pytest.fixture(params=["container", "gvisor"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each of the two runtimes; a missing one is skipped here and an error where CI promises that all are there."""
    found = next(each for each in SUBJECTS if each.name == request.param)
    if reason := found.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{found.name}: {reason}")
        pytest.skip(f"{found.name}: {reason}")
    return found


@pytest.fixture
def opener(subject: Subject, tmp_path: Path) -> Iterator[Opener]:
    """Open runtimes that are closed with the test; then nothing may be left of any of them."""
    Carried(TEMPLATES).tree()
    before = ledger.snapshot(tmp_path)
    benches: list[Bench] = []

    def opening(**fields: Any) -> Bench:
        benches.append(opened(subject, tmp_path, **fields))
        return benches[-1]

    yield opening
    for each in benches:
        each.thread.do(each.runtime.close())
        each.thread.close()
    assert not ledger.settle(tmp_path, before)
    assert not dead_children()


@pytest.fixture
def bench(opener: Opener) -> Bench:
    """One runtime."""
    return opener()


# -- images -----------------------------------------------------------------------------------------------------------


def busybox_root(place: Path, *, shell: bool = True) -> Path:
    """A root with nothing but busybox in it."""
    if not BUSYBOX.exists() or carried._dynamic(BUSYBOX.read_bytes())[0]:
        reason = "busybox-static is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    (place / "bin").mkdir(parents=True)
    shutil.copyfile(BUSYBOX, place / "bin/busybox")
    (place / "bin/busybox").chmod(0o755)
    for name in ("cat", "id", "ls", "env", *(["sh"] if shell else [])):
        os.symlink("busybox", place / "bin" / name)
    return place


def image_of(**fields: Any) -> Template:
    """A template that came from an image."""
    return Template(name="image", image=Image("registry/image:1", "sha256:" + "0" * 64, **fields))


def say(host: Host, *argv: str, **fields: Any) -> str:
    """What a command prints, after it ended well."""
    reply = host.open("exec", argv=list(argv), **fields)
    answer = reply.answer(30)
    assert answer.get("exit", {}).get("code") == 0, (answer, bytes(reply.err))
    return reply.out.decode()


def test_an_image_without_python_serves_all_but_run(bench: Bench, tmp_path: Path) -> None:
    """Commands, files and its own variables work in a root that holds busybox alone; `run` says what is missing."""
    template = image_of(env=(("GREETING", "hello"), ("PATH", "/bin")))
    for one_shot in (True, False):
        _, host = bench.start(template, busybox_root(tmp_path / f"root{one_shot}"), one_shot=one_shot)
        assert say(host, "id", "-u") == "0\n"
        assert "GREETING=hello\n" in say(host, "env")
        host.put("file", b"content")
        assert say(host, "cat", "/home/user/file") == "content"
        refusal = host.open("run", code="print(1)").answer()["error"]
        assert refusal["code"] == "no_python"
        assert "no Python" in refusal["cause"]
        assert host.ask("ping") == {}


def test_an_image_without_a_shell_says_so(bench: Bench, tmp_path: Path) -> None:
    """A shell line is refused where nothing could read it; argument lists work."""
    _, host = bench.start(image_of(env=(("PATH", "/bin"),)), busybox_root(tmp_path / "root", shell=False))
    assert host.open("exec", shell="echo hi").answer()["error"]["code"] == "no_shell"
    assert say(host, "id", "-g") == "0\n"


@pytest.mark.parametrize(
    ("user", "ids"), [("", "0:0"), ("1234:77", "1234:77"), ("50000", "50000:50000"), ("app", "7:8")]
)
def test_an_images_user_is_who_runs(bench: Bench, tmp_path: Path, user: str, ids: str) -> None:
    """By number, by the image's own names, or its root: programs and files are that user's."""
    root = busybox_root(tmp_path / "root")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nbroken\napp:x:7:8::/:/bin/sh\n")
    _, host = bench.start(image_of(user=user, env=(("PATH", "/bin"),)), root)
    host.put("mine", b"")
    entry = host.ask("stat", path="mine")["entry"]
    assert f"{entry['uid']}:{entry['gid']}" == ids
    assert f"{say(host, 'id', '-u').strip()}:{say(host, 'id', '-g').strip()}" == ids
    assert say(host, "id", "-u", user="1000").strip() == "1000"


def test_a_user_the_image_does_not_have_is_refused(bench: Bench, tmp_path: Path) -> None:
    """A name that is nowhere in the image starts nothing, and is named."""
    with pytest.raises(SandboxRefused, match="nobody-here"):
        bench.start(image_of(user="nobody-here"), busybox_root(tmp_path / "root"))
    assert not bench.left()


def test_an_image_with_python_runs_code_on_it(bench: Bench) -> None:
    """The image's own interpreter runs programs, in one started for them alone; ours is nowhere to be seen."""
    _, root, _ = bench.subject.template()
    _, host = bench.start(image_of(user="1000", python="/usr/bin/python3", env=(("FROM", "image"),)), root)
    code = "import os, sys\nprint(sys.executable, os.environ['FROM'], os.path.exists('/.ringfence/code'))\n1/0"
    for _ in range(2):
        reply = host.open("run", code=code)
        assert reply.answer(30)["exit"]["code"] == 1
        assert reply.out.decode() == "/usr/bin/python3 image False\n"
        assert b"ZeroDivisionError" in reply.err
        assert b"ringfence" not in reply.err


def test_a_templates_import_hooks_run_behind_the_fences(bench: Bench, tmp_path: Path) -> None:
    """What a template's packages do when an interpreter starts is done by the sandbox's user, under the filter."""
    _, base, _ = bench.subject.template()
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
    hook = (
        "import os; seen = [l for l in open('/proc/self/status') if l.startswith(('Uid', 'CapEff', 'Seccomp:'))]; "
        "open('/tmp/hook', 'a').write(''.join(seen))\n"
    )
    (root / "usr/lib/python3/dist-packages/hook.pth").write_text(hook)
    _, host = bench.start(Template(name="hooked"), root)
    told = host.get("/tmp/hook").decode().split()
    assert told[:5] == ["Uid:", told[1], "1000", *told[3:5]]
    assert "0000000000000000" in told
    assert told[told.index("Seccomp:") + 1] == "2"
    flags = host.open("run", code="import sys, site; print(sys.flags.isolated, sys.flags.no_site, sys.path[0])")
    flags.answer(30)
    assert flags.out.decode() == "0 0 /home/user\n"


def hostile_root(place: Path) -> Path:
    """An image that tries to be run by our agent before its fences stand, and to lead our mounts astray."""
    root = busybox_root(place)
    for name in ("etc", "lib", "usr/lib/locale/C.utf8", "usr/share/zoneinfo"):
        (root / name).mkdir(parents=True)
    (root / "etc/ld.so.preload").write_text("/lib/evil.so\n")
    for name in ("etc/ld.so.cache", "etc/localtime", "lib/evil.so", "lib/libz.so.1", "usr/lib/locale/C.utf8/LC_CTYPE"):
        (root / name).write_bytes(b"evil" * 2000)
    with zipfile.ZipFile(root / "lib/python313.zip", "w") as archive:
        archive.writestr("os.py", "raise SystemExit(66)\n")
        archive.writestr("encodings/__init__.py", "raise SystemExit(66)\n")
    for name, target in (
        ("proc", "/etc"),
        ("dev", "/etc"),
        ("tmp", "/"),
        ("run", "etc"),
        ("home", "../.."),
        ("sys", "/"),
    ):
        os.symlink(target, root / name)
    (root / "var").write_bytes(b"a file")
    os.symlink("/etc", root / ".ringfence")
    return root


def test_an_image_cannot_lead_astray(bench: Bench, tmp_path: Path) -> None:
    """Links where we mount, and files that a loader or an interpreter would read, change nothing (attack 16)."""
    root = hostile_root(tmp_path / "root")
    before = sorted((str(p), p.lstat().st_mtime_ns, p.lstat().st_uid) for p in root.rglob("*"))
    _, host = bench.start(image_of(env=(("PATH", "/bin"),)), root)
    assert say(host, "id", "-u") == "0\n"
    assert say(host, "cat", "/etc/hosts").startswith("127.0.0.1")
    host.put("/tmp/x", b"1")
    host.put("/run/x", b"1")
    assert say(host, "cat", "/tmp/x", "/run/x") == "11"
    assert host.open("exec", argv=["ls", "/.ringfence"]).answer()["exit"]["code"] in {0, 1}
    assert "null" in say(host, "ls", "/dev").split()
    assert sorted((str(p), p.lstat().st_mtime_ns, p.lstat().st_uid) for p in root.rglob("*")) == before


def test_nothing_of_the_hosts_changes_its_owner(bench: Bench, tmp_path: Path) -> None:
    """Devices, programs and the template belong to whom they belonged: tools give away what they are handed."""
    _, root, _ = bench.subject.template()
    places = [
        *(f"/dev/{name}" for name in DEVICES),
        "/dev",
        "/usr",
        "/usr/bin",
        "/tmp",
        str(root),
        f"{root}/etc",
        "/proc",
    ]
    before = [(place, *owner_of(place)) for place in places]
    for template, files in ((None, None), (image_of(), busybox_root(tmp_path / "root"))):
        boxed, host = bench.start(template, files)
        assert host.ask("ping") == {}
        assert [(place, *owner_of(place)) for place in places] == before
        bench.thread.do(bench.runtime.stop(boxed.id))
    assert [(place, *owner_of(place)) for place in places] == before


def owner_of(place: str) -> tuple[int, int, int]:
    """Whose it is, and who else may do what."""
    seen = os.stat(place)
    return seen.st_uid, seen.st_gid, seen.st_mode


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_any_layer_that_fails_refuses_the_sandbox(opener: Opener, subject: Subject) -> None:
    """Whichever step of the set-up fails, it is named, nothing runs and nothing is left."""
    for layer in layers_of(KERNELS[subject.name]):
        bench = opener(fault=layer)
        with pytest.raises(SandboxRefused) as refusal:
            bench.start()
        assert f"layer {layer} " in refusal.value.cause
        assert not bench.left()


def test_a_layer_left_out_is_out(opener: Opener, subject: Subject) -> None:
    """Tests can take each layer away, to show that it is needed: the sandbox then says that it has it not."""
    layers = set(layers_of(KERNELS[subject.name])) - {"closed_descriptors", "scratch", "unseen_agent", "uid_range"}
    for layer in (*sorted(layers), "time_namespace", "memory_limit", "pids_limit"):
        bench = opener(without=frozenset({layer}))
        boxed, host = bench.start()
        assert layer not in boxed.layers
        assert host.ask("ping") == {}
        reply = host.open("run", code="print(6 * 7)")
        assert reply.answer(30)["exit"]["code"] == 0, (layer, bytes(reply.err))
        bench.thread.do(bench.runtime.stop(boxed.id))


def test_the_smallest_limits_do_or_say_why_not(bench: Bench) -> None:
    """The least that may be asked for starts and serves, or is refused for what it is: too little."""
    least = Limits(memory_bytes=16 * MIB, cpus=0.5, processes=2, scratch_bytes=1 * MIB, scratch_files=64, open_files=32)
    _, host = bench.start(limits=replace(least, memory_bytes=64 * MIB), one_shot=False)
    assert say(host, "id", "-u") == "1000\n"
    if bench.subject.name == "container":
        built = Catalog(TEMPLATES).read("python")
        # Whoever reads a file first has it on its account: with all of the template's it would be slow, not too small.
        bench.start(built.template, built.root)
        with pytest.raises(SandboxRefused) as refusal:
            bench.start(built.template, built.root, limits=least)
        assert refusal.value.code == "memory_too_small"
        assert "16 MiB" in refusal.value.cause


def tool_like(tmp_path: Path, subject: Subject, script: str) -> Found:
    """A tool that is none."""
    tool = next(each for each in TOOLS if each.isolation == subject.name)
    place = Path("/usr/local/bin") / f"ringfence-test-{os.getpid()}"
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(0o755)
    return Found(tool, str(place), "9.9")


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no such luck >&2; exit 1", "no such luck"), ("exec /nowhere", "nowhere"), ("exit 0", r"died|ready")],
)
def test_a_tool_that_fails_is_quoted(opener: Opener, subject: Subject, tmp_path: Path, script: str, said: str) -> None:
    """What the tool said is in the refusal; the start does not hang, and nothing is left."""
    tool = tool_like(tmp_path, subject, script)
    try:
        bench = opener(tool=tool)
        with pytest.raises(SandboxRefused, match=said):
            bench.start()
        assert not bench.left()
    finally:
        Path(tool.path).unlink()


def test_a_tool_that_never_answers_is_ended(
    opener: Opener, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wait has a deadline; a tool that talks without end meanwhile costs no memory and is not waited for."""
    monkeypatch.setattr(runtime, "READY_SECONDS", 1.0)
    tool = tool_like(tmp_path, subject, "while :; do echo noise noise noise >&2; done")
    try:
        bench = opener(tool=tool)
        with pytest.raises(SandboxRefused, match="did not become ready"):
            bench.start()
        assert not bench.left()
    finally:
        Path(tool.path).unlink()


def test_a_tool_that_may_not_be_used_is_refused(subject: Subject, tmp_path: Path) -> None:
    """A version below the table is no runtime at all."""
    tool = next(each for each in TOOLS if each.isolation == subject.name)
    groups = detect(ledger.instance_of(tmp_path), root=True)
    with pytest.raises(SandboxRefused, match="too old"):
        Oci(Found(tool, "/usr/bin/true", "0.1", refusal="too old"), groups, Carried(TEMPLATES))
    groups.close()


# -- deaths -----------------------------------------------------------------------------------------------------------


def members(instance: str) -> list[int]:
    """Every process in a group of this instance."""
    return [pid for pid in ledger.pids() if f"/ringfence/{instance}/" in ledger.group_of(pid)]


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_whatever_of_a_sandbox_is_killed_all_of_it_ends(bench: Bench) -> None:
    """kill -9 of the tool, or of any process it made: the channel closes, the rest goes, stop() leaves nothing."""
    instance = ledger.instance_of(bench.state)
    boxed, _ = bench.start()
    count = len(members(instance))
    bench.thread.do(bench.runtime.stop(boxed.id))
    for turn in range(count):
        boxed, host = bench.start()
        host.open("exec", argv=["sleep", "600"]).started()
        mine = sorted(members(instance))
        victim = mine[min(turn, len(mine) - 1)]
        is_program = "sleep" in ledger._text(f"/proc/{victim}/cmdline")
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if not is_program and victim in {boxed.pid, boxed.tool_pid}:
            with pytest.raises(ConnectionError):
                host.until(lambda: False)
        assert boxed.id in bench.left()
        bench.thread.do(bench.runtime.stop(boxed.id))
        until(lambda: not members(instance))
        assert not bench.left()


NODE = """
import asyncio, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.launcher import DEVICES
from tests.support import ledger
from tests.unit.test_oci_live import opened
from tests.support.subjects import SUBJECTS
bench = opened(next(s for s in SUBJECTS if s.name == {name!r}), Path({state!r}))
print("open", flush=True)
while True:
    bench.start()
    print("started", flush=True)
"""


@pytest.mark.parametrize("moment", scale.some(0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.5, 1.5))
def test_a_node_that_is_killed_takes_everything_along(
    opener: Opener, subject: Subject, tmp_path: Path, moment: float
) -> None:
    """kill -9 of the node at any moment: no process is left, and the next node finds and removes the groups."""
    instance = ledger.instance_of(tmp_path)
    here = str(Path(__file__).parent.parent.parent)
    program = NODE.format(here=here, name=subject.name, state=str(tmp_path))
    node = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=here)
    assert node.stdout is not None
    assert node.stdout.readline() == b"open\n"
    time.sleep(moment)
    node.kill()
    node.wait()
    node.stdout.close()
    until(lambda: not members(instance))
    bench = opener()
    for name in bench.left():
        bench.thread.do(bench.runtime.stop(name))
    assert not bench.left()


@pytest.mark.parametrize("moment", scale.some(0.0, 0.01, 0.03, 0.06, 0.1, 0.2))
def test_a_start_that_is_given_up_leaves_nothing(bench: Bench, moment: float) -> None:
    """Cancelled at any moment, a start takes back whatever it had made."""
    future = bench.thread.loop.create_task
    spec = bench.spec()

    async def cancelled() -> None:
        task = future(bench.runtime.start(spec))
        await runtime.asyncio.sleep(moment)
        task.cancel()
        with contextlib.suppress(runtime.asyncio.CancelledError):
            await task
        await bench.runtime.stop(spec.id)

    bench.thread.do(cancelled())
    assert not bench.left()
    until(lambda: not members(ledger.instance_of(bench.state)))


@pytest.mark.parametrize("moment", [0, 0.1])
def test_a_start_given_up_before_its_launcher_was_waited_for_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    """Every thread is busy when the launcher has told its word, and just then, or soon, nobody wants the sandbox."""
    spec, told, free = bench.spec(), bench.runtime._report, threading.Event()

    async def cancelled() -> None:
        task = runtime.asyncio.create_task(bench.runtime.start(spec))

        async def report(launch: Launch) -> int:
            pid = await told(launch)
            for _ in range(THREADS):
                bench.runtime._threads.submit(free.wait, 60)
            if moment:
                bench.thread.loop.call_later(moment, task.cancel)
            else:
                bench.thread.loop.call_soon(task.cancel)
            bench.thread.loop.call_later(0.3, free.set)
            return pid

        monkeypatch.setattr(bench.runtime, "_report", report)
        with contextlib.suppress(runtime.asyncio.CancelledError):
            await task

    bench.thread.do(cancelled())
    assert not bench.left()
    until(lambda: not dead_children())


def test_nobody_is_left_unreaped(bench: Bench) -> None:
    """A start leaves no dead helper behind, and a stop none of the tool."""
    boxed, _ = bench.start()
    assert not dead_children()
    bench.thread.do(bench.runtime.stop(boxed.id))
    assert not dead_children()


def dead_children() -> list[int]:
    """Our own children that nobody waited for."""
    found = []
    for pid in ledger.pids():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                found.append(pid)
    return found


def test_uid_ranges_come_back_last(bench: Bench) -> None:
    """No two live sandboxes share a range, and one that was just used is the last to be used again."""
    one, _ = bench.start()
    two, _ = bench.start()
    bench.thread.do(bench.runtime.stop(one.id))
    three, _ = bench.start()
    assert len({one.slot, two.slot, three.slot}) == 3


def test_when_every_range_is_taken_it_is_said(opener: Opener) -> None:
    """A node that has no uids left refuses by name."""
    bench = opener()
    bench.thread.call(bench.runtime._slots.free.clear)
    with pytest.raises(SandboxRefused) as refusal:
        bench.start()
    assert refusal.value.code == "no_uid_range"


@pytest.mark.parametrize("turn", range(4))
def test_without_descriptors_it_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    """When the node runs out of descriptors in the middle, the start is refused and those it had are given back."""
    bench.runtime._carried.tree()
    real, made = os.pipe2, []

    def scarce(flags: int) -> tuple[int, int]:
        made.append(flags)
        if len(made) > turn:
            raise OSError(24, "Too many open files")
        return real(flags)

    bench.start()  # opens what stays open: threads, governors
    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe2", scarce)
        with pytest.raises(SandboxRefused, match=r"descriptors|ready|open files"):
            bench.start()
    assert set(os.listdir("/proc/self/fd")) == before
    bench.start()


def test_numbers_outside_are_the_slots(bench: Bench) -> None:
    """Whoever it is inside, outside it is a uid of the sandbox's own range; nobody of it is root."""
    boxed, host = bench.start()
    for user in ("user", "root"):
        host.open("exec", argv=["sleep", "600"], user=user).started()
    base = bundle.UID_FLOOR + boxed.slot * bundle.SLOT_SIZE
    uids = {uid for pid in members(ledger.instance_of(bench.state)) for uid in _real_user(pid)} - {0}
    assert uids
    assert uids <= set(range(base, base + bundle.SLOT_SIZE)), uids


def _real_user(pid: int) -> set[int]:
    """Who it runs as; nobody when it ended while we looked."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {int(line.split()[1]) for line in lines if line.startswith("Uid:")}
    return set()


def test_a_slow_limit_is_still_a_limit(bench: Bench) -> None:
    """Processes beyond the limit are refused inside, and the sandbox lives on."""
    boxed, host = bench.start()
    code = (
        "import os, time\nn = 0\ntry:\n    while os.fork(): n += 1\n    time.sleep(30); os._exit(0)\n"
        "except OSError: print(n <= 40)"
    )
    reply = host.open("exec", argv=["python3", "-c", code])
    reply.answer(90)
    assert reply.out == b"True\n"
    assert host.ask("ping") == {}
    assert boxed.id in bench.left()
