"""Checks of what callers give, and what becomes of it on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sdnet_core import Delivery, DeliveryOutcome, RemoteDevice
from sdnet_core.errors import (
    InvalidRequestError,
    NetworkTimeoutError,
    ProtocolError,
    RefusedError,
    SerializationError,
)
from sdnet_core.wire import decode

from .messages import (
    MAX_ACTIONS,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    Action,
    Chosen,
    Data,
    Notification,
    Text,
)
from .records import Choice

__all__ = ["check_delivery", "check_length", "check_protocol_name", "make_actions", "make_data", "shown"]

_PROTOCOL_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_length(what: str, text: str, max_bytes: int) -> None:
    """Refuse a text that is too long in UTF-8, or has none.

    :raises InvalidRequestError: it is so.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"The {what} is not valid Unicode.") from error
    if size > max_bytes:
        raise InvalidRequestError(f"The {what} has {size:,} bytes; at most {max_bytes:,} fit into one message.")


def check_protocol_name(protocol: str) -> None:
    """Refuse what cannot be a protocol's name.

    :raises InvalidRequestError: it cannot.
    """
    if len(protocol) > 64 or not _PROTOCOL_NAME.fullmatch(protocol):
        raise InvalidRequestError("A protocol's name is made of lower-case letters, digits and single hyphens.")


def make_actions(actions: Sequence[Choice]) -> tuple[Action, ...]:
    """Actions as they go on the wire.

    :raises InvalidRequestError: there are too many, or one is too long or not alone with its id.
    """
    if len(actions) > MAX_ACTIONS:
        raise InvalidRequestError(f"A notification has at most {MAX_ACTIONS} actions.")
    if len({action.id for action in actions}) < len(actions):
        raise InvalidRequestError("Two actions of the notification have the same id.")
    for action in actions:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", action.id):
            raise InvalidRequestError("An action's id is 1 to 64 letters, digits and the signs _ . -")
        if not 0 < len(action.label) <= 64:
            raise InvalidRequestError("An action's label has 1 to 64 characters.")
    return tuple(Action(id=action.id, label=action.label) for action in actions)


def make_data(protocol: str, payload: bytes, version: int, metadata: Mapping[str, str] | None) -> Data:
    """Data as they go on the wire.

    :raises InvalidRequestError: something is too long, or not a protocol's name or version.
    """
    check_protocol_name(protocol)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidRequestError(f"The data have {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} can be sent.")
    entries = dict(metadata or {})
    if len(entries) > 16 or any(not 0 < len(k) <= 64 or len(v) > 256 for k, v in entries.items()):
        raise InvalidRequestError("The metadata have too many entries, or too long ones.")
    if not 0 < version < 65536:
        raise InvalidRequestError("The version of a protocol is a number from 1 to 65535.")
    return Data(protocol=protocol, version=version, payload=bytes(payload), metadata=entries)


def shown(data: bytes | None) -> tuple[str, str]:
    """Kind and text of a message in the outbox."""
    try:
        message: Data | Text | Notification | Chosen = decode(
            data or b"", Data | Text | Notification | Chosen, max_bytes=MAX_MESSAGE_BYTES
        )
    except SerializationError:
        return "unreadable", ""
    match message:
        case Text(text=text):
            return "text", text
        case Notification(title=title):
            return "notification", title
        case Chosen(action=action):
            return "choice", action.label
        case Data(protocol=protocol):
            return "data", protocol


def check_delivery(device: RemoteDevice, delivery: Delivery) -> None:
    """Raise if a message did not get there.

    :raises NetworkingError: says why.
    """
    match delivery.outcome:
        case DeliveryOutcome.DELIVERED:
            return
        case DeliveryOutcome.EXPIRED:
            raise NetworkTimeoutError(f"The message was not delivered to {device.name} within its time to live.")
        case DeliveryOutcome.REFUSED:
            raise RefusedError(f"{device.name} does not take the message.")
        case DeliveryOutcome.FAILED:
            raise ProtocolError(f"{device.name} got the message, but what takes it there failed.")
