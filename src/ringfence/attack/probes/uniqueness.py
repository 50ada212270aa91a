# ruff: noqa: S311 - unsafe on purpose: it runs inside a sandbox
"""Draw from every source of randomness, the ready-made generators first: siblings must not draw the same."""

import gc
import os
import random
import secrets
import ssl
import sys
import tempfile
import uuid

from ringfence.attack.probes.prelude import say, text_of


def ready_made() -> dict[str, str]:
    """Generators that were alive before us, wherever they hide."""
    drawn = {}
    for index, thing in enumerate(x for x in gc.get_objects() if isinstance(x, random.Random)):
        drawn[f"ready-made {type(thing).__name__} {index}"] = str(thing.getrandbits(64))
    return drawn


def numpy_draws() -> dict[str, str]:
    """NumPy's global state, every generator alive, and a new one."""
    if "numpy" not in sys.modules:
        return {}
    numpy = sys.modules["numpy"]
    drawn = {
        "numpy legacy": str(numpy.random.randint(1 << 62)),
        "numpy new": str(numpy.random.default_rng().integers(1 << 62)),
    }
    for index, thing in enumerate(x for x in gc.get_objects() if isinstance(x, numpy.random.Generator)):
        drawn[f"numpy ready-made {index}"] = str(thing.integers(1 << 62))
    return drawn


def temporary_name() -> str:
    """The name a temporary file would get."""
    with tempfile.NamedTemporaryFile() as file:
        return os.path.basename(file.name)


values = {"random": str(random.getrandbits(64)), **ready_made(), **numpy_draws()}
values |= {
    "new random.Random": str(random.Random().getrandbits(64)),
    "secrets": secrets.token_hex(16),
    "uuid1": str(uuid.uuid1()),
    "uuid4": str(uuid.uuid4()),
    "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
    "os.urandom": os.urandom(16).hex(),
    "getrandom": os.getrandom(16).hex(),
    "temporary file name": temporary_name(),
}
say(values=values, hash=hash("ringfence"), stack=text_of("/proc/self/maps").count("stack"), libc=id(os))
