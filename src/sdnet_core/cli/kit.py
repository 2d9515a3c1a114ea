"""What a plugin's commands are made with.

Example::

    import click
    from sdnet_core.cli.kit import Cli, json_option, pass_cli, quote_segment

    @click.command()
    @click.argument("device")
    @json_option
    @pass_cli
    def greet(cli: Cli, device: str, as_json: bool) -> None:
        \"\"\"Greet DEVICE.\"\"\"
        answer = cli.client.post(f"/greeting/{quote_segment(device)}", {"text": "hello"})
        if as_json:
            cli.print_json(answer)
        else:
            cli.print(f"{answer['name']} says {answer['text']}")

Raise any `NetworkingError`, or ``click.UsageError``: the person sees one line, and the exit code follows from it
(0 done, 1 failed, 2 usage, 3 no node running, 4 refused by the other side, 130 interrupted).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from ..daemon.api_error import ApiError, quote_segment
from ..errors import NetworkingError
from ..wording import format_count
from .progress import BarProgress, LineProgress, Progress
from .text import clean, format_duration, format_size, format_time

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import Config
    from ..daemon.client import ApiClient, EventStream
    from ..plugins import PluginSet

__all__ = [
    "ApiClient",
    "ApiError",
    "Cli",
    "Duration",
    "EventStream",
    "Progress",
    "clean",
    "complete_devices",
    "format_count",
    "format_duration",
    "format_size",
    "format_time",
    "json_option",
    "pass_cli",
    "quote_segment",
]


COMPLETION_TIMEOUT_S = 1.0


def __getattr__(name: str) -> Any:
    # Imported when first used: what only shows help, or completes a word, does not talk to a node.
    if name in ("ApiClient", "EventStream"):
        from ..daemon import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Cli:
    """What a command gets: settings, the running node, and output.

    :param instance: as given with ``--instance``; None for the default.
    """

    def __init__(self, instance: str | None = None) -> None:
        self.instance = instance
        self._overrides: dict[str, dict[str, Any]] = {}
        self.as_json = False
        """Whether the command was asked for JSON; errors are then printed as JSON too."""

    @cached_property
    def config(self) -> Config:
        """The instance's settings.

        :raises ConfigurationError: one of them is wrong.
        """
        from ..config import load_config

        return load_config(self.instance, overrides=self._overrides)

    def override(self, section: str, **values: Any) -> None:
        """Have arguments override settings of a section, for this command."""
        self._overrides[section] = values
        self.__dict__.pop("config", None)
        self.__dict__.pop("client", None)

    @cached_property
    def client(self) -> ApiClient:
        """The running node. Each call raises `NotRunningError` if there is none."""
        from ..daemon.client import ApiClient

        return ApiClient(self.config)

    def find_plugins(self, *, load: bool = True) -> PluginSet:
        """The installed plugins, without a node.

        :param load: import them too. One that fails is in the result with its reason, whatever the settings say.
        :raises ConfigurationError: a setting is wrong.
        """
        import msgspec

        from ..plugins import find_plugins

        return find_plugins(msgspec.structs.replace(self.config.plugins, strict=False), load=load)

    @cached_property
    def console(self) -> Console:
        """A rich console on standard output. Its markup is off: names from other devices are printed as they are."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """The same on standard error."""
        return _console(stderr=True)

    @property
    def interactive(self) -> bool:
        """Whether standard output is a terminal."""
        return sys.stdout.isatty()

    def print(self, text: str = "") -> None:
        """Print a text and a line's end on standard output; control characters in it do not reach a terminal."""
        click.echo(clean(text, keep_newlines=True))

    def note(self, text: str) -> None:
        """Tell the person something on standard error."""
        click.echo(clean(text, keep_newlines=True), err=True)

    def print_json(self, obj: Any, *, compact: bool = False) -> None:
        """Print a value as JSON on standard output.

        :param compact: on one line, as for one event of many.
        """
        # ASCII only: a pipe's encoding cannot break it, and nothing in it can control a terminal.
        click.echo(json.dumps(obj, indent=None if compact else 2, default=str))
        if compact:
            sys.stdout.flush()

    def table(
        self,
        rows: Iterable[Mapping[str, Any]],
        columns: Sequence[tuple[str, str]],
        *,
        empty: str = "Nothing to show.",
    ) -> None:
        """Print rows as a table: drawn for a terminal, one line a row with two spaces between columns otherwise.

        :param columns: key and title of each column. None and missing values show as ``-``, booleans as yes and no.
        :param empty: what to say, on standard error, if there are no rows.
        """
        cells = [[clean(_cell(row.get(key))) for key, _ in columns] for row in rows]
        if not cells:
            self.note(empty)
            return
        titles = [title for _, title in columns]
        if not self.interactive:
            from rich.cells import cell_len

            lines = [titles, *cells]
            widths = [max(cell_len(line[i]) for line in lines) for i in range(len(titles))]
            for line in lines:
                padded = (text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
                click.echo("  ".join(padded).rstrip())
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for title in titles:
            table.add_column(title, overflow="fold")
        for line in cells:
            table.add_row(*map(Text, line))
        self.console.print(table)

    def progress(self, text: str = "", total_bytes: int | None = None) -> AbstractContextManager[Progress]:
        """Show how far something is, on standard error: a bar on a terminal, a line every few seconds otherwise.

        Example::

            with cli.progress("holiday.jpg", total_bytes=size) as progress:
                for event in events:
                    progress.update(event["done_bytes"], event["total_bytes"])
        """
        if sys.stderr.isatty():
            return BarProgress(self.err, text, total_bytes)
        return LineProgress(self.note, text)


pass_cli = click.make_pass_decorator(Cli)
"""Decorator: gives the command its `Cli` as the first argument."""


def complete_devices(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of paired devices, for the shell to complete an argument or option: ``shell_complete=complete_devices``.

    Asks the running node; without one, or when it is slow, there are none.
    """
    try:
        config = Cli(ctx.find_root().params.get("instance")).config
        from ..daemon.client import ApiClient

        names = [str(device["name"]) for device in ApiClient(config, timeout_s=COMPLETION_TIMEOUT_S).get("/devices")]
    except NetworkingError:
        return []
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def _remember_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    cli = ctx.find_object(Cli)
    if cli is not None and value:
        cli.as_json = True
    return value


json_option = click.option("--json", "as_json", is_flag=True, callback=_remember_json, help="Print JSON.")
"""Decorator: the option ``--json``, the command's parameter ``as_json: bool``."""


class Duration(click.ParamType[float]):
    """Type of an option or argument: a duration in seconds, typed as a number alone or with s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1] if factor else text) * (factor or 1)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= 10 * 366 * 86400:
            self.fail(f"{text!r} is not a duration such as 90, 30s, 10m, 12h or 7d.", param, ctx)
        return seconds


def _cell(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(_cell, value)) or "-"
        case _:
            return " ".join(str(value).splitlines())


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
