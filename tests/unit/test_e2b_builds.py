"""The parts of a build that meet a stranger's words and archives first, each by itself."""

from __future__ import annotations

import getpass
import grp
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.api.compat.e2b import shapes
from ringfence.api.compat.e2b.templates import images, records, steps
from ringfence.api.compat.e2b.templates.steps import Inherited, StartBuild
from ringfence.domain.building import Pulled, Recipe, Source
from ringfence.domain.errors import BadRequest, OverQuota
from ringfence.engine.kept import Cache
from ringfence.engine.shelf import Blob, Shelf
from ringfence.guest.building import work
from ringfence.store.base import PauseRow

HASH = "a" * 64
ME = f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}"
MOST = {"entries": 100, "bytes": 4 << 20, "free": 1 << 20, "ratio": 50}


def read(*each: dict[str, Any], **more: Any) -> Recipe:
    """Steps as a client sends them, read."""
    body = json.dumps({"fromTemplate": "base", "steps": list(each), **more}).encode()
    return steps.recipe_of(shapes.read(body, StartBuild), "base", Inherited())


def test_what_is_set_holds_for_the_steps_behind_it() -> None:
    """ENV, WORKDIR and USER, each from its place on; RUN's own user for that step alone."""
    recipe = read(
        {"type": "RUN", "args": ["first"]},
        {"type": "ENV", "args": ["A", "1", "B", "$A-${A}\\$"]},
        {"type": "WORKDIR", "args": ["deep"]},
        {"type": "RUN", "args": ["second", "root"]},
        {"type": "USER", "args": ["root"]},
        {"type": "RUN", "args": ["third"]},
    )
    first, workdir, second, third = recipe.steps
    assert (first.setting.user, first.setting.workdir, first.setting.env) == ("user", "/home/user", ())
    assert workdir.command == "/home/user/deep"
    assert dict(second.setting.env) == {"A": "1", "B": "1-1$"}
    assert (second.setting.user, second.number) == ("root", 4)
    assert (third.setting.user, recipe.setting.user, recipe.setting.workdir) == ("root", "root", "/home/user/deep")


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"type": "FROM", "args": ["x"]}, "no kind"),
        ({"type": None}, "no kind"),
        ({"type": "RUN", "args": []}, "RUN takes"),
        ({"type": "RUN", "args": ["x", "y", "z"]}, "RUN takes"),
        ({"type": "RUN", "args": ["a\0b"]}, "NUL"),
        ({"type": "RUN", "args": ["x" * 70_000]}, "too long"),
        ({"type": "RUN", "args": ["x", "a;b"]}, "no user"),
        ({"type": "RUN", "args": [1]}, "texts"),
        ({"type": "RUN", "args": ["x"], "mounts": ["/"]}, "mounts is not supported"),
        ({"type": "RUN", "args": ["x"], "filesHash": HASH}, "only COPY"),
        ({"type": "RUN", "args": ["x"], "force": "yes"}, "true or false"),
        ({"type": "ENV", "args": ["A"]}, "names and values"),
        ({"type": "ENV", "args": ["1A", "x"]}, "no variable"),
        ({"type": "ENV", "args": ["A", "$NOWHERE"]}, "NOWHERE"),
        ({"type": "WORKDIR", "args": []}, "takes a path"),
        ({"type": "WORKDIR", "args": ["/" + "x" * 2000]}, "too long"),
        ({"type": "USER", "args": ["carl"]}, "last USER"),
        ({"type": "USER", "args": ["../x"]}, "no user"),
        ({"type": "COPY", "args": ["a", "b"]}, "SHA-256"),
        ({"type": "COPY", "args": ["a", "b"], "filesHash": "../../x"}, "SHA-256"),
        ({"type": "COPY", "args": ["../a", "b"], "filesHash": HASH}, "leads out"),
        ({"type": "COPY", "args": ["/etc/passwd", "b"], "filesHash": HASH}, "leads out"),
        ({"type": "COPY", "args": ["a", "b", "", "4755"], "filesHash": HASH}, "would not be kept"),
        ({"type": "COPY", "args": ["a", "b", "x y"], "filesHash": HASH}, "no user"),
        ({"type": "COPY", "args": ["a"], "filesHash": HASH}, "COPY takes"),
    ],
)
def test_a_step_that_cannot_be_done_is_refused_with_its_number(step: dict[str, Any], why: str) -> None:
    """Before anything runs."""
    with pytest.raises(BadRequest, match=why):
        read({"type": "RUN", "args": ["true"]}, step)


def test_too_many_steps_are_refused() -> None:
    """However short each is."""
    with pytest.raises(BadRequest, match="more than"):
        read(*[{"type": "RUN", "args": ["true"]}] * (steps.MOST_STEPS + 1))


