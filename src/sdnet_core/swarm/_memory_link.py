"""The ways between peers of a network in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

__all__ = ["Link", "Pipe", "Signal"]

_PIECE_BYTES = 16 * 1024


class Signal:
    """Wakes everybody who waits, any number of times."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def notify(self) -> None:
        self._event.set()
        self._event = anyio.Event()


@dataclass(slots=True)
class Link:
    """The state of the way between two peers.

    :param delay_s: time from one side to the other.
    :param bytes_per_s: rate in each direction; None for no limit.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cut: bool = False
    silent_since: float | None = None
    changed: Signal = field(default_factory=Signal)
    on_heal: list[Callable[[], None]] = field(default_factory=list)

    @property
    def silent(self) -> bool:
        """Whether nothing gets through, without anybody being told."""
        return self.silent_since is not None

    async def wait_until_not_silent(self) -> None:
        """Wait until packets get through, or the link is cut for good."""
        while self.silent:
            await self.changed.wait()

    def when_it_gets_through(self, action: Callable[[], None]) -> None:
        """Do something on the other side: now, or when a silent link is healed."""
        if self.silent:
            self.on_heal.append(action)
        else:
            action()


class Pipe:
    """One direction of a stream: bytes with the time at which they arrive."""

    def __init__(self, link: Link, max_bytes: int) -> None:
        self._link = link
        self._max_bytes = max_bytes
        self._items: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._free_at = 0.0
        self._changed = Signal()
        self._ended = False
        self._lost: str | None = None
        self._unwritable: str | None = None
        self._reader_gone = False

    def lose(self, reason: str) -> None:
        """Nothing more comes; what has arrived can still be read."""
        if self._lost is None:
            self._lost = reason
            self._changed.notify()

    def lose_reader(self, reason: str) -> None:
        """What the writer sends goes nowhere from now on."""
        self._unwritable = reason
        self._changed.notify()

    def seal(self, reason: str) -> None:
        """Take nothing more in, not even an end; what is in it still arrives."""
        self._ended = True
        self._unwritable = reason
        self._changed.notify()

    def stop_reading(self) -> None:
        """The reader takes no more."""
        self._reader_gone = True
        self._items.clear()
        self._changed.notify()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._items.append((self._arrival(0), None))
            self._changed.notify()

    def _arrival(self, size: int) -> float:
        now = anyio.current_time()
        rate = self._link.bytes_per_s
        self._free_at = max(now, self._free_at) + (size / rate if rate else 0.0)
        return self._free_at + self._link.delay_s

    async def put(self, data: bytes) -> None:
        view = memoryview(data)
        while True:
            if self._ended:
                raise anyio.ClosedResourceError
            if self._unwritable is not None:
                raise anyio.BrokenResourceError(self._unwritable)
            if not view:
                return
            if self._size >= self._max_bytes:
                await self._changed.wait()
                continue
            piece = bytes(view[: min(_PIECE_BYTES, self._max_bytes - self._size)])
            view = view[len(piece) :]
            self._items.append((self._arrival(len(piece)), piece))
            self._size += len(piece)
            self._changed.notify()

    async def get(self, max_bytes: int) -> bytes:
        while True:
            if self._reader_gone:
                raise anyio.ClosedResourceError
            if not self._items:
                if self._lost is not None:
                    raise anyio.BrokenResourceError(self._lost)
                await self._changed.wait()
                continue
            arrival, data = self._items[0]
            since = self._link.silent_since
            held_up = since is not None and arrival > since
            if held_up or arrival > anyio.current_time():
                if self._lost is not None:
                    raise anyio.BrokenResourceError(self._lost)
                await self._wait_for(arrival, held_up)
                continue
            if data is None:
                raise anyio.EndOfStream
            self._items.popleft()
            if len(data) > max_bytes:
                self._items.appendleft((arrival, data[max_bytes:]))
                data = data[:max_bytes]
            self._size -= len(data)
            self._changed.notify()
            return data

    async def _wait_for(self, arrival: float, held_up: bool) -> None:
        """Wait until something arrives, or this pipe breaks, is lost or closed."""
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while self._lost is None and not self._reader_gone:
                    await self._changed.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            if held_up:
                await self._link.wait_until_not_silent()
            else:
                await anyio.sleep_until(arrival)
            group.cancel_scope.cancel()
