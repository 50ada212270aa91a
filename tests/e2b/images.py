"""What E2B's Python client must be able to make of an image: run with a release of it in PYTHONPATH.

It is no test file: `test_images.py` runs it and reads the lines it prints. Nothing of the client is changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from claims import claim, tell_all
from e2b import Sandbox, Template

DEBIAN, SMALL = os.environ["IMAGE_DEBIAN"], os.environ["IMAGE_SMALL"]
USER, PASSWORD = os.environ["IMAGE_USER"], os.environ["IMAGE_PASSWORD"]


def files() -> str:
    """A folder of what is copied."""
    place = Path(tempfile.mkdtemp())
    (place / "site").mkdir()
    (place / "site" / "index.html").write_text("<p>hello</p>")
    return str(place)


def build(template, name):
    """Build, and give what was logged."""
    lines = []
    Template.build(template, alias=name, on_build_logs=lambda entry: lines.append(entry.message))
    return lines


def said(box, line, **more) -> str:
    """What a command says."""
    return box.commands.run(line, **more).stdout.strip()


@claim
def a_debian_image_is_built_upon():
    """Its variables, its programs, every kind of step, a start command; the log tells how it was pulled."""
    template = (
        Template(file_context_path=files())
        .from_image(DEBIAN, username=USER, password=PASSWORD)
        .set_envs({"LONGER": "$GREETING there"})
        .copy("site", "/srv/site")
        .set_workdir("/opt/work")
        .run_cmd("echo from $(id -un), $LONGER > said; cat said")
        .set_user("root")
        .run_cmd(["id -u > /etc/builder", "chown user:user /etc/builder", "rm -r /usr/lib/python3.13/test; true"])
        .set_user("user")
        .set_workdir("/home/user")
        .run_cmd("echo mine > kept; sudo id -u")
        .set_start_cmd("python3 -m http.server --directory /srv/site 8000", "curl -sf localhost:8000/index.html")
    )
    lines = build(template, "of-debian")
    assert f"FROM {DEBIAN}" in lines, lines
    assert any(line.startswith("layer 1 of 1") for line in lines), lines
    assert "from user, hello there" in lines, lines
    assert "ready" in lines, lines
    assert not [line for line in lines if PASSWORD in line], lines
    again = build(template, "of-debian")
    assert not [line for line in again if line.startswith("layer")], again
    assert "CACHED [4] RUN echo from $(id -un), $LONGER > said; cat said" in again, again


@claim
def a_sandbox_of_it_has_what_was_built():
    """And what E2B promises of every image: `user` at home, sudo, root."""
    box = Sandbox.create("of-debian", timeout=120)
    try:
        assert said(box, "curl -s localhost:8000/index.html") == "<p>hello</p>"
        assert said(box, "id -un; pwd; cat kept /etc/builder; echo $LONGER") == "user\n/home/user\nmine\n0\nhello there"
        assert said(box, "cat /opt/work/said; touch here && ls") == "from user, hello there\nhere\nkept"
        assert said(box, "sudo id -u; echo $SHELL") == "0\n/bin/bash"
        assert said(box, "id -u; pwd", user="root") == "0\n/home/user"
        assert said(box, "python3 -c 'import json, sys; print(sys.version_info.major)'") == "3"
        box.files.write("/home/user/app.py", "print('written')\n")
        assert said(box, "python3 app.py") == "written"
        assert "app.py" in [entry.name for entry in box.files.list("/home/user")]
    finally:
        box.kill()


@claim
def an_image_without_bash_and_python_is_built_upon():
    """Its commands are run by the shell it has, which the log says; files and watches need nothing of it."""
    small = Template(file_context_path=files()).from_image(SMALL, username=USER, password=PASSWORD)
    lines = build(small.copy("site", "/srv/site").run_cmd("echo $0 $GREETING; id -un > ~/who"), "of-busybox")
    assert "the image has no /bin/bash: commands are run by /bin/sh" in lines, lines
    assert "/bin/sh hi=there" in lines, lines
    box = Sandbox.create("of-busybox", timeout=60)
    try:
        assert said(box, "cat who /srv/site/index.html; echo $SHELL") == "user\n<p>hello</p>/bin/sh"
        box.files.write("/home/user/x", "x" * 100_000)
        assert said(box, "wc -c < x") == "100000"
        handle = box.commands.run("read line; echo got $line", background=True, stdin=True)
        box.commands.send_stdin(handle.pid, "it\n")
        assert handle.wait().stdout == "got it\n"
    finally:
        box.kill()


@claim
def a_template_of_an_image_is_built_upon():
    """It is what another one begins with, without its password."""
    build(Template().from_template("of-busybox").run_cmd("echo more >> ~/who"), "of-busybox-next")
    box = Sandbox.create("of-busybox-next", timeout=60)
    try:
        assert said(box, "cat who; echo $GREETING") == "user\nmore\nhi=there"
    finally:
        box.kill()


@claim
def a_wrong_password_fails_the_build_and_is_not_told():
    """Whatever was pulled before with the right one."""
    try:
        build(Template().from_image(SMALL, username=USER, password="not this one"), "refused")
    except Exception as error:  # noqa: BLE001
        told = error
    else:
        raise AssertionError("it was built")
    assert type(told).__name__ == "BuildException", told
    assert "other credentials" in str(told), told
    assert "not this one" not in str(told), told


if __name__ == "__main__":
    sys.exit(tell_all())
