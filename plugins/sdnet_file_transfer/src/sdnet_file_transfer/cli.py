"""``sdnet send``, ``sdnet transfers`` and its commands."""

from __future__ import annotations

import os
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from sdnet_core.cli.kit import (
    ApiError,
    Cli,
    format_count,
    format_duration,
    format_size,
    format_time,
    json_option,
    pass_cli,
    quote_segment,
)
from sdnet_core.errors import ConnectionFailedError, NetworkingError, RefusedError

if TYPE_CHECKING:
    from sdnet_core.cli.kit import EventStream

__all__ = ["begin", "parse_rate", "priority_option", "report", "send", "transfers"]

_BASE = "/file-transfer/transfers"
_PRIORITIES = {"low": -1, "normal": 0, "high": 1}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _priority(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    return _PRIORITIES[value]


priority_option = click.option(
    "--priority",
    type=click.Choice(list(_PRIORITIES)),
    default="normal",
    show_default=True,
    callback=_priority,
    help="Among the transfers that wait for their turn.",
)
"""Decorator: the option ``--priority``, the command's parameter ``priority: int``."""


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet send photo.jpg notes/ --to laptop\n"
    "  sdnet send backup.tar --to nas --detach --priority low"
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@click.option("--to", "device", required=True, help="Device by name, id or a unique beginning of either.")
@click.option("--detach", is_flag=True, help="Return at once; the node goes on sending.")
@priority_option
@json_option
@pass_cli
def send(cli: Cli, paths: tuple[str, ...], device: str, detach: bool, priority: int, as_json: bool) -> None:
    """Send files and folders to a paired device.

    The node sends them also when this command has ended, the device is away for a while, or the node is restarted.
    Interrupting this command cancels the transfer; what has arrived is kept, and sending the same again goes on there.
    """
    body = {"device": device, "paths": [os.path.abspath(path) for path in paths], "priority": priority}
    begin(cli, _BASE, body, detach=detach, as_json=as_json)


def begin(cli: Cli, path: str, body: dict[str, Any], *, detach: bool, as_json: bool) -> None:
    """Have a transfer begun, show how it goes on until it is over, and how it ended.

    :param path: of the local API, what begins it.
    :param detach: show only that it has begun.
    :raises NetworkingError: it did not begin, or did not end well.
    """
    if detach:
        transfer = cli.client.post(path, body)
        if as_json:
            cli.print_json(transfer)
        else:
            way = "to" if transfer["direction"] == "send" else "from"
            cli.print(f"{_what(transfer)} is on its way {way} {transfer['device_name']}: transfer {transfer['id']}")
        return
    try:
        snapshots = cli.client.stream(path, body, watch=True)
    except KeyboardInterrupt:
        cli.note("Interrupted before it had begun. The node may begin it all the same: sdnet transfers shows it.")
        raise
    with snapshots:
        transfer = _follow(cli, snapshots, as_json=as_json)
    if as_json:
        cli.print_json(transfer)
    report(cli, transfer, as_json)


def _follow(cli: Cli, snapshots: EventStream, *, as_json: bool) -> dict[str, Any]:
    first = next(snapshots, None)
    if first is None:
        raise ConnectionFailedError("The node stopped before it had begun.")
    transfer: dict[str, Any] = first
    try:
        with nullcontext() if as_json else cli.progress(transfer["name"], transfer["total_bytes"]) as progress:
            for transfer in chain((first,), snapshots):
                if progress is not None:
                    progress.update(transfer["done_bytes"], transfer["total_bytes"] or None, _line(transfer))
    except KeyboardInterrupt:
        _cancel_quietly(cli, transfer["id"])
        cli.note("Cancelled. What has arrived is kept: send the same again to go on from there.")
        raise
    return transfer


def _line(transfer: dict[str, Any]) -> str:
    match transfer["state"]:
        case "transferring" | "completed":
            return str(transfer["name"])
        case "waiting":
            return f"{transfer['name']} (waiting: {transfer['reason']})"
        case state:
            return f"{transfer['name']} ({state})"


def _cancel_quietly(cli: Cli, transfer_id: str) -> None:
    try:
        cli.client.delete(f"{_BASE}/{quote_segment(transfer_id)}")
    except ApiError:
        pass  # it was over already


def report(cli: Cli, transfer: dict[str, Any], as_json: bool) -> None:
    """Say how it ended.

    :raises RefusedError: the other side did not want it.
    :raises NetworkingError: it failed.
    """
    if not as_json:
        for problem in transfer["problems"]:
            cli.note(f"Not sent: {problem['path']} {problem['reason']}")
    match transfer["state"]:
        case "completed":
            if not as_json:
                took_s = (transfer["ended_at"] or 0.0) - transfer["created_at"]
                size, name = format_size(transfer["total_bytes"]), transfer["device_name"]
                if transfer["direction"] == "send":
                    cli.print(f"Sent {_what(transfer)} ({size}) to {name} in {format_duration(took_s)}.")
                else:
                    place = ", ".join(transfer["paths"])
                    cli.print(f"Got {place} ({size}) from {name} in {format_duration(took_s)}.")
        case "rejected":
            raise RefusedError(transfer["reason"] or f"{transfer['device_name']} refused it.")
        case "cancelled":
            raise RefusedError(transfer["reason"] or "The transfer was cancelled.")
        case "failed":
            raise NetworkingError(transfer["reason"] or "The transfer failed.")
        case "paused":
            raise NetworkingError(f"The transfer is paused: sdnet transfers resume {transfer['id'][:8]}")
        case state:
            raise NetworkingError(f"The node stopped; the transfer is {state} and goes on when the node runs again.")


def _what(transfer: dict[str, Any]) -> str:
    return str(transfer["name"])


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet transfers                        what is under way, and what is over\n"
    "  sdnet transfers pause 3f2a             by a unique beginning of its id\n"
    "  sdnet transfers limit --up 2M          2 MiB/s in all\n"
    "  sdnet transfers limit --down off --device laptop",
)
@json_option
@click.pass_context
def transfers(ctx: click.Context, as_json: bool) -> None:
    """List transfers of files, the latest first, or do something with one."""
    if ctx.invoked_subcommand is None:
        _list(ctx.ensure_object(Cli), as_json, None)


