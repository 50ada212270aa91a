"""A runtime that isolates nothing and starts nothing: a sandbox is a few objects in this process.

It speaks the same frames as a real agent, so everything above a runtime can be tested, and shown, without privileges.

    runtime.py   the verbs of runtimes/base.py
    agent.py     answers requests, as guest/agent.py does
    channel.py   frames and credit over asyncio
    programs.py  a running program: its output, input and fate
    shell.py     the commands a program can be made of
    script.py    the few Python statements that `run` understands
    tree.py      files in a dictionary
"""

from ringfence.runtimes.fake.runtime import Fake, Host

__all__ = ["Fake", "Host"]
