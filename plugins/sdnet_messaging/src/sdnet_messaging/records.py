"""What the messaging service gives to its callers: receipts, what lies in the inbox, events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdnet_core import InboundMessage, RemoteDevice
from sdnet_core.events import NetworkEvent

__all__ = [
    "ActionChosen",
    "Choice",
    "DataReceived",
    "InboxMessage",
    "MessageUndelivered",
    "NotificationReceived",
    "OutboxMessage",
    "Receipt",
    "TextReceived",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A message was delivered, or lies durably in the outbox.

    :param id: of the message.
    :param state: ``delivered``: it lies durably in the other side's inbox; ``queued``: in our outbox.
    :param delivered_at: when we heard of it, seconds since the epoch; None if it is queued.
    :param rtt_s: from sending to hearing of it, seconds; None if it is queued.
    :param reason: why it is queued although the device is connected; else empty.
    """

    id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    state: str
    delivered_at: float | None = None
    rtt_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A message that waits for its device.

    :param kind: ``text``, ``notification``, ``choice`` or ``data``.
    :param text: the text; a notification's title, the name of the protocol of data.
    :param created_at: seconds since the epoch.
    :param expires_at: the same; None for never.
    :param state: ``waiting``, or ``sending`` when it is on its way just now.
    :param reason: what is wrong although the device is connected; else empty.
    """

    id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    kind: str
    text: str = field(repr=False)
    priority: str
    created_at: float
    expires_at: float | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the actions of a notification."""

    id: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxMessage:
    """A message that lies in the inbox.

    :param number: its place in this inbox; later ones have higher numbers.
    :param kind: ``text``, ``notification``, or ``choice``: what was chosen in answer to a notification of ours.
    :param text: the text; of a notification, its body; of a choice, the action's label.
    :param title: of a notification, or of the one that was answered; else empty.
    :param actions: of a notification, else empty.
    :param chosen: the id of the action that was chosen, here or, for a choice, there; empty for none.
    :param reply_to: of a choice, the id of our notification.
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
    chosen: str = ""
    reply_to: uuid.UUID | None = None
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
    :param message: for ``ctx.transaction``, in which work is done exactly once.
    """

    id: uuid.UUID
    device: RemoteDevice
    protocol: str
    version: int
    payload: bytes = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    message: InboundMessage = field(repr=False)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChosen(NetworkEvent):
    """A person has chosen an action of a notification of ours.

    :param number: of the choice in the inbox.
    :param action: its id.
    """

    kind = "action-chosen"
    device_id: uuid.UUID
    device_name: str
    message_id: uuid.UUID
    number: int
    notification_id: uuid.UUID
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageUndelivered(NetworkEvent):
    """A message that was queued will not be delivered.

    :param outcome: ``expired``, ``refused`` or ``failed``.
    """

    kind = "message-undelivered"
    device_id: uuid.UUID
    device_name: str
    message_id: uuid.UUID
    outcome: str
