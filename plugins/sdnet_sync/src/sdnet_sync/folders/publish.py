"""Writes what changed on a disk into the library, in one transaction with the check that nobody else changed it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..clock import stamp_time_s
from ..operations import Delete, EntryOperation, Put, Resolution, Role
from ..state import EntryState
from ..transaction import Transaction, size_of
from .entries import (
    CONTENT_FIELD,
    FILE_KIND,
    HOLDER_KIND,
    LOCATION_KIND,
    FileInfo,
    Mode,
    Version,
    conflict_name,
    effective,
    file_id,
    file_key,
    holder_id,
    key_of,
    moved,
    same_contents,
    versions_of,
)

__all__ = ["Change", "Outcome", "Publisher", "add_all", "losers_of", "resolver_of", "set_location", "settle"]

_TOGETHER = 1000
_TOGETHER_BYTES = 256 << 10
_MAX_NUMBER = 1000


class Outcome(Enum):
    """What became of a change."""

    DONE = "done"
    """The library has it now."""
    SAME = "same"
    """The library had it already, from somebody else."""
    CONFLICT = "conflict"
    """The library has something else, which somebody wrote meanwhile."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file that changed here.

    :param base: as it was when disk and library were the same; None if it was not there.
    :param new: as it is now; None if it is gone.
    """

    key: str
    base: FileInfo | None
    new: FileInfo | None


@dataclass(slots=True)
class Publisher:
    """Changes of one location, to be written in one transaction: call it with `Replica.work`.

    :param device: our device id.
    :param device_name: our name, for names of conflict copies.
    :param names: the names of the members.
    :param holder: what our entry of this location says, apart from its number.
    :ivar outcomes: what became of each change.
    :ivar copies: where the file goes that lost, by its key.
    :ivar saved: keys of versions of others that got a name of their own.
    :ivar sequence: of this update.
    """

    location: str
    mode: Mode
    device: bytes
    device_name: str
    names: Mapping[bytes, str]
    changes: Sequence[Change]
    holder: Mapping[str, Any]
    now_s: Callable[[], float] = time.time
    outcomes: list[Outcome] = field(default_factory=list)
    copies: dict[str, FileInfo] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    sequence: int = 0

    def __call__(self, transaction: Transaction) -> None:
        """Write them down.

        :raises RefusedError: this device may not write.
        """
        store = transaction.store
        self.outcomes, self.copies, self.saved = [], {}, []
        transaction.prefetch(store.key(FILE_KIND, file_id(self.location, change.key)) for change in self.changes)
        operations: list[EntryOperation] = []
        for change in self.changes:
            outcome, added = self._decide(transaction, change)
            self.outcomes.append(outcome)
            operations += added
        operations.append(self._holder(transaction))
        add_all(transaction, operations)

    def _decide(self, transaction: Transaction, change: Change) -> tuple[Outcome, list[EntryOperation]]:
        entry_id = file_id(self.location, change.key)
        state = state_of(transaction, entry_id)
        current, base, new = effective(state), change.base, change.new
        if self.mode is Mode.INDEX:
            if new is None:
                return Outcome.DONE, [Delete(FILE_KIND, entry_id)] if current is not None else []
            return Outcome.DONE, [] if current == new else [_put(entry_id, new)]
        if new is None:
            if current is None:
                return Outcome.DONE, []
            if base is None or not same_contents(current, base):
                return Outcome.CONFLICT, []
            return Outcome.DONE, [*self._save(transaction, state), Delete(FILE_KIND, entry_id)]
        if current is not None and same_contents(current, new):
            return Outcome.SAME, []
        if current is None or (base is not None and same_contents(current, base)):
            return Outcome.DONE, [*self._save(transaction, state), _put(entry_id, new)]
        day = time.strftime("%Y-%m-%d", time.gmtime(self.now_s()))
        copy, operations = copy_of(transaction, self.location, new, day, self.device_name)
        self.copies[change.key] = copy
        return Outcome.CONFLICT, operations

    def _save(self, transaction: Transaction, state: EntryState | None) -> list[EntryOperation]:
        """Whoever writes over versions that stand side by side gives those that lost a place of their own first."""
        saved = save_losers(transaction, self.location, state, self.names)
        self.saved += [key_of(operation.id) for operation in saved]
        return saved

    def _holder(self, transaction: Transaction) -> Put:
        entry_id = holder_id(self.location, self.device)
        key = transaction.store.key(HOLDER_KIND, entry_id)
        transaction.prefetch([key])
        state = transaction.state(key)
        writes = [] if state is None else state.fields.get("sequence", [])
        last = max((write.value for write in writes if type(write.value) is int), default=0)
        self.sequence = last + 1
        fields = {**self.holder, "sequence": self.sequence, "updated": int(self.now_s() * 1000)}
        return Put(HOLDER_KIND, entry_id, fields)


def resolver_of(versions: Sequence[Version], roles: Callable[[bytes], Role]) -> bytes:
    """Which device settles a conflict: the one whose version lost, or whoever is there in its place.

    :param roles: gives a device's role.
    """
    authors = [version.write.author for version in versions]
    return next((author for author in authors if roles(author) >= Role.WRITER), b"")


def losers_of(state: EntryState | None) -> list[Version]:
    """The versions that lost and that differ from the one that counts."""
    versions = versions_of(state)
    if len(versions) < 2:
        return []
    winner = versions[-1].info
    return [version for version in versions[:-1] if not same_contents(version.info, winner)]


def settle(
    transaction: Transaction, location: str, keys: Iterable[str], device: bytes, names: Mapping[bytes, str]
) -> list[str]:
    """Settle the conflicts that are ours to settle: what lost gets a name of its own.

    :returns: the keys of what got a name of its own.
    """
    store = transaction.store
    keys = list(keys)
    transaction.prefetch(store.key(FILE_KIND, file_id(location, key)) for key in keys)
    operations: list[EntryOperation] = []
    copies: list[str] = []
    for key in keys:
        entry_id = file_id(location, key)
        state = state_of(transaction, entry_id)
        versions = versions_of(state)
        if state is None or not state.conflicted or not versions:
            continue
        if resolver_of(versions, store.members.role) != device:
            continue
        saved = save_losers(transaction, location, state, names)
        copies += [key_of(operation.id) for operation in saved]
        operations += saved
        operations.append(Resolution(FILE_KIND, entry_id, {CONTENT_FIELD: versions[-1].info.value()}))
    add_all(transaction, operations)
    return copies


def save_losers(
    transaction: Transaction, location: str, state: EntryState | None, names: Mapping[bytes, str]
) -> list[EntryOperation]:
    """Give versions that lost entries of their own; their names are the same whoever does it."""
    operations: list[EntryOperation] = []
    for version in losers_of(state):
        day = time.strftime("%Y-%m-%d", time.gmtime(stamp_time_s(version.write.stamp)))
        name = names.get(version.write.author, "") or version.write.author.hex()[:8]
        operations += copy_of(transaction, location, version.info, day, name)[1]
    return operations


def copy_of(
    transaction: Transaction, location: str, info: FileInfo, day: str, device: str
) -> tuple[FileInfo, list[EntryOperation]]:
    """Find a name for a file that lost.

    :returns: the file there, and what makes it so; nothing if it is there already.
    """
    for number in range(_MAX_NUMBER):
        copy = moved(info, conflict_name(info.path, day, device, number))
        entry_id = file_id(location, file_key(copy.path, Mode.MIRROR))
        transaction.prefetch([transaction.store.key(FILE_KIND, entry_id)])
        there = effective(state_of(transaction, entry_id))
        if there is None:
            return copy, [_put(entry_id, copy)]
        if there.digest == info.digest:
            return there, []
    return info, []


def set_location(transaction: Transaction, location: str, fields: Mapping[str, Any]) -> None:
    """Write the entry of a location."""
    add_all(transaction, [Put(LOCATION_KIND, location, dict(fields))])


def add_all(transaction: Transaction, operations: Sequence[EntryOperation]) -> None:
    """Add operations in portions that fit into batches."""
    portion: list[EntryOperation] = []
    size = 0
    for operation in operations:
        added = size_of(operation)
        if portion and (size + added > _TOGETHER_BYTES or len(portion) >= _TOGETHER):
            transaction.add(portion, size)
            portion, size = [], 0
        portion.append(operation)
        size += added
    if portion:
        transaction.add(portion, size)


def state_of(transaction: Transaction, entry_id: str) -> EntryState | None:
    """A file's entry, which was prefetched."""
    return transaction.state(transaction.store.key(FILE_KIND, entry_id))


def _put(entry_id: str, info: FileInfo) -> Put:
    return Put(FILE_KIND, entry_id, {CONTENT_FIELD: info.value()})
