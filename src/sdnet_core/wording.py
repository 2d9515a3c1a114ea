"""Words for people that depend on numbers (pure)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["format_count", "nearest"]

_NEAR = 0.5
"""How alike a name must be to be suggested, from 0 to 1 (`difflib.SequenceMatcher.ratio`)."""


def format_count(count: int, one: str, many: str | None = None) -> str:
    """A number of things, such as ``1 file`` or ``1,250 files``.

    :param one: what one of them is called, with whatever follows it: ``entry differs``.
    :param many: what several are called; ``one`` and an s if None.
    """
    return f"{count:,} {one if count == 1 else f'{one}s' if many is None else many}"


def nearest(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """Say which names may have been meant.

    :param most: so many are named at most.
    :returns: a question that begins with a space; empty if nothing is like the name.
    """
    from difflib import get_close_matches

    near = [repr(found) for found in get_close_matches(name, list(known), n=most, cutoff=_NEAR)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
