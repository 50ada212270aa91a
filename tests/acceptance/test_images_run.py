"""Images from a registry, run: as containers and under gVisor, as the image says and as a request says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringfence import Client, config
from ringfence.cli.daemon import Daemon
from ringfence.domain.errors import RingfenceError
from ringfence.domain.template import Image, Template
from ringfence.runtimes.oci.versions import installed, lacking
from ringfence.templates import tree
from ringfence.templates.build import build
from ringfence.templates.catalog import Catalog
from ringfence.templates.image.access import Access, basic_auth
from ringfence.templates.progress import Progress
from tests.support import images, registries
from tests.support.served import TEMPLATES, free_port, key
from tests.support.subjects import SUBJECTS

WAYS = ("container", "gvisor")
JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or bool(JAIL.missing()), reason="needs root and the built-in templates"
)


@dataclass(frozen=True)
class Place:
    """A server whose templates are `base` and three images."""

    client: Client
    ways: tuple[str, ...]


def templates_in(place: Path, scratch: Path) -> Path:
    """A templates directory with `base`, which brings the interpreter, and the images of a registry run for this."""
    (place / "index").mkdir(parents=True)
    base = Catalog(Path(TEMPLATES)).read("base")
    (place / base.digest).symlink_to(base.root.parent)
    (place / "index/base.json").write_bytes((Path(TEMPLATES) / "index/base.json").read_bytes())
    made = {"small": images.busybox(), "bare": images.without_shell(), "debian": images.debian_like(base.root)}
    with registries.registry(scratch, private=True) as registry:
        access = Access(allow=(registry.allow,), auth=basic_auth(registry.host, registries.USER, registries.PASSWORD))
        for name, each in made.items():
            reference = registry.push(name, "1", each)
            if name == "small":
                reference = f"{registry.host}/{name}@{each.digest}"
            build(Template(name, image=Image(reference, "")), place, quiet, access=access)
    return place


def quiet(_progress: Progress) -> None:
    """Progress is for people."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server, and the ways to isolate it has."""
    registries.need_tools()
    scratch = tmp_path_factory.mktemp("images-run")
    for folder in (scratch, *scratch.parents[:2]):
        folder.chmod(0o755)
    templates = templates_in(scratch / "templates", scratch)
    found = installed()
    ways = tuple(way for way in WAYS if not lacking(way, found))
    if len(ways) < len(WAYS) and os.environ.get("CI") == "true":
        pytest.fail(f"only {ways} are here")
    settings = config.read_server(state=str(scratch / "state"), templates=str(templates), port=free_port())
    daemon = Daemon(settings)
    try:
        url, _ = daemon.ensure()
        yield Place(Client(url, key(settings.database), timeout=60), ways)
    finally:
        daemon.stop()
        tree.remove_tree(templates)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, place: Place) -> str:
    """One way to isolate."""
    if request.param not in place.ways:
        pytest.skip(f"{request.param} is not here")
    return str(request.param)


def test_an_image_runs_what_it_says(place: Place, way: str) -> None:
    """ENTRYPOINT and CMD where a request says nothing, ENTRYPOINT and the request's arguments where it gives some."""
    assert place.client.run(template="small", isolation=way).stdout == "hello there\n"
    assert place.client.run(template="small", isolation=way, args=["good", "day"]).stdout == "good day\n"


def test_an_image_s_variables_directory_and_user_hold(place: Place, way: str) -> None:
    """ENV, WORKDIR and USER of the image, under the request's own."""
    seen = place.client.run(
        shell="echo $GREETING $MINE; pwd; id -u; id -g", template="small", isolation=way, env={"MINE": "m"}
    )
    assert seen.stdout == "hi=there m\n/srv/app\n1000\n1000\n"
    assert place.client.run(argv=["pwd"], cwd="/tmp", template="small", isolation=way).stdout == "/tmp\n"


def test_an_image_without_a_shell_runs_its_program(place: Place, way: str) -> None:
    """Nothing but one static program is needed; a shell that is not there is said not to be."""
    seen = place.client.run(template="bare", isolation=way)
    assert (seen.exit.code, seen.stderr) == (
        127,
        "hello: applet not found\n",
    )  # busybox, called by a name it does not know
    with pytest.raises(RingfenceError, match="shell"):
        place.client.run(shell="true", template="bare", isolation=way)


def test_source_code_needs_a_python_in_the_image(place: Place, way: str) -> None:
    """The image's own interpreter runs it; an image without one says so."""
    seen = place.client.run("import sys, os; print(sys.executable, os.getuid())", template="debian", isolation=way)
    assert seen.stdout == "/usr/bin/python3 0\n"
    with pytest.raises(RingfenceError, match="no Python"):
        place.client.run("print(1)", template="small", isolation=way)


def test_our_own_interpreter_stays_out_of_sight(place: Place, way: str) -> None:
    """Programs of an image's ordinary user find nothing of what we brought along."""
    looked = place.client.run(shell="ls -a / ; ls /run; cat /proc/self/environ", template="small", isolation=way)
    assert "python" not in looked.stdout.lower()
    opened = place.client.run(shell="ls /.ringfence/lib; echo $?", template="small", isolation=way)
    assert opened.stdout.splitlines()[-1] != "0"


def test_the_jail_does_not_run_images(place: Place) -> None:
    """It forks an interpreter it knows: asked to run a stranger's image it refuses, and names what can."""
    with pytest.raises(RingfenceError, match="comes from an image"):
        place.client.run(template="small", isolation="jail")


def test_auto_is_a_container_for_an_image(place: Place) -> None:
    """Who says nothing gets the first way that can run it."""
    if "container" not in place.ways:
        pytest.skip("container is not here")
    assert place.client.run(template="small").stdout == "hello there\n"
    (shown,) = [each for each in place.client.templates() if each.name == "small"]
    assert shown.image is not None
    assert shown.image.entrypoint == ["/bin/echo"]
