"""``sdnet logs``: what the node has written into its log; its levels while it runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import click

from ..errors import NetworkingError
from ..log_lines import CORE_COMPONENTS, LEVELS, LIBRARIES, parse_line
from .kit import Cli, json_option, pass_cli
from .names import check_names, split_names

__all__ = ["logs"]

_POLL_S = 0.2
_Entry = dict[str, Any]


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet logs\n"
    "  sdnet logs -f --level warning\n"
    "  sdnet logs --component swarm,session -n 20\n"
    "  sdnet logs --json -n 1000 | jq 'select(.device_id)'\n"
    "  sdnet logs level swarm=debug",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, metavar="N", help="The last N.")
@click.option("--level", type=click.Choice(LEVELS), help="Only entries of this level or above.")
@click.option("--component", metavar="NAME,…", help="Only of these parts: swarm, session, devices, …, or a plugin.")
@json_option
@pass_cli
@click.pass_context
def logs(
    ctx: click.Context,
    cli: Cli,
    follow: bool,
    lines: int,
    level: str | None,
    component: str | None,
    as_json: bool,
) -> None:
    """Show the node's log, whether it runs or not.

    With --json one line for each entry: at, level, component, logger, message, and device_id, peer_id and traceback
    where there are.
    """
    if ctx.invoked_subcommand is not None:
        return
    wanted = split_names([component or ""]) or None
    seen: set[str] = set()
    levels = LEVELS[LEVELS.index(level) :] if level is not None else None

    def fits(entry: _Entry) -> bool:
        seen.add(entry["component"])
        # "critical" is above all; what has no level was not written by the log, as a crash's last words.
        return (levels is None or entry["level"] in (*levels, "critical", "")) and (
            wanted is None or entry["component"] in wanted
        )

    reader = _LogReader(cli.config.paths.log_file, cli.config.log.backups)
    with contextlib.closing(reader):
        shown = deque(filter(fits, reader.past()), maxlen=lines)
        seen.discard("")
        if absent := sorted(set(wanted or ()) - seen):
            check_names(absent, seen | _components(cli), "Nothing logs as {}.")
        for entry in shown:
            _show(cli, entry, as_json)
        if reader.found and absent:
            there = ", ".join(sorted(seen)) or "nothing"
            cli.note(f"Nothing in the log is of {' or '.join(absent)}. It has entries of: {there}.")
        while follow:
            for entry in filter(fits, reader.more()):
                _show(cli, entry, as_json)
            time.sleep(_POLL_S)
    if not reader.found:
        cli.note(f"There is no log in {cli.config.paths.log_file}: no node has run yet.")


@logs.command(
    "level",
    epilog="\b\nExamples:\n"
    "  sdnet logs level                    what holds, and which components there are\n"
    "  sdnet logs level debug\n"
    "  sdnet logs level swarm=debug session=info\n"
    "  sdnet logs level swarm=default",
)
@click.argument("changes", nargs=-1, metavar="[[COMPONENT=]LEVEL]…")
@json_option
@pass_cli
def level_(cli: Cli, changes: tuple[str, ...], as_json: bool) -> None:
    """Show or change what the running node logs, until it stops.

    For good: sdnet config set log.level, or log.levels.
    """
    if changes:
        level, levels = None, {}
        for change in changes:
            component, equals, value = change.rpartition("=")
            if equals:
                levels[component] = None if value == "default" else value
            else:
                level = change
        found = cli.client.patch("/log", {"level": level, "levels": levels})
    else:
        found = cli.client.get("/log")
    if as_json:
        cli.print_json(found)
        return
    cli.print(f"everything: {found['level']}")
    for component, value in found["levels"].items():
        cli.print(f"{component}: {value}")
    if not changes:
        cli.print(f"Components: {', '.join(found['components'])}")


def _components(cli: Cli) -> set[str]:
    """What may log, whether or not it has: the core's parts, the installed plugins, and what the running node knows."""
    found = {*CORE_COMPONENTS, *LIBRARIES, *(record.name for record in cli.find_plugins(load=False).records)}
    with contextlib.suppress(NetworkingError):  # no node runs, or its host takes care of its log
        found.update(cli.client.get("/log")["components"])
    return found


class _LogReader:
    """Reads a log that is rotated meanwhile.

    :ivar found: whether there is one.
    """

    def __init__(self, path: Path, backups: int) -> None:
        self._path = path
        self._backups = backups
        self._file: TextIO | None = None
        self._rest = ""
        self.found = False

    def close(self) -> None:
        """Read no more."""
        if self._file is not None:
            self._file.close()

    def past(self) -> Iterator[_Entry]:
        """What is in the log and in what was rotated away from it, oldest first."""
        return _entries(self._all_lines())

    def more(self) -> Iterator[_Entry]:
        """What has been written since the last call."""
        return _entries(self._new_lines())

    def _all_lines(self) -> Iterator[str]:
        for number in range(self._backups, 0, -1):
            with contextlib.suppress(FileNotFoundError), _open(Path(f"{self._path}.{number}")) as file:
                self.found = True
                yield from (line.rstrip("\n") for line in file)
        yield from self._new_lines()

    def _new_lines(self) -> Iterator[str]:
        if self._file is not None:
            yield from self._rest_of(self._file)
            try:
                same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
            except FileNotFoundError:
                return
            if same and self._file.tell() <= os.fstat(self._file.fileno()).st_size:
                return
            self._file.close()
            self._file, self._rest = None, ""
        with contextlib.suppress(FileNotFoundError):
            self._file = _open(self._path)
            self.found = True
            yield from self._rest_of(self._file)

    def _rest_of(self, file: TextIO) -> Iterator[str]:
        """The lines that are complete; a part of one waits for the rest of it."""
        *lines, self._rest = (self._rest + file.read()).split("\n")
        yield from lines


def _entries(lines: Iterable[str]) -> Iterator[_Entry]:
    """Put together what belongs together: a traceback follows its entry."""
    entry: _Entry | None = None
    for line in lines:
        begun = parse_line(line)
        if begun is None and entry is not None:
            entry["traceback"] = f"{entry['traceback']}\n{line}" if "traceback" in entry else line
            continue
        if entry is not None:
            yield entry
        entry = _foreign(line) if begun is None else begun
    if entry is not None:
        yield entry


def _open(path: Path) -> TextIO:
    return open(path, encoding="utf-8", errors="backslashreplace", newline="\n")


def _foreign(line: str) -> _Entry:
    return {"at": "", "level": "", "component": "", "logger": "", "message": line}


def _show(cli: Cli, entry: _Entry, as_json: bool) -> None:
    if as_json:
        cli.print_json(entry, compact=True)
        return
    about = " ".join(f"{key.removesuffix('_id')}={entry[key]}" for key in ("device_id", "peer_id") if key in entry)
    head = f"{_local(entry['at'])}  {entry['level'].upper():7}  {entry['component']}: " if entry["at"] else ""
    cli.print(f"{head}{entry['message']}" + (f"  {{{about}}}" if about else ""))
    if "traceback" in entry:
        cli.print(entry["traceback"])


def _local(at: str) -> str:
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return at