def source(registries: list[str] | None = None, **words: Any) -> Source | None:
    """The image that a build begins with."""
    return images.source_of(shapes.read(json.dumps(words).encode(), StartBuild), registries or ["*"])


SECRET = "open sesame"
REGISTRY = {"type": "registry", "username": "u", "password": SECRET}


def test_an_image_is_read_with_what_its_registry_wants_to_hear() -> None:
    """Every spelling that container tools take; E2B's own stand for templates of ours, unless a password is given."""
    assert source(fromImage="python:3") == Source("python:3")
    assert source(fromImage="e2bdev/base") is source(fromImage="docker.io/e2bdev/base:latest") is None
    private = source(
        ["ghcr.io", "http://10.0.0.1:5000"], fromImage="ghcr.io/a/b@sha256:" + HASH, fromImageRegistry=REGISTRY
    )
    assert private is not None
    assert (private.username, private.password, private.allow) == ("u", SECRET, ("ghcr.io", "http://10.0.0.1:5000"))
    assert SECRET not in repr(private)
    assert source(["http://10.0.0.1:5000"], fromImage="10.0.0.1:5000/x") is not None
    assert source(fromImage="e2bdev/base", fromImageRegistry=REGISTRY) is not None


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"fromImage": "base", "fromTemplate": "base"}, "bad_build"),
        ({}, "bad_build"),
        ({"fromTemplate": "base", "fromImageRegistry": REGISTRY}, "bad_build"),
        ({"fromImage": f"u:{SECRET}@x.example/y"}, "bad_image_reference"),
        ({"fromImage": "https://x.example/y"}, "bad_image_reference"),
        ({"fromImage": "--authfile=/etc/shadow"}, "bad_image_reference"),
        ({"fromImage": "x" * 600}, "bad_image_reference"),
        ({"fromImage": "A/B"}, "bad_image_reference"),
        ({"fromImage": "127.0.0.1:5000/x"}, "image_address_refused"),
        ({"fromImage": "2130706433/x.y", "fromImageRegistry": {}}, "bad_registry"),
        ({"fromImage": "169.254.169.254/latest/meta-data"}, "image_address_refused"),
        *(
            ({"fromImage": "x.example/y", "fromImageRegistry": table}, code)
            for table, code in (
                ({**REGISTRY, "type": ""}, "bad_registry"),
                ({**REGISTRY, "type": "ftp"}, "bad_registry"),
                ({**REGISTRY, "type": ["registry"]}, "bad_registry"),
                ({"username": "u", "password": SECRET}, "bad_registry"),
                ({**REGISTRY, "username": ""}, "bad_registry"),
                ({**REGISTRY, "username": "u:v"}, "bad_registry"),
                ({**REGISTRY, "username": 7}, "bad_registry"),
                ({**REGISTRY, "username": "u\nv"}, "bad_registry"),
                ({**REGISTRY, "password": ""}, "bad_registry"),
                ({**REGISTRY, "password": None}, "bad_registry"),
                ({**REGISTRY, "password": [SECRET]}, "bad_registry"),
                ({**REGISTRY, "password": SECRET + "\n"}, "bad_registry"),
                ({**REGISTRY, "password": SECRET * 2000}, "bad_registry"),
                ({"type": "registry", "username": "u"}, "bad_registry"),
                ({**REGISTRY, "token": SECRET}, "bad_registry"),
                ({"type": "aws", "awsSecretAccessKey": SECRET, "awsRegion": "r"}, "registry_unsupported"),
                ({"type": "gcp", "serviceAccountJson": SECRET}, "registry_unsupported"),
            )
        ),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_pulled_so_is_refused(words: dict[str, Any], code: str) -> None:
    """Every field of its registry's credentials, and every reference; what was secret in them is not said again."""
    asked = shapes.read(json.dumps(words).encode(), StartBuild)
    with pytest.raises(BadRequest) as caught:
        images.source_of(asked, ["*"]) or steps.base_of(asked)
    assert caught.value.code == code
    assert SECRET not in f"{caught.value.cause} {caught.value.remediation}"


@pytest.mark.parametrize("registries", [[], ["ghcr.io"], ["docker.io:5000", "http://docker.example"]])
def test_only_what_the_operator_names_is_pulled_from(registries: list[str]) -> None:
    """None at all, or another."""
    asked = shapes.read(b'{"fromImage": "python:3"}', StartBuild)
    with pytest.raises(BadRequest, match=r"pulls no images from docker\.io"):
        images.source_of(asked, registries)


