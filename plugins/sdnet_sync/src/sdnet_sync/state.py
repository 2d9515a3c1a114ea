"""One entry as all replicas see it: per field the writes that none of the others had seen (pure).

A write replaces the writes that its author had seen; two that had not seen each other stand side by side until one
comes that has seen both. Batches are applied in causal order, so a new write is never older than what it meets, and
every order of arrival gives the same result. A deletion is a write, too: the entry stays deleted beside concurrent
edits, which are kept for a person to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cbor2

from sdnet_core.errors import SerializationError
from sdnet_core.wire import decode_values

from .limits import MAX_FIELDS, MAX_MEMBERS
from .values import is_value
from .vectors import Vector

__all__ = [
    "CONFLICT",
    "DELETED",
    "VISIBLE",
    "EntryState",
    "Write",
    "decode_foreign_state",
    "decode_state",
    "encode_state",
    "merge_states",
]

VISIBLE, CONFLICT, DELETED = 1, 2, 4
_EXACT = frozenset((str, bytes, bool, int, type(None)))
"""What deterministic and ordinary encoding write alike."""


class Write(NamedTuple):
    """A value and its place in the history; sorts from the earliest to the latest.

    :param stamp: hybrid logical time.
    :param author: the device, which breaks ties.
    :param sequence: of the author's batch.
    """

    stamp: int
    author: bytes
    sequence: int
    value: Any = None


@dataclass(slots=True)
class EntryState:
    """An entry's fields, each with its concurrent writes, earliest first, and its concurrent deletions."""

    kind: str
    id: str
    fields: dict[str, list[Write]] = field(default_factory=dict)
    deletions: list[Write] = field(default_factory=list)

    def copy(self) -> EntryState:
        """A copy whose lists can be replaced (they are never changed in place)."""
        return EntryState(self.kind, self.id, dict(self.fields), self.deletions)

    @property
    def visible(self) -> bool:
        """Whether it is there for those who ask."""
        return bool(self.fields) and not self.deletions

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.fields and not self.deletions

    @property
    def conflicted(self) -> bool:
        """Whether writes stand side by side."""
        if self.deletions and self.fields:
            return True
        for writes in self.fields.values():
            if len(writes) > 1:
                return True
        return False

    @property
    def flags(self) -> int:
        """What the database selects by."""
        if self.deletions:
            return DELETED | (CONFLICT if self.conflicted else 0)
        return (VISIBLE if self.fields else 0) | (CONFLICT if self.conflicted else 0)

    def put(self, values: Mapping[str, Any], stamp: int, author: bytes, sequence: int, seen: Vector) -> None:
        """Apply a write of some fields.

        :param seen: what the author had seen when it wrote.
        """
        fields = self.fields
        for name, value in values.items():
            write = Write._make((stamp, author, sequence, value))  # half the time of naming them
            known = fields.get(name)
            kept = _unseen(known, author, seen) if known else None
            fields[name] = sorted([*kept, write], key=_place) if kept else [write]
        if self.deletions:
            self.deletions = _unseen(self.deletions, author, seen)

    def delete(self, stamp: int, author: bytes, sequence: int, seen: Vector) -> None:
        """Apply a deletion."""
        kept = ((name, _unseen(writes, author, seen)) for name, writes in self.fields.items())
        self.fields = {name: writes for name, writes in kept if writes}
        write = Write(stamp, author, sequence)
        self.deletions = sorted([*_unseen(self.deletions, author, seen), write], key=_place)

    def writes(self) -> list[Write]:
        """All that are there."""
        return [*self.deletions, *(write for writes in self.fields.values() for write in writes)]

    def restricted(self, keep: Callable[[Write], bool]) -> EntryState:
        """What is left of it without some writes."""
        kept = ((name, [write for write in writes if keep(write)]) for name, writes in self.fields.items())
        return EntryState(
            self.kind,
            self.id,
            {name: writes for name, writes in kept if writes},
            [write for write in self.deletions if keep(write)],
        )


def _place(write: Write) -> tuple[int, bytes, int]:
    return write[:3]


def _unseen(writes: list[Write], author: bytes, seen: Vector) -> list[Write]:
    return [w for w in writes if w.author != author and w.sequence > seen.get(w.author, 0)]


