"""Messages that wait for their device, in memory and bounded."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field

import anyio

from ..errors import RefusedError

__all__ = ["OutboundMessage", "Outbox"]

MAX_MESSAGES = 256
MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class OutboundMessage:
    """A message on its way to a device."""

    protocol_name: str
    data: bytes = field(repr=False)


@dataclass(eq=False, slots=True)
class Outbox:
    """The messages to one device, oldest first. They are gone when the node stops.

    :param device_id: where they go.
    """

    device_id: uuid.UUID
    _messages: deque[OutboundMessage] = field(default_factory=deque)
    _bytes: int = 0
    _filled: anyio.Event = field(default_factory=anyio.Event)

    def put(self, message: OutboundMessage) -> None:
        """Add a message.

        :raises RefusedError: the outbox is full.
        """
        if len(self._messages) >= MAX_MESSAGES or self._bytes + len(message.data) > MAX_BYTES:
            raise RefusedError(f"{len(self._messages)} messages wait for this device already; no more are taken.")
        self._messages.append(message)
        self._bytes += len(message.data)
        self._filled.set()

    async def peek(self) -> OutboundMessage:
        """The oldest message, waiting for one; it stays until `pop`."""
        while not self._messages:
            self._filled = anyio.Event()
            await self._filled.wait()
        return self._messages[0]

    def pop(self) -> None:
        """The oldest message has been dealt with."""
        self._bytes -= len(self._messages.popleft().data)

    def __len__(self) -> int:
        return len(self._messages)
