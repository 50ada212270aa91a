"""`ringfence policy`: what an egress policy means, what a program's own would be, bundles and gateways."""

from __future__ import annotations

from typing import Any

import click

from ringfence import config, wire_egress
from ringfence.cli import codes, policyfile, program
from ringfence.cli.groups import Subcommands, examples
from ringfence.cli.lazy import loaded
from ringfence.cli.options import (
    Shared,
    egress,
    egress_option,
    gateway_option,
    program_options,
    seconds,
    server_options,
)
from ringfence.cli.output import ProgramOutput, Screen, moment, size
from ringfence.cli.running import opened, options_of, program_of
from ringfence.client import RunResult, Stream
from ringfence.client.settings import configured


class Learn(click.Command):
    """A command that can tell `FILE ARGS` from `-- ARGV`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, noting what stands behind the first `--`."""
        ctx.meta["behind"] = tuple(args[args.index("--") + 1 :]) if "--" in args else ()
        return super().parse_args(ctx, args)


@click.group(
    cls=Subcommands,
    epilog=examples(
        "ringfence policy learn --deny -- pip download requests   # nothing leaves that is not allowed",
        "ringfence policy learn --save policy.toml job.py         # where the operator lets you",
        "ringfence run --egress @policy.toml job.py",
        "ringfence policy check policy.toml",
        "ringfence policy bundles",
    ),
)
def policy() -> None:
    """Learn, check and explain egress policies: what a sandbox may reach."""


@policy.command(
    cls=Learn,
    context_settings={"allow_interspersed_args": True},
    epilog=examples(
        "ringfence policy learn job.py",
        "ringfence policy learn --deny --egress @policy.toml --save policy.toml -- pip install requests",
        "ringfence policy learn --with rabc... --with rdef... --save policy.toml -c 'pass'",
    ),
)
@click.argument("words", nargs=-1, metavar="[FILE [ARGS]...|-- ARGV...]")
@program_options
@egress_option
@gateway_option
@click.option("--deny", is_flag=True, help="Let nothing pass that --egress does not allow; run again to learn more.")
@click.option("--generalise", is_flag=True, help="Also propose wildcards where names or paths are alike.")
@click.option(
    "--with", "also", multiple=True, metavar="ID", help="An earlier run or sandbox to learn from; repeatable."
)
@click.option("--save", metavar="FILE", help="Write the policy here, as TOML, or as JSON to a name in .json.")
@server_options
@click.pass_context
def learn(ctx: click.Context, /, shared: Shared, words: tuple[str, ...], code: str | None, **rest: Any) -> int:
    """Run a program, note all that it reaches, and propose the least policy that allows it, with the evidence.

    Everything above the operator's floor is allowed meanwhile, if the operator lets you; with --deny nothing is but
    what --egress names, and everything else is noted as it is refused. The program's own output goes to stderr.
    """
    what = {"argv": list(words)} if words and words == ctx.meta["behind"] else program_of(words, code, rest["shell"])
    piped = words[:1] == ("-",)
    options = options_of(rest, program.read_input(shared.screen, wanted=not piped and not rest["no_stdin"]))
    options["egress"] = _studied(egress(rest["egress_"]), deny=rest["deny"])
    with opened(shared) as client:
        result = _relay(client.stream_run(**what, **options), shared.screen)
        found = client.learned_egress(result.id, *rest["also"], generalise=rest["generalise"])
    if rest["save"]:
        policyfile.save(rest["save"], found.policy, found.notes)
    if shared.screen.json:
        shared.screen.data({"run": result.id, "exit_code": codes.for_exit(result.exit), **_plain(found)})
    else:
        _show(shared.screen, found, saved=rest["save"])
    return program.last_word(shared.screen, result.exit, truncated=result.truncated, why=result.id)


def _studied(known: dict[str, Any] | str | None, *, deny: bool) -> dict[str, Any]:
    if isinstance(known, str):
        raise click.UsageError("--egress none leaves nothing to learn")
    return {**(known or {}), "mode": "rehearse" if deny else "learn"}


def _relay(stream: Stream[RunResult], screen: Screen) -> RunResult:
    if screen.json:
        return stream.wait()
    output = ProgramOutput()
    with stream:
        for chunk in stream:
            output.write("stderr", chunk.data)
    output.close()
    return stream.result


def _plain(found: wire_egress.EgressLearned) -> dict[str, Any]:
    return {name: getattr(found, name) for name in wire_egress.EgressLearned.__struct_fields__}


