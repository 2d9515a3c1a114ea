"""What somebody who watches a library gets."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio

from .records import Change, Entry

__all__ = ["Changes", "Condition", "test_of"]

MAX_WAITING_CHANGES = 4096
"""Changes kept for a slow watcher; then it is told to query anew."""

Condition = Mapping[str, Any] | Callable[[Entry], bool] | None
"""Which entries are wanted: fields and their values, or a function; None for all."""


def test_of(condition: Condition) -> Callable[[Entry], bool]:
    """A condition as a function."""
    if condition is None:
        return lambda entry: True
    if callable(condition):
        return condition
    wanted = dict(condition)
    return lambda entry: all(entry.fields.get(name) == value for name, value in wanted.items())


class Changes:
    """What a watcher gets: iterate over it."""

    def __init__(self, kind: str | None, condition: Condition) -> None:
        self._kind = kind
        self._wanted = test_of(condition)
        self._waiting: deque[Change] = deque()
        self._filled = anyio.Event()
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._filled = anyio.Event()
            await self._filled.wait()
        return self._waiting.popleft()

    async def receive(self) -> Change:
        """The next change.

        :raises anyio.EndOfStream: the library was closed.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    def offer(self, kind: str, entry_id: str, entry: Entry | None, author: bytes) -> None:
        """Tell of a change, if it is wanted."""
        if kind.startswith("$") or (self._kind is not None and kind != self._kind):
            return
        if entry is not None and not self._wanted(entry):
            return
        if len(self._waiting) >= MAX_WAITING_CHANGES:
            self.reset()
            return
        by = uuid.UUID(bytes=author) if author else None
        if self._waiting and self._waiting[-1].reset:
            return
        self._waiting.append(Change(kind=kind, id=entry_id, entry=entry, author=by))
        self._filled.set()

    def reset(self) -> None:
        """Tell that so much changed that it cannot be told."""
        self._waiting.clear()
        self._waiting.append(Change(reset=True))
        self._filled.set()

    def end(self) -> None:
        """No more comes."""
        self._ended = True
        self._filled.set()
