"""The template's image and runtime: read from a recipe by reference, from the catalog whole, refused when bad."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import BadRequest
from ringfence.domain.template import Image, Template, template_from, template_from_toml
from ringfence.templates.build import recipe_digest
from ringfence.templates.catalog import Built, Catalog, template_fields

DIGEST = "sha256:" + "b" * 64
IMAGE = Image(
    reference="registry.example:5000/team/tool:1.0",
    digest=DIGEST,
    entrypoint=("/bin/tool", "--go"),
    cmd=("a b", ""),
    env=(("PATH", "/bin"), ("B", "x=y"), ("A", "")),
    workdir="/srv/app",
    user="node:1000",
    python="/usr/bin/python3",
)


def test_a_recipe_names_an_image_by_its_reference() -> None:
    """The rest of it is the image's own to say."""
    template = template_from_toml('name = "tool"\nimage = "registry.example/tool:1"\nruntime = "gvisor"\n')
    assert template.image == Image("registry.example/tool:1", "")
    assert template.runtime == "gvisor"


def test_an_image_survives_its_way_through_the_catalog(tmp_path: Path) -> None:
    """Every field, and the order of its variables."""
    (tmp_path / ("a" * 64) / "root").mkdir(parents=True)
    template = Template("tool", image=IMAGE, runtime="container")
    built = Built(template, "a" * 64, tmp_path / ("a" * 64) / "root", 5, 12.5, recipe_digest(template))
    Catalog(tmp_path).record(built)
    assert Catalog(tmp_path).read("tool") == built
    assert json.loads(json.dumps(template_fields(template)["image"]))["env"] == [
        ["PATH", "/bin"],
        ["B", "x=y"],
        ["A", ""],
    ]


def test_a_template_that_was_recorded_before_there_were_images_is_read() -> None:
    """The field may be absent."""
    assert template_from({"name": "old"}).image is None
    assert template_from({"name": "old", "image": None}).image is None


@pytest.mark.parametrize("runtime", ["auto", "jail", "container", "gvisor"])
def test_the_four_ways_to_isolate_are_known(runtime: str) -> None:
    """And no others."""
    assert template_from({"name": "x", "runtime": runtime}).runtime == runtime


@pytest.mark.parametrize("runtime", ["", "docker", "Jail", "runsc", None, 1, ["jail"], {}])
def test_another_way_to_isolate_is_refused(runtime: object) -> None:
    """A misspelt wall is no wall."""
    with pytest.raises(BadRequest, match="auto, jail, container, gvisor"):
        template_from({"name": "x", "runtime": runtime})


BAD: list[Any] = [
    "", "-x", "a b", "a\nb", 1, [], {}, {"reference": "x"}, {"digest": DIGEST}, "x" * 600,
    *(
        {"reference": "x", "digest": DIGEST, **wrong}
        for wrong in (
            {"digest": "sha256:0"}, {"digest": None}, {"reference": None}, {"future": 1}, {"entrypoint": "sh"},
            {"cmd": [1]},
            {"cmd": ["\0"]}, {"cmd": ["x"] * 2000}, {"env": {"A": "1"}}, {"env": [["A"]]}, {"env": [["1A", "x"]]},
            {"env": [["A", 1]]}, {"workdir": "srv"}, {"workdir": ""}, {"workdir": "/a/../b"}, {"workdir": "/\0"},
            {"workdir": None},
            {"user": "--x"}, {"user": "a\nb"}, {"user": 0}, {"python": "python3"}, {"python": 0},
            {"python": "/x/../y"},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("image", BAD, ids=lambda value: repr(value)[:60])
def test_a_bad_image_is_refused(image: object) -> None:
    """Whether it stands in a recipe or in a catalog that somebody changed."""
    with pytest.raises(BadRequest) as caught:
        template_from({"name": "x", "image": image})
    assert caught.value.code == "bad_template"


@pytest.mark.parametrize("field", ["debian", "wheels", "preload"])
def test_an_image_is_not_added_to(field: str) -> None:
    """Said at once, instead of built without."""
    with pytest.raises(BadRequest, match=field):
        template_from({"name": "x", "image": "registry.example/x", field: ["six"]})


def test_the_recipe_of_an_image_is_its_manifest() -> None:
    """Whatever it is called and whatever is run in it."""
    template = Template("x", image=IMAGE)
    moved = dataclasses.replace(IMAGE, reference="elsewhere.example/x", cmd=())
    assert recipe_digest(template) == recipe_digest(Template("y", image=moved))
    assert recipe_digest(template) != recipe_digest(
        Template("x", image=dataclasses.replace(IMAGE, digest="sha256:" + "c" * 64))
    )
    assert recipe_digest(template) != recipe_digest(Template("x"))
