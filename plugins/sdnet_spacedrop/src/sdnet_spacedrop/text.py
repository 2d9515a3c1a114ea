"""Texts from other devices, made harmless before anybody sees them."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Controls, format characters (which reverse or hide text), surrogates, line and paragraph separators.
_BAD_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = frozenset("\u200c\u200d")
"""Emoji and several scripts are written with them."""


def printable(text: str, *, multiline: bool = False) -> str:
    """Replace what controls a terminal or turns its writing direction by ``�``.

    :param multiline: keep line ends.
    """
    return "".join(
        character
        if unicodedata.category(character) not in _BAD_CATEGORIES
        or character in _JOINERS
        or (multiline and character == "\n")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
