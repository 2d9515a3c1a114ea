"""``sdnet share``, ``sdnet ls`` and ``sdnet get``."""

from __future__ import annotations

import os
from typing import Any

import click

from sdnet_core.cli.kit import Cli, format_size, format_time, json_option, pass_cli, quote_segment

from .cli import begin, priority_option

__all__ = ["get", "ls", "share"]

_SHARES = "/file-transfer/shares"


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet share add ~/Photos --to laptop --to phone\n"
    "  sdnet share list\n"
    "  sdnet share remove Photos --from phone"
)
def share() -> None:
    """Share folders with single devices: they may list and get what is in them. Nothing is shared by itself."""


@share.command(epilog="\b\nExamples:\n  sdnet share add ~/Photos --to laptop --to phone")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--to", "devices", required=True, multiple=True, metavar="DEVICE", help="Who may; can be repeated.")
@click.option("--name", default="", help="What the devices call it.  [default: the folder's name]")
@json_option
@pass_cli
def add(cli: Cli, folder: str, devices: tuple[str, ...], name: str, as_json: bool) -> None:
    """Share FOLDER, and all that is in it now and later, with devices."""
    body = {"path": os.path.abspath(folder), "devices": list(devices), "name": name}
    found = cli.client.post(_SHARES, body)
    if as_json:
        cli.print_json(found)
    else:
        cli.print(f"{found['path']} is shared as {found['name']} with {', '.join(found['device_names'])}.")


@share.command("list", epilog="\b\nExamples:\n  sdnet share list --json")
@json_option
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """List the folders that this device shares, and with whom."""
    found = cli.client.get(_SHARES)
    if as_json:
        cli.print_json(found)
        return
    columns = [("name", "NAME"), ("path", "FOLDER"), ("device_names", "SHARED WITH")]
    cli.table(found, columns, empty="Nothing is shared.")


@share.command(epilog="\b\nExamples:\n  sdnet share remove Photos --from phone\n  sdnet share remove Photos")
@click.argument("name")
@click.option("--from", "device", metavar="DEVICE", help="From this device only.")
@json_option
@pass_cli
def remove(cli: Cli, name: str, device: str | None, as_json: bool) -> None:
    """Share a folder no longer, NAME being what the devices call it."""
    query = f"?device={quote_segment(device)}" if device else ""
    found = cli.client.delete(f"{_SHARES}/{quote_segment(name)}{query}")
    if as_json:
        cli.print_json(found)
    elif found["devices"]:
        cli.print(f"{name} is still shared with {', '.join(found['device_names'])}.")
    else:
        cli.print(f"{name} is no longer shared.")


def _place(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, str]:
    device, colon, path = value.partition(":")
    if not device:
        raise click.BadParameter("Write DEVICE:PATH, such as laptop:Photos/2024.")
    return device, path if colon else ""


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet ls laptop:                 what it shares with this device\n"
    "  sdnet ls laptop:Photos/2024"
)
@click.argument("place", metavar="DEVICE:PATH", callback=_place)
@json_option
@pass_cli
def ls(cli: Cli, place: tuple[str, str], as_json: bool) -> None:
    """List what a device shares with this one."""
    device, path = place
    found = cli.client.get("/file-transfer/shared", device=device, path=path)
    if as_json:
        cli.print_json(found)
        return
    rows = [_row(entry) for entry in found]
    columns = [("size", "SIZE"), ("time", "CHANGED"), ("name", "NAME")]
    cli.table(rows, columns, empty="There is nothing.")


def _row(entry: dict[str, Any]) -> dict[str, str]:
    return {
        "name": entry["name"] + ("/" if entry["directory"] else ""),
        "size": "" if entry["directory"] else format_size(entry["size"]),
        "time": format_time(entry["mtime"]) if entry["mtime"] else "",
    }


@click.command(epilog="\b\nExamples:\n  sdnet get laptop:Photos/2024\n  sdnet get laptop:Photos/me.jpg --to ~/Desktop")
@click.argument("place", metavar="DEVICE:PATH", callback=_place)
@click.option(
    "--to", "folder", type=click.Path(file_okay=False), help="Folder for it.  [default: the downloads folder]"
)
@click.option("--detach", is_flag=True, help="Return at once; the node goes on.")
@priority_option
@json_option
@pass_cli
def get(cli: Cli, place: tuple[str, str], folder: str | None, detach: bool, priority: int, as_json: bool) -> None:
    """Get a file or folder that a device shares with this one.

    Like what is sent, it is verified before it appears under its name, replaces nothing, and goes on by itself after a
    lost connection or a restart.
    """
    device, path = place
    if not path.strip("/"):
        raise click.UsageError("Say what to get: DEVICE:PATH, such as laptop:Photos/2024.")
    body = {"device": device, "path": path, "to": os.path.abspath(folder) if folder else "", "priority": priority}
    begin(cli, "/file-transfer/get", body, detach=detach, as_json=as_json)
