"""Ping, text messages, notifications and data between paired devices.

Another plugin uses it so::

    from sdnet_messaging import MessagingService

    messaging = ctx.get_service(MessagingService)
    await messaging.send_text(device.device_id, "dinner is ready")
    with messaging.on_data("shopping-list", take_list):
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import DataHandler
    from .records import (
        ActionChosen,
        Choice,
        DataReceived,
        InboxMessage,
        MessageUndelivered,
        NotificationReceived,
        OutboxMessage,
        Receipt,
        TextReceived,
    )
    from .service import MessagingService

_HOMES = {
    "ActionChosen": "records",
    "Choice": "records",
    "DataHandler": "data",
    "DataReceived": "records",
    "InboxMessage": "records",
    "MessageUndelivered": "records",
    "MessagingService": "service",
    "NotificationReceived": "records",
    "OutboxMessage": "records",
    "Receipt": "records",
    "TextReceived": "records",
}

__all__ = [
    "ActionChosen",
    "Choice",
    "DataHandler",
    "DataReceived",
    "InboxMessage",
    "MessageUndelivered",
    "MessagingService",
    "NotificationReceived",
    "OutboxMessage",
    "Receipt",
    "TextReceived",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line loads every plugin's package and must stay quick.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
