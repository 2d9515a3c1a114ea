"""Records for a sending end: at once what the system has in memory, the rest ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from . import messages as m
from .compression import Packer
from .source import Filled, SourceReader

__all__ = ["Filling", "Full"]

_BUFFERS = 6
"""Records in memory at once: some being read and hashed, some waiting, one being sealed and sent."""
_FILLED_AT_ONCE = 3
"""Records read and hashed by one call into a thread; as many others are sent meanwhile."""
_FIRST_BYTES = 128 * 1024
"""Longest first record: the other side gets to work with it while the next ones are read."""


@dataclass(frozen=True, slots=True)
class Full:
    """A record to send.

    :param record: what goes out: all or part of the buffer, or compressed what is in it.
    """

    record: bytes | memoryview
    filled: Filled
    buffer: bytearray


class Filling:
    """Fills records, one after the other.

    What lies in the system's memory is read and hashed when it is wanted: that takes less time than a thread takes to
    hear of it and to answer. What does not, and what has to be opened or compressed, is done in a thread, ahead.

    :param room: how many bytes a record may have now.
    :param spawn: starts a task, given a function and its arguments.
    """

    def __init__(
        self,
        reader: SourceReader,
        packer: Packer | None,
        *,
        run_blocking: Callable[..., Any],
        room: Callable[[], int],
        spawn: Callable[..., Any],
    ) -> None:
        self._reader = reader
        self._packer = packer
        self._run_blocking = run_blocking
        self._room = room
        self._spawn = spawn
        self._full: deque[Full] = deque()
        self._free: list[bytearray] = []
        self._unmade = _BUFFERS
        self._working: anyio.Event | None = None
        """While a thread fills records; set when it has."""
        self._at_once = 0
        """Records of the last call into a thread."""
        self._ahead = True
        """Whether the next records are read before they are wanted."""
        self._ended = False

    def begin(self) -> None:
        """Read the first records, as many as are held at once, before any is wanted."""
        self._work()

    async def drop(self) -> None:
        """Read nothing more; when this returns, nobody uses the reader."""
        self._free, self._unmade = [], 0
        while self._working is not None:
            await self._working.wait()
        self._full.clear()

    async def next(self) -> Full | None:
        """The next record; None when everything was read."""
        while not self._full and not self._ended:
            if self._working is not None:
                await self._working.wait()
            elif not self._fill_at_once():
                self._work()
        return self._full.popleft() if self._full else None

    def sent(self, full: Full) -> None:
        """A record was sent: its buffer is free."""
        self._free.append(full.buffer)
        self._go_ahead()

    @property
    def _available(self) -> int:
        return len(self._free) + self._unmade

    def _take_buffer(self) -> bytearray:
        if self._free:
            return self._free.pop()
        self._unmade -= 1
        return bytearray(m.MAX_RECORD_BYTES)

    def _go_ahead(self) -> None:
        wanted = min(self._at_once + 1, _FILLED_AT_ONCE)
        if not self._ahead or self._ended or self._working is not None or self._available < wanted:
            return
        if not self._fill_at_once():
            self._work()

    def _fill_at_once(self) -> bool:
        """Fill a record in this very moment, if that is possible."""
        self._ahead = True
        if not self._available or (self._packer is not None and not self._packer.resting):
            return False
        buffer = self._take_buffer()
        view = memoryview(buffer)[: self._room()]
        filled = self._reader.fill_at_once(view)
        if filled is None:
            self._free.append(buffer)
            return False
        if self._packer is not None:
            self._packer.rest()
        self._ahead = False
        self._full.append(Full(view[: filled.length], filled, buffer))
        return True

    def _work(self) -> None:
        self._working = anyio.Event()
        room = self._room() if self._at_once else min(self._room(), _FIRST_BYTES)
        self._at_once = min(self._at_once + 1, _FILLED_AT_ONCE)
        buffers = [self._take_buffer() for _ in range(min(self._at_once, self._available))]
        self._spawn(self._fill, buffers, room)

    async def _fill(self, buffers: Sequence[bytearray], room: int) -> None:
        filled = await self._run_blocking(self._fill_and_pack, buffers, room)
        self._full += filled
        self._ended = len(filled) < len(buffers)
        assert self._working is not None
        self._working.set()
        self._working = None
        self._go_ahead()

    def _fill_and_pack(self, buffers: Sequence[bytearray], room: int) -> list[Full]:
        """Fill several records and compress those that are worth it; runs in a thread."""
        full: list[Full] = []
        for buffer in buffers:
            item = self._reader.item
            view = memoryview(buffer)[:room]
            filled = self._reader.fill(view)
            if not filled.length:
                break
            packed = None
            if self._packer is not None:
                if self._reader.item != item:
                    self._packer.next_file()
                packed = self._packer.pack(view[: filled.length])
            full.append(Full(view[: filled.length] if packed is None else packed, filled, buffer))
        return full
