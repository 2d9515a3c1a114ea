"""What the node's event bus is told about folders."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

from ..library import Library

__all__ = ["IndexerProgress", "LocationUpdate", "progress_event"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerProgress(NetworkEvent):
    """A device, this one or another member, reads a folder or fetches files for it.

    :param phase: ``indexing``, ``fetching`` or ``done``.
    :param files_done: of ``files_total``.
    """

    kind = "indexer-progress"
    library_id: uuid.UUID
    location_id: str
    device_id: uuid.UUID
    phase: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocationUpdate(NetworkEvent):
    """A device changed files of a location.

    :param sequence: counts the updates of the device's folder; 0 for a change that belongs to none.
    :param timestamp: when it was written down there, seconds since the epoch.
    :param changes: paths and ``written`` or ``deleted``, at most 1,000.
    """

    kind = "location-update"
    library_id: uuid.UUID
    location_id: str
    device_id: uuid.UUID
    sequence: int
    timestamp: float
    changes: tuple[tuple[str, str], ...]


def progress_event(
    library: Library, location: str, device: bytes, phase: str, numbers: Sequence[int]
) -> IndexerProgress:
    """The event for how far a device's folder is.

    :param numbers: files done and in all, bytes done and in all.
    """
    files_done, files_total, bytes_done, bytes_total = numbers
    return IndexerProgress(
        library_id=library.id,
        location_id=location,
        device_id=uuid.UUID(bytes=device),
        phase=phase,
        files_done=files_done,
        files_total=files_total,
        bytes_done=bytes_done,
        bytes_total=bytes_total,
    )
