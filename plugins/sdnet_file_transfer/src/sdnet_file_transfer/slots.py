"""So many at once, the more important ones first."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

__all__ = ["Slots"]


class Slots:
    """Lets so many in at once. Who waits is let in by priority, and among equals in the order of asking.

    :param count: how many.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def hold(self, priority: int) -> AsyncIterator[None]:
        """Hold one for the length of the block, waiting for it.

        :param priority: the higher, the sooner.
        """
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._wait(priority)
        try:
            yield
        finally:
            self._let_in()

    async def _wait(self, priority: int) -> None:
        entry = (-priority, next(self._order), anyio.Event())
        heapq.heappush(self._waiting, entry)
        try:
            await entry[2].wait()
        except BaseException:
            if entry[2].is_set():
                self._let_in()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _let_in(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1
