"""QR codes of pairing links, for terminals and files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

import segno

from sdnet_core.errors import InvalidRequestError

__all__ = ["draw_qr", "file_format", "write_qr"]

_FILE_SCALE = 8
_BORDER = 4
"""Light modules around the code: ISO/IEC 18004 asks for four."""
_WHITE_ON_BLACK, _PLAIN = "\x1b[38;5;231;48;5;16m", "\x1b[0m"


def _make(text: str) -> segno.QRCode:
    return segno.make(text, error="l", boost_error=True, micro=False)


def draw_qr(text: str, *, encoding: str = "utf-8", colours: bool = False) -> str:
    """Draw a QR code with characters, two rows of modules in a line if the encoding has half blocks.

    :param colours: set the colours with ANSI sequences; otherwise light modules are drawn in the foreground's colour,
        which is right on a dark background.
    """
    code = _make(text)
    try:
        "█▀▄".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        # Dark modules are drawn here, since such terminals may not draw blocks that touch each other.
        rows = code.matrix_iter(border=2)
        return "\n".join("".join("##" if dark else "  " for dark in row).rstrip() for row in rows)
    out = io.StringIO()
    code.terminal(out, border=2, compact=True)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    return "\n".join(f"{_WHITE_ON_BLACK}{line}{_PLAIN}" if colours else line for line in lines)


def file_format(path: Path) -> Literal["png", "svg"]:
    """What kind of image a file is to be, by its name.

    :raises InvalidRequestError: it ends neither in ``.png`` nor in ``.svg``.
    """
    match path.suffix.lower():
        case ".png":
            return "png"
        case ".svg":
            return "svg"
    raise InvalidRequestError(f"{path.name}: a QR code is written as .png or .svg.")


def write_qr(text: str, path: Path) -> None:
    """Write a QR code into a new file that only its owner can read.

    :raises InvalidRequestError: the name's end is unknown, or the file is there already or cannot be written.
    """
    kind = file_format(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidRequestError(f"{path} is there already; choose another name.") from None
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "wb") as file:
        _make(text).save(file, kind=kind, scale=_FILE_SCALE, border=_BORDER)
