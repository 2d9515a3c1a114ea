"""Which names from another device may become files here (pure).

A path is a list of components. Each is brought to Unicode NFC first and checked then; nothing is repaired, because a
repaired name is another file's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sdnet_core.errors import ProtocolError

from .messages import MAX_DEPTH

__all__ = ["MAX_COMPONENT_BYTES", "MAX_PATH_BYTES", "STAGING_PREFIX", "InvalidNameError", "check_component"]
__all__ += ["check_length", "check_path", "numbered", "printable"]

MAX_COMPONENT_BYTES = 255
"""Longest component in UTF-8: NAME_MAX of every file system in use."""
MAX_PATH_BYTES = 4096
"""Longest path in UTF-8, separators included (PATH_MAX)."""
STAGING_PREFIX = ".sdnet-partial-"
"""Names of our own folders for what is not complete; nothing received may be called so."""

# Overrides, embeddings and isolates (UAX #9), which make one name look like another.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Cc, Cs: controls and lone surrogates; Zl, Zp: line and paragraph separators.
_BAD_CATEGORIES = frozenset(("Cc", "Cs", "Zl", "Zp"))
_SEPARATORS = frozenset("/\\\0")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file, with CONIN$ and CONOUT$
_RESERVED = re.compile(
    r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3])[ ]*(?:[.:].*)?", re.IGNORECASE | re.DOTALL
)
_PLAIN = re.compile(r"[A-Za-z0-9_\-]{5,64}(?:\.[A-Za-z0-9_\-]{1,32})?")


class InvalidNameError(ProtocolError):
    """A file's name cannot be used on the other device."""

    code = "invalid-name"


def check_component(name: str) -> str:
    """Check one component of a path.

    :returns: the name in NFC.
    :raises InvalidNameError: it is empty, too long, or could mean another place or look like another name.
    """
    # Most names are plain ASCII: no pattern below can match them (reserved names have at most four letters, or a "$").
    if _PLAIN.fullmatch(name):
        return name
    name = unicodedata.normalize("NFC", name)
    if not name:
        raise InvalidNameError("A file has an empty name.")
    for character in name:
        if unicodedata.category(character) in _BAD_CATEGORIES:
            raise InvalidNameError(f"The name {printable(name)!r} contains a control character.")
        if character in _BIDI:
            raise InvalidNameError(f"The name {printable(name)!r} contains a character that reverses the text.")
    # Compatibility forms too: a full-width solidus or three one-dot leaders become separators and dots elsewhere.
    for form in (name, unicodedata.normalize("NFKC", name)):
        if _SEPARATORS & set(form):
            raise InvalidNameError(f"The name {printable(name)!r} contains a path separator.")
        if form in (".", ".."):
            raise InvalidNameError(f"The name {printable(name)!r} means another folder.")
        if form[-1:] in (".", " "):
            raise InvalidNameError(f"The name {printable(name)!r} ends with a dot or a space.")
        if _RESERVED.fullmatch(form):
            raise InvalidNameError(f"The name {printable(name)!r} is reserved on some systems.")
    if len(name.encode()) > MAX_COMPONENT_BYTES:
        raise InvalidNameError(f"The name {printable(name)!r} has more than {MAX_COMPONENT_BYTES} bytes.")
    return name


def check_path(path: Sequence[str]) -> tuple[str, ...]:
    """Check a path from another device.

    :returns: its components in NFC.
    :raises InvalidNameError: it is empty, too deep or too long, a component is not valid, or its first one is a name
        of our own.
    """
    checked = check_length(tuple([check_component(component) for component in path]))
    if checked[0].casefold().startswith(STAGING_PREFIX):
        raise InvalidNameError(f"The name {checked[0]!r} is kept for unfinished transfers.")
    return checked


def check_length(path: tuple[str, ...]) -> tuple[str, ...]:
    """Check the depth and the length of a path whose components were checked.

    :raises InvalidNameError: it is empty, too deep or too long.
    """
    if not 0 < len(path) <= MAX_DEPTH:
        raise InvalidNameError(f"A path has 1 to {MAX_DEPTH} components, not {len(path)}.")
    if len(path) * (MAX_COMPONENT_BYTES + 1) > MAX_PATH_BYTES:  # otherwise it cannot be too long
        if sum([len(component.encode()) + 1 for component in path]) > MAX_PATH_BYTES:
            raise InvalidNameError(f"The path of {path[-1]!r} is longer than {MAX_PATH_BYTES} bytes.")
    return path


def numbered(name: str, number: int, *, directory: bool = False) -> str:
    """Another name for a file whose own is taken: ``report (1).pdf``.

    :param number: 0 gives the name itself.
    :param directory: a folder's name has no extension.
    """
    if not number:
        return name
    suffix = f" ({number})"
    stem, extension = (name, "") if directory else _split_extension(name)
    room = MAX_COMPONENT_BYTES - len((suffix + extension).encode())
    if len(stem.encode()) > room:
        stem = stem.encode()[:room].decode(errors="ignore")
    return stem + suffix + extension


def _split_extension(name: str) -> tuple[str, str]:
    stem, dot, extension = name.rpartition(".")
    if not stem or not extension or len(extension) > 16 or " " in extension:
        return name, ""
    if stem.lower().endswith(".tar") and len(stem) > 4:
        return stem[:-4], stem[-4:] + dot + extension
    return stem, dot + extension


def printable(text: str, limit: int = 200) -> str:
    """A text from outside, safe for a terminal or a log: nothing that moves, hides or reverses."""
    safe = "".join(
        character if unicodedata.category(character) not in _BAD_CATEGORIES and character not in _BIDI else "\ufffd"
        for character in text
    )
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
