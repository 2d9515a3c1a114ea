"""What devices say to each other on ``/sdnet/messaging/1``; the specification is ``docs/protocol/messaging.md``."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta

from sdnet_core.wire import Bytes16, Message

__all__ = [
    "MAX_ACTIONS",
    "MAX_BODY_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_SEQUENCE",
    "MAX_TEXT_BYTES",
    "MAX_TITLE_BYTES",
    "Ack",
    "Action",
    "AnyMessage",
    "Data",
    "Delivered",
    "Notification",
    "Outcome",
    "Ping",
    "Pong",
    "Priority",
    "Reply",
    "Text",
]

MAX_TEXT_BYTES = 64 << 10
"""Longest text, bytes of UTF-8."""
MAX_PAYLOAD_BYTES = 256 << 10
"""Longest payload of `Data`, and longest response to it."""
MAX_TITLE_BYTES = 512
MAX_BODY_BYTES = 8 << 10
MAX_ACTIONS = 8
MAX_MESSAGE_BYTES = 288 << 10
"""Longest encoded message."""
MAX_SEQUENCE = (1 << 53) - 1
"""Last sequence number, which every JSON reader can hold."""


class Priority(IntEnum):
    """What goes first when messages wait."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class Outcome(IntEnum):
    """What became of a message at the other side."""

    DELIVERED = 0
    """It lies durably in the inbox, or its handler has done its work."""
    DUPLICATE = 1
    """It was delivered before."""
    STALE = 2
    """Its sequence number was used up by another message; `Ack.next_sequence` says which one is free."""
    INBOX_FULL = 3
    """The inbox holds as many unread messages from this device as it takes."""
    BUSY = 4
    """It is further ahead of the oldest unsettled message than the receiver keeps track of."""
    NOT_STORED = 5
    """The receiver could not store it; it may be sent again."""
    NO_HANDLER = 6
    """Nothing there takes data for that protocol and version."""
    HANDLER_FAILED = 7
    """The handler of the data failed."""
    REFUSED = 8
    """The sender is not trusted enough for that."""


_Sequence = Annotated[int, Meta(ge=1, le=MAX_SEQUENCE)]
_Milliseconds = Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)]
_ProtocolName = Annotated[str, Meta(pattern=r"\A[a-z0-9]+(-[a-z0-9]+)*\Z", max_length=64)]
_Payload = Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
_Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=256)]], Meta(max_length=16)
]

# Small messages are the rule, and the names of their fields would be most of them.
_SHORT = {"sequence": "s", "token": "i", "below": "b", "priority": "p", "sent_ms": "at"}
_SHORT_ACK = {"sequence": "s", "outcome": "o", "next_sequence": "n", "response": "r"}


class Ping(Message, frozen=True, kw_only=True, tag=1):
    """Are you there? Measures the round trip.

    :param nonce: comes back in the `Pong`.
    """

    nonce: Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)]


class Pong(Message, frozen=True, kw_only=True, tag=2):
    """The answer to a `Ping`."""

    nonce: Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)]


class Delivered(Message, frozen=True, kw_only=True, rename=_SHORT):
    """What every message that is acknowledged begins with. Its id is (sender, ``sequence``, ``token``).

    :param sequence: counts the sender's messages under one pairing, from 1; a number may be left out, never reused.
    :param token: 128 random bits, so that a sender whose count was set back cannot be mistaken.
    :param below: the sender will never again send a message with a lower sequence number.
    """

    sequence: _Sequence
    token: Bytes16
    below: _Sequence
    priority: Priority = Priority.NORMAL

    def __post_init__(self) -> None:
        if self.below > self.sequence:
            raise ValueError("a message cannot be below the sender's own limit")


class Data(Delivered, frozen=True, kw_only=True, tag=3, rename=_SHORT):
    """Bytes for a named protocol above messaging, delivered at least once.

    :param protocol: who takes them, as in `on_data`.
    :param version: of that protocol.
    """

    protocol: _ProtocolName
    version: Annotated[int, Meta(ge=1, le=65535)]
    payload: _Payload
    metadata: _Metadata


class Text(Delivered, frozen=True, kw_only=True, tag=4, rename=_SHORT):
    """A text from person to person, delivered exactly once into the inbox.

    :param sent_ms: the sender's wall clock, milliseconds since the epoch.
    """

    sent_ms: _Milliseconds
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_BYTES)]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bytes(self.text, MAX_TEXT_BYTES)


class Action(Message, frozen=True, kw_only=True, tag=16):
    """Something a person can choose in answer to a notification.

    :param id: names it within the notification.
    :param label: what the person sees.
    """

    id: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]+\Z", max_length=64)]
    label: Annotated[str, Meta(min_length=1, max_length=64)]


class Notification(Delivered, frozen=True, kw_only=True, tag=5, rename=_SHORT):
    """A notification for the person at the other device, delivered exactly once into the inbox.

    :param actions: what the person can choose, each with an id of its own.
    """

    sent_ms: _Milliseconds
    title: Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_BYTES)]
    body: Annotated[str, Meta(max_length=MAX_BODY_BYTES)]
    actions: Annotated[tuple[Action, ...], Meta(max_length=MAX_ACTIONS)]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bytes(self.title, MAX_TITLE_BYTES)
        _check_bytes(self.body, MAX_BODY_BYTES)
        if len({action.id for action in self.actions}) < len(self.actions):
            raise ValueError("two actions of a notification have the same id")


class Ack(Message, frozen=True, kw_only=True, tag=6, rename=_SHORT_ACK):
    """What became of a message; sent when that is settled, in any order.

    :param sequence: of the message.
    :param next_sequence: with `Outcome.STALE`, the lowest number that is free; else None.
    :param response: what a `Data` handler answered; None for nothing.
    """

    sequence: _Sequence
    outcome: Outcome
    next_sequence: _Sequence | None = None
    response: _Payload | None = None


AnyMessage = Ping | Data | Text | Notification
"""What the opener of a stream sends."""
Reply = Pong | Ack
"""What comes back."""


def _check_bytes(text: str, max_bytes: int) -> None:
    if len(text.encode()) > max_bytes:
        raise ValueError(f"the text is longer than {max_bytes} bytes")
