"""Change what we share with the host: the devices, the standard streams, and what stands behind them.

CVE-2026-88265: a device path that was a link, and the host's file behind it was given away.
"""

import os

from ringfence.attack.probes.prelude import attempt, say

NUMBERS = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def wrong_devices() -> list[str]:
    """Names in /dev behind which another device, a file or a link stands."""
    found = []
    for name, numbers in NUMBERS.items():
        try:
            seen = os.lstat(f"/dev/{name}")
        except OSError:
            continue
        if (os.major(seen.st_rdev), os.minor(seen.st_rdev)) != numbers:
            found.append(f"/dev/{name} is device {os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}")
    return found


def changes(what: str | int) -> dict[str, str]:
    """Every way to change an inode that is not ours."""
    return {
        f"chmod {what}": attempt(os.chmod, what, 0o7777),
        f"chown {what}": attempt(os.chown, what, 12, 12),
        f"utime {what}": attempt(os.utime, what, (1, 1)),
        f"setxattr {what}": attempt(os.setxattr, what, b"user.probe", b"x"),
        f"truncate {what}": attempt(os.truncate, what, 1),
    }


def replaced() -> dict[str, str]:
    """Put something else in a device's place."""
    outcomes = {}
    for name in ("null", "tty"):
        outcomes[f"unlink /dev/{name}"] = attempt(os.rename, f"/dev/{name}", f"/dev/{name}.old")
        outcomes[f"link over /dev/{name}"] = attempt(os.symlink, "/etc/passwd", f"/dev/{name}")
    return outcomes


wrong = wrong_devices()
outcomes: dict[str, str] = {}
for name in NUMBERS:
    outcomes |= changes(f"/dev/{name}")
for fd in (0, 1, 2):
    outcomes |= {name: how for name, how in changes(fd).items() if not name.startswith("setxattr")}
streams = {f"{word} {fd}" for word in ("chmod", "chown", "utime", "truncate") for fd in (0, 1, 2)}
swapped = replaced()
say(
    found=wrong + [f"{name}: ok" for name, how in outcomes.items() if how == "ok" and name not in streams],
    streams=[f"{name}: ok" for name, how in outcomes.items() if how == "ok" and name in streams],
    swapped=[f"{name}: ok" for name, how in swapped.items() if how == "ok"],
    tried=len(outcomes) + len(swapped) + len(NUMBERS),
)
