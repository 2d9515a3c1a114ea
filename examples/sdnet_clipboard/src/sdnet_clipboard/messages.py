"""What goes over the wire. Every length has a bound; what does not decode is refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
from sdnet_core.wire import Message

__all__ = ["MAX_MESSAGE_BYTES", "MAX_TEXT", "Clip"]

MAX_TEXT = 100_000
"""Characters in one clip; each takes up to four bytes."""
MAX_MESSAGE_BYTES = 4 * MAX_TEXT + 256


class Clip(Message, frozen=True, kw_only=True, tag=1):
    """What is on the clipboard.

    :param origin: the name of the device it was copied on.
    :param copied_at: when, seconds since the epoch; of two clips the later one counts.
    """

    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
    origin: Annotated[str, msgspec.Meta(max_length=64)]
    copied_at: Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
