"""Canaries in places that only a test can reach: a server's environment, its state directory, another tenant."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ringfence.attack.host import new_token

# Not a setting of ours: the server must ignore it, and nothing of it may reach a sandbox.
VARIABLE = "RINGFENCE_TEST_CANARY"


@dataclass
class Canaries:
    """Tokens planted around a server, and whether what was planted is as it was."""

    environment: str = field(default_factory=new_token)
    state_file: str = field(default_factory=new_token)
    _planted: dict[Path, str] = field(default_factory=dict)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token, for a probe to be told the digests of."""
        return self.environment, self.state_file

    def env(self) -> dict[str, str]:
        """What to add to the server's environment."""
        return {VARIABLE: self.environment}

    def plant(self, state: Path) -> None:
        """Leave files beside the server's own: one for everyone to read, one for root alone."""
        for name, mode in (("canary-open", 0o644), ("canary-closed", 0o600)):
            path = state / name
            path.write_text(self.state_file)
            path.chmod(mode)
            self._planted[path] = self._print(path)

    @staticmethod
    def _print(path: Path) -> str:
        found = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        return f"{content} {found.st_uid} {found.st_gid} {found.st_mode:o} {found.st_mtime_ns}"

    def changed(self) -> list[str]:
        """What is not as it was planted."""
        wrong = []
        for path, before in self._planted.items():
            if not path.is_file() or path.is_symlink():
                wrong.append(f"{path} is gone or is something else now")
            elif self._print(path) != before:
                wrong.append(f"{path} changed")
        return wrong
