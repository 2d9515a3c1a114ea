"""What goes over the wire. Every length has a bound; what does not decode is refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
from sdnet_core.wire import Message

__all__ = ["MAX_MESSAGE_BYTES", "EchoAnswer", "EchoRequest"]

MAX_MESSAGE_BYTES = 64 * 1024


class EchoRequest(Message, frozen=True, kw_only=True, tag=1):
    """One device asks."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class EchoAnswer(Message, frozen=True, kw_only=True, tag=2):
    """The other one answers."""

    text: Annotated[str, msgspec.Meta(max_length=4096)]
