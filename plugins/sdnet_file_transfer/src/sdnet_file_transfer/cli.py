"""``sdnet send`` and ``sdnet transfers``."""

from __future__ import annotations

import os
from typing import Any

import click

from sdnet_core.cli.kit import (
    ApiError,
    Cli,
    Progress,
    format_duration,
    format_size,
    format_time,
    json_option,
    pass_cli,
    quote_segment,
)
from sdnet_core.errors import NetworkingError, RefusedError

__all__ = ["send", "transfers"]

_BASE = "/file-transfer/transfers"


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@click.option("--to", "device", required=True, help="Device by name, id or a unique beginning of either.")
@click.option("--detach", is_flag=True, help="Return at once; the node goes on sending.")
@json_option
@pass_cli
def send(cli: Cli, paths: tuple[str, ...], device: str, detach: bool, as_json: bool) -> None:
    """Send files and folders to a paired device.

    The node sends them also when this command has ended, the device is away for a while, or the node is restarted.
    Interrupting this command cancels the transfer; what has arrived is kept, and sending the same again goes on there.
    """
    body = {"device": device, "paths": [os.path.abspath(path) for path in paths]}
    transfer = cli.client.post(_BASE, body, timeout_s=None)
    if detach:
        if as_json:
            cli.print_json(transfer)
        else:
            cli.print(f"{_what(transfer)} is on its way to {transfer['device_name']}: transfer {transfer['id']}")
        return
    try:
        if as_json:
            transfer = _follow(cli, transfer, None)
        else:
            with cli.progress(transfer["name"], total_bytes=transfer["total_bytes"]) as progress:
                transfer = _follow(cli, transfer, progress)
    except KeyboardInterrupt:
        _cancel_quietly(cli, transfer["id"])
        cli.note("Cancelled. What has arrived is kept: send the same again to go on from there.")
        raise
    if as_json:
        cli.print_json(transfer)
    _report(cli, transfer, as_json)


def _follow(cli: Cli, transfer: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    with cli.client.stream(f"{_BASE}/{quote_segment(transfer['id'])}/watch") as snapshots:
        for transfer in snapshots:
            if progress is not None:
                progress.update(transfer["done_bytes"], transfer["total_bytes"] or None, _line(transfer))
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


def _report(cli: Cli, transfer: dict[str, Any], as_json: bool) -> None:
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
                cli.print(
                    f"Sent {_what(transfer)} ({format_size(transfer['total_bytes'])}) to {transfer['device_name']} "
                    f"in {format_duration(took_s)}."
                )
        case "rejected":
            raise RefusedError(transfer["reason"] or f"{transfer['device_name']} refused it.")
        case "cancelled":
            raise RefusedError(transfer["reason"] or "The transfer was cancelled.")
        case "failed":
            raise NetworkingError(transfer["reason"] or "The transfer failed.")
        case state:
            raise NetworkingError(f"The node stopped; the transfer is {state} and goes on when the node runs again.")


def _what(transfer: dict[str, Any]) -> str:
    return str(transfer["name"])


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def transfers(ctx: click.Context, as_json: bool) -> None:
    """List transfers of files, the latest first."""
    if ctx.invoked_subcommand is not None:
        return
    cli = ctx.ensure_object(Cli)
    found = cli.client.get(_BASE)
    if as_json:
        cli.print_json(found)
        return
    columns = [("id", "ID"), ("way", "Way"), ("device", "Device"), ("name", "Name"), ("size", "Size")]
    columns += [("state", "State"), ("time", "Started"), ("reason", "Note")]
    cli.table([_row(transfer) for transfer in found], columns, empty="There are no transfers.")


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


@transfers.command()
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
