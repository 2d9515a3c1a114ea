"""What goes over the wire of ``/sdnet/file-fetch/1``: asking for files that a device shares.

What answers `FetchItems` is a transfer in the other direction, on the same stream.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Bytes16, Message, decode, encode

from .messages import CONTROL, MAX_DEPTH, MAX_REASON_LENGTH, Component
from .shares import Entry

__all__ = [
    "MAX_ENTRIES",
    "PROTOCOL_NAME",
    "FetchFailure",
    "FetchGoOn",
    "FetchItems",
    "FetchList",
    "FetchListing",
    "FetchMessage",
    "decode_fetch",
    "encode_fetch",
]

PROTOCOL_NAME: Final = "file-fetch"
MAX_ENTRIES: Final = 1000
"""Most entries in one listing."""
_MAX_BYTES: Final = 1 << 20

Path = Annotated[tuple[Component, ...], msgspec.Meta(max_length=MAX_DEPTH)]


class FetchList(Message, frozen=True, kw_only=True, tag=1):
    """Asks what lies in a folder.

    :param path: the share's name first; empty for the shares themselves.
    :param after: only entries behind this name.
    """

    path: Path
    after: Annotated[str, msgspec.Meta(max_length=255)]


class FetchListing(Message, frozen=True, kw_only=True, tag=2):
    """Entries in the order of their names.

    :param more: there are others behind them.
    """

    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_ENTRIES)]
    more: bool


class FetchItems(Message, frozen=True, kw_only=True, tag=3):
    """Asks for a file or a folder.

    :param transfer_id: of the transfer that brings it; the same again to go on after a lost connection.
    :param path: the share's name first.
    """

    transfer_id: Bytes16
    path: Annotated[tuple[Component, ...], msgspec.Meta(min_length=1, max_length=MAX_DEPTH)]


class FetchGoOn(Message, frozen=True, kw_only=True, tag=4):
    """Says that a transfer is no longer paused here; there is no answer."""

    transfer_id: Bytes16


class FetchFailure(Message, frozen=True, kw_only=True, tag=5):
    """There is nothing to list.

    :param code: ``not-found`` or ``refused``.
    """

    code: Annotated[str, msgspec.Meta(max_length=32, pattern=r"\A[a-z-]*\Z")]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_LENGTH)]


FetchMessage: TypeAlias = FetchList | FetchListing | FetchItems | FetchGoOn | FetchFailure


def encode_fetch(message: Message) -> bytes:
    """A whole control record."""
    return bytes((CONTROL,)) + encode(message)


def decode_fetch(record: bytes) -> FetchMessage:
    """Open a control record.

    :raises SerializationError: it is none, or holds no valid message.
    """
    if not record or record[0] != CONTROL:
        raise SerializationError("A request for files was expected.")
    message: FetchMessage = decode(memoryview(record)[1:], FetchMessage, max_bytes=_MAX_BYTES)
    return message
