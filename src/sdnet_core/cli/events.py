"""``sdnet events``: what happens in the node, and what has happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .kit import Cli, clean, format_count, format_time, json_option, pass_cli
from .names import check_names, split_names
from .text import format_fields

__all__ = ["events"]


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet events                                   what has happened, as far as it is kept\n"
    "  sdnet events --follow                          from now on\n"
    "  sdnet events --follow --since 10m --type connection-established,connection-lost\n"
    "  sdnet events --json --since 1523 | jq .        after the event with that number"
)
@click.option(
    "--since",
    metavar="WHEN",
    help="Only what came after the event with that number (seq), or since a time ago (2h, 7d), or since a date.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C or until the node stops.")
@click.option("--type", "--kinds", "kinds", multiple=True, metavar="KIND,…", help="Only events of these kinds.")
@click.option("-n", "--lines", type=click.IntRange(min=1), metavar="N", help="Only the last N; without --follow.")
@json_option
@pass_cli
def events(cli: Cli, since: str | None, follow: bool, kinds: Sequence[str], lines: int | None, as_json: bool) -> None:
    """Show what happens in the node.

    The node keeps the latest 500 events of each kind while it runs; where some are missing, a line says how many. With
    --json one line for each event.
    """
    if follow and lines is not None:
        raise click.UsageError("--lines cannot go with --follow; --since can.")
    names = split_names(kinds)
    if names:
        known = [found["kind"] for found in cli.client.get("/events/kinds")]
        check_names(names, known, "There are no events of the kind {}.")
    wanted = ",".join(names) or None
    if follow:
        with cli.client.stream("/events", kinds=wanted, since=since) as stream:
            for event in stream:
                _show(cli, event, as_json)
        return
    for event in cli.client.get("/events/recent", kinds=wanted, since=since)[-(lines or 0) :]:
        _show(cli, event, as_json)


def _missing(gap: dict[str, Any]) -> str:
    return format_count(gap["count"], "event is missing", "events are missing")


def _show(cli: Cli, event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(event, compact=True)
    elif event["kind"] == "events-dropped":
        missing = f"{_missing(event)} here: " if event["count"] else ""
        cli.print(f"{format_time(event['at'])}  … {missing}{event['reason']}")
    else:
        rest = format_fields(event, but=("kind", "at", "seq"))
        cli.print(f"{format_time(event['at'])}  #{event['seq']}  {clean(event['kind'])}  {rest}")
