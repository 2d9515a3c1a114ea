"""Names that were typed, and what there is of that kind."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ..wording import nearest

__all__ = ["check_names", "split_names"]

_SUGGESTED = 3


def split_names(texts: Iterable[str]) -> list[str]:
    """The names in texts that hold several with commas between, in the order in which they were typed."""
    return [name for text in texts for part in text.split(",") if (name := part.strip())]


def check_names(names: Iterable[str], known: Iterable[str], problem: str) -> None:
    """See that there are all of these.

    :param problem: what to say of one that there is not, such as ``There is no event of the kind {}.``
    :raises click.UsageError: one is not known; says which, and what it may have been or all that there are.
    """
    listed = sorted(known)
    for name in names:
        if name not in listed:
            hint = nearest(name, listed, most=_SUGGESTED) or f" There are: {', '.join(listed) or 'none'}."
            raise click.UsageError(problem.format(repr(name)) + hint)
