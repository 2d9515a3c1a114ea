"""What the folder service gives to its callers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

__all__ = ["FolderProgress", "FolderStatus", "HolderInfo", "LocationInfo", "TrashItem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderInfo:
    """A device's folder of a location, as the device itself last said.

    :param phase: what it does just now, if it says so: ``indexing``, ``fetching``; empty otherwise.
    :param files_done: of ``files_total``, in that phase.
    """

    device_id: uuid.UUID
    device_name: str
    state: str
    files: int
    size: int
    sequence: int
    updated_at: float
    this_device: bool
    phase: str = ""
    files_done: int = 0
    files_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStatus:
    """This device's folder of a location.

    :param state: ``starting``, ``indexing``, ``fetching``, ``ready``, ``absent``, ``paused`` or ``removed``.
    :param waiting: files whose contents are lacking.
    :param received_bytes: contents that came from others since the node started.
    :param problems: path and reason of what is left out or cannot be done.
    """

    path: str
    state: str
    files: int
    size: int
    waiting: int
    bytes_done: int
    bytes_total: int
    received_bytes: int
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocationInfo:
    """A location of a library.

    :param mode: ``index`` or ``mirror``.
    :param folder: this device's own; None if it has none.
    """

    library_id: uuid.UUID
    id: str
    name: str
    mode: str
    holders: tuple[HolderInfo, ...]
    folder: FolderStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderProgress:
    """How far a job is.

    :param finished: it is over; ``error`` says why if it failed.
    """

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    received_bytes: int = 0
    state: str = ""
    finished: bool = False
    error: str = ""
    paths: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashItem:
    """A file of a mirror that was deleted or replaced, and can be restored.

    :param number: names it.
    :param deleted: it was deleted; else replaced by a newer version.
    """

    number: int
    path: str
    size: int
    at: float
    deleted: bool
