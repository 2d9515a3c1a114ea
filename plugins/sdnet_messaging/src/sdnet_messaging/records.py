"""What the messaging service gives to its callers: receipts, what lies in the inbox, events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdnet_core import RemoteDevice
from sdnet_core.events import NetworkEvent

__all__ = ["Choice", "DataReceived", "InboxMessage", "NotificationReceived", "Receipt", "TextReceived"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The other side has the message, durably.

    :param id: of the message.
    :param delivered_at: when we heard of it, seconds since the epoch.
    :param rtt_s: from sending to hearing of it, seconds.
    """

    id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    delivered_at: float
    rtt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the actions of a notification."""

    id: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxMessage:
    """A message that lies in the inbox.

    :param number: its place in this inbox; later ones have higher numbers.
    :param kind: ``text`` or ``notification``.
    :param text: the text; of a notification, its body.
    :param title: of a notification, else empty.
    :param actions: of a notification, else empty.
    :param sent_at: by the sender's clock, seconds since the epoch.
    :param received_at: by ours.
    :param priority: ``low``, ``normal`` or ``high``.
    """

    number: int
    id: uuid.UUID
    kind: str
    device_id: uuid.UUID
    device_name: str
    text: str = field(repr=False)
    title: str = field(repr=False, default="")
    actions: tuple[Choice, ...] = field(repr=False, default=())
    sent_at: float
    received_at: float
    read: bool
    priority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReceived:
    """What a handler of data gets.

    :param id: of the message. After a lost connection the same message can come again, with the same id.
    :param device: who sent it; it is trusted.
    :param version: of the handler's protocol.
    """

    id: uuid.UUID
    device: RemoteDevice
    protocol: str
    version: int
    payload: bytes = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReceived(NetworkEvent):
    """A text lies in the inbox.

    :param number: its place there.
    """

    kind = "text-received"
    device_id: uuid.UUID
    device_name: str
    message_id: uuid.UUID
    number: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationReceived(NetworkEvent):
    """A notification lies in the inbox.

    :param number: its place there.
    """

    kind = "notification-received"
    device_id: uuid.UUID
    device_name: str
    message_id: uuid.UUID
    number: int
    title: str = field(repr=False)
