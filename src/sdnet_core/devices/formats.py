"""How older versions stored what is kept of devices, and how that becomes what it is now.

======  ============================================================================================
format  what is new
======  ============================================================================================
1       the first one
2       ``connections/…`` say of every address when it last worked; ``history/…`` holds past connections
======  ============================================================================================
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..storage.migration import Step
from ..wire import Message, decode, encode
from .records import ConnectionRecord, KnownAddress

__all__ = ["CURRENT_FORMAT", "STEPS"]

CURRENT_FORMAT = 2
"""Of the sealed store; see `sdnet_core.storage.migration`."""


class _ConnectionRecord1(Message, frozen=True, kw_only=True, tag=2):
    """How a device was reached, in format 1."""

    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=16)] = ()
    last_seen: float = 0.0


def _connection_1_to_2(data: bytes) -> bytes | None:
    record: _ConnectionRecord1 | ConnectionRecord = decode(data, _ConnectionRecord1 | ConnectionRecord)
    if isinstance(record, ConnectionRecord):
        return None
    # When each of them worked is not known; not later than the device was last seen.
    worked_at = max(0, int(record.last_seen))
    known = tuple(KnownAddress(address, worked_at) for address in record.addresses if address)
    return encode(ConnectionRecord(known=known, last_seen=record.last_seen))


STEPS = {1: Step("connections", _connection_1_to_2)}
"""What makes the next format, by the one it starts from."""
