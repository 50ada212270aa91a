"""The ways to isolate that this host has, opened; and for each of the others, why it is absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ringfence.domain.egress import DEFAULT_FLOOR, Floor
from ringfence.domain.errors import RingfenceError
from ringfence.domain.gateways import Gateway
from ringfence.network.network import Network
from ringfence.runtimes.base import Runtime
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import Oci
from ringfence.runtimes.oci.versions import choose, installed, lacking

BY_TOOL: Final = ("container", "gvisor")


@dataclass(frozen=True, slots=True)
class Here:
    """What was found. Whoever opened them closes them."""

    present: tuple[Runtime, ...]  # the jail first: it is always there
    absent: dict[str, str]  # name -> reason
    warnings: dict[str, str]  # name -> what should be newer


def runtimes(
    instance: str,
    templates: Path,
    *,
    floor: Floor = DEFAULT_FLOOR,
    resolvers: Sequence[str] = (),
    gateways: Mapping[str, Gateway] = MappingProxyType({}),
    roots: str = "",
) -> Here:
    """Open every runtime. Needs a running loop.

    Each has groups of its own, named after `instance`, so that each clears up what is its own. Asks every container
    tool its version, so it may take a moment; the first time after an update a second or two, for then what we bring
    into sandboxes (carried.py) is made anew. Raises nothing for a tool that is missing or too old: that is told. All
    share one network, opened when the first sandbox needs it.
    """
    privileged = os.geteuid() == 0
    servers = tuple((address, 53) for address in resolvers)
    # Opened when it is first needed.
    network = (
        Network(floor=floor, resolvers=servers, gateways=gateways, roots=roots, name=instance) if privileged else None
    )
    groups = detect(instance, root=privileged)
    if not privileged:
        jail = Jail(groups, privileged=False)
        return Here((jail,), dict.fromkeys(BY_TOOL, "it needs root"), {})
    carried = Carried(templates)
    with contextlib.suppress(RingfenceError):  # without a `base` template, say: then each zygote compiles for itself
        carried.tree()
    present: list[Runtime] = [Jail(groups, privileged=True, network=network, compiled=carried.compiled)]
    absent, warnings = {}, {}
    tools = installed()
    for name in BY_TOOL:
        tool = choose(name, tools)
        if tool is None:
            absent[name] = lacking(name, tools)
            continue
        groups = detect(f"{instance}-{name}", root=True)
        present.append(Oci(tool, groups, carried, network=network))
        if tool.warning:
            warnings[name] = tool.warning
    return Here(tuple(present), absent, warnings)
