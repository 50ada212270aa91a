"""Images from a registry: pulled by tag, by digest and with a password, made templates, shared by layer."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ringfence import config
from ringfence.domain.errors import BadRequest, Forbidden, NotFound, PlatformFault
from ringfence.domain.template import Image, Template
from ringfence.templates import tree
from ringfence.templates.build import build, prune, verify
from ringfence.templates.catalog import Built, Catalog
from ringfence.templates.image.access import Access, basic_auth, read_ca
from ringfence.templates.image.layers import Store
from ringfence.templates.progress import Progress
from tests.support import images, registries
from tests.support.registries import PASSWORD, USER, Registry


def quiet(_progress: Progress) -> None:
    """Progress is for people."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that everybody may read."""
    registries.need_tools()
    with registries.registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A templates directory of one test; nothing half-made may be left in it, and no job of ours alive."""
    place = tmp_path / "templates"
    yield place
    assert not list(place.glob("building-*"))
    assert registries.jobs_alive() == []
    tree.remove_tree(place)


def pull(reference: str, directory: Path, registry: Registry, name: str = "pulled", **more: object) -> Built:
    """Make a template of an image."""
    access = Access(allow=(registry.allow,), **more)  # type: ignore[arg-type]
    return build(Template(name, image=Image(reference, "")), directory, quiet, access=access)


def test_an_image_is_pulled_by_tag_and_its_words_are_kept(registry: Registry, directory: Path) -> None:
    """ENTRYPOINT, CMD, ENV, WORKDIR and USER are what the image says; the digest is that of its manifest."""
    made = images.busybox()
    built = pull(registry.push("small", "1.0", made), directory, registry)
    assert built.template.image == Image(
        reference=f"{registry.host}/small:1.0",
        digest=made.digest,
        entrypoint=("/bin/echo",),
        cmd=("hello", "there"),
        env=(("PATH", "/bin:/usr/bin"), ("GREETING", "hi=there")),
        workdir="/srv/app",
        user="node:1000",
        python="",
    )
    assert Catalog(directory).read("pulled") == built
    assert verify(built) == []
    assert (built.root / "srv/app").is_dir()
    assert (built.root / "bin/sh").readlink() == Path("busybox")
    assert (built.root / "bin/cat").stat().st_ino == (built.root / "bin/busybox").stat().st_ino
    assert (built.root / "bin/busybox").read_bytes() == images.BUSYBOX.read_bytes()
    assert (built.root / "bin/busybox").stat().st_mtime == 1_700_000_000


def test_an_image_is_pulled_by_digest_whatever_its_tag_says_now(registry: Registry, directory: Path) -> None:
    """A digest is a promise: the tag has moved on, the image has not."""
    old, new = images.busybox(), images.busybox(images.tar([images.file("new")]))
    registry.push("moving", "latest", old)
    registry.push("moving", "latest", new)
    built = pull(f"{registry.host}/moving@{old.digest}", directory, registry)
    assert built.template.image
    assert built.template.image.digest == old.digest
    assert not (built.root / "new").exists()


def test_a_list_of_manifests_gives_this_machines_image(registry: Registry, directory: Path) -> None:
    """By tag and by the list's own digest, both held against what was sent."""
    made = images.busybox()
    registry.push("many", "one", made)
    several = images.listed(made)
    # The registry wants every part of a list to be there.
    registry.serve_list("many", "all", several)
    for reference in (f"{registry.host}/many:all", f"{registry.host}/many@{several.digest}"):
        built = pull(reference, directory, registry)
        assert built.template.image
        assert built.template.image.digest == made.digest


def test_an_image_without_a_shell_gets_what_a_sandbox_needs(registry: Registry, directory: Path) -> None:
    """A list of users with ours in it, names, mount points; nothing else is added."""
    built = pull(registry.push("bare", "latest", images.without_shell()), directory, registry)
    root = built.root
    names = ["app", "dev", "etc", "home", "mnt", "proc", "run", "sys", "tmp", "var", "workspace"]
    assert sorted(os.listdir(root)) == names
    assert sorted(os.listdir(root / "etc")) == ["group", "hostname", "hosts", "machine-id", "passwd", "resolv.conf"]
    lines = (root / "etc/passwd").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["root", "user"]
    assert built.template.image
    assert (built.template.image.user, built.template.image.workdir) == ("65532", "/")


