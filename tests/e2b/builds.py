"""What E2B's Python client must be able to build, whichever release it is: run with one of them in PYTHONPATH.

It is no test file: `test_builds.py` runs it and reads the lines it prints. Nothing of the client is changed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

from claims import claim, tell_all
from e2b import AsyncTemplate, Sandbox, Template

VERSION = tuple(int(part) for part in metadata.version("e2b").split(".")[:3])
NAME = f"app-{'-'.join(map(str, VERSION))}"


def files() -> str:
    """A folder of what is copied."""
    place = Path(tempfile.mkdtemp())
    (place / "site" / "deep").mkdir(parents=True)
    (place / "app.py").write_text("print('the app')\n")
    (place / "tool.sh").write_text("#!/bin/sh\necho tool\n")
    (place / "tool.sh").chmod(0o755)
    (place / "site" / "index.html").write_text("<p>hello</p>")
    (place / "site" / "deep" / "er.txt").write_text("deeper")
    os.symlink("index.html", place / "site" / "also.html")
    return str(place)


PLACE = files()


def recipe():
    """Everything that a build can do."""
    return (
        Template(file_context_path=PLACE)
        .from_base_image()
        .set_envs({"GREETING": "hello", "LONGER": "$GREETING there"})
        .copy("app.py", "app.py")
        .copy("tool.sh", "/usr/local/bin/tool")
        .copy("site", "/srv/site")
        .set_workdir("/opt/work")
        .run_cmd("echo from $(id -un), $LONGER > said && echo this is told && echo and this >&2")
        .set_user("root")
        .run_cmd(["id -u > /etc/builder", "chown user:user /etc/builder", "rm /usr/share/base-files/info.dir; true"])
        .run_cmd("mkdir -p /home/user/made && touch /home/user/made/by-root")
        .set_user("user")
        .set_start_cmd("python3 -m http.server --directory /srv/site 8000", "curl -sf localhost:8000/index.html")
    )


def build(template, name, kind=Template, **more):
    """Build, and give what was logged."""
    lines = []
    kind.build(template, alias=name, on_build_logs=lambda entry: lines.append(entry.message), **more)
    return lines


def said(box, line, **more) -> str:
    """What a command says."""
    return box.commands.run(line, **more).stdout.strip()


@claim
def a_build_does_each_step_and_streams_what_they_say():
    """COPY, RUN, ENV, WORKDIR, USER and the start command; the log tells each."""
    lines = build(recipe(), NAME, cpu_count=1, memory_mb=384)
    assert "this is told" in lines, lines
    assert "and this" in lines, lines
    assert "ready" in lines, lines


@claim
def a_sandbox_of_it_has_what_was_built():
    """Files, variables, the working directory, the user, the limits; and what was started answers at once."""
    box = Sandbox.create(NAME, timeout=120)
    try:
        assert said(box, "curl -s localhost:8000/deep/er.txt") == "deeper"
        assert said(box, "curl -s localhost:8000/also.html") == "<p>hello</p>"
        assert said(box, "pwd") == "/opt/work"
        assert said(box, "cat said") == "from user, hello there"
        assert said(box, "echo $GREETING; id -un") == "hello\nuser"
        assert said(box, "tool") == "tool"
        assert said(box, "cat /etc/builder; ls ~/made") == "0\nby-root"
        box.files.write("/home/user/app.py", "print('changed')\n")
        assert said(box, "cd && python3 app.py && touch made/more") == "changed"
        assert box.get_info().memory_mb == 384
    finally:
        box.kill()


@claim
def the_same_again_executes_no_step():
    """And says so; but for what is forced."""
    lines = build(recipe(), NAME)
    assert not [line for line in lines if line == "this is told"], lines
    assert len([line for line in lines if line.startswith("CACHED [")]) == 7, lines


@claim
def what_is_forced_is_executed():
    """From the step on."""
    first = "echo first > /tmp/kept; mkdir ~/kept; cp /tmp/kept ~/kept; rm -r ~/kept"
    forced = Template().from_template("python").run_cmd(first).skip_cache().run_cmd("echo second; cat /tmp/kept")
    build(forced, f"{NAME}-forced")
    again = build(forced, f"{NAME}-forced")
    assert "second" in again, again
    assert "first" in again, again  # from a folder that no sandbox of it will have
    assert f"CACHED [1] RUN {first}" in again, again
    box = Sandbox.create(f"{NAME}-forced", timeout=60)
    try:
        assert said(box, "test -e /tmp/kept || echo gone; python3 -c 'import numpy; print(1)'") == "gone\n1"
    finally:
        box.kill()


@claim
def a_template_is_built_upon_ones_own():
    """With its files, variables, working directory and start command."""
    lines = build(Template().from_template(NAME).run_cmd("cat said > again && rm said && rm -r ~/made"), f"{NAME}-next")
    assert lines
    box = Sandbox.create(f"{NAME}-next", timeout=60)
    try:
        assert said(box, "cat again; ls said ~/made 2>&1 | wc -l") == "from user, hello there\n2"
        assert said(box, "curl -s localhost:8000/deep/er.txt; python3 ~/app.py") == "deeperthe app"
    finally:
        box.kill()


@claim
def a_failing_step_is_told_with_what_it_said():
    """As a BuildException, whose traceback leads to the step."""
    template = Template().from_base_image().run_cmd("echo so far").run_cmd("echo the reason >&2; exit 7")
    try:
        build(template, f"{NAME}-failing")
    except Exception as error:  # noqa: BLE001
        told = error
    else:
        raise AssertionError("it was built")
    assert type(told).__name__ == "BuildException", told
    assert "the reason" in str(told), told
    assert "exit code 7" in str(told), told
    assert "builds.py" in "".join(traceback.format_tb(told.__traceback__)[-1:]), told


@claim
def a_name_exists_once_it_was_built():
    """And not before; that of the server's own does."""
    exists = getattr(Template, "exists", None) or Template.alias_exists
    assert exists(NAME)
    assert exists("base")
    assert not exists("never-built")


