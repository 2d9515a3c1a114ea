"""One entry as all replicas see it: per field the writes that none of the others had seen (pure).

A write replaces the writes that its author had seen; two that had not seen each other stand side by side until one
comes that has seen both. Batches are applied in causal order, so a new write is never older than what it meets, and
every order of arrival gives the same result. A deletion is a write, too: the entry stays deleted beside concurrent
edits, which are kept for a person to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cbor2

from sdnet_core.errors import SerializationError
from sdnet_core.wire import decode_values

from .encoding import array_head, encode_state_of_one_write
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
    "decode_foreign_states",
    "decode_state",
    "encode_state",
    "merge_states",
]

VISIBLE, CONFLICT, DELETED = 1, 2, 4
_NAMES = frozenset((str,))


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
        found = list(self.deletions)
        for writes in self.fields.values():
            found += writes
        return found

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
    simple = _encode_simple(state)
    if simple is not None:
        return simple
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


def _encode_simple(state: EntryState) -> bytes | None:
    """The same for the most frequent case, many times as fast: all is from one write, with nothing beside it."""
    if state.deletions or not state.fields:
        return None
    place: tuple[int, bytes, int] | None = None
    values: dict[str, Any] = {}
    for name, writes in state.fields.items():
        if len(writes) != 1:
            return None
        stamp, author, sequence, value = writes[0]
        if place is None:
            place = stamp, author, sequence
        elif place != (stamp, author, sequence):
            return None
        values[name] = value
    return encode_state_of_one_write(state.kind, state.id, author, sequence, stamp, values)


def decode_state(data: bytes) -> EntryState:
    """Read what `encode_state` wrote, and came from our own disk."""
    return _state(cbor2.loads(data))


def decode_foreign_state(data: bytes, *, max_bytes: int) -> EntryState:
    """Read what another device says `encode_state` wrote.

    :raises SerializationError: it is not that.
    """
    return decode_foreign_states([data], max_bytes=max_bytes)[0]


def decode_foreign_states(states: Sequence[bytes], *, max_bytes: int) -> list[EntryState]:
    """Read what another device says `encode_state` wrote, many at once, which costs a fraction of one by one.

    :param max_bytes: of all together.
    :raises SerializationError: one of them is not that.
    """
    head = array_head(len(states))
    values: Any = decode_values(head + b"".join(states), max_bytes=len(head) + max_bytes)
    # Each is compared with its own bytes, so none can reach into another's.
    return [_checked(value, data) for value, data in zip(values, states, strict=True)]


def _checked(value: Any, data: bytes) -> EntryState:
    try:
        state = _state(value)
        sound = (
            type(state.kind) is str
            and type(state.id) is str
            and not state.empty
            and len(state.fields) <= MAX_FIELDS * MAX_MEMBERS
            and set(map(type, state.fields)) <= _NAMES
            and all(state.fields.values())
            and encode_state(state) == data
        )
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise SerializationError("An entry of a snapshot is malformed.") from error
    if not sound:
        raise SerializationError("An entry of a snapshot is not in its one form.")
    known: Any = None
    for writes in (state.deletions, *state.fields.values()):
        for stamp, author, sequence, written in writes:
            if known != (stamp, author, sequence):
                known = stamp, author, sequence
                numbers = type(sequence) is int and type(stamp) is int and sequence > 0 and stamp > 0
                if type(author) is not bytes or len(author) != 16 or not numbers:
                    raise SerializationError("An entry of a snapshot is impossible.")
            if not is_value(written):
                raise SerializationError("An entry of a snapshot is impossible.")
    return state


def _state(value: Any) -> EntryState:
    kind, entry_id, places, fields, deletions = value
    if len(places) == 1 and not deletions:
        [(author, sequence, stamp)] = places
        make = Write._make
        result = {}
        for name, [(number, item)] in fields.items():
            if number != 0:
                raise IndexError(number)
            result[name] = [make((stamp, author, sequence, item))]
        return EntryState(kind, entry_id, result, [])
    writes_at = [(stamp, author, sequence) for author, sequence, stamp in places]
    return EntryState(
        kind,
        entry_id,
        {name: [Write._make((*writes_at[number], item)) for number, item in writes] for name, writes in fields.items()},
        [Write(*writes_at[number]) for number in deletions],
    )
