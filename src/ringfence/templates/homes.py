"""What a tenant's template has in its home, put aside: every sandbox begins with a copy of it."""

from __future__ import annotations

from typing import Final

from ringfence.domain.errors import BadRequest
from ringfence.guest.furnishing import SEED
from ringfence.guest.plan import HOME
from ringfence.templates.image import model
from ringfence.templates.image.tar import LayerError

HOUSE: Final = HOME.strip("/")
PLACE: Final = SEED.strip("/")


def put_aside(root: model.Root, files: int, size: int) -> None:
    """Move the home's content to where sandboxes copy it from. Raises BadRequest and LayerError for too much of it.

    `files` and `size`, in bytes, are the most there may be.
    """
    house = root.lookup(HOUSE)
    above = [PLACE.rsplit("/", count)[0] for count in range(1, PLACE.count("/") + 1)]
    # A link on the way would have every sandbox's home begin with what lies behind it, wherever that is.
    odd = [path for path in above if not isinstance(root.lookup(path) or model.Folder(), model.Folder)]
    if odd or root.lookup(PLACE) is not None or not isinstance(house, model.Folder):
        raise LayerError("image_unsafe_path", f"something is in the way of {SEED}, which we need")
    found = [node for node in _below(house) if isinstance(node, model.File)]
    if len(found) > files or sum(node.size for node in found) > size:
        raise BadRequest(
            f"{HOME} has more than {files} files or {size >> 20} MiB, which every sandbox would get a copy of",
            code="home_too_large",
            remediation="put it elsewhere, as into /opt",
        )
    if house.children:
        root.put(PLACE, model.Folder(dict(house.children)))
        house.children.clear()


def _below(folder: model.Folder) -> list[model.Node]:
    waiting, found = [folder], []
    while waiting:
        for node in waiting.pop().children.values():
            found.append(node)
            if isinstance(node, model.Folder):
                waiting.append(node)
    return found
