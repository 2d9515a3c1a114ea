"""``sdnet audit``: what happened that is of concern for security."""

from __future__ import annotations

import time
from typing import Any

import click

from ..daemon.moments import parse_moment
from ..errors import InvalidRequestError
from .kit import Cli, clean, format_count, format_time, json_option, pass_cli
from .names import check_names, split_names
from .text import format_fields

__all__ = ["audit"]


class _Since(click.ParamType[float]):
    """A time ago (``2h``), or a date and time."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_moment(value, time.time())
        except InvalidRequestError as error:
            self.fail(error.detail)


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet audit --since 7d\n"
    "  sdnet audit --kinds device-revoked,trust-changed\n"
    "  sdnet audit -f --json | jq .\n"
    "  sdnet audit verify",
)
@click.option("--since", type=_Since(), metavar="WHEN", help="Not what is older: 2h, 7d, or a date.")
@click.option("--kinds", metavar="KIND,…", help="Only lines of these kinds.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@json_option
@pass_cli
@click.pass_context
def audit(ctx: click.Context, cli: Cli, since: float | None, kinds: str | None, follow: bool, as_json: bool) -> None:
    """Show the audit log: pairings, trust, revocations, refusals, approvals.

    With --json one line for each entry. Following ends with Ctrl-C, or when the node stops.
    """
    if ctx.invoked_subcommand is not None:
        return
    wanted = split_names([kinds or ""])
    if wanted:
        check_names(wanted, cli.client.get("/audit/kinds"), "The audit log has no lines of the kind {}.")
    if not follow:
        for line in cli.client.get("/audit", since=since, kinds=",".join(wanted) or None):
            _show(cli, line, as_json)
        return
    with cli.client.stream("/audit/follow", since=since) as lines:
        for line in lines:
            if not wanted or line["kind"] in wanted:
                _show(cli, line, as_json)


@audit.command(epilog="\b\nExamples:\n  sdnet audit verify")
@json_option
@pass_cli
def verify(cli: Cli, as_json: bool) -> int:
    """Check that no line was changed, moved or taken out.

    Ends with 1 if something is wrong.
    """
    report = cli.client.post("/audit/verify")
    if as_json:
        cli.print_json(report)
    else:
        for problem in report["problems"]:
            cli.print(problem)
        right = f"{format_count(report['lines'], 'line')} from number {report['first']} on"
        same = "is as it was written" if report["lines"] == 1 else "are as they were written"
        cli.print(f"{right} {'are right' if report['problems'] else same}.")
    return 1 if report["problems"] else 0


def _show(cli: Cli, line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(line, compact=True)
        return
    rest = format_fields(line, but=("n", "at", "kind"))
    cli.print(f"{format_time(line['at'])}  {clean(line['kind'])}  {rest}")