def test_a_debian_image_is_a_whole_debian_with_its_python_found(registry: Registry, directory: Path) -> None:
    """Every file of the template that it was made of is in the root that is made of it."""
    base = Catalog(config.read_server().templates_dir).read("base")
    told: list[Progress] = []
    reference = registry.push("debian", "13", images.debian_like(base.root))
    access = Access(allow=(registry.allow,))
    built = build(Template("debian", image=Image(reference, "")), directory, told.append, access=access)
    assert built.template.image
    assert built.template.image.python == "/usr/bin/python3"
    missing = set(tree.differing((base.root.parent / "manifest").read_text(), built.root))
    assert missing <= {"etc/passwd", "etc/group", "etc/skel/.cache"}, missing
    stages = [step.stage for step in told]
    assert stages == sorted(stages, key=["image", "fetch", "unpack", "merge", "write", "seal", "done"].index)
    assert any(step.text.startswith("layer 2 of 2") for step in told if step.stage == "fetch")
    assert any(step.text.startswith("layer 1 of 2") for step in told if step.stage == "unpack")
    assert [step.fraction for step in told] == sorted(step.fraction for step in told)


def test_everything_in_a_root_is_plain_and_ours(registry: Registry, directory: Path) -> None:
    """Devices, set-id bits, capabilities, pipes and strangers' owners do not arrive."""
    capability = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20", "SCHILY.xattr.user.note": "x"}
    made = images.made_of(
        images.device("dev/mem"),
        images.device("opt/mem"),
        images.file("opt/pipe", type=b"6"),
        images.file("opt/su", b"#!", 0o6755, uid=0),
        images.file("opt/ping", b"#!", 0o755, pax_headers=capability),
        images.file("opt/secret", b"s", 0o600, uid=4711, gid=4711),
        images.folder("opt/shared", 0o7777),
    )
    told: list[Progress] = []
    access = Access(allow=(registry.allow,))
    reference = registry.push("rights", "latest", made)
    built = build(Template("rights", image=Image(reference, "")), directory, told.append, access=access)
    assert sorted(os.listdir(built.root / "opt")) == ["ping", "secret", "shared", "su"]
    assert os.listdir(built.root / "dev") == []
    for entry in tree.walk(built.root):
        info = entry.stat(follow_symlinks=False)
        wanted = 0o1777 if entry.path.endswith("tmp") else 0o644 if entry.name == "secret" else None
        assert stat.S_IMODE(info.st_mode) == wanted or stat.S_IMODE(info.st_mode) in {0o755, 0o644}, entry.path
        assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
        assert os.listxattr(entry.path, follow_symlinks=False) == []
    assert any("2 devices, 1 pipes, 1 set id bits, 1 capabilities" in step.text for step in told)


def test_two_images_that_share_a_layer_fetch_and_store_it_once(registry: Registry, directory: Path) -> None:
    """One copy in the registry's log, one in the store, one on disk below both roots; pruned with the last of them."""
    lower = images.tar([images.folder("opt"), images.file("opt/shared", os.urandom(300_000))])
    one = images.Recipe([lower, images.tar([images.file("opt/one")])]).make()
    two = images.Recipe([lower, images.tar([images.file("opt/two")])]).make()
    first = pull(registry.push("shares", "one", one), directory, registry, "one")
    second = pull(registry.push("shares", "two", two), directory, registry, "two")
    shared = next(iter(set(one.blobs) & set(two.blobs)))
    assert registry.asked_for(shared) == 1
    assert len(Store(directory).names()) == 3
    assert (first.root / "opt/shared").stat().st_ino == (second.root / "opt/shared").stat().st_ino
    assert verify(first) == verify(second) == []
    (Catalog(directory).index / "one.json").unlink()
    own = next(digest for digest in one.blobs if digest not in two.blobs and one.blobs[digest][:2] == b"\x1f\x8b")
    assert prune(directory, quiet) == [first.digest, f"layers/{own.removeprefix('sha256:')}"]
    assert verify(second) == []


def test_a_damaged_stored_layer_is_fetched_again_not_handed_on(registry: Registry, directory: Path) -> None:
    """What changed on disk since does not become part of another template."""
    lower = images.tar([images.file("shared", b"right")])
    one = images.Recipe([lower, images.tar([images.file("one")])]).make()
    two = images.Recipe([lower, images.tar([images.file("two")])]).make()
    first = pull(registry.push("damaged", "one", one), directory, registry, "one")
    (first.root / "shared").write_bytes(b"wrong")
    second = pull(registry.push("damaged", "two", two), directory, registry, "two")
    assert (second.root / "shared").read_bytes() == b"right"
    assert verify(first) == ["shared"]


