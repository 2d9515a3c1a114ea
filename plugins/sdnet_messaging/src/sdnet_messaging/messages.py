"""What devices say to each other for messaging; the specification is ``docs/protocol/messaging.md``."""

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
    "MAX_TEXT_BYTES",
    "MAX_TITLE_BYTES",
    "Action",
    "Answer",
    "AnyMessage",
    "Chosen",
    "Data",
    "Notification",
    "Outcome",
    "Ping",
    "Pong",
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
_MAX_NUMBER = (1 << 53) - 1

_Milliseconds = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]
_ProtocolName = Annotated[str, Meta(pattern=r"\A[a-z0-9]+(-[a-z0-9]+)*\Z", max_length=64)]
_Payload = Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
_Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=256)]], Meta(max_length=16)
]
_ActionId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]+\Z", max_length=64)]
_Label = Annotated[str, Meta(min_length=1, max_length=64)]
_Title = Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_BYTES)]

# Arrays instead of maps: small messages are the rule, and the names of their fields would be most of them.


class Ping(Message, frozen=True, kw_only=True, array_like=True, tag=1):
    """Are you there? Measures the round trip.

    :param nonce: comes back in the `Pong`.
    """

    nonce: Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]


class Pong(Message, frozen=True, kw_only=True, array_like=True, tag=2):
    """The answer to a `Ping`."""

    nonce: Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]


class Data(Message, frozen=True, kw_only=True, array_like=True, tag=3):
    """Bytes for a named protocol above messaging, delivered at least once.

    :param protocol: who takes them, as in `on_data`.
    :param version: of that protocol.
    """

    protocol: _ProtocolName
    version: Annotated[int, Meta(ge=1, le=65535)]
    payload: _Payload
    metadata: _Metadata


class Text(Message, frozen=True, kw_only=True, array_like=True, tag=4):
    """A text from person to person, delivered exactly once into the inbox.

    :param sent_ms: the sender's wall clock, milliseconds since the epoch.
    """

    sent_ms: _Milliseconds
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_BYTES)]

    def __post_init__(self) -> None:
        _check_bytes(self.text, MAX_TEXT_BYTES)


class Action(Message, frozen=True, kw_only=True, array_like=True, tag=16):
    """Something a person can choose in answer to a notification.

    :param id: names it within the notification.
    :param label: what the person sees.
    """

    id: _ActionId
    label: _Label


class Notification(Message, frozen=True, kw_only=True, array_like=True, tag=5):
    """A notification for the person at the other device, delivered exactly once into the inbox.

    :param actions: what the person can choose, each with an id of its own.
    """

    sent_ms: _Milliseconds
    title: _Title
    body: Annotated[str, Meta(max_length=MAX_BODY_BYTES)]
    actions: Annotated[tuple[Action, ...], Meta(max_length=MAX_ACTIONS)]

    def __post_init__(self) -> None:
        _check_bytes(self.title, MAX_TITLE_BYTES)
        _check_bytes(self.body, MAX_BODY_BYTES)
        if len({action.id for action in self.actions}) < len(self.actions):
            raise ValueError("two actions of a notification have the same id")


class Chosen(Message, frozen=True, kw_only=True, array_like=True, tag=6):
    """What the person chose in answer to a notification, delivered exactly once into the inbox of who sent that.

    :param notification: the id of that message.
    :param title: of the notification.
    """

    sent_ms: _Milliseconds
    notification: Bytes16
    title: _Title
    action: Action

    def __post_init__(self) -> None:
        _check_bytes(self.title, MAX_TITLE_BYTES)


class Outcome(IntEnum):
    """What became of data, or of a message that was not simply delivered."""

    DELIVERED = 0
    """The handler of the data has done its work."""
    NO_HANDLER = 1
    """Nothing there takes data for that protocol."""
    HANDLER_FAILED = 2
    """The handler of the data failed."""
    INVALID = 3
    """It is not a message that is known there."""


class Answer(Message, frozen=True, kw_only=True, array_like=True, tag=7):
    """The response to `Data`, and to what was not simply delivered.

    :param response: what the data's handler answered; None for nothing.
    """

    outcome: Outcome
    response: _Payload | None


AnyMessage = Text | Notification | Chosen
"""What goes into the inbox."""


def _check_bytes(text: str, max_bytes: int) -> None:
    if len(text.encode()) > max_bytes:
        raise ValueError(f"the text is longer than {max_bytes} bytes")
