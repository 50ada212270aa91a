"""The catalog: what is built, by name, read with distrust; and the recipes that come with ringfence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ringfence.domain.errors import BadRequest, NotFound, PlatformFault
from ringfence.domain.limits import Limits
from ringfence.domain.template import PoolPolicy, Template, ZygoteMode
from ringfence.templates.build import recipe_digest
from ringfence.templates.catalog import Built, Catalog, builtin_names, recipe_named

DIGEST = "a" * 64
FULL = Template(
    name="full",
    description="every field is set",
    debian=("graphviz",),
    wheels=("numpy>=2",),
    preload=("numpy.random",),
    env=(("A", "1"), ("B", "")),
    limits=Limits(cpus=2.0),
    runtime="jail",
    zygote=ZygoteMode.NONE,
    pool=PoolPolicy(least=0, most=3, ratio=0.5),
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A templates directory with one root in it."""
    (tmp_path / DIGEST / "root").mkdir(parents=True)
    return Catalog(tmp_path)


def _built(catalog: Catalog, template: Template) -> Built:
    return Built(template, DIGEST, catalog.directory / DIGEST / "root", 5, 12.5, recipe_digest(template))


def test_what_is_recorded_is_read_back_whole(catalog: Catalog) -> None:
    """Every field of a template survives its way through the index."""
    built = _built(catalog, FULL)
    catalog.record(built)
    assert catalog.load() == {"full": built}


def test_recording_again_replaces_the_entry_and_leaves_nothing_else(catalog: Catalog) -> None:
    """A name has one entry: the latest."""
    for description in ("first", "second"):
        catalog.record(_built(catalog, dataclasses.replace(FULL, description=description)))
    assert catalog.read("full").template.description == "second"
    assert [file.name for file in catalog.index.iterdir()] == ["full.json"]


def test_an_empty_or_absent_directory_holds_no_templates(tmp_path: Path) -> None:
    """A machine where nothing was built yet is not an error until a template is asked for."""
    assert Catalog(tmp_path / "nowhere").load() == {}
    with pytest.raises(NotFound, match="not built"):
        Catalog(tmp_path / "nowhere").read("base")


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"template": 1}', '"x"', "\x00"])
def test_a_damaged_entry_is_refused_by_name_and_no_base_for_a_build(catalog: Catalog, damage: str) -> None:
    """The catalog never guesses what a damaged entry meant."""
    catalog.record(_built(catalog, FULL))
    (catalog.index / "full.json").write_text(damage)
    with pytest.raises(PlatformFault, match="full") as caught:
        catalog.load()
    assert caught.value.code == "template_damaged"
    assert catalog.usable() == []


def test_an_entry_with_an_unknown_field_or_a_missing_root_is_refused(catalog: Catalog) -> None:
    """Neither a template of another version nor a removed root starts a sandbox."""
    catalog.record(_built(catalog, FULL))
    file = catalog.index / "full.json"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"template": entry["template"] | {"future": 1}}))
    with pytest.raises(PlatformFault, match="damaged"):
        catalog.load()
    file.write_text(json.dumps(entry))
    (catalog.directory / DIGEST / "root").rmdir()
    with pytest.raises(PlatformFault, match="gone"):
        catalog.load()


def test_the_builtin_recipes_are_valid_and_named_after_their_files() -> None:
    """These come with ringfence, and all of them speak UTF-8."""
    assert builtin_names() == ["base", "code-interpreter-v1", "python"]
    for name in builtin_names():
        assert recipe_named(name).name == name
        assert ("LANG", "C.UTF-8") in recipe_named(name).env


def test_a_recipe_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    """A path that ends in .toml is a template; anything else is a built-in name or nothing."""
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nwheels = ["six"]\n')
    assert recipe_named(str(file)).wheels == ("six",)
    with pytest.raises(NotFound, match="no built-in template"):
        recipe_named("mine")


@pytest.mark.parametrize("content", [b"name = ", b'name = "x"\nshell = "rm"', b"\xff", b"#" * 70_000])
def test_a_bad_recipe_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """No TOML, an unknown field, no text, or too much of it: each is a bad template, said so."""
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(BadRequest) as caught:
        recipe_named(str(file))
    assert caught.value.code == "bad_template"


def test_a_recipe_is_what_decides_the_content_of_a_root() -> None:
    """Limits, variables and the order of names leave it; a package more changes it."""
    same = dataclasses.replace(FULL, name="other", env=(), limits=Limits(), preload=(), debian=FULL.debian * 2)
    assert recipe_digest(same) == recipe_digest(FULL)
    assert recipe_digest(dataclasses.replace(FULL, debian=())) != recipe_digest(FULL)
    assert recipe_digest(dataclasses.replace(FULL, wheels=())) != recipe_digest(FULL)