@pytest.mark.parametrize("stage", ["image", "fetch", "unpack", "merge", "seal"])
def test_an_interrupt_at_any_stage_leaves_nothing(registry: Registry, directory: Path, stage: str) -> None:
    """Whoever watches may stop it: no half-made root, no layer, no job."""

    def interrupted(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    reference = registry.push("interrupted", "latest", images.busybox())
    access = Access(allow=(registry.allow,))
    with pytest.raises(KeyboardInterrupt):
        build(Template("x", image=Image(reference, "")), directory, interrupted, access=access)
    assert os.listdir(directory) == [".lock"]


def test_a_killed_build_leaves_no_job_and_nothing_once_the_next_one_ran(registry: Registry, directory: Path) -> None:
    """kill -9 in the middle of a download: the job dies with it, the next build sweeps its folder."""
    with registries.hostile() as slow:
        reference = slow.serve(images.made_of(images.file("x")))
        slow.routes["/v2/trap/manifests/latest"] = lambda _: time.sleep(100)
        argv = [sys.executable, "-m", "ringfence", "templates", "create", "x", "--image", reference]
        argv += ["--allow", slow.allow, "--state", str(directory.parent)]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as builder:
            deadline = time.monotonic() + 60
            while not slow.asked and time.monotonic() < deadline:
                time.sleep(0.02)
            builder.kill()
        while registries.jobs_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert registries.jobs_alive() == []
        assert list(directory.glob("building-*"))
    pull(registry.push("after", "latest", images.without_shell()), directory, registry)
    assert not list(directory.glob("building-*"))


def test_an_unchanged_image_is_not_fetched_again(registry: Registry, directory: Path) -> None:
    """The registry is asked what the tag is now; the same image under another name is the same root."""
    made = images.busybox()
    reference = registry.push("same", "latest", made)
    first = pull(reference, directory, registry, "first")
    layer = next(digest for digest, blob in made.blobs.items() if blob[:2] == b"\x1f\x8b")
    before = registry.asked_for(layer)
    second = pull(f"{registry.host}/same@{made.digest}", directory, registry, "second")
    assert (second.digest, second.built_at) == (first.digest, first.built_at)
    assert second.template.image
    assert second.template.image.reference.endswith(made.digest)
    assert second.template.image.cmd == ("hello", "there")
    assert registry.asked_for(layer) == before


def test_uncompressed_layers_and_many_gzip_streams_are_read(registry: Registry, directory: Path) -> None:
    """Both are allowed by the format, and both keep their digests."""
    plain, parts = images.tar([images.file("plain", b"1")]), images.tar([images.file("parts", b"2" * 5000)])
    packed = [plain, gzip.compress(parts[:700], mtime=0) + gzip.compress(parts[700:], mtime=0)]
    made = images.Recipe([plain, parts], packed=packed).make()
    built = pull(registry.push("forms", "latest", made), directory, registry)
    assert (built.root / "plain").read_bytes() + (built.root / "parts").read_bytes()[:2] == b"122"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a password, over TLS, whose authority nobody knows."""
    registries.need_tools()
    with registries.registry(tmp_path_factory.mktemp("closed"), private=True, tls=True) as running:
        running.push("secret", "latest", images.busybox())
        yield running


def test_a_private_registry_of_ones_own_authority_is_read_with_a_password(closed: Registry, directory: Path) -> None:
    """With both it works, with one it does not, and no secret is left on disk."""
    reference, ca = f"{closed.host}/secret:latest", read_ca(str(closed.ca))
    auth = basic_auth(closed.host, USER, PASSWORD)
    with pytest.raises(PlatformFault) as untrusted:
        pull(reference, directory, closed, auth=auth)
    assert untrusted.value.code == "registry_untrusted"
    for wrong in ({}, basic_auth(closed.host, USER, "wrong"), basic_auth("other.example", USER, PASSWORD)):
        with pytest.raises(Forbidden) as denied:
            pull(reference, directory, closed, auth=wrong, ca=ca)
        assert denied.value.code == "registry_denied"
    assert pull(reference, directory, closed, auth=auth, ca=ca).template.image
    secret = next(iter(auth.values()))["auth"]
    grep = ["grep", "-rl", "-e", secret, "-e", PASSWORD, str(directory)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""


def test_registries_that_are_not_on_the_loopback_are_reached_through_the_proxy(
    registry: Registry, closed: Registry, directory: Path
) -> None:
    """With TLS and without: every registry of the open internet is reached so. 0.0.0.0 leads to this machine too."""
    made = images.busybox()
    registry.push("proxied", "latest", made)
    there, plain = f"0.0.0.0:{closed.port}", f"0.0.0.0:{registry.port}"
    ca = read_ca(str(closed.ca))
    for name, reference, access in (
        ("tls", f"{there}/secret", Access(allow=(there,), ca=ca, auth=basic_auth(there, USER, PASSWORD))),
        ("plain", f"{plain}/proxied", Access(allow=(f"http://{plain}",))),
    ):
        built = build(Template(name, image=Image(reference, "")), directory, quiet, access=access)
        assert built.template.image
        assert built.template.image.digest == made.digest
    for reference, access in (
        (f"{there}/secret", Access(allow=("0.0.0.0:1",), ca=ca)),
        (f"{plain}/proxied", Access(allow=(plain,))),
    ):
        with pytest.raises((BadRequest, PlatformFault)) as caught:
            build(Template("no", image=Image(reference, "")), directory, quiet, access=access)
        assert caught.value.code in {"image_address_refused", "registry_untrusted"}


def test_a_token_is_fetched_where_the_registry_says(directory: Path) -> None:
    """The password goes to the token server, the token to the registry, as with every large registry."""
    with registries.hostile() as open_to_tokens:
        reference = open_to_tokens.serve(images.without_shell(), "team/tool")
        words = f'Bearer realm="http://{open_to_tokens.host}/token",service="tests",scope="repository:team/tool:pull"'
        passwords: list[str | None] = []

        def guarded(answer: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[BaseHTTPRequestHandler], None]:
            def guard(request: BaseHTTPRequestHandler) -> None:
                if request.headers["Authorization"] == "Bearer of-good-news":
                    answer(request)
                else:
                    registries.send(request, b"{}", 401, **{"WWW-Authenticate": words})

            return guard

        def token(request: BaseHTTPRequestHandler) -> None:
            passwords.append(request.headers["Authorization"])
            registries.send(request, b'{"token": "of-good-news"}')

        open_to_tokens.routes = {path: guarded(answer) for path, answer in open_to_tokens.routes.items()}
        open_to_tokens.routes["/token"] = token
        auth = basic_auth(open_to_tokens.host, USER, PASSWORD)
        access = Access(allow=(open_to_tokens.allow,), auth=auth)
        assert build(Template("x", image=Image(reference, "")), directory, quiet, access=access).digest
        assert set(passwords) == {f"Basic {auth[open_to_tokens.host]['auth']}"}


def test_a_mirror_is_asked_instead(registry: Registry, directory: Path) -> None:
    """The reference keeps its own registry's name; the mirror serves it below a prefix."""
    made = images.busybox()
    registry.push("cache/library/alpine", "3", made)
    built = pull("docker.io/alpine:3", directory, registry, mirror=f"{registry.host}/cache")
    assert built.template.image
    assert (built.template.image.reference, built.template.image.digest) == ("docker.io/alpine:3", made.digest)


def test_an_image_that_is_not_there_and_one_for_another_machine_are_refused(
    registry: Registry, directory: Path
) -> None:
    """Each with a code that says which."""
    with pytest.raises(NotFound) as absent:
        pull(f"{registry.host}/nothing:here", directory, registry)
    assert absent.value.code == "image_not_found"
    other = images.Recipe([images.tar([images.file("x")])], architecture="s390x").make()
    with pytest.raises(BadRequest, match="s390x") as foreign:
        pull(registry.push("other", "latest", other), directory, registry)
    assert foreign.value.code == "image_wrong_platform"


def ringfence(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a process of its own."""
    argv = [sys.executable, "-m", "ringfence", "templates", "create", *words]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=90, check=False)


def test_the_command_makes_a_template_and_tells_each_layer(closed: Registry, directory: Path) -> None:
    """Data to stdout, progress to stderr, the password from the input."""
    words = ["secret", "--image", f"{closed.host}/secret:latest", "--isolation", "container", "--state"]
    words += [str(directory.parent), "--ca", str(closed.ca), "--allow", closed.host]
    done = ringfence(*words, "--username", USER, "--password-stdin", "--json", stdin=f"{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["image"]) == ("secret", f"{closed.host}/secret:latest")
    assert "layer 1 of 1" in done.stderr
    assert Catalog(directory).read("secret").template.runtime == "container"
    assert PASSWORD not in (done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("127.0.0.1:5000/x", "image_address_refused"),
        ("me:word@registry.example/x", "bad_image_reference"),
        ("--config=/etc/passwd", "bad_image_reference"),
    ],
)
def test_the_command_refuses_a_bad_reference_before_anything_is_asked(directory: Path, image: str, code: str) -> None:
    """And does not repeat the password in it."""
    done = ringfence("bad", f"--image={image}", "--state", str(directory.parent), "--json")
    assert done.returncode != 0
    assert code in done.stderr + done.stdout
    assert "word" not in done.stderr + done.stdout
    assert not directory.exists()
