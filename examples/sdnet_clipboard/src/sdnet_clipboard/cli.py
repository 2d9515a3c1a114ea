"""The commands ``sdnet clip …``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from sdnet_core.cli.kit import Cli, json_option, pass_cli

__all__ = ["clip"]

_DESKTOP = click.option("--desktop", is_flag=True, help="Use the clipboard of the desktop.")


@click.group()
def clip() -> None:
    """One clipboard for all your devices."""


@clip.command(
    epilog="\b\nExamples:\n"
    "  sdnet clip copy 'some text'\n"
    "  sdnet clip copy < notes.txt\n"
    "  sdnet clip copy --desktop           what was copied on the desktop"
)
@click.argument("text", required=False)
@_DESKTOP
@json_option
@pass_cli
def copy(cli: Cli, text: str | None, desktop: bool, as_json: bool) -> None:
    """Copy TEXT, or standard input, to the clipboard of all devices."""
    if text is not None and desktop:
        raise click.UsageError("Give a text or --desktop, not both.")
    if desktop:
        from .desktop import read_desktop

        text = read_desktop()
    answer = cli.client.post("/clipboard/clip", {"text": sys.stdin.read() if text is None else text})
    if as_json:
        cli.print_json(answer)


@clip.command(epilog="\b\nExamples:\n  sdnet clip paste > notes.txt\n  sdnet clip paste --desktop")
@_DESKTOP
@json_option
@pass_cli
def paste(cli: Cli, desktop: bool, as_json: bool) -> None:
    """Print what was copied last, on whichever device."""
    answer = cli.client.get("/clipboard/clip")
    if desktop:
        from .desktop import write_desktop

        write_desktop(answer["text"])
    elif as_json:
        cli.print_json(answer)
    elif cli.interactive:
        cli.print(answer["text"])
    else:
        # Into a file or a pipe it goes as it was copied, without another line's end.
        sys.stdout.write(answer["text"])


@clip.command(
    epilog="\b\nExamples:\n"
    "  sdnet clip watch\n"
    "  sdnet clip watch --desktop          keep the desktop's clipboard up to date\n"
    "  sdnet clip watch --file ~/clip.txt  the same for a file, where there is no desktop"
)
@_DESKTOP
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="Write each clip to this file.")
@json_option
@pass_cli
def watch(cli: Cli, desktop: bool, file: Path | None, as_json: bool) -> None:
    """Show what is copied, as it is, until Ctrl-C."""
    from .desktop import write_desktop

    with cli.client.stream("/clipboard/clip/watch") as clips:
        for found in clips:
            if desktop:
                write_desktop(found["text"])
            if file is not None:
                file.write_text(found["text"], encoding="utf-8")
            if as_json:
                cli.print_json(found, compact=True)
            elif not desktop and file is None:
                cli.print(f"{found['origin']}: {found['text']}")
