"""Which messages are new: sequence numbers of the sender, and what the receiver remembers of them. No I/O, no clock.

Both sides keep one such state for each pairing. It is bounded: a sender has at most `WINDOW` numbers between its oldest
unsettled message and its next one, and tells with every message below which number nothing will come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from .messages import MAX_SEQUENCE

__all__ = ["RESERVE", "WINDOW", "ReceiveWindow", "SendSequence", "Verdict", "WindowFullError"]

WINDOW = 4096
"""How far a message may be ahead of the sender's oldest unsettled one."""
RESERVE = 1024
"""How many numbers a sender reserves durably at once; those left over when it stops are never used."""


class WindowFullError(Exception):
    """Too many messages are unsettled, or the numbers are used up."""


class SendSequence:
    """Gives out sequence numbers to one device under one pairing, each once, also over restarts.

    :param reserved: numbers below this were reserved by an earlier run and may have been used.
    """

    __slots__ = ("_next", "_reserved", "_unsettled")

    def __init__(self, reserved: int = 1) -> None:
        self._next = reserved
        self._reserved = reserved
        self._unsettled: dict[int, None] = {}

    @property
    def below(self) -> int:
        """No message with a lower number will be sent again."""
        return next(iter(self._unsettled), self._next)

    @property
    def reservation_needed(self) -> int | None:
        """Up to where numbers have to be reserved, durably, before `take`; None if there are some."""
        return self._next + RESERVE if self._next >= self._reserved else None

    def reserved_up_to(self, reserved: int) -> None:
        """Numbers below this are now reserved."""
        self._reserved = max(self._reserved, reserved)

    def take(self) -> int:
        """Take the next number for a message that is unsettled until `settle`.

        :raises WindowFullError: too many messages are unsettled.
        """
        if self._next - self.below >= WINDOW or self._next >= MAX_SEQUENCE:
            raise WindowFullError
        if self._next >= self._reserved:
            raise RuntimeError("no number is reserved")
        sequence = self._next
        self._next += 1
        # Taken in ascending order: the first key is the oldest.
        self._unsettled[sequence] = None
        return sequence

    def settle(self, sequence: int) -> None:
        """The message was acknowledged or given up; it will not be sent again."""
        self._unsettled.pop(sequence, None)

    def skip_to(self, sequence: int) -> None:
        """Go on from a higher number, because the receiver has seen lower ones that we know nothing of."""
        self._next = max(self._next, sequence)


class Verdict(Enum):
    """What a message is to the receiver."""

    NEW = auto()
    """Deliver it, then `ReceiveWindow.confirm` or `ReceiveWindow.withdraw`."""
    PENDING = auto()
    """The same message is being delivered just now."""
    DUPLICATE = auto()
    """It was delivered."""
    STALE = auto()
    """Another message had its number, or it is below what the sender had settled."""
    AHEAD = auto()
    """Too far ahead."""


class ReceiveWindow:
    """Tells new messages of one device under one pairing from those that came before.

    :param below: lower numbers are settled.
    :param seen: the delivered messages at or above it, number to token.
    """

    __slots__ = ("_below", "_pending", "_seen")

    def __init__(self, below: int = 1, seen: Mapping[int, bytes] | None = None) -> None:
        self._below = below
        self._seen = dict(sorted((seen or {}).items()))
        self._pending: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._seen) + len(self._pending)

    @property
    def below(self) -> int:
        """Numbers lower than this are settled."""
        return self._below

    @property
    def next_free(self) -> int:
        """The lowest number above all that were seen."""
        return max(self._below, *(number + 1 for number in (*self._seen, *self._pending)), 1)

    def offer(self, sequence: int, token: bytes, below: int) -> Verdict:
        """Look at a message that came.

        :param below: the limit it carries; at most ``sequence``.
        """
        if sequence >= max(below, self._below) + WINDOW:
            return Verdict.AHEAD
        self._forget(below)
        known = self._pending.get(sequence)
        if known is not None:
            return Verdict.PENDING if known == token else Verdict.STALE
        known = self._seen.get(sequence)
        if known is not None:
            return Verdict.DUPLICATE if known == token else Verdict.STALE
        if sequence < self._below:
            return Verdict.STALE
        self._pending[sequence] = token
        return Verdict.NEW

    def confirm(self, sequence: int) -> None:
        """A `Verdict.NEW` message lies durably where it belongs."""
        token = self._pending.pop(sequence)
        if sequence >= self._below:
            self._seen[sequence] = token

    def withdraw(self, sequence: int) -> None:
        """A `Verdict.NEW` message was not delivered: the next attempt is new again."""
        del self._pending[sequence]

    def _forget(self, below: int) -> None:
        if below <= self._below:
            return
        if below - self._below <= len(self._seen):
            for number in range(self._below, below):
                self._seen.pop(number, None)
        else:
            self._seen = {number: token for number, token in self._seen.items() if number >= below}
        self._below = below
