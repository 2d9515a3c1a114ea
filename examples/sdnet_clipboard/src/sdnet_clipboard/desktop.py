"""The clipboard of the desktop, through whichever program is there."""

from __future__ import annotations

import shutil
import subprocess

import click

__all__ = ["read_desktop", "write_desktop"]

_TIMEOUT_S = 10.0
# What reads and what writes it: Wayland, X11, macOS, Windows.
_PROGRAMS = (
    (("wl-paste", "--no-newline"), ("wl-copy",)),
    (("xclip", "-selection", "clipboard", "-out"), ("xclip", "-selection", "clipboard", "-in")),
    (("xsel", "--clipboard", "--output"), ("xsel", "--clipboard", "--input")),
    (("pbpaste",), ("pbcopy",)),
    (("powershell.exe", "-command", "Get-Clipboard -Raw"), ("clip.exe",)),
)


def read_desktop() -> str:
    """What is on the desktop's clipboard.

    :raises click.UsageError: there is no desktop, or no program to reach its clipboard.
    """
    return _run(reading=True)


def write_desktop(text: str) -> None:
    """Put a text there. Errors as `read_desktop`."""
    _run(reading=False, text=text)


def _run(*, reading: bool, text: str = "") -> str:
    for read, write in _PROGRAMS:
        command = read if reading else write
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(
                command,
                input=None if reading else text,
                capture_output=reading,
                text=True,
                timeout=_TIMEOUT_S,
                check=True,
            )
        except (subprocess.SubprocessError, OSError):
            continue  # as wl-paste under X11; another one may work
        return done.stdout or ""
    raise click.UsageError(
        "The desktop's clipboard cannot be reached: wl-clipboard, xclip or xsel is missing, or there is no desktop. "
        "Without --desktop the commands use standard input and output."
    )
