"""Sandboxes made by container tools: `container` over runc or crun, `gvisor` over runsc.

    versions.py  which of the tools this host has, and whether its version may be used
    bundle.py    config.json as a value: what the tool is told, and nothing a user wrote
    carried.py   our guest code and an interpreter of our own, for images that have none
    launcher.py  the step between the node and the tool: mounts and a pid namespace nobody else sees
    runtime.py   the verbs of runtimes/base.py

The tool makes namespaces and mounts; everything else is the guest's own (guest/boot.py) or our own groups.
A sandbox is one process group in one pid namespace whose process 1 is the tool: when it dies, all of it dies, the
mounts, the tool's own records and the bundle included, for they live in a mount namespace that only it holds.
"""
