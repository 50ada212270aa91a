"""Named SQL from queries.sql, read once when imported."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent


def _named(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        found[name.strip()] = body.strip()
    return found


SCHEMA: Final = (_HERE / "schema.sql").read_text(encoding="utf-8")
KEYS_SCHEMA: Final = (_HERE / "keys.sql").read_text(encoding="utf-8")
PORTS_SCHEMA: Final = (_HERE / "ports.sql").read_text(encoding="utf-8")
SECRETS_SCHEMA: Final = (_HERE / "secrets.sql").read_text(encoding="utf-8")
BUILT_SCHEMA: Final = (_HERE / "built.sql").read_text(encoding="utf-8")
COMPAT_SCHEMA: Final = (_HERE / "compat.sql").read_text(encoding="utf-8")
#: What leads from each version of the store to the next, by the version it leads to.
UPGRADES: Final = {int(name): text for name, text in _named((_HERE / "upgrade.sql").read_text("utf-8")).items()}
SQL: Final = _named((_HERE / "queries.sql").read_text(encoding="utf-8"))
