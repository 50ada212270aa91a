"""Egress policies in files: TOML or JSON, by themselves or as the `[egress]` table of a template."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import BadRequest

MOST_BYTES: Final = 1024 * 1024
HEAD: Final = "# Proposed by `ringfence policy learn`: read it before you use it. Use it with --egress @FILE.\n"


def read(path: str) -> Any:
    """What a file asks for, not judged yet. Raises BadRequest for one that cannot be read or is neither form."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1).decode()
        if len(text) > MOST_BYTES:
            raise BadRequest(f"{path} is larger than 1 MiB", code="bad_egress")
        value = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} cannot be read: {error}", code="bad_egress") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, RecursionError) as error:
        kind = "JSON" if path.endswith(".json") else "TOML"
        raise BadRequest(f"{path} is not {kind}: {error}", code="bad_egress") from None
    return value["egress"] if isinstance(value, dict) and "egress" in value else value


def merged(paths: list[str], words: dict[str, Any]) -> dict[str, Any]:
    """One table of files and of words from the command line; of settings other than lists the last one counts."""
    table: dict[str, Any] = {"allow": [], "bundles": []}
    for value in [*map(read, paths), words]:
        part = {"allow": value} if isinstance(value, list) else value
        if not isinstance(part, dict) or not all(isinstance(part.get(key, []), list) for key in ("allow", "bundles")):
            raise BadRequest(
                "a policy file holds a list of rules, or a table with allow and bundles", code="bad_egress"
            )
        lists = {key: [*table[key], *part.get(key, [])] for key in ("allow", "bundles")}
        table = {**table, **part, **lists}
    return table


def to_toml(policy: Mapping[str, Any], notes: list[str]) -> str:
    """A policy as a file that read() reads back; the notes above it as comments."""
    lines = [HEAD.rstrip("\n"), *(f"# {_comment(note)}" for note in notes)]
    rules = policy.get("allow", [])
    top = {key: value for key, value in policy.items() if key != "allow"} | ({} if rules else {"allow": []})
    lines += [f"{key} = {_value(value)}" for key, value in top.items()]
    for rule in rules:
        lines += ["", "[[allow]]", *(f"{key} = {_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _value(value: Any) -> str:
    # JSON's texts, numbers and lists are TOML's too; a DEL is the one character that TOML wants escaped and JSON not.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")


def save(path: str, policy: Mapping[str, Any], notes: list[str]) -> None:
    """Write a policy as its file's name says. Raises BadRequest when that cannot be."""
    text = json.dumps(policy, indent=2) + "\n" if path.endswith(".json") else to_toml(policy, notes)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}", code="bad_egress") from None
