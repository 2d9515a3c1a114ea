"""How many inbound connections may be at their handshake at a time, and who makes room when more want to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["Handshakes"]

_HANDSHAKE_SHARE_S = 0.5
"""Time that every handshake has before it makes room for another."""
_WAITING_PER_HANDSHAKE = 4
"""Connections that may wait for a handshake to make room, for each that may go on."""


class Handshakes:
    """The inbound connections that have not proved who they are.

    :param most: how many there may be at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[trio.CancelScope, float] = {}
        self._waiting: dict[trio.CancelScope, None] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether a quarter of the places is taken, which is more than honest peers need."""
        return 4 * len(self._running) >= self._most

    @contextmanager
    def slot(self) -> Iterator[trio.CancelScope]:
        """One handshake, after :meth:`make_room`; the scope is cancelled when it makes room for another."""
        with trio.CancelScope() as scope:
            self._running[scope] = trio.current_time()
            try:
                yield scope
            finally:
                self._running.pop(scope, None)

    async def make_room(self) -> bool:
        """Wait until a handshake may begin: the slowest one makes room, once it has had its share of time.

        The newest connection is the next; the oldest of those that wait is refused when too many do. So a flood of
        connections that say nothing keeps nobody out, nor does one that never ends.
        """
        if len(self._running) < self._most:
            return True
        if len(self._waiting) >= _WAITING_PER_HANDSHAKE * self._most:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.cancel()
        ready = False
        with trio.CancelScope() as scope:
            self._waiting[scope] = None
            try:
                while True:
                    is_next = next(reversed(self._waiting), None) is scope
                    if is_next and len(self._running) < self._most:
                        ready = True
                        break
                    oldest, began = next(iter(self._running.items()), (None, trio.current_time()))
                    wait_s = began + _HANDSHAKE_SHARE_S - trio.current_time()
                    if is_next and oldest is not None and wait_s <= 0:
                        del self._running[oldest]
                        oldest.cancel()
                        ready = True
                        break
                    await trio.sleep(wait_s if is_next else max(wait_s, _HANDSHAKE_SHARE_S / 2))
            finally:
                self._waiting.pop(scope, None)
        return ready