def _show(screen: Screen, found: wire_egress.EgressLearned, *, saved: str | None) -> None:
    if found.seen:
        screen.heading("Seen")
        columns = ("DESTINATION", "PROTOCOL", "PORT", "REQUESTS", "BYTES", "TIMES", "DENIED", "EVENTS", "PROPOSED AS")
        screen.table(columns, map(_row, found.seen))
    else:
        screen.line("It reached for nothing: it needs no network.")
    if found.refused:
        screen.heading("Refused, and no policy here could allow it")
        screen.table(("DESTINATION", "PROTOCOL", "PORT", "WHY", "EVENT"), map(_refused_row, found.refused))
    if found.notes:
        screen.heading("Notes")
    for note in found.notes:
        screen.line(note)
    screen.heading("Proposed policy")
    if saved:
        screen.line(f"written to {saved}: use it with --egress @{saved}")
    else:
        screen.line(policyfile.to_toml(found.policy, []))


def _row(seen: wire_egress.EgressSeen) -> tuple[str, ...]:
    requests = ", ".join(seen.requests[:4]) + (f" and {len(seen.requests) - 4} more" if len(seen.requests) > 4 else "")
    events = " ".join(map(str, seen.events[:5])) + (" ..." if len(seen.events) > 5 else "")
    counts = (size(seen.sent + seen.received), str(seen.times), str(seen.denied))
    return (seen.place, seen.protocol, str(seen.port), requests or "-", *counts, events, seen.by)


def _refused_row(refused: wire_egress.EgressRefused) -> tuple[str, ...]:
    return (refused.place, refused.protocol, str(refused.port), refused.reason, str(refused.event))


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@server_options
def check(shared: Shared, file: str) -> int:
    """Say what the policy in FILE means, or every rule that is refused, by its index, and why.

    The server's floor judges it; without one, this machine's settings do. The exit code is 0 for a policy that stands.
    """
    wanted = policyfile.read(file)
    if configured(shared.url):
        with shared.client() as client:
            found = client.check_egress(wanted)
    else:
        settings = config.read_server().egress
        judge = loaded("ringfence.engine.egress", "checked")
        rules = loaded("ringfence.engine.policy", "Policy")(floor=settings.floor(), learn=settings.learn)
        found = judge(wanted, rules)
    if shared.screen.json:
        shared.screen.data(found)
    else:
        _explain(shared.screen, found)
    return 0 if found.ok else codes.REFUSED


def _explain(screen: Screen, found: wire_egress.EgressChecked) -> None:
    if found.error is None:
        first = len(found.meaning) - len(found.policy.get("allow", []))
        for number, line in enumerate(found.meaning):
            screen.line(line if number < first else f"rule {number - first}: {line}")
        return
    for refusal in found.refused:
        screen.line(f"rule {refusal.index} {refusal.reason}")
    if not found.refused:
        screen.line(found.error.cause)
    if found.error.remediation:
        screen.say(f"hint: {found.error.remediation}")


@policy.command()
@server_options
def bundles(shared: Shared) -> None:
    """List the bundles: destinations that go by one name, and why each is in it."""
    if configured(shared.url):
        with shared.client() as client:
            found = client.egress_bundles()
    else:
        found = loaded("ringfence.engine.egress", "bundles")()
    if shared.screen.json:
        for each in found:
            shared.screen.data(each)
        return
    rows = [
        (each.name, r.domain, r.protocol, ",".join(map(str, r.ports)), r.reason) for each in found for r in each.rules
    ]
    shared.screen.table(("BUNDLE", "NAME", "PROTOCOL", "PORTS", "WHY"), rows)


@policy.command()
@server_options
def gateways(shared: Shared) -> None:
    """List the gateways by which your sandboxes may leave; those of them that must are pinned to one."""
    with shared.client() as client:
        found = client.egress_gateways()
    shared.screen.show(found, ("GATEWAY", "KIND", "ADDRESS", "PINNED"), _gateway_row)


def _gateway_row(found: wire_egress.EgressGateway) -> tuple[str, ...]:
    return (found.name, found.kind, found.address, "yes" if found.pinned else "no")


@policy.command()
@click.option("--since", type=seconds, default="24h", show_default=True, metavar="TIME", help="How far to look back.")
@click.option("--step", type=seconds, default="1h", show_default=True, metavar="TIME", help="What one row stands for.")
@server_options
def report(shared: Shared, since: float, step: float) -> None:
    """Show what your sandboxes sent where, by destination and step of time."""
    with shared.client() as client:
        found = client.egress_report(since, step)
    if shared.screen.json:
        shared.screen.data(found)
        return
    columns = ("FROM", "DESTINATION", "PROTOCOL", "PORT", "TIMES", "DENIED", "SENT", "RECEIVED")
    shared.screen.table(columns, map(_sum_row, found.sums))
    if sum(each.times for each in found.sums) >= found.most:
        shared.screen.say(f"only the newest {found.most} were counted", style="yellow")


def _sum_row(each: wire_egress.EgressSum) -> tuple[str, ...]:
    counts = (str(each.port), str(each.times), str(each.denied), size(each.sent), size(each.received))
    return (moment(each.time), each.place, each.protocol, *counts)