def test_variables_that_an_image_may_set_are_put_in_once_it_is_here() -> None:
    """Before, they may be anything; afterwards one that nobody set is refused, as ever."""
    env = {"type": "ENV", "args": ["PATH", "/opt:$PATH", "MINE", "$THEIRS-$NOBODY"]}
    asked = shapes.read(json.dumps({"fromImage": "python:3", "steps": [env]}).encode(), StartBuild)
    steps.recipe_of(asked, "", Inherited(), image=True)
    both = {"PATH": "/image", "THEIRS": "1", "NOBODY": "2"}
    made = images.recipe_of(asked, Pulled("pulled-x", "digest", both, "/bin/sh"))
    assert dict(made.setting.env) == {**both, "PATH": "/opt:/image", "MINE": "1-2"}
    assert (made.template, made.setting.user, made.setting.workdir) == ("pulled-x", "user", "/home/user")
    with pytest.raises(BadRequest, match="NOBODY"):
        images.recipe_of(asked, Pulled("pulled-x", "digest", {"THEIRS": "1"}, ""))


@pytest.mark.parametrize("name", ["", "A", "a/b", "a:b:c", "-x", "a" * 200, "a b", "é", "a:", "../x", "a\0"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """Names become rows, paths of URLs and words in logs."""
    with pytest.raises(BadRequest):
        records.split(name)


def test_two_builds_share_what_they_have_in_common_and_no_more() -> None:
    """Another command, variable, user, folder, base or tenant is another outcome, for that step and all behind it."""
    one = {"type": "RUN", "args": ["one"]}
    keys = read(one, one).keys("ada", "base")
    assert keys == read(one, one).keys("ada", "base")
    assert keys[0] == read(one, {"type": "RUN", "args": ["two"]}).keys("ada", "base")[0]
    others = [
        read(one, one).keys("bob", "base"),
        read(one, one).keys("ada", "other"),
        read({"type": "ENV", "args": ["A", "1"]}, one, one).keys("ada", "base"),
        read({"type": "RUN", "args": ["one", "root"]}, one).keys("ada", "base"),
    ]
    for other in others:
        assert not set(keys) & set(other)
    assert keys[1] not in read(one, {"type": "RUN", "args": ["two"]}, one).keys("ada", "base")


# -- a COPY's archive -------------------------------------------------------------------------------------------------


def packed(*members: tarfile.TarInfo | tuple[str, bytes], gz: bool = True) -> bytes:
    """An archive, as the clients make them or as nobody should."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if gz else "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def odd(name: str, kind: bytes, target: str = "", **more: Any) -> tarfile.TarInfo:
    """A member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for word, value in more.items():
        setattr(info, word, value)
    return info


def place(tmp_path: Path, data: bytes, source: str = "src", target: str = "to", **most: int) -> Path:
    """Unpack as a COPY would, into a folder of the test's."""
    words = {
        "source": source,
        "target": target,
        "user": ME,
        "mode": 0,
        "workdir": str(tmp_path),
        "most": {**MOST, **most},
    }
    work.Placing(words, work.Counted(io.BytesIO(data))).run()
    return tmp_path / target


def test_a_file_goes_where_it_is_told(tmp_path: Path) -> None:
    """By its new name, or into a folder."""
    data = packed(("dir/app.py", b"x"))
    assert place(tmp_path, data, "dir/app.py", "new.py").read_bytes() == b"x"
    assert (place(tmp_path, data, "dir/app.py", "there/") / "app.py").read_bytes() == b"x"
    assert (place(tmp_path, data, "./dir/app.py", "there") / "app.py").exists()


def test_a_folder_s_content_goes_where_it_is_told(tmp_path: Path) -> None:
    """Beside what is there, over what has its name."""
    (tmp_path / "to").mkdir()
    (tmp_path / "to/kept").write_text("kept")
    (tmp_path / "to/a").write_text("old")
    folder = odd("src", tarfile.DIRTYPE)
    data = packed(folder, ("src/a", b"new"), ("src/deep/b", b"b"), odd("src/link", tarfile.SYMTYPE, "deep/b"))
    to = place(tmp_path, data)
    assert {path.name for path in to.iterdir()} == {"kept", "a", "deep", "link"}
    assert (to / "a").read_bytes() == b"new"
    assert (to / "link").read_bytes() == b"b"


def test_what_a_pattern_finds_goes_into_a_folder(tmp_path: Path) -> None:
    """Each by its own name, and the context's root as what is in it."""
    to = place(tmp_path, packed(("d/a.txt", b"a"), ("d/b.txt", b"b")), "d/*.txt", "texts")
    assert sorted(path.name for path in to.iterdir()) == ["a.txt", "b.txt"]
    to = place(tmp_path, packed(odd(".", tarfile.DIRTYPE), ("a", b"a"), ("sub/b", b"b")), ".", "all")
    assert (to / "sub/b").read_bytes() == b"b"


def _bomb() -> bytes:
    return packed(("src/zeros", bytes(3 << 20)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a path that climbs": lambda: packed(("../out", b"x")),
    "a path that climbs later": lambda: packed(("src/../../out", b"x")),
    "an absolute path": lambda: packed(("/etc/out", b"x")),
    "another folder's": lambda: packed(("other/x", b"x")),
    "a link out": lambda: packed(odd("src/link", tarfile.SYMTYPE, "../../out")),
    "an absolute link": lambda: packed(odd("src/link", tarfile.SYMTYPE, "/etc/passwd")),
    "a file behind a link": lambda: packed(odd("src/l", tarfile.SYMTYPE, "."), ("src/l/x", b"x")),
    "a hard link out": lambda: packed(odd("src/hard", tarfile.LNKTYPE, "../../etc/passwd")),
    "a hard link to nothing": lambda: packed(odd("src/hard", tarfile.LNKTYPE, "src/none")),
    "a hard link to a link": lambda: packed(
        odd("src/l", tarfile.SYMTYPE, "x"), odd("src/hard", tarfile.LNKTYPE, "src/l")
    ),
    "a device": lambda: packed(odd("src/null", tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "a block device": lambda: packed(odd("src/disk", tarfile.BLKTYPE, devmajor=8)),
    "a pipe": lambda: packed(odd("src/pipe", tarfile.FIFOTYPE)),
    "twice the same": lambda: packed(("src/a", b"1"), ("src/a", b"2")),
    "a name too long": lambda: packed(("src/" + "x" * 300, b"x")),
    "too deep": lambda: packed(("src/" + "d/" * 150 + "x", b"x")),
    "too many": lambda: packed(*[(f"src/{number}", b"") for number in range(200)]),
    "a bomb": _bomb,
    "too much": lambda: packed(("src/random", os.urandom(5 << 20)), gz=False),
    "cut short": lambda: packed(("src/a", os.urandom(200_000)), gz=False)[:100_000],
    "cut short, packed": lambda: packed(("src/a", os.urandom(200_000)))[:100_000],
    "no archive": lambda: b"this is none" * 100,
    "gzip of nothing": lambda: gzip.compress(b"none"),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """Whatever it is, nothing of it stands where it was to go, or anywhere else."""
    inside = tmp_path / "in"
    inside.mkdir()
    with pytest.raises(work.Refused):
        place(inside, HOSTILE[kind]())
    assert [path for path in tmp_path.rglob("*") if path != inside] == []
    assert not list(Path("/tmp").glob(f".copy-{os.getpid()}"))


def test_an_owner_that_is_nobody_is_refused() -> None:
    """In the build's own list of users."""
    with pytest.raises(work.Refused, match="no user"):
        work.Placing(
            {"source": "a", "target": "b", "user": "nobody-of-that-name", "mode": 0, "workdir": "/", "most": MOST},
            work.Counted(io.BytesIO()),
        )


# -- what is kept -----------------------------------------------------------------------------------------------------


async def _kept(cache: Cache, tenant: str, key: str, data: bytes) -> PauseRow:
    async def fill(blob: Blob) -> None:
        await blob.write(data)

    return await cache.keep(tenant, key, 1 << 20, fill)


@pytest.mark.anyio
async def test_what_is_kept_is_one_tenant_s_and_makes_room_but_not_under_a_build(tmp_path: Path) -> None:
    """Replaced while a build uses it, it stays until that is over; the longest unused goes first."""
    place = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    cache = Cache(Shelf(place, kept_free=0), 100_000)
    try:
        used = await _kept(cache, "ada", "one", b"x" * 30_000)
        assert cache.row("bob", "one") is None
        async with cache.pinning() as pins:
            pins.add(used)
            again = await _kept(cache, "ada", "one", b"y" * 30_000)
            assert cache.row("ada", "one") == again
            assert [data async for data in cache.shelf.reading(used)] == [b"x" * 30_000]
        assert set(os.listdir(tmp_path)) == {again.sandbox}
        other = await _kept(cache, "ada", "two", b"z" * 30_000)
        theirs = await _kept(cache, "bob", "one", b"b" * 60_000)
        assert cache.row("ada", "two") == other
        last = await _kept(cache, "ada", "three", b"3" * 30_000)
        assert cache.row("ada", "one") is None
        assert set(os.listdir(tmp_path)) == {other.sandbox, theirs.sandbox, last.sandbox}
        with pytest.raises(OverQuota):
            await _kept(cache, "bob", "two", b"x" * 110_000)
        assert cache.shelf.used("bob") <= 60_000
    finally:
        os.close(place)