@claim
def tags_lead_to_builds():
    """`name:tag` is what it was built as; tags are given, listed and taken away."""
    if VERSION < (2, 30):
        return
    build(Template().from_base_image().run_cmd("echo one > ~/which"), f"{NAME}-tagged:v1", tags=["stable"])
    build(Template().from_base_image().run_cmd("echo two > ~/which"), f"{NAME}-tagged:v2")
    Template.assign_tags(f"{NAME}-tagged:v1", ["production", "default"])
    assert {row.tag for row in Template.get_tags(f"{NAME}-tagged")} == {"v1", "v2", "stable", "production", "default"}
    Template.remove_tags(f"{NAME}-tagged", ["stable"])
    for tag, which in ((":production", "one"), (":v2", "two"), ("", "one")):
        box = Sandbox.create(f"{NAME}-tagged{tag}", timeout=60)
        assert said(box, "cat ~/which") == which, tag
        box.kill()
    try:
        Sandbox.create(f"{NAME}-tagged:stable", timeout=60)
    except Exception as error:  # noqa: BLE001
        told = error
    else:
        raise AssertionError("a removed tag still leads to a build")
    assert "404" in str(told), told


@claim
def a_build_in_the_background_is_looked_at():
    """Until it is ready."""
    template = Template().from_base_image().run_cmd("sleep 1; echo done > ~/late")
    info = Template.build_in_background(template, alias=f"{NAME}-late")
    deadline, status = time.monotonic() + 60, None
    while time.monotonic() < deadline:
        status = Template.get_build_status(info)
        name = getattr(status.status, "value", status.status)
        if name not in {"building", "waiting"}:
            break
        time.sleep(0.2)
    assert name == "ready", status


@claim
def the_asynchronous_client_builds_too():
    """As the other one does."""

    async def built():
        lines = []
        template = AsyncTemplate(file_context_path=PLACE).from_base_image().copy("site/*.html", "pages/")
        await AsyncTemplate.build(template, alias=f"{NAME}-async", on_build_logs=lambda e: lines.append(e.message))
        return lines

    assert asyncio.run(built())
    box = Sandbox.create(f"{NAME}-async", timeout=60)
    try:
        assert said(box, "cd ~/pages && ls && cat also.html") == "also.html\nindex.html\n<p>hello</p>"
    finally:
        box.kill()


if __name__ == "__main__":
    sys.exit(tell_all())
