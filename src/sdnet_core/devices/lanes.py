"""What waits in the outbox: messages, in lanes."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field

import anyio

from ..errors import StorageError
from .delivery import Priority

__all__ = ["Lane", "OutboxLimits", "QueuedMessage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxLimits:
    """How much may wait."""

    messages_per_device: int = 4096
    bytes_per_device: int = 16 << 20
    messages: int = 32768
    bytes: int = 64 << 20


@dataclass(eq=False, slots=True)
class QueuedMessage:
    """A message that waits for its device.

    :ivar number: its place among all messages of its lane ever; another one if the other side asks for that.
    :ivar created_at: wall clock, seconds since the epoch.
    :ivar expires_at: the same; None for never.
    :ivar deadline: when it expires by the monotonic clock, seconds; `math.inf` for never.
    :ivar data: the payload; None if it lies on the disk only.
    :ivar tried: it may have been sent before.
    """

    id: uuid.UUID
    lane: Lane
    number: int
    size: int
    created_at: float
    expires_at: float | None
    deadline: float
    data: bytes | None = field(repr=False)
    tried: bool = False
    settled: bool = False
    stored: anyio.Event = field(default_factory=anyio.Event, repr=False)
    """Set when it is on the disk, or could not be put there."""
    error: StorageError | None = None

    @property
    def sending(self) -> bool:
        """Whether it is on its way just now."""
        return self.number <= self.lane.sent


@dataclass(eq=False, slots=True)
class Lane:
    """The messages of one protocol and priority to one device, oldest first.

    :ivar row: in the store; 0 before it is there.
    :ivar queue: what is on the disk and not settled, by number.
    :ivar leaving: what is settled and may still be on the disk: number by id. After a crash it would be sent again.
    :ivar unsent: the part of it that was not sent on the present stream; may hold settled ones.
    :ivar sent: the highest number sent on the present stream; 0 if there is none.
    :ivar open: whether there is a stream.
    :ivar changed: set when something came into the queue, or was answered; replaced by who waits for it.
    :ivar error: why the oldest is not delivered just now; empty if nothing is wrong.
    """

    device_id: uuid.UUID
    protocol_name: str
    priority: Priority
    row: int = 0
    next_number: int = 1
    queue: dict[int, QueuedMessage] = field(default_factory=dict)
    leaving: dict[bytes, int] = field(default_factory=dict)
    unsent: deque[QueuedMessage] = field(default_factory=deque)
    sent: int = 0
    open: bool = False
    changed: anyio.Event = field(default_factory=anyio.Event)
    error: str = ""

    def below(self, number: int) -> int:
        """The number below which nothing will be sent again, not even after a crash.

        :param number: the lowest that is to be sent, or is under way.
        """
        return min(number, min(self.leaving.values(), default=number))

    def rewind(self) -> None:
        """The stream is gone: all that is not settled is to be sent again."""
        self.unsent = deque(self.queue.values())
        self.sent = 0
