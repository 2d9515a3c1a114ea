"""What is known of messages on their way: priorities, what became of one, and how they go over a stream.

The specification of the messages is ``docs/protocol/messaging.md``, section "Message streams".
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Annotated

from msgspec import Meta

from ..storage.database import MessageKey
from ..wire import Bytes16, Message

__all__ = [
    "MAX_ITEMS",
    "MESSAGES_SUFFIX",
    "WINDOW",
    "AnyAnswer",
    "Batch",
    "Delivery",
    "DeliveryOutcome",
    "Done",
    "InboundMessage",
    "Item",
    "Later",
    "LaterReason",
    "Priority",
    "Settled",
    "Stale",
    "Verdict",
    "max_frame_bytes",
]

MESSAGES_SUFFIX = "/messages"
"""Behind a protocol's id: a stream of its messages instead of one of its own."""
MAX_NUMBER = (1 << 53) - 1
MAX_ITEMS = 256
"""Messages in one batch."""
MAX_BATCH_BYTES = 64 << 10
"""Data in one batch, unless it holds a single message."""
WINDOW = 4096
"""How far a message's number may be above the sender's lowest that is not settled."""
_ITEM_OVERHEAD_BYTES = 40


class Priority(IntEnum):
    """What goes first when messages wait."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class DeliveryOutcome(StrEnum):
    """What became of a message in the end."""

    DELIVERED = "delivered"
    """The other side's handler has done its work."""
    FAILED = "failed"
    """The other side's handler failed."""
    REFUSED = "refused"
    """The other side's handler does not take it."""
    EXPIRED = "expired"
    """Its time to live ran out before it was delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The end of a message that we sent.

    :param message_id: as given or returned by ``send_message``.
    :param response: what the other side's handler answered; empty for nothing.
    """

    message_id: uuid.UUID
    outcome: DeliveryOutcome
    response: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundMessage:
    """A message that a device sent with ``send_message``.

    :param id: stays the same when the message comes again.
    :param key: what ``ctx.transaction`` remembers it by.
    """

    id: uuid.UUID
    priority: Priority
    data: bytes = field(repr=False)
    key: MessageKey = field(repr=False)


# On the wire. Fields without names: small messages are the rule, and names would be most of them.

_Number = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
_Data = Annotated[bytes, Meta(max_length=1 << 20)]


class Item(Message, frozen=True, kw_only=True, array_like=True, tag=16):
    """One message.

    :param number: ascends within the stream's lane; one may be left out, none is used for two messages.
    """

    number: _Number
    id: Bytes16
    data: _Data


class Batch(Message, frozen=True, kw_only=True, array_like=True, tag=1):
    """Messages, in the order in which they are to be delivered.

    :param priority: the same in all batches of a stream.
    :param below: nothing with a lower number will be sent again.
    """

    priority: Priority
    below: _Number
    items: Annotated[tuple[Item, ...], Meta(min_length=1, max_length=MAX_ITEMS)]

    def __post_init__(self) -> None:
        last = self.below - 1
        for item in self.items:
            if not last < item.number < self.below + WINDOW:
                raise ValueError("the numbers do not ascend, or are too far apart")
            last = item.number


class Verdict(IntEnum):
    """What the receiver made of one message."""

    DELIVERED = 0
    FAILED = 1
    REFUSED = 2


class Done(Message, frozen=True, kw_only=True, array_like=True, tag=2):
    """Every message of this stream up to this number is settled: delivered unless a `Settled` said otherwise."""

    up_to: _Number


class Settled(Message, frozen=True, kw_only=True, array_like=True, tag=3):
    """What became of one message that was not simply delivered, or had a response."""

    number: _Number
    verdict: Verdict
    response: _Data


class LaterReason(IntEnum):
    """Why a message cannot be taken now."""

    STORAGE = 0
    """It could not be stored."""
    FULL = 1
    """What takes it there is full."""


class Later(Message, frozen=True, kw_only=True, array_like=True, tag=4):
    """What follows the last settled message cannot be taken now; ends the stream."""

    reason: LaterReason


class Stale(Message, frozen=True, kw_only=True, array_like=True, tag=5):
    """The number behind the last settled one is used up, the sender's data were set back; ends the stream.

    :param next_number: the lowest that is free.
    """

    next_number: _Number


AnyAnswer = Done | Settled | Later | Stale


def max_frame_bytes(max_message_bytes: int) -> int:
    """Longest encoded `Batch` or answer of a protocol whose messages have at most so many bytes."""
    return max(max_message_bytes, MAX_BATCH_BYTES) + MAX_ITEMS * _ITEM_OVERHEAD_BYTES
