"""Messages that wait for their device, in memory and bounded."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from ..errors import (
    ConnectionFailedError,
    DeviceNotFoundError,
    NetworkingError,
    NetworkTimeoutError,
    NotRunningError,
    RefusedError,
)

__all__ = ["OutboundMessage", "Outbox", "Outboxes"]

logger = logging.getLogger(__name__)

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


class Outboxes:
    """The outboxes of all devices, and one task for each that delivers what is in it, in order.

    :param request: sends one request to a device and gives its answer.
    :param answered: told of each answer.
    :param retry_s: pause after a delivery that failed for want of a connection.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        request: Callable[[uuid.UUID, str, bytes], Awaitable[bytes]],
        answered: Callable[[uuid.UUID, str, bytes], Awaitable[None]],
        *,
        retry_s: float,
    ) -> None:
        self._tasks = tasks
        self._request = request
        self._answered = answered
        self._retry_s = retry_s
        self._outboxes: dict[uuid.UUID, Outbox] = {}

    def put(self, device_id: uuid.UUID, message: OutboundMessage) -> None:
        """Add a message for a device.

        :raises RefusedError: its outbox is full.
        """
        outbox = self._outboxes.get(device_id)
        if outbox is None:
            outbox = self._outboxes[device_id] = Outbox(device_id)
            self._tasks.start_soon(self._deliver, outbox)
        outbox.put(message)

    async def _deliver(self, outbox: Outbox) -> None:
        while True:
            message = await outbox.peek()
            try:
                answer = await self._request(outbox.device_id, message.protocol_name, message.data)
            except (DeviceNotFoundError, NotRunningError):
                del self._outboxes[outbox.device_id]
                return
            except (ConnectionFailedError, NetworkTimeoutError):
                await anyio.sleep(self._retry_s)
                continue
            except NetworkingError as error:
                logger.warning("message for %s to %s refused: %s", message.protocol_name, outbox.device_id, error)
                outbox.pop()
                continue
            outbox.pop()
            await self._answered(outbox.device_id, message.protocol_name, answer)
