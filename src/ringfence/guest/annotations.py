"""Names for annotations alone. Importing typing would cost every sandbox memory for words that nobody evaluates."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final
else:
    Any = Final = None

__all__ = ["TYPE_CHECKING", "Any", "Final"]