def merge_states(
    ours: EntryState | None,
    theirs: EntryState | None,
    *,
    have: Callable[[Write], bool],
    lacks: Callable[[Write], bool],
) -> EntryState | None:
    """Join what two replicas know of an entry that were not brought together batch by batch.

    :param have: whether we knew of a write of theirs; if we did and do not hold it, it was replaced.
    :param lacks: whether they did not know of a write of ours; if they did and do not hold it, it was replaced.
    :returns: None if nothing is left.
    """
    if ours is None and theirs is not None:
        merged = theirs.restricted(lambda write: not have(write))
    elif theirs is None and ours is not None:
        merged = ours.restricted(lacks)
    else:
        assert ours is not None
        assert theirs is not None
        merged = EntryState(ours.kind, ours.id)
        for name in sorted({*ours.fields, *theirs.fields}):
            writes = _join(ours.fields.get(name, []), theirs.fields.get(name, []), have, lacks)
            if writes:
                merged.fields[name] = writes
        merged.deletions = _join(ours.deletions, theirs.deletions, have, lacks)
    return None if merged.empty else merged


def _join(
    ours: list[Write], theirs: list[Write], have: Callable[[Write], bool], lacks: Callable[[Write], bool]
) -> list[Write]:
    our_places, their_places = set(map(_place, ours)), set(map(_place, theirs))
    kept = [write for write in theirs if _place(write) in our_places or not have(write)]
    kept += [write for write in ours if _place(write) not in their_places and lacks(write)]
    return sorted(kept, key=_place)


def encode_state(state: EntryState) -> bytes:
    """The one form of an entry's state, the same on all replicas: deterministic CBOR.

    ``[kind, id, [[author, sequence, stamp] …], {field: [[index of the write, value] …]}, [index of a deletion …]]``
    """
    plain = _encode_plain(state)
    if plain is not None:
        return plain
    places = sorted({write[:3] for write in state.writes()})
    index = {place: number for number, place in enumerate(places)}
    value: list[Any] = [
        state.kind,
        state.id,
        [[author, sequence, stamp] for stamp, author, sequence in places],
        {name: [[index[w[:3]], w.value] for w in writes] for name, writes in state.fields.items()},
        [index[w[:3]] for w in state.deletions],
    ]
    return cbor2.dumps(value, canonical=True)


def _encode_plain(state: EntryState) -> bytes | None:
    """The same for the most frequent case, several times as fast: one write of scalars, nothing side by side."""
    if state.deletions:
        return None
    place: tuple[int, bytes, int] | None = None
    fields: dict[str, Any] = {}
    for name, writes in state.fields.items():
        if len(writes) != 1:
            return None
        stamp, author, sequence, value = writes[0]
        if place is None:
            place = stamp, author, sequence
        elif place != (stamp, author, sequence):
            return None
        if type(value) not in _EXACT or not name.isascii():
            return None
        fields[name] = [[0, value]]
    if place is None:
        return None
    stamp, author, sequence = place
    # Deterministic CBOR sorts keys by length first, then by their bytes; the rest is the same either way.
    ordered = {name: fields[name] for name in sorted(fields, key=_by_length)}
    return cbor2.dumps([state.kind, state.id, [[author, sequence, stamp]], ordered, []])


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def decode_state(data: bytes) -> EntryState:
    """Read what `encode_state` wrote, and came from our own disk."""
    return _state(cbor2.loads(data))


def decode_foreign_state(data: bytes, *, max_bytes: int) -> EntryState:
    """Read what another device says `encode_state` wrote.

    :raises SerializationError: it is not that.
    """
    value: Any = decode_values(data, max_bytes=max_bytes)
    try:
        state = _state(value)
        sound = (
            type(state.kind) is str
            and type(state.id) is str
            and not state.empty
            and len(state.fields) <= MAX_FIELDS * MAX_MEMBERS
            and all(type(name) is str and writes for name, writes in state.fields.items())
            and encode_state(state) == data
        )
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise SerializationError("An entry of a snapshot is malformed.") from error
    if not sound:
        raise SerializationError("An entry of a snapshot is not in its one form.")
    for write in state.writes():
        numbers = type(write.sequence) is int and type(write.stamp) is int and write.sequence > 0 and write.stamp > 0
        if type(write.author) is not bytes or len(write.author) != 16 or not numbers or not is_value(write.value):
            raise SerializationError("An entry of a snapshot is impossible.")
    return state


def _state(value: Any) -> EntryState:
    kind, entry_id, places, fields, deletions = value
    if len(places) == 1:
        [(author, sequence, stamp)] = places
        first = (stamp, author, sequence)
        return EntryState(
            kind,
            entry_id,
            {name: [_at(first, number, item) for number, item in writes] for name, writes in fields.items()},
            [_at(first, number) for number in deletions],
        )
    writes_at = [(stamp, author, sequence) for author, sequence, stamp in places]
    return EntryState(
        kind,
        entry_id,
        {name: [_at(writes_at[number], 0, item) for number, item in writes] for name, writes in fields.items()},
        [_at(writes_at[number], 0) for number in deletions],
    )


def _at(place: tuple[int, bytes, int], number: int, value: Any = None) -> Write:
    if number != 0:
        raise IndexError(number)
    stamp, author, sequence = place
    return Write(stamp, author, sequence, value)
