"""``sdnet drop``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from sdnet_core.cli.kit import Cli, Progress, clean, format_size, format_time, json_option, pass_cli, quote_segment
from sdnet_core.errors import NetworkingError, RefusedError

__all__ = ["drop"]

_ENDED = ("completed", "rejected", "timed-out", "cancelled", "failed")


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet drop send holiday.jpg --to laptop --message 'from the lake'\n"
    "  sdnet drop pending\n"
    "  sdnet drop accept 3f2a --to ~/Pictures"
)
def drop() -> None:
    """Offer files to a device, whose person decides; answer offers made to this one."""


@drop.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True))
@click.option("--to", "device", required=True, metavar="DEVICE", help="Name, id, or a unique prefix of either.")
@click.option("--message", default="", metavar="TEXT", help="Shown to the person there.")
@json_option
@pass_cli
def send(cli: Cli, paths: tuple[str, ...], device: str, message: str, as_json: bool) -> None:
    """Offer files and folders; wait for the answer, then until they have arrived.

    Ends with 4 when the offer is rejected, cancelled there, or not answered. Ctrl-C cancels.
    """
    body = {"device": device, "paths": [os.path.abspath(path) for path in paths], "message": message}
    offered = cli.client.post("/spacedrop/drops", body)
    name = offered["device_name"]
    if not as_json:
        cli.note(f"Offering {_what(offered)} to {name}.")
    ended = _follow(cli, offered, waiting=f"Waiting for {name} to accept.", quiet=as_json)
    _finish(cli, ended, as_json, f"{name} has received {_what(ended)}.")


@drop.command()
@json_option
@pass_cli
def pending(cli: Cli, as_json: bool) -> None:
    """List the offers that wait for your answer."""
    found = cli.client.get("/spacedrop/pending")
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "id": offer["id"][:8],
            "from": _sender(offer),
            "what": _what(offer),
            "until": format_time(offer["expires_at"]),
            "message": offer["message"],
        }
        for offer in found
    ]
    columns = [("id", "ID"), ("from", "FROM"), ("what", "WHAT"), ("until", "UNTIL"), ("message", "MESSAGE")]
    cli.table(rows, columns, empty="No offer waits for an answer.")


@drop.command()
@click.argument("drop_id", metavar="ID")
@click.option("--to", "folder", metavar="FOLDER", type=click.Path(file_okay=False), help="Where to put it.")
@click.option("--detach", is_flag=True, help="Do not wait until it has arrived.")
@json_option
@pass_cli
def accept(cli: Cli, drop_id: str, folder: str | None, detach: bool, as_json: bool) -> None:
    """Accept an offer, by its id or a unique prefix of it. Ctrl-C leaves the files coming."""
    body = {"folder": None if folder is None else os.path.abspath(folder)}
    accepted = cli.client.post(f"/spacedrop/drops/{quote_segment(drop_id)}/accept", body)
    if detach:
        if as_json:
            cli.print_json(accepted)
        else:
            cli.note(f"{_what(accepted)} will be put into {accepted['folder']}.")
        return
    try:
        ended = _wait(cli, accepted, quiet=as_json)
    except KeyboardInterrupt:
        cli.note("The files keep coming.")
        raise
    places = ", ".join(ended["paths"][:5]) or ended["folder"]
    _finish(cli, ended, as_json, f"Received {_what(ended)} from {ended['device_name']}: {places}")


@drop.command()
@click.argument("drop_id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Told to the sender.")
@json_option
@pass_cli
def reject(cli: Cli, drop_id: str, reason: str, as_json: bool) -> None:
    """Reject an offer, by its id or a unique prefix of it."""
    rejected = cli.client.post(f"/spacedrop/drops/{quote_segment(drop_id)}/reject", {"reason": reason})
    if as_json:
        cli.print_json(rejected)
    else:
        cli.note(f"Rejected {_what(rejected)} from {rejected['device_name']}.")


@drop.command()
@click.argument("drop_id", metavar="ID")
@json_option
@pass_cli
def cancel(cli: Cli, drop_id: str, as_json: bool) -> None:
    """Cancel a drop, sent or received, by its id or a unique prefix of it."""
    cancelled = cli.client.delete(f"/spacedrop/drops/{quote_segment(drop_id)}")
    if as_json:
        cli.print_json(cancelled)
    else:
        cli.note(f"Cancelled {_what(cancelled)}.")


@drop.command()
@click.option("--all", "everything", is_flag=True, help="Also what was sent, and what did not arrive.")
@json_option
@pass_cli
def inbox(cli: Cli, everything: bool, as_json: bool) -> None:
    """List the drops received, with where they were put."""
    found = cli.client.get("/spacedrop/drops" if everything else "/spacedrop/inbox")
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "id": entry["id"][:8],
            "when": format_time(entry["ended_at"] or entry["created_at"]),
            "who": ("to " if entry["role"] == "sender" else "from ") + _sender(entry),
            "what": _what(entry),
            "state": entry["state"],
            "where": entry["paths"][:3] or entry["folder"],
            "message": entry["message"],
        }
        for entry in found
    ]
    columns = [("id", "ID"), ("when", "WHEN"), ("who", "WHO"), ("what", "WHAT")]
    columns += [("state", "STATE")] if everything else []
    columns += [("where", "WHERE"), ("message", "MESSAGE")]
    cli.table(rows, columns, empty="Nothing was received yet.")


def _follow(cli: Cli, offered: dict[str, Any], *, waiting: str, quiet: bool) -> dict[str, Any]:
    """Wait for the answer, then show progress until the end; Ctrl-C cancels the drop."""
    path = f"/spacedrop/drops/{quote_segment(offered['id'])}"
    try:
        return _wait(cli, offered, waiting=waiting, quiet=quiet)
    except KeyboardInterrupt:
        try:
            cli.client.delete(path)
            cli.note("Cancelled.")
        except NetworkingError as error:
            cli.note(f"It could not be cancelled: {error.detail}")
        raise


def _wait(cli: Cli, status: dict[str, Any], *, waiting: str = "", quiet: bool) -> dict[str, Any]:
    with cli.client.stream(f"/spacedrop/drops/{quote_segment(status['id'])}/watch") as changes:
        asked = False
        for status in changes:
            if status["state"] != "asking":
                break
            if status["asked"] and not asked and not quiet:
                asked = True
                cli.note(waiting)
        if status["state"] not in _ENDED:
            status = _show(cli, changes, status, quiet=quiet)
    if status["state"] not in _ENDED:
        raise NetworkingError("The node stopped before the drop had ended.")
    return status


def _show(cli: Cli, changes: Iterator[dict[str, Any]], status: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    if quiet:
        return deque(chain((status,), changes), maxlen=1)[0]
    with cli.progress(_what(status), status["total_bytes"]) as progress:
        _update(progress, status)
        for status in changes:
            _update(progress, status)
    return status


def _update(progress: Progress, status: dict[str, Any]) -> None:
    done = status["total_bytes"] if status["state"] == "completed" else status["done_bytes"]
    progress.update(done, status["total_bytes"])


def _finish(cli: Cli, ended: dict[str, Any], as_json: bool, success: str) -> None:
    """Say how it ended.

    :raises RefusedError: the other side did not want it.
    :raises NetworkingError: it failed, or was cancelled here.
    """
    if as_json:
        cli.print_json(ended)
    if ended["state"] == "completed":
        if not as_json:
            cli.print(success)
        return
    name, reason = ended["device_name"], ended["reason"]
    match ended["state"]:
        case "rejected" if ended["code"] == "rejected":
            raise RefusedError(f"{name} rejected it" + (f": {reason}" if reason else "."))
        case "rejected":
            raise RefusedError(f"{name} refused it: {reason or ended['code']}")
        case "timed-out":
            raise RefusedError(f"Nobody answered on {name} in time.")
        case "cancelled" if ended["by_peer"]:
            raise RefusedError(f"{name} cancelled it.")
        case _:
            raise NetworkingError(reason or f"The drop was {ended['state']}.")


def _what(status: dict[str, Any]) -> str:
    """What is offered, in a few words."""
    items = status["items"]
    size = format_size(status["total_bytes"])
    if len(items) == 1 and not status["more_items"]:
        (item,) = items
        name = clean(item["name"])
        inside = f"{item['item_count'] - 1} items, " if item["directory"] else ""
        return f"{name}{'/' if item['directory'] else ''} ({inside}{size})"
    names = ", ".join(clean(item["name"]) for item in items[:3])
    more = len(items) + status["more_items"] - 3
    return names + (f" and {more} more" if more > 0 else "") + f" ({size})"


def _sender(status: dict[str, Any]) -> str:
    name, claimed = status["device_name"], status["sender_name"]
    if status["role"] == "receiver" and claimed and claimed != name:
        return f"{name} ({claimed})"
    return str(name)
