"""Pause and resume: files are kept, memory is not, and whoever asks for memory is told so.

Clients of the first create route say that memory is kept whether or not their user did; that says nothing. What they
want on timeout is not to lose their files, so it is done. A pause by hand is refused as ever, unless the operator says
that files will do.
"""

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
        remediation="ask for a pause that keeps files alone (memory: false); "
        "the operator may take every pause for one by [e2b] files_only_pause",
    )


def on_timeout(asked: shapes.NewSandbox, settings: E2bSettings, *, always_said: bool = False) -> bool:
    """Whether it is paused rather than killed when its time is over. Raises BadRequest for what cannot be.

    `always_said`: that memory is kept was said by the client itself.
    """
    resumes = asked.auto_resume is not None and asked.auto_resume.enabled
    if not asked.auto_pause:
        if asked.auto_pause_memory is not None and asked.auto_pause_memory is False:
            raise BadRequest("autoPauseMemory is for sandboxes with autoPause", code="bad_lifecycle")
        if resumes:
            raise BadRequest("autoResume is for sandboxes with autoPause", code="bad_lifecycle")
        return False
    unsaid = asked.auto_pause_memory is None and settings.files_only_pause
    if asked.auto_pause_memory is not False and not unsaid and not always_said:
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
        said = asked.memory is not None and not (asked.memory and face.record.first)
        if asked.memory is not False and (said or not self._settings.files_only_pause):
            raise _no_memory("pause")
        await self._engine.pauses.pause(face.tenant, face.id)

    async def resume(self, face: Face, seconds: float) -> None:
        """Have it run again, with the files it had. Raises Conflict, OverQuota."""
        await self._engine.pauses.resume(face.tenant, face.id, seconds)
