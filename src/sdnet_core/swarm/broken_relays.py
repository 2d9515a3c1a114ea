"""Remembers through which relays connections broke (pure).

A relay that answers fastest and breaks what it carries would otherwise be used again and again beside others.
"""

from __future__ import annotations

__all__ = ["BrokenRelays"]

SOON_S = 60.0
"""A connection that has lived for longer may have broken for any reason."""
REMEMBER_S = 600.0
MAX_REMEMBERED = 256


class BrokenRelays:
    """Relays of which others are to be tried first, for a while."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note(self, address: str, *, lived_s: float, now: float) -> None:
        """A connection broke, without a word of the peer or of us.

        :param address: that it had.
        :param now: monotonic seconds.
        """
        relay = _relay_of(address)
        if relay and lived_s < SOON_S:
            self._until.pop(relay, None)
            self._until[relay] = now + REMEMBER_S
            if len(self._until) > MAX_REMEMBERED:
                del self._until[next(iter(self._until))]

    def holds(self, address: object, *, now: float) -> bool:
        """Whether an address goes through one of them."""
        return self._until.get(_relay_of(str(address)), now) > now


def _relay_of(address: str) -> str:
    """The peer id of the relay; empty if there is none."""
    way, circuit, _ = address.partition("/p2p-circuit")
    return way.rpartition("/p2p/")[2] if circuit else ""
