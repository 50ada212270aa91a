"""Resource groups: what a sandbox may use of memory, processors and processes, enforced by the kernel.

`detect.detect()` looks at the machine once and answers with one `base.Groups`:

    v1.py    one directory per sandbox in each of the memory, cpu, cpuacct and pids hierarchies
    v2.py    one directory per sandbox in the unified hierarchy
    none.py  nothing; the jail's rlimits are all there is, and `missing` says why

Every directory is `<mount or delegated group>/ringfence/<instance>/<sandbox id>`. No other group is changed,
except that below a delegated group our own processes move to the leaf `ringfence-main` first.

    tree.py      what v1 and v2 share: make, attach, kill, remove, list
    governor.py  two memory limits out of the kernel's one: programs and files
"""
