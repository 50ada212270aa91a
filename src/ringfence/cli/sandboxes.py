"""`ringfence sandbox`: create, list, get, exec, extend, stop, logs; the rest is beside this file."""

from __future__ import annotations

from typing import Any

import click

from ringfence import wire
from ringfence.cli import program
from ringfence.cli.copying import cp
from ringfence.cli.groups import Subcommands, examples
from ringfence.cli.options import (
    Shared,
    egress,
    egress_option,
    env_option,
    gateway_option,
    isolation_option,
    label_option,
    limit_option,
    limits,
    pairs,
    said,
    seconds,
    secret_option,
    server_options,
    template_option,
)
from ringfence.cli.output import ProgramOutput, Screen, moment, size, span
from ringfence.cli.pausing import pause, resume
from ringfence.cli.publishing import ports, publish, unpublish
from ringfence.cli.shell import shell
from ringfence.cli.tunnels import tunnel
from ringfence.client import DeadlineExceeded, Process, Sandbox
from ringfence.domain.errors import NotFound

QUIET_SECONDS = 0.5  # what was kept arrives at once; after this long without a byte there was no more of it
COLUMNS = ("ID", "TEMPLATE", "STATE", "CREATED", "EXPIRES", "LABELS")


@click.group(
    cls=Subcommands,
    epilog=examples(
        "ID=$(ringfence sandbox create -t python)",
        "ringfence sandbox exec $ID -- python3 -c 'print(6 * 7)'",
        "ringfence sandbox cp report.csv $ID:report.csv",
        "ringfence sandbox shell $ID",
        "ringfence sandbox stop $ID",
    ),
)
def sandbox() -> None:
    """Create, use and stop sandboxes that live on between commands."""


sandbox.add_command(cp)
sandbox.add_command(shell)
sandbox.add_command(tunnel)
sandbox.add_command(pause)
sandbox.add_command(resume)
sandbox.add_command(publish)
sandbox.add_command(unpublish)
sandbox.add_command(ports)


@sandbox.command(
    epilog=examples(
        "ringfence sandbox create",
        "ringfence sandbox create -t python --ttl 1h -L memory=1GiB -l owner=ada",
    )
)
@template_option
@click.option("--ttl", type=seconds, default="5m", show_default=True, metavar="TIME", help="How long it lives.")
@limit_option
@label_option
@isolation_option
@egress_option
@click.option("--start", metavar="COMMAND", help="Run this from the beginning, and again after each reset.")
@gateway_option
@secret_option
@click.option("--on-timeout", type=click.Choice(["stop", "pause"]), help="What becomes of it when its time is over.")
@click.option("--wake/--no-wake", default=None, help="Resume it when it is used while it is paused.")
@server_options
def create(shared: Shared, template: str | None, ttl: float, isolation: str | None, **rest: Any) -> None:
    """Create a sandbox and print its id."""
    reach = egress(rest["egress_"])
    words = said(limits=limits(rest["limits_"]), egress=reach, secrets=rest["secrets"], start=rest["start"])
    words |= said(egress_gateway=rest["egress_gateway"], on_timeout=rest["on_timeout"], wake=rest["wake"])
    options = said(template=template, isolation=isolation, **words)
    with shared.client() as client:
        made = Sandbox.create(client=client, ttl=ttl, labels=pairs(rest["labels"], "--label"), **options)
    if shared.screen.json:
        shared.screen.data(made.info)
    else:
        shared.screen.line(made.id)


@sandbox.command(name="list")
@label_option
@click.option("--state", type=click.Choice(["starting", "running", "paused", "stopping", "stopped", "failed"]))
@click.option("--all", "all_", is_flag=True, help="Also those that have ended.")
@server_options
def list_(shared: Shared, labels: tuple[str, ...], state: str | None, all_: bool) -> None:
    """List your sandboxes, newest first; only the running ones unless asked otherwise."""
    wanted = state or (None if all_ else "running")
    with shared.client() as client:
        found = list(Sandbox.list(pairs(labels, "--label"), state=wanted, client=client))
    shared.screen.show(found, COLUMNS, _row)


def _row(found: wire.Sandbox) -> tuple[str, ...]:
    labels = " ".join(f"{name}={value}" for name, value in sorted(found.labels.items()))
    return (found.id, found.template, found.state, moment(found.created_at), moment(found.expires_at), labels)


@sandbox.command()
@click.argument("id_", metavar="ID")
@server_options
def get(shared: Shared, id_: str) -> None:
    """Show one sandbox: its state, its limits and the layers in force around it."""
    with shared.client() as client:
        info = Sandbox.connect(id_, client=client).info
    if shared.screen.json:
        shared.screen.data(info)
        return
    shared.screen.table(("", ""), _facts(info))


def _facts(info: wire.Sandbox) -> list[tuple[str, str]]:
    limits_ = info.limits
    rows = [
        ("id", info.id),
        ("state", info.state),
        ("template", f"{info.template} {info.template_digest[:19]}".strip()),
        ("runtime", info.runtime or "-"),
        ("created", moment(info.created_at)),
        ("expires", moment(info.expires_at)),
        ("layers", ", ".join(info.layers) or "-"),
        ("limits by", info.limits_by or "-"),
    ]
    if limits_ is not None:
        rows.append(("memory", size(limits_.memory_bytes)))
        rows.append(("processors", f"{limits_.cpus:g}"))
        rows.append(("processes", str(limits_.processes)))
        rows.append(("scratch", size(limits_.scratch_bytes)))
        rows.append(("wall time", span(limits_.wall_seconds)))
    if info.paused is not None:
        kept = f"{size(info.paused.bytes)} of files until {moment(info.paused.expires_at)}"
        rows.append(("paused", f"{moment(info.paused.at)}, {info.paused.reason}; keeps {kept}"))
    if info.on_timeout != "stop" or info.wake:
        rows.append(("on timeout", info.on_timeout + (", wakes when used" if info.wake else "")))
    if info.exit is not None:
        rows.append(("ended", f"{info.exit.how} {info.exit.reason}".strip()))
    return rows


