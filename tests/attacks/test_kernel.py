"""Attacks on the kernel: every door a program has no business with, tried one by one."""

from __future__ import annotations

import pytest

from tests.attacks.conftest import Held, Run, output


@pytest.mark.row(45)
def test_no_namespace_can_be_made_or_joined(held: Held) -> None:
    """unshare, clone, clone3 and setns are refused with every namespace flag, also to the sandbox's root."""
    held("new-namespaces")
    held("new-namespaces-root")


@pytest.mark.row(46, 49, 51, 52, 53)
def test_rarely_needed_kernel_parts_are_shut(held: Held) -> None:
    """io_uring, bpf, perf, keyrings, modules, clocks and the rest are refused, each in a child of its own."""
    held("kernel-calls")
    held("kernel-calls-root")


@pytest.mark.row(47, 48)
def test_only_plain_sockets_can_be_opened(held: Held) -> None:
    """Of 46 families and every netlink protocol only local, internet and route sockets open; none takes a filter."""
    held("sockets")


@pytest.mark.row(52)
def test_ordinary_locks_still_work(run: Run) -> None:
    """Refusing priority inheritance costs no ordinary program its locks."""
    code = """
import threading
lock, total = threading.Lock(), 0
def add():
    global total
    for _ in range(2000):
        with lock:
            total += 1
threads = [threading.Thread(target=add) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(total)
"""
    assert output(run(code)) == b"8000\n"


@pytest.mark.row(55)
def test_foreign_call_numbers_end_the_process(held: Held) -> None:
    """The 32-bit gate and the x32 numbers lead to no answer."""
    held("foreign-abi")


@pytest.mark.row(60, 17)
def test_kernel_devices_are_absent(held: Held) -> None:
    """Nothing below /dev leads to hardware or to the kernel, and nothing that does can be made."""
    held("devices")


@pytest.mark.row(83)
def test_every_layer_is_in_force_at_the_first_instruction(held: Held) -> None:
    """Identity, namespaces, limits, filter and mounts are what they will be before the first line runs."""
    for name in ("privileges", "namespaces", "limits", "landlock", "mounts"):
        held(name)


@pytest.mark.row(83)
def test_code_that_runs_before_the_program_runs_under_the_same_limits(run: Run) -> None:
    """A sitecustomize left in the home directory cannot run earlier than the layers, nor in anybody's interpreter."""
    code = """
import os, subprocess, sys
open("sitecustomize.py", "w").write("print('early', open('/proc/self/status').read().count('Seccomp:\\\\t2'))")
environment = {"PYTHONPATH": os.getcwd(), "PATH": os.environ["PATH"]}
print(subprocess.run(["python3", "-c", "pass"], env=environment, capture_output=True, text=True).stdout.strip())
"""
    assert output(run(code)) == b"early 1\n"
    assert output(run("print('clean')")) == b"clean\n"
