"""config.json, field by field: what a container tool is told, and what it is never told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from ringfence.domain.limits import MIB, Limits
from ringfence.domain.template import Image, Template
from ringfence.guest.boot import GVISOR, PLAIN
from ringfence.guest.plan import HIDDEN, SLOT_SIZE
from ringfence.runtimes.jail.runtime import UID_BLOCK, UID_BLOCKS
from ringfence.runtimes.jail.runtime import UID_FLOOR as JAIL_FLOOR
from ringfence.runtimes.oci import bundle, fences

KERNELS = pytest.mark.parametrize("kernel", [PLAIN, GVISOR])
IMAGE = Image(
    reference="registry/evil:latest",
    digest="sha256:" + "0" * 64,
    entrypoint=("--privileged", "/evil"),
    cmd=("-v", "/:/h"),
    env=(("LD_PRELOAD", "/evil.so"), ("PATH", "/evil")),
    workdir="/evil",
    user="0",
)
BASE = Template(name="base")
HOSTILE = Template(
    name="evil", env=(("RUNC_X", "1"), ("XDG_RUNTIME_DIR", "/evil")), preload=("evil",), description="evil", image=IMAGE
)


def made(template: Template = BASE, kernel: str = PLAIN, slot: int = 0, **fields: Any) -> dict[str, Any]:
    """The config of a template."""
    return bundle.config(template, Limits(), bundle.Shape(kernel, slot, **fields))


@KERNELS
def test_nothing_of_a_template_gets_in(kernel: str) -> None:
    """Names, variables, arguments and paths of a template or its image reach the guest, never the tool (attack 123)."""
    assert "evil" not in json.dumps(made(HOSTILE, kernel))
    shape = bundle.Shape(kernel, 0, "runsc" if kernel == GVISOR else "runc")
    assert "evil" not in " ".join(bundle.command(shape, "/usr/sbin/tool", "s" + "a" * 26))


@KERNELS
def test_no_field_that_runs_or_changes_anything_outside(kernel: str) -> None:
    """No hook, no sysctl, no annotation, no device, no terminal, no host path but the two trees."""
    config = made(kernel=kernel)
    assert set(config) == {"ociVersion", "process", "root", "hostname", "mounts", "linux"}
    assert set(config["linux"]) == {"namespaces", "uidMappings", "gidMappings", "rootfsPropagation"}
    assert config["root"] == {"path": "/root", "readonly": True}
    assert config["linux"]["rootfsPropagation"] == "private"
    assert config["process"]["noNewPrivileges"] is True
    assert config["process"]["terminal"] is False
    assert config["process"]["env"] == ["LANG=C.UTF-8", f"PYTHONPATH={HIDDEN}/early"]
    assert made(HOSTILE, kernel)["process"]["env"] == ["LC_ALL=C", f"TZ=:{HIDDEN}/none"]
    binds = [mount for mount in config["mounts"] if mount["type"] == "bind"]
    assert [(b["source"], b["destination"]) for b in binds] == [("/carried", HIDDEN)]
    assert {"rbind", "ro", "nosuid", "nodev"} == set(binds[0]["options"])


def test_every_namespace_is_new() -> None:
    """All seven, and none is joined by its path."""
    assert [row["type"] for row in made()["linux"]["namespaces"]] == list(bundle.NAMESPACES)
    assert all(set(row) == {"type"} for row in made()["linux"]["namespaces"])


def test_the_hosts_network_is_refused_by_the_launcher() -> None:
    """Were it ever handed the node's own namespace, there would be no sandbox."""
    code = (
        "import os; from ringfence.runtimes.oci import launcher\n"
        "os.dup2(os.open('/proc/self/ns/net', os.O_RDONLY), launcher.NAMESPACE_FD); launcher.network('/nonexistent')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "OSError: [Errno 0] the sandbox would share the host's network" in done.stderr


@KERNELS
@pytest.mark.parametrize("tool", ["runc", "crun", "runsc"])
def test_the_network_is_new_or_the_one_with_the_wire(kernel: str, tool: str) -> None:
    """Without a policy the tool makes an empty one, with one it is told where ours is; the host's is never meant."""
    for networked, path in ((False, None), (True, bundle.WIRED)):
        shape = bundle.Shape(kernel, 0, tool, networked=networked)
        kinds = {each["type"]: each.get("path") for each in bundle.config(BASE, Limits(), shape)["linux"]["namespaces"]}
        assert kinds.pop("network") == path
        assert set(kinds.values()) == {None}
        words = bundle.command(shape, f"/usr/bin/{tool}", "s" + "a" * 26)
        assert "host" not in words
        if tool == "runsc":
            assert words[words.index("-network") + 1] == ("sandbox" if networked else "none")
            assert "-net-raw=false" in words


@KERNELS
def test_the_set_up_has_no_capability_that_reaches_outside(kernel: str) -> None:
    """What the guest starts with is enough for its own namespaces; nothing is inheritable or ambient."""
    sets = made(kernel=kernel)["process"]["capabilities"]
    assert set(sets) == {"bounding", "effective", "permitted"}
    assert all(set(names) == set(bundle.SETUP_CAPABILITIES) for names in sets.values())
    reaching = {
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SYS_PTRACE",
        "CAP_BPF",
        "CAP_SYS_TIME",
    }
    assert not reaching & set(bundle.SETUP_CAPABILITIES)


def test_uid_ranges_are_nobody_elses() -> None:
    """No two sandboxes share a uid, and none is the jail's, a user's or the host's nobody."""
    assert JAIL_FLOOR + UID_BLOCKS * UID_BLOCK <= bundle.UID_FLOOR
    taken: set[int] = set()
    for slot in (0, 1, 2, bundle.SLOTS - 1):
        for row in made(slot=slot)["linux"]["uidMappings"]:
            uids = set(range(row["hostID"], row["hostID"] + row["size"]))
            assert not uids & taken
            assert min(uids) >= bundle.UID_FLOOR
            assert max(uids) < bundle.UID_CEILING
            taken |= uids
    assert made()["linux"]["uidMappings"] == made()["linux"]["gidMappings"]


@pytest.mark.parametrize(
    ("user", "extra"), [("", []), ("1000", []), ("app", []), ("5000", [5000]), ("5000:6000", [6000])]
)
def test_an_images_own_user_has_a_place(user: str, extra: list[int]) -> None:
    """A number beyond the range is mapped to the last uid of the slot; nothing else changes."""
    rows = made(Template(name="t", image=replace(IMAGE, user=user)))["linux"]["uidMappings"]
    assert [row["containerID"] for row in rows] == [0, 65534, *extra]
    assert sum(row["size"] for row in rows) <= SLOT_SIZE
    hosts = [uid for row in rows for uid in range(row["hostID"], row["hostID"] + row["size"])]
    assert len(hosts) == len(set(hosts))


def test_the_agent_runs_on_what_is_there() -> None:
    """A template of ours has a Python; an image gets the one we carry, whatever it has itself."""
    assert bundle.interpreter(Template(name="base")) == ["/usr/bin/python3"]
    assert bundle.interpreter(HOSTILE)[0].startswith(HIDDEN)
    args = made(HOSTILE)["process"]["args"]
    assert args[: len(bundle.interpreter(HOSTILE))] == bundle.interpreter(HOSTILE)
    assert {"-I", "-S"} <= set(args), "nothing of an image is imported by our agent"
    assert made()["process"]["args"][:2] == ["/usr/bin/python3", "-c"], "programs see an ordinary interpreter's flags"


def test_an_environment_is_ours_then_the_images_then_the_templates() -> None:
    """The last one who names a variable wins."""
    template = Template(name="t", env=(("A", "template"),), image=replace(IMAGE, env=(("A", "image"), ("LANG", "C"))))
    env = bundle.environment(template)
    assert (env["A"], env["LANG"], env["HOME"]) == ("template", "C", "/home/user")


def test_a_tools_own_needs_come_on_top() -> None:
    """A limit asked for is the programs'; the tool's threads, gVisor's kernel and its files have room beside it."""
    limits = Limits(memory_bytes=64 * MIB, scratch_bytes=32 * MIB, processes=10, cpus=1.5)
    assert bundle.group_limits(limits, PLAIN) == replace(limits, processes=10 + bundle.TOOL_THREADS)
    wider = bundle.group_limits(limits, GVISOR)
    assert wider.memory_bytes == 96 * MIB + bundle.SENTRY_BYTES
    assert wider.processes > 10
    assert wider.cpus == 1.5


def test_gvisor_is_told_to_keep_to_itself() -> None:
    """No network, no host sockets, no raw sockets, nothing written beside the bundle."""
    words = bundle.command(bundle.Shape(GVISOR, 0, "runsc"), "/usr/bin/runsc", "s" + "a" * 26)
    text = " ".join(words)
    for wanted in ("-network none", "-host-uds none", "-host-fifo none", "-net-raw=false", "-platform systrap"):
        assert wanted in text
    assert words[-1] == "s" + "a" * 26


@KERNELS
def test_every_fence_that_is_missing_says_why(kernel: str) -> None:
    """A layer is in force or has a reason; names are told once."""
    layers = fences.layers(kernel, {"memory": "no controller"}, 0)
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(layer.in_force != bool(layer.reason) for layer in layers)
    missing = {layer.name for layer in layers if not layer.in_force}
    assert {"memory_limit", "landlock"} <= missing
