"""Plain text for people: sizes, durations, times, and names that may come from other devices."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["clean", "format_duration", "format_fields", "format_size", "format_time"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def clean(text: str, *, keep_newlines: bool = False) -> str:
    """Make a text harmless on a terminal: what controls it or turns its writing direction becomes ``�``.

    Other devices choose their names and messages; an escape sequence in one must not reach the terminal.
    """
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        # The joiners that emoji and several scripts are written with.
        or character in "\u200c\u200d"
        or (keep_newlines and character in "\n\t")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def format_fields(values: Mapping[str, Any], *, but: Collection[str] = ()) -> str:
    """Values as ``name=value`` beside each other, without those that are empty; lists are separated by commas.

    :param but: names to leave out.
    """
    return "  ".join(f"{key}={_field(value)}" for key, value in values.items() if key not in but and _says(value))


def _says(value: Any) -> bool:
    return value is not None and value not in ("", [])


def _field(value: Any) -> str:
    match value:
        case list():
            return ",".join(map(_field, value))
        case dict() | bool():
            return clean(json.dumps(value))
        case _:
            return clean(str(value))


def format_size(size_bytes: float) -> str:
    """A size for people, such as ``64.0 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    value, unit = size_bytes / 1024, _UNITS[0]
    for larger in _UNITS[1:]:
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def format_duration(duration_s: float) -> str:
    """A duration for people: ``350 ms``, ``12 s``, ``3 min 20 s``, ``5 h 2 min``, ``4 d 1 h``."""
    if duration_s < 0.9995:
        milliseconds = max(duration_s, 0) * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    for size, unit, lower_size, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // lower_size
            return f"{seconds // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds} s"


def format_time(epoch_s: float | None) -> str:
    """A point in time in the local zone, such as ``2025-03-01 14:05:09``; ``-`` for none."""
    if not epoch_s:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return "-"
