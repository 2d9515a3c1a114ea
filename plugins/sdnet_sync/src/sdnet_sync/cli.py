"""The commands ``sdnet sync …``."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import click

from sdnet_core.cli.kit import (
    Cli,
    format_count,
    format_duration,
    format_size,
    format_time,
    json_option,
    pass_cli,
    quote_segment,
)

from .folders.cli import FOLDER_COMMANDS, get_files

__all__ = ["sync"]

_ROLES = click.Choice(["reader", "writer", "owner"])
_IMPORTED_AT_ONCE = 500


@click.group()
def sync() -> None:
    """Libraries that are the same on all devices."""


def _path(library: str, rest: str = "") -> str:
    return f"/sync/libraries/{quote_segment(library)}{rest}"


def _done(cli: Cli, as_json: bool, answer: Any, text: str) -> None:
    if as_json:
        cli.print_json(answer)
    else:
        cli.print(text)


@sync.command(epilog="\b\nExamples:\n  sdnet sync create Recipes")
@click.argument("name")
@json_option
@pass_cli
def create(cli: Cli, name: str, as_json: bool) -> None:
    """Make a library called NAME, of which this device is the owner."""
    answer = cli.client.post("/sync/libraries", {"name": name})
    _done(cli, as_json, answer, f"Library {answer['name']} made, {answer['id']}.")


@sync.command("list", epilog="\b\nExamples:\n  sdnet sync list\n  sdnet sync list --json")
@json_option
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """Show the libraries of this device, and invitations and requests that wait for an answer."""
    libraries, invitations = cli.client.get("/sync/libraries"), cli.client.get("/sync/invitations")
    requests = cli.client.get("/sync/requests")
    if as_json:
        cli.print_json({"libraries": libraries, "invitations": invitations, "requests": requests})
        return
    columns = [("name", "NAME"), ("role", "ROLE"), ("state", "STATE"), ("entries", "ENTRIES")]
    rows = [{**row, "state": "paused" if row["paused"] else row["state"]} for row in libraries]
    cli.table(rows, [*columns, ("conflicts", "CONFLICTS"), ("id", "ID")], empty="No libraries.")
    for row in invitations:
        cli.print(f"{row['device_name']} invites this device to {row['name']} as {row['role']}.")
        cli.print(f"  sdnet sync join {row['library_id']}")
    for row in requests:
        cli.print(f"{row['device_name']} asks to be a {row['role']} of {row['library']}.")


@sync.command(
    epilog="\b\nExamples:\n  sdnet sync invite Recipes laptop\n  sdnet sync invite Recipes phone --role reader"
)
@click.argument("library")
@click.argument("device")
@click.option("--role", type=_ROLES, default="writer", show_default=True)
@json_option
@pass_cli
def invite(cli: Cli, library: str, device: str, role: str, as_json: bool) -> None:
    """Invite DEVICE to LIBRARY. It is a member once its person accepts."""
    answer = cli.client.post(_path(library, "/invitations"), {"device": device, "role": role})
    asked = "is asked" if answer["asked"] else "is asked as soon as it is connected"
    _done(cli, as_json, answer, f"{answer['device_name']} {asked}.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync join Recipes\n  sdnet sync join Recipes --from laptop")
@click.argument("library")
@click.option("--from", "device", help="Ask this device for an invitation, if there is none.")
@click.option("--role", type=_ROLES, default="writer", show_default=True, help="What to ask for.")
@json_option
@pass_cli
def join(cli: Cli, library: str, device: str | None, role: str, as_json: bool) -> None:
    """Accept the invitation to LIBRARY, or ask for one."""
    if device is not None:
        cli.client.post("/sync/requests", {"device": device, "library": library, "role": role})
        _done(cli, as_json, {"asked": device}, "Asked. Once you are invited: sdnet sync join " + library)
        return
    answer = cli.client.post(f"/sync/invitations/{quote_segment(library)}/accept")
    _done(cli, as_json, answer, f"Joining {answer['name']}.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync decline Recipes")
@click.argument("library")
@json_option
@pass_cli
def decline(cli: Cli, library: str, as_json: bool) -> None:
    """Decline the invitation to LIBRARY."""
    cli.client.post(f"/sync/invitations/{quote_segment(library)}/decline")
    _done(cli, as_json, {"declined": library}, "Declined.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync leave Recipes\n  sdnet sync leave Recipes --delete")
@click.argument("library")
@click.option("--delete", is_flag=True, help="Delete what this device has of it.")
@json_option
@pass_cli
def leave(cli: Cli, library: str, delete: bool, as_json: bool) -> None:
    """Leave LIBRARY. What this device has of it stays, unless --delete is given."""
    cli.client.post(_path(library, "/leave"), {"delete": delete})
    _done(cli, as_json, {"left": library}, "Left.")


@sync.command("set-role", epilog="\b\nExamples:\n  sdnet sync set-role Recipes phone reader")
@click.argument("library")
@click.argument("device")
@click.argument("role", type=_ROLES)
@json_option
@pass_cli
def set_role(cli: Cli, library: str, device: str, role: str, as_json: bool) -> None:
    """Make DEVICE, a member of LIBRARY, a reader, writer or owner."""
    cli.client.post(_path(library, "/members"), {"device": device, "role": role})
    _done(cli, as_json, {"device": device, "role": role}, f"{device} is a {role} now.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync remove Recipes phone")
@click.argument("library")
@click.argument("device")
@json_option
@pass_cli
def remove(cli: Cli, library: str, device: str, as_json: bool) -> None:
    """Remove DEVICE from LIBRARY: it gets nothing more, and nothing it writes from now on counts."""
    cli.client.delete(_path(library, f"/members/{quote_segment(device)}"))
    _done(cli, as_json, {"removed": device}, f"{device} is no member any more.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync status\n  sdnet sync status Recipes --json")
@click.argument("library", required=False)
@json_option
@pass_cli
def status(cli: Cli, library: str | None, as_json: bool) -> None:
    """Show how LIBRARY, or each library, stands and who has what."""
    found = [cli.client.get(_path(library))] if library else cli.client.get("/sync/libraries")
    if as_json:
        cli.print_json(found[0] if library else found)
        return
    if not found:
        cli.note("No libraries.")
    for row in found:
        state = "paused" if row["paused"] else "loading" if row["loading"] else row["state"]
        cli.print(f"{row['name']} ({state}, {row['role']}): {_contents(row)},")
        batches = format_count(row["batches"], "batch", "batches")
        cli.print(f"  {batches} in the log, {format_size(row['size_bytes'])} on disk, {row['id']}")
        for member in row["members"]:
            cli.print(f"  {member['name']} ({member['role']}): {_standing(member)}")
        for refusal in row["refusals"]:
            cli.print(f"  refused: {refusal}")


def _contents(row: dict[str, Any]) -> str:
    return f"{format_count(row['entries'], 'entry', 'entries')}, {format_count(row['conflicts'], 'conflict')}"


def _standing(member: dict[str, Any]) -> str:
    if member["this_device"]:
        return "this device"
    if not member["connected"]:
        return "not connected"
    return f"{format_count(member['behind'], 'batch', 'batches')} behind" if member["behind"] else "in step"


@sync.command(epilog="\b\nExamples:\n  sdnet sync verify Recipes\n  sdnet sync verify Recipes --device laptop --repair")
@click.argument("library")
@click.option("--device", help="Compare with this member only.")
@click.option("--repair", is_flag=True, help="Take what differs from the other device, which must be an owner.")
@json_option
@click.pass_context
@pass_cli
def verify(cli: Cli, context: click.Context, library: str, device: str | None, repair: bool, as_json: bool) -> None:
    """Compare LIBRARY with the replicas of connected members. Exits with 1 if they differ."""
    found = cli.client.post(_path(library, "/verify"), {"device": device, "repair": repair})
    if as_json:
        cli.print_json(found)
    for row in found if not as_json else ():
        count = format_count(row["differing_count"], "entry differs", "entries differ")
        result = "equal" if row["equal"] else count
        note = "" if row["in_step"] else " (not in step yet)"
        cost = f"{format_duration(row['duration_s'])}, {format_size(row['exchanged_bytes'])} exchanged"
        cli.print(f"{row['device_name']}: {result}{note}; {cost}")
        for kind, entry_id in row["differing"]:
            cli.print(f"  {kind} {entry_id}")
        if row["repaired"]:
            cli.print(f"  {row['repaired']} repaired")
    if not all(row["equal"] or row["repaired"] == row["differing_count"] for row in found):
        context.exit(1)


@sync.command(epilog="\b\nExamples:\n  sdnet sync conflicts Recipes\n  sdnet sync conflicts Recipes --all --json")
@click.argument("library")
@click.option("--all", "all_of_them", is_flag=True, help="Also those that a strategy settles.")
@json_option
@pass_cli
def conflicts(cli: Cli, library: str, all_of_them: bool, as_json: bool) -> None:
    """Show changes whose authors did not know of each other."""
    found = cli.client.get(_path(library, "/conflicts"), all="true" if all_of_them else None)
    if as_json:
        cli.print_json(found)
        return
    if not found:
        cli.note("No conflicts.")
    for row in found:
        cli.print(f"{row['kind']} {row['id']} {row['field']} ({row['strategy']})".replace("  ", " "))
        for side in row["sides"]:
            value = "deleted" if side["deletes"] else json.dumps(side["value"], ensure_ascii=False)
            cli.print(f"  {side['index']}: {value}  {format_time(side['at'])}")


@sync.command(
    epilog="\b\nExamples:\n  sdnet sync resolve Recipes recipe pancakes\n"
    "  sdnet sync resolve Recipes recipe pancakes --field eggs --choose 0\n"
    "  sdnet sync resolve Recipes recipe pancakes eggs=4"
)
@click.argument("library")
@click.argument("kind")
@click.argument("entry_id", metavar="ID")
@click.argument("values", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--field", help="Only the conflict of this field.")
@click.option("--choose", type=int, help="The side that counts, as listed; else the last writer's.")
@click.option("--delete", is_flag=True, help="Settle it by deleting the entry.")
@json_option
@pass_cli
def resolve(
    cli: Cli,
    library: str,
    kind: str,
    entry_id: str,
    values: tuple[str, ...],
    field: str | None,
    choose: int | None,
    delete: bool,
    as_json: bool,
) -> None:
    """Settle the conflicts of an entry, on all devices."""
    body = {"kind": kind, "id": entry_id, "field": field, "choose": choose, "delete": delete}
    cli.client.post(_path(library, "/conflicts"), {**body, "values": _fields(values) if values else None})
    _done(cli, as_json, {"resolved": entry_id}, "Resolved.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync put Recipes recipe pancakes title=Pancakes eggs=3 'tags=[\"sweet\"]'")
@click.argument("library")
@click.argument("kind")
@click.argument("entry_id", metavar="ID")
@click.argument("values", nargs=-1, required=True, metavar="FIELD=VALUE...")
@json_option
@pass_cli
def put(cli: Cli, library: str, kind: str, entry_id: str, values: tuple[str, ...], as_json: bool) -> None:
    """Write fields of an entry. A VALUE that is JSON is taken as such, anything else as text."""
    entry = {"kind": kind, "id": entry_id, "fields": _fields(values)}
    answer = cli.client.post(_path(library, "/entries"), {"entries": [entry]})
    _done(cli, as_json, answer, "Written.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync delete Recipes recipe pancakes")
@click.argument("library")
@click.argument("kind")
@click.argument("entry_id", metavar="ID")
@json_option
@pass_cli
def delete(cli: Cli, library: str, kind: str, entry_id: str, as_json: bool) -> None:
    """Delete an entry."""
    cli.client.post(_path(library, "/entries/delete"), {"kind": kind, "id": entry_id})
    _done(cli, as_json, {"deleted": entry_id}, "Deleted.")


@sync.command(
    epilog="\b\nExamples:\n  sdnet sync get Recipes recipe pancakes\n"
    "  sdnet sync get Home Photos/2026/beach.jpg\n  sdnet sync get Home Photos/2026 --to ~/Pictures"
)
@click.argument("library")
@click.argument("what", metavar="LOCATION/PATH|KIND")
@click.argument("entry_id", metavar="[ID]", required=False)
@click.option("--to", "target", type=click.Path(file_okay=False), help="Into this folder; else that for downloads.")
@json_option
@pass_cli
def get(cli: Cli, library: str, what: str, entry_id: str | None, target: str | None, as_json: bool) -> None:
    """Get a file or folder of LIBRARY onto this device, or show an entry."""
    if entry_id is None:
        get_files(cli, library, what, target, as_json)
        return
    if target is not None:
        raise click.UsageError("--to is for files; an entry is shown.")
    entry = cli.client.get(_path(library, "/entry"), kind=what, id=entry_id)
    if as_json:
        cli.print_json(entry)
    else:
        for name, value in sorted(entry["fields"].items()):
            cli.print(f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        if entry["conflicted"]:
            cli.note("There are conflicts: sdnet sync conflicts " + library)


@sync.command(
    epilog="\b\nExamples:\n  sdnet sync search pancakes                 # all libraries\n"
    "  sdnet sync search beach --library Home --json"
)
@click.argument("words", nargs=-1, required=True, metavar="[LIBRARY] TEXT")
@click.option("--library", help="In this library only.")
@click.option("--limit", type=click.IntRange(1, 10000), default=100, show_default=True)
@json_option
@pass_cli
def search(cli: Cli, words: tuple[str, ...], library: str | None, limit: int, as_json: bool) -> None:
    """Show entries and files that contain TEXT, of this device and of all others whose libraries it shares."""
    if len(words) > 2 or (len(words) == 2 and library is not None):
        raise click.UsageError("Give one TEXT; put it in quotes if it has spaces.")
    if len(words) == 2:
        library = words[0]
    found = cli.client.get("/sync/search", text=words[-1], library=library, limit=str(limit))
    if as_json:
        cli.print_json(found)
        return
    rows = [{**row, "what": row["path"] or row["id"], "modified": format_time(row["modified_at"])} for row in found]
    columns = [("library", "LIBRARY"), ("type", "TYPE"), ("what", "WHAT"), ("where", "WHERE"), ("modified", "CHANGED")]
    cli.table(rows, columns, empty="Nothing found.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync watch Recipes\n  sdnet sync watch Recipes --kind recipe")
@click.argument("library")
@click.option("--kind", help="Entries of this kind only.")
@pass_cli
def watch(cli: Cli, library: str, kind: str | None) -> None:
    """Show changes as they come, a line of JSON each, until Ctrl-C or until the node stops."""
    with cli.client.stream(_path(library, "/watch"), kind=kind) as changes:
        for change in changes:
            cli.print_json(change, compact=True)


@sync.command(epilog="\b\nExamples:\n  sdnet sync pause Recipes")
@click.argument("library")
@json_option
@pass_cli
def pause(cli: Cli, library: str, as_json: bool) -> None:
    """Exchange nothing about LIBRARY until it is resumed."""
    cli.client.post(_path(library, "/pause"))
    _done(cli, as_json, {"paused": library}, "Paused.")


@sync.command(epilog="\b\nExamples:\n  sdnet sync resume Recipes")
@click.argument("library")
@json_option
@pass_cli
def resume(cli: Cli, library: str, as_json: bool) -> None:
    """Go on exchanging."""
    cli.client.post(_path(library, "/resume"))
    _done(cli, as_json, {"resumed": library}, "Resumed.")


@sync.command(
    epilog="\b\nExamples:\n  sdnet sync export Recipes recipes.jsonl\n"
    "  sdnet sync export Recipes --kind recipe > recipes.jsonl"
)
@click.argument("library")
@click.argument("file", type=click.File("wb", lazy=False), default="-")
@click.option("--kind", help="Entries of this kind only.")
@pass_cli
def export(cli: Cli, library: str, file: BinaryIO, kind: str | None) -> None:
    """Write all entries to FILE, a line of JSON each."""
    count = 0
    with cli.client.stream(_path(library, "/entries"), kind=kind) as entries:
        for entry in entries:
            line = {"kind": entry["kind"], "id": entry["id"], "fields": entry["fields"]}
            file.write(json.dumps(line).encode() + b"\n")
            count += 1
    cli.note(f"{format_count(count, 'entry', 'entries')} written.")


@sync.command("import", epilog="\b\nExamples:\n  sdnet sync import Recipes recipes.jsonl")
@click.argument("library")
@click.argument("file", type=click.File("rb"), default="-")
@json_option
@pass_cli
def import_(cli: Cli, library: str, file: BinaryIO, as_json: bool) -> None:
    """Write the entries in FILE, as `export` makes it, into LIBRARY."""
    total = 0
    waiting: list[Any] = []
    for number, line in enumerate(file, start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            written = format_count(total, "entry was", "entries were")
            raise click.UsageError(f"Line {number} is not JSON; {written} written before it.") from error
        waiting.append(entry)
        if len(waiting) >= _IMPORTED_AT_ONCE:
            total += cli.client.post(_path(library, "/entries"), {"entries": waiting})["written"]
            waiting = []
    if waiting:
        total += cli.client.post(_path(library, "/entries"), {"entries": waiting})["written"]
    _done(cli, as_json, {"written": total}, f"{format_count(total, 'entry', 'entries')} written.")


def _fields(values: tuple[str, ...]) -> dict[str, Any]:
    fields = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{text!r} is not FIELD=VALUE.")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


for _command in FOLDER_COMMANDS:
    sync.add_command(_command)
