"""Registries and images that mean harm: refused by name, bounded in time and bytes, nothing left on disk."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ringfence.domain.errors import RingfenceError
from ringfence.domain.template import Image, Template
from ringfence.templates.build import build
from ringfence.templates.image.access import Access, Bounds
from ringfence.templates.progress import Progress
from tests.support import images, registries
from tests.support.images import Made, Recipe, digest, file, folder, hard, link, made_of, tar
from tests.support.registries import Hostile, redirect, send

SMALL = Bounds(
    layers=5,
    download_bytes=64 << 20,
    unpacked_bytes=48 << 20,
    file_bytes=24 << 20,
    entries=2000,
    ratio=50,
    ratio_free_bytes=1 << 20,
    ask_seconds=40,
    fetch_seconds=40,
    unpack_seconds=40,
)
IMPATIENT = dataclasses.replace(SMALL, stall_seconds=1.5, stall_bytes=256)
PLACES = (
    "proc", "dev", "sys", "tmp", "run", "var/tmp", "var", "home", "home/user", "etc", "mnt", "dev/null", "dev/console",
    "dev/pts", "dev/shm", "proc/self", "etc/passwd", "etc/group", "etc/resolv.conf", "etc/hosts", "etc/hostname",
)  # fmt: skip


def quiet(_progress: Progress) -> None:
    """Progress is for people."""


@pytest.fixture
def trap() -> Iterator[Hostile]:
    """A registry whose answers the test decides."""
    registries.need_tools()
    with registries.hostile() as running:
        yield running


@pytest.fixture
def canary() -> Iterator[Path]:
    """A folder of the host that images try to reach; it is as it was, afterwards. Not in /tmp: roots have none."""
    with tempfile.TemporaryDirectory(prefix="ringfence-canary-", dir=Path.home()) as folder_name:
        place = Path(folder_name)
        (place / "word").write_text("untouched")
        before = os.stat(place / "word")
        yield place
        after = os.stat(place / "word")
        assert (place / "word").read_text() == "untouched"
        assert os.listdir(place) == ["word"]
        for name in ("st_mode", "st_uid", "st_nlink", "st_mtime_ns", "st_ino"):
            assert getattr(after, name) == getattr(before, name)


def attempt(reference: str, allow: str, tmp_path: Path, bounds: Bounds = SMALL, **access: object) -> Path:
    """Make a template; its root."""
    how = Access(allow=(allow,) if allow else (), bounds=bounds, **access)  # type: ignore[arg-type]
    template = Template("trap", image=Image(reference, ""))
    return build(template, tmp_path / "templates", quiet, access=how).root


def refused(reference: str, allow: str, tmp_path: Path, bounds: Bounds = SMALL, **access: object) -> RingfenceError:
    """Try to make a template: what it is refused with, after a look that nothing stays behind."""
    with pytest.raises(RingfenceError) as caught:
        attempt(reference, allow, tmp_path, bounds, **access)
    assert [path.name for path in (tmp_path / "templates").rglob("*")] in ([], [".lock"])
    assert registries.jobs_alive() == []
    return caught.value


def refused_image(trap: Hostile, made: Made, tmp_path: Path, bounds: Bounds = SMALL) -> RingfenceError:
    """The same, of an image that is served as it is."""
    return refused(trap.serve(made), trap.allow, tmp_path, bounds)


# -- where images come from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "10.1.2.3", "169.254.169.254", "127.1:80"])
def test_a_reference_to_a_private_address_is_refused(tmp_path: Path, host: str) -> None:
    """Before anything is sent there."""
    assert refused(f"{host}/x", "", tmp_path).code == "image_address_refused"


def test_a_name_that_resolves_to_a_private_address_is_refused(tmp_path: Path) -> None:
    """It is the address that counts: this machine's own name is one of its own addresses."""
    registries.need_tools()
    name = "ip6-localhost:5000" if "ip6-localhost" in Path("/etc/hosts").read_text() else f"{os.uname().nodename}:5000"
    error = refused(f"{name}/x", "", tmp_path)
    assert error.code == "image_address_refused", error


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/v2/",
        "http://127.0.0.1:1/",
        "http://[::1]:8080/",
        "https://192.168.0.1:8443/",
        "http://0x7f000001/",
        "http://example.com/",
    ],
)
@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_a_redirect_to_a_private_address_is_refused(trap: Hostile, tmp_path: Path, where: str, what: str) -> None:
    """Wherever a registry points, and whatever it is asked for; plain HTTP is refused even to the open internet."""
    made = made_of(file("x"))
    reference = trap.serve(made)
    layer = next(name for name, blob in made.blobs.items() if blob[:2] == b"\x1f\x8b")
    path = "/v2/trap/manifests/latest" if what == "manifest" else f"/v2/trap/blobs/{layer}"
    trap.routes[path] = redirect(where)
    error = refused(reference, trap.allow, tmp_path)
    assert error.code == "image_address_refused", error


