"""The commands ``sdnet sync …`` about folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sdnet_core.cli.kit import (
    ApiError,
    Cli,
    Progress,
    format_count,
    format_size,
    format_time,
    json_option,
    pass_cli,
    quote_segment,
)
from sdnet_core.errors import NetworkingError

__all__ = ["FOLDER_COMMANDS", "get_files"]

_NAME = click.option("--name", default="", help="Its name in the library; that of the folder if not given.")
_NO_WAIT = click.option("--no-wait", is_flag=True, help="Return at once; the node goes on.")


def _path(library: str, rest: str = "") -> str:
    return f"/sync/libraries/{quote_segment(library)}{rest}"


@click.command(
    "add-location",
    epilog="\b\nExamples:\n  sdnet sync add-location Home ~/Documents\n"
    "  sdnet sync add-location Home /srv/films --name Films --no-wait",
)
@click.argument("library")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@_NAME
@_NO_WAIT
@json_option
@pass_cli
def add_location(cli: Cli, library: str, folder: str, name: str, no_wait: bool, as_json: bool) -> None:
    """Index FOLDER of this device into LIBRARY.

    All members then see and search what is in it, and get contents on demand. Nothing in the folder is changed.
    """
    body = {"path": os.path.abspath(folder), "name": name}
    location = cli.client.post(_path(library, "/locations"), body)
    _follow(cli, library, location, no_wait=no_wait, as_json=as_json)


@click.command(
    epilog="\b\nExamples:\n  sdnet sync mirror Home ~/Photos             # on the first device: makes the mirror\n"
    "  sdnet sync mirror Home ~/Pictures/Photos    # on another one: takes part in it\n"
    "  sdnet sync mirror Home ~/Music --new",
)
@click.argument("library")
@click.argument("folder", type=click.Path(file_okay=False))
@_NAME
@click.option("--new", is_flag=True, help="Make another mirror, even if the library has one.")
@_NO_WAIT
@json_option
@pass_cli
def mirror(cli: Cli, library: str, folder: str, name: str, new: bool, no_wait: bool, as_json: bool) -> None:
    """Keep FOLDER the same on all members of LIBRARY that mirror it.

    Replaced and deleted files go to .sdnet in the folder and can be restored. What devices changed while they were
    apart is kept beside each other. Patterns in .sdnetignore (as in .gitignore) are left alone.
    """
    body = {"path": os.path.abspath(folder), "name": name, "new": new}
    location = cli.client.post(_path(library, "/mirrors"), body)
    _follow(cli, library, location, no_wait=no_wait, as_json=as_json)


def _follow(cli: Cli, library: str, location: dict[str, Any], *, no_wait: bool, as_json: bool) -> None:
    last: dict[str, Any] = {}
    if not no_wait:
        where = _path(library, f"/locations/{quote_segment(location['id'])}/progress")
        try:
            with cli.client.stream(where) as told:
                if as_json:
                    last = list(told)[-1]
                else:
                    with cli.progress(location["name"]) as progress:
                        for last in told:
                            _show(progress, location["name"], last)
        except KeyboardInterrupt:
            cli.note("The node goes on with it: sdnet sync locations " + library)
            raise
        locations = cli.client.get(_path(library, "/locations"))
        location = next((found for found in locations if found["id"] == location["id"]), location)
    if as_json:
        cli.print_json(location)
        return
    folder = location["folder"] or {}
    for path, reason in last.get("failed", ()):
        cli.note(f"Left out: {path}: {reason}")
    state = f", {folder['state']}" if folder.get("state") not in (None, "ready") else ""
    files = f"{format_count(folder.get('files', 0), 'file')}, {format_size(folder.get('size', 0))}"
    cli.print(f"{location['name']} ({location['mode']}) is {folder.get('path')}: {files}{state}.")


def _show(progress: Progress, name: str, told: dict[str, Any]) -> None:
    total = format_count(told["files_total"], "file")
    counts = f"{told['files_done']:,} of {total}" if told["files_total"] else told["state"]
    progress.update(told["bytes_done"], told["bytes_total"] or None, f"{name}: {told['state'] or 'getting'}, {counts}")


@click.command(epilog="\b\nExamples:\n  sdnet sync locations Home\n  sdnet sync locations Home --json")
@click.argument("library")
@json_option
@pass_cli
def locations(cli: Cli, library: str, as_json: bool) -> None:
    """Show the locations and mirrors of LIBRARY, and how far each device is."""
    found = cli.client.get(_path(library, "/locations"))
    if as_json:
        cli.print_json(found)
        return
    if not found:
        cli.note("No locations.")
    for location in found:
        cli.print(f"{location['name']} ({location['mode']}, {location['id']})")
        for holder in location["holders"]:
            who = "this device" if holder["this_device"] else holder["device_name"]
            state = holder["state"]
            if holder["phase"]:
                state = f"{holder['phase']} {holder['files_done']} of {holder['files_total']}"
            size = format_size(holder["size"])
            updated = format_time(holder["updated_at"])
            cli.print(f"  {who}: {state}, {format_count(holder['files'], 'file')}, {size}, {updated}")
        folder = location["folder"]
        if folder is not None:
            awaited = format_count(folder["waiting"], "file is", "files are")
            waiting = f", {awaited} awaited" if folder["waiting"] else ""
            cli.print(f"  here in {folder['path']}: {folder['state']}{waiting}")
            for path, reason in folder["problems"]:
                cli.print(f"    left out: {path}: {reason}")


@click.command("remove-location", epilog="\b\nExamples:\n  sdnet sync remove-location Home Photos")
@click.argument("library")
@click.argument("location")
@click.option("--everywhere", is_flag=True, help="Take it out of the library, for all members. Files stay on disk.")
@json_option
@pass_cli
def remove_location(cli: Cli, library: str, location: str, everywhere: bool, as_json: bool) -> None:
    """Stop indexing or mirroring LOCATION on this device. The files in its folder stay."""
    where = _path(library, f"/locations/{quote_segment(location)}/remove")
    cli.client.post(where, {"everywhere": everywhere})
    if as_json:
        cli.print_json({"removed": location})
    else:
        cli.print("Removed.")


@click.command(
    epilog="\b\nExamples:\n  sdnet sync ls Home\n  sdnet sync ls Home Photos/2026\n  sdnet sync ls Home Photos --json"
)
@click.argument("library")
@click.argument("place", required=False, default="", metavar="[LOCATION[/PATH]]")
@json_option
@pass_cli
def ls(cli: Cli, library: str, place: str, as_json: bool) -> None:
    """Show what is in a folder of any member, whether or not it is connected."""
    found = cli.client.get(_path(library, "/files"), place=place or None)
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "name": item["name"] + ("/" if item["folder"] else ""),
            "size": format_size(item["size"]),
            "files": item["files"] if item["folder"] else None,
            "modified": format_time(item["modified_at"]),
        }
        for item in found
    ]
    columns = [("name", "NAME"), ("size", "SIZE"), ("files", "FILES"), ("modified", "CHANGED")]
    cli.table(rows, columns, empty="Nothing there.")


def get_files(cli: Cli, library: str, place: str, target: str | None, as_json: bool) -> None:
    """Get files and show how far it is."""
    body = {"place": place, "to": os.path.abspath(target) if target else ""}
    job = cli.client.post(_path(library, "/get"), body)
    last: dict[str, Any] = {}
    where = f"/sync/jobs/{quote_segment(job['job'])}"
    try:
        with cli.client.stream(where) as told:
            if as_json:
                last = list(told)[-1]
            else:
                with cli.progress(place, total_bytes=job["bytes_total"]) as progress:
                    for last in told:
                        _show(progress, place, last)
    except KeyboardInterrupt:
        try:
            cli.client.delete(where)
        except ApiError as error:
            cli.note(str(error))
        raise
    if last["error"]:
        raise NetworkingError(last["error"])
    if as_json:
        cli.print_json(last)
    else:
        count = len(last["paths"])
        first = (
            last["paths"][0]
            if count == 1
            else f"{format_count(last['files_done'], 'file')} in {_common(last['paths'])}"
        )
        cli.print(f"Got {first} ({format_size(last['bytes_done'])}).")
    for path, reason in last["failed"]:
        cli.note(f"{path}: {reason}")
    if last["failed"]:
        raise NetworkingError(f"{format_count(len(last['failed']), 'file')} could not be had; the others are here.")


def _common(paths: list[str]) -> str:
    return os.path.commonpath([str(Path(path).parent) for path in paths]) if paths else ""


@click.command(
    epilog="\b\nExamples:\n  sdnet sync trash Home Photos\n  sdnet sync trash Home Photos --path 2026/beach.jpg --json"
)
@click.argument("library")
@click.argument("location")
@click.option("--path", help="Only versions of this file.")
@json_option
@pass_cli
def trash(cli: Cli, library: str, location: str, path: str | None, as_json: bool) -> None:
    """Show deleted and replaced files of a mirror that this device keeps."""
    found = cli.client.get(_path(library, f"/locations/{quote_segment(location)}/trash"), path=path)
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            **item,
            "size": format_size(item["size"]),
            "at": format_time(item["at"]),
            "why": "deleted" if item["deleted"] else "replaced",
        }
        for item in found
    ]
    columns = [("number", "NUMBER"), ("path", "PATH"), ("size", "SIZE"), ("why", "WHY"), ("at", "WHEN")]
    cli.table(rows, columns, empty="Nothing is kept.")


@click.command(epilog="\b\nExamples:\n  sdnet sync restore Home Photos 17")
@click.argument("library")
@click.argument("location")
@click.argument("number", type=click.IntRange(min=1))
@json_option
@pass_cli
def restore(cli: Cli, library: str, location: str, number: int, as_json: bool) -> None:
    """Bring back the file that `trash` lists as NUMBER, here and at all members."""
    where = _path(library, f"/locations/{quote_segment(location)}/restore")
    answer = cli.client.post(where, {"number": number})
    if as_json:
        cli.print_json(answer)
    else:
        cli.print(f"Restored: {answer['path']}")


FOLDER_COMMANDS = [add_location, mirror, locations, remove_location, ls, trash, restore]