def _list(cli: Cli, as_json: bool, state: str | None) -> None:
    found = cli.client.get(_BASE, state=state)
    if as_json:
        cli.print_json(found)
        return
    columns = [("id", "ID"), ("way", "WAY"), ("device", "DEVICE"), ("name", "NAME"), ("size", "SIZE")]
    columns += [("state", "STATE"), ("time", "STARTED"), ("reason", "NOTE")]
    cli.table([_row(transfer) for transfer in found], columns, empty="There are no transfers.")


@transfers.command("list", epilog="\b\nExamples:\n  sdnet transfers list --json")
@json_option
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """List the transfers that are not over."""
    _list(cli, as_json, "active")


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers history")
@click.option("--clear", is_flag=True, help="Forget them.")
@json_option
@pass_cli
def history(cli: Cli, clear: bool, as_json: bool) -> None:
    """List the transfers that are over.

    How many are kept, and for how long, is set by history_entries and history_days in [plugins.file_transfer].
    """
    if not clear:
        _list(cli, as_json, "over")
        return
    done = cli.client.delete("/file-transfer/history")
    if as_json:
        cli.print_json(done)
    else:
        cli.print(f"Forgot {format_count(done['forgotten'], 'transfer')}.")


def _row(transfer: dict[str, Any]) -> dict[str, str]:
    state = str(transfer["state"])
    if state == "transferring":
        total = transfer["total_bytes"]
        state = f"{transfer['done_bytes'] * 100 // total if total else 0} %, {format_size(int(transfer['rate']))}/s"
        if transfer["eta_s"] is not None:
            state += f", {format_duration(transfer['eta_s'])} left"
    return {
        "id": transfer["id"][:8],
        "way": "to" if transfer["direction"] == "send" else "from",
        "device": transfer["device_name"],
        "name": transfer["name"],
        "size": format_size(transfer["total_bytes"]),
        "state": state,
        "time": format_time(transfer["created_at"]),
        "reason": transfer["reason"],
    }


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers cancel 3f2a")
@click.argument("transfer_id", metavar="ID")
@json_option
@pass_cli
def cancel(cli: Cli, transfer_id: str, as_json: bool) -> None:
    """Cancel a transfer, from either side.

    ID is a transfer's id or a unique beginning of it. What has arrived of an incoming transfer and has no final name
    yet is removed.
    """
    transfer = cli.client.delete(f"{_BASE}/{quote_segment(transfer_id)}")
    if as_json:
        cli.print_json(transfer)
    else:
        cli.print(f"Cancelled {_what(transfer)}.")