def test_a_token_server_at_a_private_address_is_refused(trap: Hostile, tmp_path: Path) -> None:
    """CVE-2020-15157's kin: who asks for a token decides where the password would be sent."""
    words = 'Bearer realm="https://169.254.169.254/token",service="trap"'
    trap.routes["/v2/"] = lambda request: send(request, b"{}", 401, **{"WWW-Authenticate": words})
    auth = {trap.host: {"auth": "bWU6c2VjcmV0"}}
    assert refused(f"{trap.host}/trap:latest", trap.allow, tmp_path, auth=auth).code == "image_address_refused"


def test_redirects_without_end_are_given_up(trap: Hostile, tmp_path: Path) -> None:
    """In circles at the allowed registry itself."""
    reference = trap.serve(made_of(file("x")))
    trap.routes["/v2/trap/manifests/latest"] = redirect("/v2/trap/manifests/latest")
    assert refused(reference, trap.allow, tmp_path).code == "registry_failed"


# -- registries that lie, stall or never stop -----------------------------------------------------------------------


def stall(_request: BaseHTTPRequestHandler) -> None:
    """Say nothing, for longer than any test waits."""
    time.sleep(100)


def drip(request: BaseHTTPRequestHandler) -> None:
    """A byte now and then."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.1)


def endless(request: BaseHTTPRequestHandler) -> None:
    """Bytes until nobody takes them any more."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


