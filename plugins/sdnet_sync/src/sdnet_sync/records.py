"""What the sync service gives to its callers: entries, changes, members, conflicts, events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdnet_core.events import NetworkEvent

__all__ = [
    "AccessRequested",
    "Change",
    "Conflict",
    "Entry",
    "Invitation",
    "LibraryChanged",
    "LibraryInvitation",
    "LibraryRemoved",
    "LibraryStatus",
    "MemberInfo",
    "Request",
    "SyncRefused",
    "Value",
    "Verification",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a library as it stands.

    :param modified_at: of its latest change, by the author's clock, seconds since the epoch.
    :param author: device id of who made that.
    :param conflicted: whether devices changed it without knowing of each other and nobody has settled that.
    """

    kind: str
    id: str
    fields: Mapping[str, Any] = field(repr=False)
    modified_at: float
    author: uuid.UUID
    conflicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something in a library changed.

    :param entry: as it is now; None if it is gone.
    :param author: device id of who changed it.
    :param reset: so much changed that it was not told one by one: query anew. Nothing else is filled in then.
    """

    kind: str = ""
    id: str = ""
    entry: Entry | None = None
    author: uuid.UUID | None = None
    reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One side of a conflict.

    :param index: names it in `Library.resolve`.
    :param deletes: it is the deletion of the entry, and has no value.
    """

    index: int
    value: Any = field(repr=False)
    author: uuid.UUID
    at: float
    deletes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Changes whose authors did not know of each other.

    :param field: empty if an entry was deleted and changed, or if entries claim the same unique value.
    :param sides: earliest first.
    :param settled: a strategy decides what counts; else a person has to.
    :param strategy: which one it is.
    :param others: ids of the other entries that claim the same unique value.
    """

    kind: str
    id: str
    field: str
    sides: tuple[Value, ...]
    settled: bool
    strategy: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    """A member of a library.

    :param behind: how many batches of ours it is not known to have; None if it is not connected.
    """

    device_id: uuid.UUID
    name: str
    role: str
    connected: bool
    this_device: bool
    behind: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryStatus:
    """How a library stands on this device.

    :param state: ``invited``, ``joining``, ``active``, ``left`` or ``removed``.
    :param loading: a snapshot is being taken in.
    :param conflicts: entries in conflict.
    :param batches: kept in the log.
    :param size_bytes: on disk.
    """

    id: uuid.UUID
    name: str
    role: str
    state: str
    paused: bool
    loading: bool = False
    entries: int = 0
    conflicts: int = 0
    deletions: int = 0
    batches: int = 0
    size_bytes: int = 0
    members: tuple[MemberInfo, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Somebody asks this device's person to be a member of a library."""

    library_id: uuid.UUID
    name: str
    role: str
    device_id: uuid.UUID
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Another device's person asks to be invited.

    :param library: name or id, as they know it.
    """

    device_id: uuid.UUID
    device_name: str
    library: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How our replica compares with another device's.

    :param in_step: whether both have the same batches; if not, differences may only be on their way.
    :param differing: kinds and ids of entries that differ, at most 1,000.
    :param exchanged_bytes: what the comparison moved.
    :param repaired: how many entries were taken from the other device.
    """

    device_id: uuid.UUID
    device_name: str
    equal: bool
    in_step: bool
    differing: tuple[tuple[str, str], ...] = ()
    differing_count: int = 0
    exchanged_bytes: int = 0
    duration_s: float = 0.0
    repaired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryChanged(NetworkEvent):
    """Another device changed something in a library; `Library.watch` tells what."""

    kind = "library-changed"
    library_id: uuid.UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryInvitation(NetworkEvent):
    """A device invites us to a library; accept with `SyncService.accept`."""

    kind = "library-invitation"
    library_id: uuid.UUID
    name: str
    role: str
    device_id: uuid.UUID
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequested(NetworkEvent):
    """A device asks to be invited; answer with `SyncService.invite`."""

    kind = "library-access-requested"
    library: str
    role: str
    device_id: uuid.UUID
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryRemoved(NetworkEvent):
    """We are no longer a member of a library; what we had of it stays on this device."""

    kind = "library-removed"
    library_id: uuid.UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRefused(NetworkEvent):
    """Batches that a device sent do not count.

    :param author: device id of who they say they are from; None if they do not even say that.
    :param reason: such as ``bad-signature``, ``fork``, ``not-allowed``, ``removed``, ``future``, ``diverged``.
    """

    kind = "sync-refused"
    audited = True
    library_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    author: uuid.UUID | None
    sequence: int
    reason: str
    detail: str
