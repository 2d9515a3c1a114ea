"""What devices say to each other on ``/sdnet/spacedrop/1``; the specification is ``docs/protocol/spacedrop.md``."""

from __future__ import annotations

import uuid
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from sdnet_core.wire import Bytes16, Message

__all__ = [
    "MAX_ANSWER_TIMEOUT_S",
    "MAX_ITEMS",
    "MAX_LISTED_ITEMS",
    "MAX_MESSAGE_BYTES",
    "MAX_MESSAGE_LENGTH",
    "MAX_REASON_LENGTH",
    "MAX_SENDER_NAME_LENGTH",
    "PROTOCOL_NAME",
    "FirstMessage",
    "Refusal",
    "SenderMessage",
    "SpacedropAsked",
    "SpacedropCancel",
    "SpacedropItem",
    "SpacedropRequest",
    "SpacedropResponse",
    "with_id",
]

PROTOCOL_NAME: Final = "spacedrop"
MAX_MESSAGE_BYTES: Final = 64 << 10
"""Longest encoded message."""
MAX_LISTED_ITEMS: Final = 32
"""Most names in an offer; of the others only their number is told."""
MAX_ITEMS: Final = 100_000
"""Most files and folders in one drop, as in one file transfer."""
MAX_SIZE_BYTES: Final = (1 << 63) - 1
MAX_SENDER_NAME_LENGTH: Final = 64
MAX_MESSAGE_LENGTH: Final = 2000
"""Longest message from person to person, characters."""
MAX_REASON_LENGTH: Final = 300
MAX_ANSWER_TIMEOUT_S: Final = 3600
"""Longest time a person may have for the answer."""

_Count = Annotated[int, Meta(ge=1, le=MAX_ITEMS)]
_Size = Annotated[int, Meta(ge=0, le=MAX_SIZE_BYTES)]
_Reason = Annotated[str, Meta(max_length=MAX_REASON_LENGTH)]


class Refusal:
    """Why an offer was not taken: the values of ``code``."""

    REJECTED = "rejected"
    """A person said no."""
    TIMED_OUT = "timed-out"
    """Nobody answered."""
    POLICY = "policy"
    """The device takes no drops."""
    BUSY = "busy"
    """Too many offers wait there already."""
    CANCELLED = "cancelled"
    """It was cancelled before."""
    FAILED = "failed"
    """It could not be taken."""


class SpacedropItem(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of the files or folders offered; an array on the wire.

    :param size: bytes; of a folder, everything inside it.
    :param item_count: 1 for a file; for a folder, itself and all files and folders inside it.
    """

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    directory: bool
    size: _Size
    item_count: _Count

    def __post_init__(self) -> None:
        if not self.directory and self.item_count != 1:
            raise ValueError("a file is one item")


class SpacedropRequest(Message, frozen=True, kw_only=True, tag=1):
    """Offers files. Sent again under the same id, it asks what became of the offer.

    :param transfer_id: names the drop, and the file transfer that follows.
    :param sender_name: who sends, as the sender says; may be empty.
    :param message: from person to person; may be empty.
    :param items: the first `MAX_LISTED_ITEMS` of what is offered.
    :param more_items: how many more there are at the top.
    :param item_count: all files and folders, inside folders too.
    :param total_bytes: the size of everything.
    :param answer_timeout_ms: how long the sender waits for an answer, milliseconds.
    """

    transfer_id: Bytes16
    sender_name: Annotated[str, Meta(max_length=MAX_SENDER_NAME_LENGTH)]
    message: Annotated[str, Meta(max_length=MAX_MESSAGE_LENGTH)]
    items: Annotated[tuple[SpacedropItem, ...], Meta(min_length=1, max_length=MAX_LISTED_ITEMS)]
    more_items: Annotated[int, Meta(ge=0, le=MAX_ITEMS)]
    item_count: _Count
    total_bytes: _Size
    answer_timeout_ms: Annotated[int, Meta(ge=1, le=1000 * MAX_ANSWER_TIMEOUT_S)]

    def __post_init__(self) -> None:
        listed_items = sum(item.item_count for item in self.items)
        listed_bytes = sum(item.size for item in self.items)
        if self.more_items and len(self.items) < MAX_LISTED_ITEMS:
            raise ValueError("the list of items is cut too early")
        if self.more_items == 0 and (listed_items, listed_bytes) != (self.item_count, self.total_bytes):
            raise ValueError("the items listed are not what is offered in all")
        if listed_items + self.more_items > self.item_count or listed_bytes > self.total_bytes:
            raise ValueError("the items listed are more than what is offered in all")


class SpacedropAsked(Message, frozen=True, kw_only=True, tag=2):
    """The receiver's person is being asked.

    :param timeout_ms: how long at most until the answer, milliseconds.
    """

    transfer_id: Bytes16
    timeout_ms: Annotated[int, Meta(ge=0, le=1000 * MAX_ANSWER_TIMEOUT_S)]


class SpacedropResponse(Message, frozen=True, kw_only=True, tag=3):
    """The answer; accepted, the file transfer with the same id may begin.

    :param code: one of `Refusal`, empty when accepted.
    :param reason: for the person; may be empty.
    """

    transfer_id: Bytes16
    accepted: bool
    code: Annotated[str, Meta(max_length=32, pattern=r"\A[a-z-]*\Z")]
    reason: _Reason

    def __post_init__(self) -> None:
        if self.accepted == bool(self.code):
            raise ValueError("a refusal has a code, and only a refusal")


class SpacedropCancel(Message, frozen=True, kw_only=True, tag=4):
    """A person, on either side, does not want the drop any more. Unknown ids are ignored."""

    transfer_id: Bytes16
    reason: _Reason


FirstMessage: TypeAlias = SpacedropRequest | SpacedropCancel
"""What a stream begins with."""
SenderMessage: TypeAlias = SpacedropAsked | SpacedropResponse | SpacedropCancel
"""What comes back to the sender of an offer."""


def with_id(request: SpacedropRequest, drop_id: uuid.UUID) -> SpacedropRequest:
    """The same offer under another id."""
    return msgspec.structs.replace(request, transfer_id=drop_id.bytes)