def _act(cli: Cli, transfer_id: str, action: str, body: dict[str, Any], done: str, as_json: bool) -> None:
    transfer = cli.client.post(f"{_BASE}/{quote_segment(transfer_id)}/{action}", body)
    if as_json:
        cli.print_json(transfer)
    else:
        cli.print(f"{done} {_what(transfer)}.")


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers pause 3f2a")
@click.argument("transfer_id", metavar="ID")
@json_option
@pass_cli
def pause(cli: Cli, transfer_id: str, as_json: bool) -> None:
    """Pause a transfer, from either side. It stays paused until it is resumed on the same side."""
    _act(cli, transfer_id, "pause", {}, "Paused", as_json)


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers resume 3f2a")
@click.argument("transfer_id", metavar="ID")
@json_option
@pass_cli
def resume(cli: Cli, transfer_id: str, as_json: bool) -> None:
    """Let a paused transfer go on from what has arrived."""
    _act(cli, transfer_id, "resume", {}, "Resumed", as_json)


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers accept 3f2a")
@click.argument("transfer_id", metavar="ID")
@json_option
@pass_cli
def accept(cli: Cli, transfer_id: str, as_json: bool) -> None:
    """Let a transfer in that is asked about (with accept = "ask", and for devices that are only verified)."""
    _act(cli, transfer_id, "answer", {"accept": True}, "Accepted", as_json)


@transfers.command(epilog="\b\nExamples:\n  sdnet transfers reject 3f2a")
@click.argument("transfer_id", metavar="ID")
@json_option
@pass_cli
def reject(cli: Cli, transfer_id: str, as_json: bool) -> None:
    """Turn a transfer away that is asked about."""
    _act(cli, transfer_id, "answer", {"accept": False}, "Rejected", as_json)


def parse_rate(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Read a rate as a person writes it.

    :returns: bytes a second; 0 for ``off``, None if it was not given.
    :raises BadParameter: it is none.
    """
    if value is None:
        return None
    text = value.strip().lower()
    if text in ("off", "none", "unlimited"):
        return 0
    text = text.removesuffix("/s").removesuffix("b").removesuffix("i")
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "")
    try:
        rate = round(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        rate = 0
    if rate <= 0:
        raise click.BadParameter(f"{value!r} is no rate: write 500K, 2M, 1.5M or off.")
    return rate


@transfers.command(
    epilog="\b\nExamples:\n"
    "  sdnet transfers limit                            show the limits\n"
    "  sdnet transfers limit --up 2M --down 10M         in all\n"
    "  sdnet transfers limit --up 500K --device phone   for one device\n"
    "  sdnet transfers limit --up off --down off"
)
@click.option("--up", metavar="RATE", callback=parse_rate, help="Most bytes a second that are sent: 500K, 2M, off.")
@click.option("--down", metavar="RATE", callback=parse_rate, help="Most bytes a second that are received.")
@click.option("--device", help="For this device alone, besides what holds for all.")
@json_option
@pass_cli
def limit(cli: Cli, up: int | None, down: int | None, device: str | None, as_json: bool) -> None:
    """Show or change how fast files may move. It holds at once, also for what is under way, and stays."""
    if up is None and down is None:
        found = cli.client.get("/file-transfer/limits")
    else:
        found = cli.client.post("/file-transfer/limits", {"up": up, "down": down, "device": device or ""})
    if as_json:
        cli.print_json(found)
        return
    rows = [{"device": "all together", **_shown_rates(found)}]
    rows += [{"device": one["device_name"], **_shown_rates(one)} for one in found["devices"]]
    cli.table(rows, [("device", "DEVICE"), ("up", "UP"), ("down", "DOWN")])


def _shown_rates(rates: dict[str, Any]) -> dict[str, str]:
    return {key: f"{format_size(rates[key])}/s" if rates[key] else "unlimited" for key in ("up", "down")}