@pytest.mark.parametrize(
    ("part", "how"),
    [("/v2/", stall), *((part, how) for part in ("manifest", "config", "layer") for how in (stall, drip))],
)
def test_a_registry_that_stalls_is_given_up(
    trap: Hostile, tmp_path: Path, part: str, how: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    """At any question, and also when a byte comes now and then."""
    reference = _spoil(trap, part, how)
    assert refused(reference, trap.allow, tmp_path, IMPATIENT).code == "registry_stalled"


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_registry_that_never_stops_is_cut_off(trap: Hostile, tmp_path: Path, part: str) -> None:
    """After little more than what the image says it is."""
    reference = _spoil(trap, part, endless)
    error = refused(reference, trap.allow, tmp_path)
    assert error.code in {"registry_sends_too_much", "registry_failed", "image_digest_mismatch"}, error


def _spoil(trap: Hostile, part: str, how: Callable[[BaseHTTPRequestHandler], None]) -> str:
    """Serve an honest image, but for one part."""
    made = made_of(file("x", os.urandom(200_000)))
    reference = trap.serve(made)
    config = next(name for name, blob in made.blobs.items() if blob[:1] == b"{")
    layer = next(name for name in made.blobs if name != config)
    paths = {
        "/v2/": "/v2/", "manifest": "/v2/trap/manifests/latest",
        "config": f"/v2/trap/blobs/{config}", "layer": f"/v2/trap/blobs/{layer}",
    }  # fmt: skip
    trap.routes[paths[part]] = how
    return reference


@pytest.mark.parametrize("part", ["config", "layer"])
def test_a_blob_that_is_not_what_its_digest_says_is_refused(trap: Hostile, tmp_path: Path, part: str) -> None:
    """Of the same size, so that only the digest tells."""
    made = made_of(file("x", b"right"))
    config = next(name for name, blob in made.blobs.items() if blob[:1] == b"{")
    wrong = config if part == "config" else next(name for name in made.blobs if name != config)
    changed = bytearray(made.blobs[wrong])
    changed[-9] ^= 1
    reference = trap.serve(made)
    trap.routes[f"/v2/trap/blobs/{wrong}"] = lambda request: send(request, bytes(changed))
    assert refused(reference, trap.allow, tmp_path).code == "image_digest_mismatch"


def test_a_manifest_that_is_not_what_was_asked_for_by_digest_is_refused(trap: Hostile, tmp_path: Path) -> None:
    """Even with the digest that was asked for written beside it."""
    made, other = made_of(file("x")), made_of(file("y"))
    trap.serve(other)
    trap.routes[f"/v2/trap/manifests/{made.digest}"] = lambda request: send(
        request, other.manifest, **{"Content-Type": other.media, "Docker-Content-Digest": made.digest}
    )
    error = refused(f"{trap.host}/trap@{made.digest}", trap.allow, tmp_path)
    assert error.code == "image_digest_mismatch"


@pytest.mark.parametrize("said", [1, 10, 1 << 20])
def test_a_layer_of_another_size_than_its_manifest_says_is_refused(trap: Hostile, tmp_path: Path, said: int) -> None:
    """Smaller or larger, with the right digest."""
    made = Recipe([tar([file("x", os.urandom(4000))])], sizes={0: said}).make()
    error = refused_image(trap, made, tmp_path)
    assert error.code in {"image_size_mismatch", "image_digest_mismatch"}, error


def test_a_layer_that_is_not_its_configurations_is_refused(trap: Hostile, tmp_path: Path) -> None:
    """The uncompressed digest is a promise too."""
    made = Recipe([tar([file("x")])], diff_ids=[digest(b"another")]).make()
    assert refused_image(trap, made, tmp_path).code == "image_digest_mismatch"


def _changed(made: Made, change: Callable[[dict[str, object]], None]) -> Made:
    table = json.loads(made.manifest)
    change(table)
    return dataclasses.replace(made, manifest=json.dumps(table).encode())


MANIFESTS: dict[str, tuple[Callable[[dict[str, object]], None], str]] = {
    "layers elsewhere": (lambda t: t["layers"][0].update(urls=["http://10.0.0.1/x"]), "image_foreign_layer"),  # type: ignore[index]
    "too many layers": (lambda t: t.update(layers=t["layers"] * 6), "image_too_many_layers"),  # type: ignore[operator]
    "no layers": (lambda t: t.update(layers=[]), "image_too_many_layers"),
    "a huge layer": (lambda t: t["layers"][0].update(size=1 << 40), "image_too_large"),  # type: ignore[index]
    "a negative size": (lambda t: t["layers"][0].update(size=-1), "bad_image"),  # type: ignore[index]
    "another kind of digest": (lambda t: t["layers"][0].update(digest="md5:00"), "bad_image"),  # type: ignore[index]
    "a path as a digest": (lambda t: t["layers"][0].update(digest="sha256:../../etc/passwd"), "bad_image"),  # type: ignore[index]
    "an old form": (lambda t: t.update(schemaVersion=1), "bad_image"),
    "a huge configuration": (lambda t: t["config"].update(size=1 << 25), "image_too_large"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none_is_refused(trap: Hostile, tmp_path: Path, name: str) -> None:
    """Before a single layer is asked for."""
    change, code = MANIFESTS[name]
    assert refused_image(trap, _changed(made_of(file("x")), change), tmp_path).code == code
    assert not [path for path in trap.asked if "/blobs/" in path]


CONFIGS: dict[str, dict[str, object]] = {
    "an entry point that is no list": {"Entrypoint": "sh"},
    "a zero byte": {"Cmd": ["a\0b"]},
    "a working directory that climbs": {"WorkingDir": "/../../etc"},
    "a user that is an option": {"User": "--privileged"},
    "a user with a line break": {"User": "a\nb"},
    "thousands of words": {"Env": ["A=1"] * 2000},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none_is_refused(trap: Hostile, tmp_path: Path, name: str) -> None:
    """What an image says of itself is a stranger's word like any other."""
    made = Recipe([tar([file("x")])], config=CONFIGS[name]).make()
    assert refused_image(trap, made, tmp_path).code == "bad_image_config"


# -- layers ---------------------------------------------------------------------------------------------------------


def _bomb() -> Made:
    return made_of(file("zeros", bytes(20 << 20)))


def _many_entries() -> Made:
    return made_of(*(file(f"d/{number}") for number in range(2500)))


def _sparse() -> Made:
    """A file that says it is a tebibyte with a hole in it, in the two ways a tar can."""
    return made_of(file("sparse", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}))


def _old_sparse() -> Made:
    return made_of(file("sparse", type=b"S"))


def _huge_file() -> Made:
    """A header that promises a tebibyte."""
    layer = tar([file("huge", pax_headers={"size": str(1 << 40)})])
    return Recipe([layer]).make()


def _many_layers_of_much() -> Made:
    """Each within the bounds, together past them."""
    return Recipe([tar([file(f"f{n}", os.urandom(1 << 20) * 12)]) for n in range(5)]).make()


def _folders() -> Made:
    """Few entries that would make very many folders."""
    return made_of(*(file("/".join([f"{n}", *(["d"] * 90), "f"])) for n in range(100)))


def _cut() -> Made:
    layer = tar([file("x", os.urandom(9000))])
    return Recipe([layer], packed=[gzip.compress(layer, mtime=0)[:-4000]]).make()


BOMBS: dict[str, tuple[Callable[[], Made], str]] = {
    "a high ratio": (_bomb, "image_bomb"),
    "many entries": (_many_entries, "image_too_many_entries"),
    "a sparse file": (_sparse, "image_sparse_file"),
    "an old sparse file": (_old_sparse, "image_sparse_file"),
    "a huge file": (_huge_file, "image_too_large"),
    "many layers": (_many_layers_of_much, "image_too_large"),
    "many folders": (_folders, "image_too_many_entries"),
    "zstd": (lambda: Recipe([b"x"], packed=[b"\x28\xb5\x2f\xfd" + bytes(99)]).make(), "image_compression"),
    "no archive": (lambda: Recipe([b"x" * 5000]).make(), "image_layer_damaged"),
    "a cut archive": (lambda: Recipe([tar([file("x", b"y" * 9000)])[:2048]]).make(), "image_layer_damaged"),
    "cut compression": (_cut, "image_layer_damaged"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(trap: Hostile, tmp_path: Path, name: str) -> None:
    """By what it is."""
    make, code = BOMBS[name]
    error = refused_image(trap, make(), tmp_path)
    assert error.code == code, error


@pytest.mark.parametrize(
    ("place", "how"), list(zip(PLACES, itertools.cycle(["absolute", "relative", "dangling", "proc"])))
)
def test_a_link_where_every_sandbox_has_its_own_is_refused_by_its_path(
    trap: Hostile, tmp_path: Path, canary: Path, place: str, how: str
) -> None:
    """Attack 16: a runtime that mounts or writes there would do it at the other end of the link."""
    targets = {"absolute": str(canary), "relative": "../" * 12 + str(canary), "dangling": "nowhere"}
    error = refused_image(trap, made_of(link(place, targets.get(how, "/proc/1/root"))), tmp_path)
    assert error.code == "image_unsafe_path"
    assert f"'/{place}'" in error.cause


def test_a_file_where_a_folder_is_mounted_is_refused(trap: Hostile, tmp_path: Path) -> None:
    """And a folder with something in it where a file is."""
    assert refused_image(trap, made_of(file("proc", b"x")), tmp_path).code == "image_unsafe_path"
    assert refused_image(trap, made_of(file("etc/passwd/x")), tmp_path).code == "image_unsafe_path"


@pytest.mark.parametrize("path", ["../out", "a/../../out", "a/..", "/../out", "./../out"])
@pytest.mark.parametrize("make", [file, folder, lambda p: link(p, "x"), lambda p: hard(p, "x"), images.device])
def test_a_path_that_climbs_is_refused(trap: Hostile, tmp_path: Path, path: str, make: Callable[[str], object]) -> None:
    """Whatever kind of entry it names."""
    error = refused_image(trap, made_of(make(path)), tmp_path)  # type: ignore[arg-type]
    assert error.code == "image_path_escapes"


def test_a_hard_link_to_the_host_is_refused(trap: Hostile, tmp_path: Path, canary: Path) -> None:
    """By absolute name, by climbing, through a link; there is no such file in the image."""
    for target in (f"{canary}/word", "/etc/shadow", "etc"):
        error = refused_image(trap, made_of(folder("etc"), hard("stolen", target)), tmp_path)
        assert error.code == "image_hard_link_out", target
    through = made_of(link("way", str(canary)), hard("stolen", "way/word"))
    assert refused_image(trap, through, tmp_path).code == "image_hard_link_out"
    assert refused_image(trap, made_of(hard("x", "../../etc/passwd")), tmp_path).code == "image_path_escapes"


def test_writing_through_a_link_lands_in_the_image_alone(trap: Hostile, tmp_path: Path, canary: Path) -> None:
    """Within one layer, and when a later layer swaps a folder for a link and a third writes below it."""
    out = str(canary)
    one = tar([link("way", out), file("way/word", b"mine"), link("up", "../../../../../.."), file("up/tmp/x/y")])
    swap = [tar([folder("d"), file("d/old")]), tar([link("d", out)]), tar([file("d/word", b"mine", 0o4755)])]
    for layers in ([one], swap):
        root = attempt(trap.serve(Recipe(layers).make()), trap.allow, tmp_path)
        assert (root / out.lstrip("/") / "word").read_bytes() == b"mine"
        assert (root / ("way" if layers == [one] else "d")).readlink() == canary


def test_absolute_names_are_names_in_the_image(trap: Hostile, tmp_path: Path, canary: Path) -> None:
    """As every tool for images reads them."""
    root = attempt(trap.serve(made_of(file(f"{canary}/word", b"mine"))), trap.allow, tmp_path)
    assert (root / str(canary).lstrip("/") / "word").read_bytes() == b"mine"


def test_whiteouts_remove_what_is_below_and_nothing_else(trap: Hostile, tmp_path: Path, canary: Path) -> None:
    """Opaque ones too; through a link that leads to the host, and of names that are none."""
    lower = tar([folder("a"), file("a/one"), file("a/two"), folder("b"), file("b/old"), link("way", str(canary))])
    upper = tar(
        [file("a/.wh.one"), file("b/new"), file("b/.wh..wh..opq"), file("way/.wh.word"), file(".wh..wh.plnk/1")]
    )
    root = attempt(trap.serve(Recipe([lower, upper]).make()), trap.allow, tmp_path)
    assert (os.listdir(root / "a"), os.listdir(root / "b")) == (["two"], ["new"])
    assert (root / "way").is_symlink()


@pytest.mark.parametrize("name", ["a/.wh..", "a/.wh...", "a/.wh."])
def test_a_whiteout_of_a_folders_own_name_is_refused(trap: Hostile, tmp_path: Path, name: str) -> None:
    """`.wh...` would remove the folder above."""
    assert refused_image(trap, made_of(folder("a"), file(name)), tmp_path).code == "image_path_escapes"


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([link("a", "b"), link("b", "a"), file("a/x")], "image_link_loop"),
        ([file("a"), file("a/x")], "image_path_below_file"),
        ([file("/".join(["d"] * 200))], "image_name_too_long"),
        ([file("x" * 300)], "image_name_too_long"),
        ([file("/".join(["x" * 200] * 6))], "image_name_too_long"),
    ],
)
def test_paths_that_no_tool_could_open_are_refused(
    trap: Hostile, tmp_path: Path, members: list[tuple[object, bytes]], code: str
) -> None:
    """Before anything is written."""
    assert refused_image(trap, made_of(*members), tmp_path).code == code  # type: ignore[arg-type]


def test_links_that_make_a_path_grow_are_refused(trap: Hostile, tmp_path: Path) -> None:
    """Each entry's own path is short; behind the links it is longer than the kernel takes."""
    members = [folder("a")]
    place = "a"
    for number in range(30):
        step = f"{place}/{'x' * 120}"
        members += [folder(step), link(f"l{number}", step)]
        place = f"l{number}"
    assert refused_image(trap, made_of(*members), tmp_path).code == "image_name_too_long"


def test_names_that_are_no_text_are_kept_as_they_are(trap: Hostile, tmp_path: Path) -> None:
    """Bytes, line breaks and quotes in names are the image's own affair."""
    names = ["\udcff\udcfe", 'line\nbreak"', "tab\t", "\u00e9", ".wh", " "]
    root = attempt(trap.serve(made_of(*(file(f"n/{name}", b"x") for name in names))), trap.allow, tmp_path)
    assert sorted(os.listdir(root / "n")) == sorted(names)
