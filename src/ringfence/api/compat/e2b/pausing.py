"""Pause and resume: files are kept, memory is not, and whoever asks for memory is told so."""

from __future__ import annotations

from typing import Any, Final

from ringfence.api.compat.e2b import shapes
from ringfence.api.compat.e2b.records import Face, Record
from ringfence.config import E2bSettings
from ringfence.domain.errors import BadRequest
from ringfence.engine.engine import Engine

UNSUPPORTED: Final = "pause_memory_unsupported"


def _no_memory(what: str) -> BadRequest:
    return BadRequest(
        f"{what} would keep the memory of programs, which no runtime here can do",
        code=UNSUPPORTED,
        remediation="ask for a pause that keeps files alone (memory: false)",
    )


def on_timeout(asked: shapes.NewSandbox, settings: E2bSettings) -> bool:
    """Whether it is paused rather than killed when its time is over. Raises BadRequest for what cannot be."""
    resumes = asked.auto_resume is not None and asked.auto_resume.enabled
    if not asked.auto_pause:
        if asked.auto_pause_memory is not None and asked.auto_pause_memory is False:
            raise BadRequest("autoPauseMemory is for sandboxes with autoPause", code="bad_lifecycle")
        if resumes:
            raise BadRequest("autoResume is for sandboxes with autoPause", code="bad_lifecycle")
        return False
    if asked.auto_pause_memory is not False and not (asked.auto_pause_memory is None and settings.files_only_pause):
        raise _no_memory("autoPause")
    return True


class Pausing:
    """The verbs."""

    def __init__(self, engine: Engine, settings: E2bSettings) -> None:
        self._engine = engine
        self._settings = settings

    def words(self, record: Record) -> dict[str, Any]:
        """What create adds for this."""
        return {"on_timeout": "pause" if record.auto_pause else "stop", "wake": record.auto_resume}

    async def pause(self, face: Face, asked: shapes.Pause) -> None:
        """Keep its files, end its programs. Raises BadRequest where memory was to be kept, Conflict, OverQuota."""
        if asked.memory is not False and not (asked.memory is None and self._settings.files_only_pause):
            raise _no_memory("pause")
        await self._engine.pauses.pause(face.tenant, face.id)

    async def resume(self, face: Face, seconds: float) -> None:
        """Have it run again, with the files it had. Raises Conflict, OverQuota."""
        await self._engine.pauses.resume(face.tenant, face.id, seconds)
