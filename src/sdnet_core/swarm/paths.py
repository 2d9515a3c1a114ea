"""Several connections to one peer: which of them is used, and what becomes of the others (pure)."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Rank", "judge"]


class Rank(Enum):
    """Where a new connection stands beside the one so far."""

    BETTER = auto()
    """It is used from now on; the old one ends when nothing runs on it any more."""
    FIRST = auto()
    """Both were dialled at once; it is used, and the old one is surplus."""
    LAST = auto()
    """Both were dialled at once; it is surplus."""
    ANEW = auto()
    """The peer has lost the old one, even if we were not told."""


def judge(
    *, old_relayed: bool, new_relayed: bool, opposite: bool, soon: bool, we_are_lower: bool, we_dialled: bool
) -> Rank:
    """Compare a new connection with the one so far; both sides come to the same result.

    :param opposite: the two were made by different sides.
    :param soon: they were made so soon one after the other that both sides may have dialled at once.
    :param we_are_lower: our peer id is the lower one.
    :param we_dialled: the new one is ours.
    """
    if old_relayed:
        # A direct one is better, and another through a relay is made when the old one is about to end.
        return Rank.BETTER
    if new_relayed:
        return Rank.LAST if opposite and soon else Rank.ANEW
    if opposite and soon:
        return Rank.FIRST if we_dialled == we_are_lower else Rank.LAST
    return Rank.ANEW