@sandbox.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "ringfence sandbox exec ID 'ls -la | head'",
        "ringfence sandbox exec ID python3 train.py --epochs 3",
        "ringfence sandbox exec -d ID python3 -m http.server 8000",
    ),
)
@click.argument("id_", metavar="ID")
@click.argument("command", nargs=-1, required=True)
@env_option
@click.option("--cwd", metavar="PATH", help="Where it starts (default: /home/user).")
@click.option("--user", type=click.Choice(["user", "root"]), help="As whom (default: user).")
@click.option("--timeout", type=seconds, metavar="TIME", help="Stop it after this long.")
@click.option("--detach", "-d", is_flag=True, help="Leave it running and print its pid.")
@click.option("--no-stdin", is_flag=True, help="Do not read what is piped in.")
@server_options
def exec_(shared: Shared, id_: str, command: tuple[str, ...], detach: bool, no_stdin: bool, **rest: Any) -> int:
    """Run a command in a sandbox: one word goes to its shell, several are run as they are.

    Options come before ID; everything after it belongs to the command.
    """
    if command[0] == "--" and len(command) > 1:  # as one types it for other tools
        command = command[1:]
    what = command[0] if len(command) == 1 else list(command)
    stdin = None if detach else program.read_input(shared.screen, wanted=not no_stdin)
    options = said(env=pairs(rest.pop("env"), "--env"), stdin=stdin, **rest)
    with shared.client() as client:
        place = Sandbox.connect(id_, client=client)
        if detach:
            return _detached(shared.screen, place.start(what, **options))
        result = program.relay(place.stream(command=what, **options), shared.screen)
    if shared.screen.json:
        shared.screen.data(program.as_json(result))
    return program.last_word(shared.screen, result.exit, truncated=result.truncated)


def _detached(screen: Screen, process: Process) -> int:
    if screen.json:
        screen.data({"pid": process.pid})
    else:
        screen.line(str(process.pid))
    return 0


@sandbox.command()
@click.argument("id_", metavar="ID")
@server_options
def ps(shared: Shared, id_: str) -> None:
    """List what was started in a sandbox through ringfence, alive or ended."""
    with shared.client() as client:
        found = Sandbox.connect(id_, client=client).processes()
    shared.screen.show(found, ("PID", "STATE", "STARTED", "TAG", "COMMAND"), _process_row)


def _process_row(found: wire.Process) -> tuple[str, ...]:
    state = "running" if found.running else str(found.exit.how if found.exit else "ended")
    return (str(found.pid), state, moment(found.started_at), found.tag or "", " ".join(found.argv)[:100])


@sandbox.command()
@click.argument("id_", metavar="ID")
@click.argument("pid", type=int, required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
@server_options
def logs(shared: Shared, id_: str, pid: int | None, follow: bool) -> None:
    """Show what a process in a sandbox wrote lately; without PID, the one started last.

    With --json each piece is one line: {"stream", "text"}.
    """
    with shared.client() as client:
        place = Sandbox.connect(id_, client=client)
        process = place.process(_latest(place) if pid is None else pid)
        output = ProgramOutput()
        try:
            for chunk in process.output(quiet=None if follow else QUIET_SECONDS):
                if shared.screen.json:
                    shared.screen.data({"stream": chunk.stream, "text": chunk.text})
                else:
                    output.write(chunk.stream, chunk.data)
        except DeadlineExceeded:
            return  # still running, and everything it wrote so far has been shown
        finally:
            output.close()


def _latest(place: Sandbox) -> int:
    found = place.processes()
    if not found:
        hint = "start one with `ringfence sandbox exec -d`"
        raise NotFound("nothing was started in this sandbox", remediation=hint)
    return max(found, key=lambda process: process.started_at or 0).pid


@sandbox.command()
@click.argument("id_", metavar="ID")
@click.argument("ttl", type=seconds, metavar="TIME")
@server_options
def extend(shared: Shared, id_: str, ttl: float) -> None:
    """Let a sandbox live until TIME (as 10m) from now."""
    with shared.client() as client:
        info = Sandbox.connect(id_, client=client).extend(ttl)
    if shared.screen.json:
        shared.screen.data(info)
    else:
        shared.screen.line(f"{info.id} expires {moment(info.expires_at)}")


@sandbox.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@server_options
def reset(shared: Shared, ids: tuple[str, ...]) -> None:
    """Make sandboxes anew: programs and files are gone; ids, ports, links and policies stay."""
    with shared.client() as client:
        for id_ in ids:
            info = Sandbox.connect(id_, client=client).reset()
            if shared.screen.json:
                shared.screen.data(info)
            else:
                shared.screen.line(f"{info.id} reset")


@sandbox.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@server_options
def stop(shared: Shared, ids: tuple[str, ...]) -> None:
    """Stop sandboxes, and everything in them."""
    with shared.client() as client:
        for id_ in ids:
            info = Sandbox.connect(id_, client=client).stop()
            if shared.screen.json:
                shared.screen.data(info)
            else:
                shared.screen.line(f"{info.id} {info.state}")
