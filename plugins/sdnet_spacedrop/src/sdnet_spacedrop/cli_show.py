"""What the commands of ``sdnet drop`` say about drops, and the commands that only list them."""

from __future__ import annotations

from typing import Any

import click

from sdnet_core.cli.kit import Cli, clean, format_count, format_size, format_time, json_option, pass_cli, quote_segment
from sdnet_core.errors import NetworkingError, RefusedError

__all__ = ["ENDED", "drop_path", "failure", "history", "inbox", "sender", "what"]

ENDED = ("completed", "rejected", "timed-out", "cancelled", "failed")


@click.command(epilog="\b\nExamples:\n  sdnet drop inbox")
@json_option
@pass_cli
def inbox(cli: Cli, as_json: bool) -> None:
    """List the drops received, with where they were put."""
    _table(cli, cli.client.get("/spacedrop/inbox"), as_json, state=False, empty="Nothing was received yet.")


@click.command()
@click.option("--clear", is_flag=True, help="Forget all of them; the files stay where they are.")
@click.option("--forget", "drop_id", metavar="ID", help="Forget one of them.")
@json_option
@pass_cli
def history(cli: Cli, clear: bool, drop_id: str | None, as_json: bool) -> None:
    """List the drops that are over, sent and received, also those that did not arrive.

    The latest 200 are kept, for 90 days.

    \b
    Examples:
      sdnet drop history
      sdnet drop history --forget 3f2a
      sdnet drop history --clear
    """
    if clear and drop_id is not None:
        raise click.UsageError("Either --clear or --forget ID.")
    if clear or drop_id is not None:
        path = "/spacedrop/history" + ("" if drop_id is None else f"/{quote_segment(drop_id)}")
        answer = cli.client.delete(path)
        if as_json:
            cli.print_json(answer)
        else:
            cli.note(f"Forgotten: {answer['forgotten']}.")
        return
    _table(cli, cli.client.get("/spacedrop/history"), as_json, state=True, empty="No drop is over yet.")


def _table(cli: Cli, found: list[dict[str, Any]], as_json: bool, *, state: bool, empty: str) -> None:
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "id": entry["id"][:8],
            "when": format_time(entry["ended_at"] or entry["created_at"]),
            "who": ("to " if entry["role"] == "sender" else "from ") + sender(entry),
            "what": what(entry),
            "state": entry["state"],
            "where": (entry["paths"][:3] or entry["folder"]) if entry["state"] == "completed" else entry["reason"],
            "message": entry["message"],
        }
        for entry in found
    ]
    columns = [("id", "ID"), ("when", "WHEN"), ("who", "WHO"), ("what", "WHAT")]
    columns += [("state", "STATE")] if state else []
    columns += [("where", "WHERE OR WHY NOT" if state else "WHERE"), ("message", "MESSAGE")]
    cli.table(rows, columns, empty=empty)


def drop_path(drop_id: str, end: str = "") -> str:
    """The local API's path of a drop."""
    return f"/spacedrop/drops/{quote_segment(drop_id)}{end}"


def what(status: dict[str, Any]) -> str:
    """What is offered, in a few words."""
    items = status["items"]
    if not items:
        return "something that is not told yet" if status["state"] == "comparing" else "something"
    size = format_size(status["total_bytes"])
    if len(items) == 1 and not status["more_items"]:
        (item,) = items
        name = clean(item["name"])
        inside = f"{format_count(item['item_count'] - 1, 'item')}, " if item["directory"] else ""
        return f"{name}{'/' if item['directory'] else ''} ({inside}{size})"
    names = ", ".join(clean(item["name"]) for item in items[:3])
    more = len(items) + status["more_items"] - 3
    return names + (f" and {more} more" if more > 0 else "") + f" ({size})"


def sender(status: dict[str, Any]) -> str:
    """Who it comes from or goes to: the proven name, and what the device calls itself if that differs."""
    name, claimed = status["device_name"], status["sender_name"]
    if status["device_id"] is None:
        return f"{name} (not paired)"
    if status["role"] == "receiver" and claimed and claimed != name:
        return f"{name} ({claimed})"
    return str(name)


def failure(ended: dict[str, Any]) -> NetworkingError | None:
    """Why a drop did not arrive.

    :returns: None if it did; a `RefusedError` if the other side did not want it.
    """
    name, reason = ended["device_name"], ended["reason"]
    match ended["state"]:
        case "completed":
            return None
        case "rejected" if ended["code"] == "rejected":
            return RefusedError(f"{name} rejected it" + (f": {reason}" if reason else "."))
        case "rejected":
            return RefusedError(f"{name} refused it: {reason or ended['code']}")
        case "timed-out":
            return RefusedError(f"Nobody answered on {name} in time." if ended["by_peer"] else reason)
        case "cancelled" if ended["by_peer"]:
            return RefusedError(f"{name} cancelled it" + (f": {reason}" if reason else "."))
        case _:
            return NetworkingError(reason or f"The drop was {ended['state']}.")
