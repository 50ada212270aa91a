"""Representations that IPython itself does not make: tables as data, figures as charts, values as JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable

from ringfence.guest.annotations import Any, Final

MOST_CELLS: Final = 200_000  # of a table that is told as data
MOST_JSON: Final = 1024 * 1024
TABLES: Final = (("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame"))
FIGURES: Final = (("matplotlib.figure", "Figure"),)
INLINE: Final = "module://matplotlib_inline.backend_inline"


def install(shell: Any) -> None:
    """Add ours to a shell's own; what a template does not have is left out."""
    with contextlib.suppress(ImportError):
        show_figures(shell)
    add(shell, "e2b/data", "_repr_e2b_data_", table, TABLES)
    add(shell, "e2b/chart", "_repr_e2b_chart_", chart, FIGURES)
    for kind in (dict, list):
        shell.display_formatter.formatters["application/json"].for_type(kind, plain)
    show_saved_images(shell)


def add(shell: Any, media: str, method: str, printer: Callable[[Any], Any], kinds: tuple[tuple[str, str], ...]) -> None:
    """A representation of these classes, which need not be loaded yet, and of what has the method."""
    made: Any = importlib.import_module("IPython.core.formatters").BaseFormatter(parent=shell.display_formatter)
    made.format_type, made.print_method = media, method
    made._return_type = (dict, str)
    for module, name in kinds:
        made.for_type_by_name(module, name, printer)
    made.pop = lambda *_: None  # whoever chooses other formats for figures takes every printer away first
    shell.display_formatter.formatters[media] = made


def table(value: Any) -> dict[str, list[Any]] | None:
    """A pandas table as its columns; times as ISO 8601, what is no number as null."""
    if value.size > MOST_CELLS:
        return None
    return {str(name): [_scalar(item) for item in column] for name, column in value.to_dict(orient="list").items()}


def _scalar(item: Any) -> Any:
    if item is None or isinstance(item, bool | int | str):
        return item
    if hasattr(item, "item") and not hasattr(item, "isoformat"):  # NumPy's own numbers
        item = item.item()
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, bool | int | str):
        return item
    if hasattr(item, "isoformat"):
        text = item.isoformat()
        return None if text == "NaT" else text
    return str(item)


def chart(value: Any) -> dict[str, Any] | None:
    """A Matplotlib figure as the chart that e2b_charts reads out of it."""
    if not value.get_axes():
        return None
    try:
        found: dict[str, Any] = importlib.import_module("e2b_charts").chart_figure_to_dict(value)
        return {str(name): _finite(part) for name, part in found.items()}
    except Exception:  # noqa: BLE001 - a figure it does not understand is a picture all the same
        return None


def _finite(part: Any) -> Any:
    """A chart's numbers may be NumPy's, times, or not finite."""
    if isinstance(part, dict):
        return {str(name): _finite(inner) for name, inner in part.items()}
    if isinstance(part, list | tuple):
        return [_finite(inner) for inner in part]
    return _scalar(part)


def plain(value: Any) -> Any:
    """A list or dictionary that is JSON already; else nothing."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return json.loads(text) if len(text) <= MOST_JSON else None


def show_figures(shell: Any) -> None:
    """Have figures displayed when their cell ends, as notebooks do. Programs started from here are not told."""
    if "matplotlib" in sys.modules:
        shell.enable_matplotlib("inline")
    else:
        importlib.import_module("matplotlib_inline")
        os.environ["MPLBACKEND"] = INLINE


def show_saved_images(shell: Any) -> None:
    """A Pillow image that a cell saves under a name is displayed, too."""
    image: Any = getattr(sys.modules.get("PIL.Image"), "Image", None)
    if image is None:
        return
    plain_save = image.save

    def save(self: Any, target: Any, *args: Any, **options: Any) -> Any:
        saved = plain_save(self, target, *args, **options)
        asker = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(target, str | os.PathLike) and asker == "__main__":
            data, _ = shell.display_formatter.format(self)
            shell.display_pub.publish(data)
        return saved

    image.save = save
