"""One transaction on a library: entries change in memory first and go to the database together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sdnet_core.errors import ConflictError, RefusedError
from sdnet_core.wire import encode

from .fingerprints import entry_hash
from .limits import MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS
from .members import RoleWrite
from .operations import BatchBody, Delete, EntryOperation, Membership, Operation, Put, Role, sign_batch
from .standing import NO_HEAD, Head
from .state import EntryState, encode_state
from .store import LIBRARY_KIND, STRATEGY_KIND, UNIQUE_KIND, Store
from .vectors import Vector, merged

__all__ = ["SETTINGS", "Changed", "Transaction", "needed_role", "size_of"]

_CHUNK = 500
_UPSERT = (
    "INSERT INTO entry (key, kind, flags, hash, sealed) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
    "SET kind = excluded.kind, flags = excluded.flags, hash = excluded.hash, sealed = excluded.sealed"
)
SETTINGS = (STRATEGY_KIND, UNIQUE_KIND, LIBRARY_KIND)


@dataclass(frozen=True, slots=True)
class Changed:
    """An entry that a transaction changed.

    :param author: device id of the one who changed it last.
    """

    key: bytes
    state: EntryState
    author: bytes
    was_visible: bool


@dataclass(slots=True)
class _Slot:
    state: EntryState
    old_hash: bytes | None
    old_flags: int
    stored: bool
    author: bytes = b""
    dirty: bool = False
    encoded: bytes | None = None


def needed_role(operation: Operation, author: bytes) -> Role:
    """What an author must be for an operation."""
    match operation:
        case Membership():
            return Role.READER if operation.device == author else Role.OWNER
        case _:
            return Role.OWNER if operation.kind.startswith("$") else Role.WRITER


class Transaction:
    """Work on a store within `Store.changing`; `finish` it in the end."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._slots: dict[bytes, _Slot] = {}
        self._absent: set[bytes] = set()
        self._claims: dict[bytes, set[bytes]] = {}
        self._settings_changed = False
        self._ours: list[Operation] = []
        self._our_bytes = 0
        self._our_stamp = 0
        self.acknowledge = False
        """Whether to tell the others what we have, for they may need to know."""

    # Our own operations

    def add(self, operations: Sequence[Operation], size: int, *, strict: bool = True) -> None:
        """Add operations of our own; they are in force for what follows in this transaction.

        :param size: at least how many bytes they take.
        :param strict: refuse what breaks a constraint.
        :raises ConflictError: a value that must be unique is taken; nothing was done.
        :raises RefusedError: our role does not allow it.
        """
        store = self.store
        role = store.members.role(store.device)
        for operation in operations if role < Role.OWNER else ():
            if role < needed_role(operation, store.device):
                raise RefusedError(f"This device is a {role.name.lower()} of the library and may not do that.")
        if self._our_bytes + size > MAX_BATCH_BYTES or len(self._ours) + len(operations) > MAX_BATCH_OPERATIONS:
            self.end_batch()
        if strict and store.unique:
            self._check_unique([o for o in operations if isinstance(o, Put)])
        sequence = self._head().sequence + 1
        seen = self._seen()
        keys = [b"" if isinstance(o, Membership) else store.key(o.kind, o.id) for o in operations]
        self.prefetch(filter(None, keys))
        for key, operation in zip(keys, operations, strict=True):
            stamp = store.clock.follow() if self._ours else store.clock.take()
            if not self._ours:
                self._our_stamp = stamp
            self._ours.append(operation)
            if not isinstance(operation, Membership):
                self.apply(key, operation, stamp, store.device, sequence, seen)
        self._our_bytes += size

    def end_batch(self, *, empty: bool = False) -> None:
        """Sign what was added since the last batch as one.

        :param empty: also if nothing was, to acknowledge what we have.
        """
        if not self._ours and not empty:
            return
        store, head = self.store, self._head()
        seen = self._seen()
        body = BatchBody(
            library=store.keys.library,
            author=store.device,
            sequence=head.sequence + 1,
            stamp=self._our_stamp if self._ours else store.clock.take(),
            previous=head.hash,
            seen={author: n for author, n in seen.items() if n > head.seen.get(author, 0)},
            operations=tuple(self._ours),
        )
        batch, digest = sign_batch(body, store.sign)
        self.record(body, batch, digest, seen)
        self._ours, self._our_bytes = [], 0

    def _head(self) -> Head:
        return self.store.heads.get(self.store.device, NO_HEAD)

    def _seen(self) -> dict[bytes, int]:
        ours = self.store.device
        return {author: head.sequence for author, head in self.store.heads.items() if author != ours and head.sequence}

    # Anybody's operations

    def record(self, body: BatchBody, batch: Any, digest: bytes, seen: Vector) -> None:
        """Take a batch whose entries were applied into log and heads."""
        store = self.store
        old = store.heads.get(body.author, NO_HEAD)
        head = Head(
            sequence=body.sequence,
            hash=digest,
            stamp=body.last_stamp,
            seen=seen,
            base=old.base,
            written=body.sequence if body.operations else old.written,
        )
        store.set_head(body.author, head)
        store.add_log(body.author, body.sequence, body.last_stamp, batch)
        roles = [operation for operation in body.operations if isinstance(operation, Membership)]
        if roles:
            known = merged(seen, {body.author: body.sequence - 1})
            store.add_membership([RoleWrite(body.author, body.sequence, known, role) for role in roles])
            for role in roles:
                self._check_standing(role)

    def _check_standing(self, role: Membership) -> None:
        """If we took more from a device than the one who removed it knew of, the others must learn that, or we forget.

        What a writer has seen counts; a reader cannot vouch for anything, and takes the others' word for it.
        """
        store = self.store
        if role.role >= Role.WRITER or role.device == store.device:
            return
        if store.heads.get(role.device, NO_HEAD).sequence <= max(
            role.through, store.members.vouched.get(role.device, 0)
        ):
            return
        ours = store.members.role(store.device)
        if ours >= Role.WRITER:
            self.acknowledge = True
        elif ours is Role.READER:
            store.rebuild = True
            store.set_meta("rebuild", b"1")

    def apply_all(
        self, operations: Iterable[Operation], stamp: int, author: bytes, sequence: int, seen: Vector
    ) -> None:
        """Apply a batch's operations on entries, stamped one after the other."""
        key_of = self.store.key
        entries = [
            (key_of(operation.kind, operation.id), stamp + index, operation)
            for index, operation in enumerate(operations)
            if not isinstance(operation, Membership)
        ]
        self.prefetch([key for key, _, _ in entries])
        for key, at, operation in entries:
            self.apply(key, operation, at, author, sequence, seen)

    def apply(
        self, key: bytes, operation: EntryOperation, stamp: int, author: bytes, sequence: int, seen: Vector
    ) -> None:
        """Apply one operation on an entry, which was prefetched."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(EntryState(operation.kind, operation.id), None, 0, False, dirty=True)
        elif not slot.dirty:
            slot.state = slot.state.copy()
            slot.dirty = True
        slot.author, slot.encoded = author, None
        if isinstance(operation, Delete) or operation.fields is None:
            slot.state.delete(stamp, author, sequence, seen)
        else:
            slot.state.put(operation.fields, stamp, author, sequence, seen)
        if operation.kind in SETTINGS:
            self._settings_changed = True

    def replace_state(
        self, key: bytes, state: EntryState | None, author: bytes = b"", *, encoded: bytes | None = None
    ) -> None:
        """Put a whole entry in the place of what is there.

        :param state: None to forget it.
        :param encoded: its encoded form, if that is at hand.
        """
        slot = self._slots[key]
        slot.state = state or EntryState(slot.state.kind, slot.state.id)
        slot.dirty, slot.author, slot.encoded = True, author, encoded
        if slot.state.kind in SETTINGS:
            self._settings_changed = True

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """Read entries that are about to be needed."""
        wanted = [key for key in dict.fromkeys(keys) if key not in self._slots and key not in self._absent]
        self._absent.update(wanted)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT key, hash, flags, sealed FROM entry WHERE key IN ({marks})"
            for key, digest, flags, sealed in self.store.db.execute(query, chunk).fetchall():
                self._slots[key] = _Slot(self.store.open_entry(key, sealed), digest or None, flags, True)

    def state(self, key: bytes) -> EntryState | None:
        """An entry as it stands in this transaction; it was prefetched."""
        slot = self._slots.get(key)
        return None if slot is None or slot.state.empty else slot.state

    def hold(self, key: bytes, kind: str, entry_id: str) -> None:
        """Make room for an entry that was prefetched and not found."""
        if key not in self._slots:
            self._slots[key] = _Slot(EntryState(kind, entry_id), None, 0, False)

    # Unique values

    def _check_unique(self, puts: Iterable[Put]) -> None:
        together: dict[bytes, bytes] = {}
        for put in puts:
            for name in self.store.unique.get(put.kind, ()):
                value = put.fields.get(name)
                if value is None:
                    continue
                key = self.store.key(put.kind, put.id)
                tag = self.store.claim_tag(put.kind, name, value)
                if together.setdefault(tag, key) != key:
                    raise ConflictError(f"Two of these entries have the same {name}.")
                rows = self.store.db.execute("SELECT key FROM claim WHERE tag = ?", (tag,)).fetchall()
                for other in {row[0] for row in rows} | self._claims.get(tag, set()):
                    if other != key and self._holds(other, put.kind, name, value):
                        raise ConflictError(f"Another {put.kind} has this {name} already.")
                self._claims.setdefault(tag, set()).add(key)

    def _holds(self, key: bytes, kind: str, name: str, value: Any) -> bool:
        self.prefetch([key])
        slot = self._slots.get(key)
        if slot is None or not slot.state.visible or slot.state.kind != kind:
            return False
        return bool(slot.state.fields.get(name)) and slot.state.fields[name][-1].value == value

    # The end

    def finish(self, *, changes: bool) -> list[Changed]:
        """Write everything down.

        :param changes: whether somebody wants to know.
        :returns: what changed, if so.
        """
        self.end_batch()
        if self.acknowledge and self.store.members.role(self.store.device) > Role.NONE:
            self.end_batch(empty=True)
        result: list[Changed] = []
        upserts: list[tuple[Any, ...]] = []
        leaves = set()
        store = self.store
        for key, slot in self._slots.items():
            if not slot.dirty:
                continue
            state = slot.state
            if changes:
                result.append(Changed(key, state, slot.author, bool(slot.old_flags & 1)))
            self._claim(key, slot)
            if state.empty:
                if slot.stored:
                    store.db.execute("DELETE FROM entry WHERE key = ?", (key,))
                if slot.old_hash is not None:
                    leaves.add(store.leaves.change(key, slot.old_hash, None))
                continue
            encoded = slot.encoded or encode_state(state)
            # A deletion alone is forgotten by each replica in its own time, so it does not count for fingerprints.
            digest = entry_hash(encoded) if state.fields else None
            if digest != slot.old_hash:
                leaves.add(store.leaves.change(key, slot.old_hash, digest))
            sealed = store.sealer.seal(encoded, b"entry" + key)
            upserts.append((key, store.kind_number(state.kind), state.flags, digest or b"", sealed))
        upserts.sort(key=itemgetter(0))
        store.db.executemany(_UPSERT, upserts)
        sums = store.leaves.sums
        store.db.executemany(
            "INSERT OR REPLACE INTO leaf VALUES (?, ?)", [(leaf, sums[leaf].to_bytes(16, "big")) for leaf in leaves]
        )
        self._slots = {}
        if self._settings_changed:
            before = store.unique
            store.load_settings()
            for kind, names in store.unique.items():
                if before.get(kind) != names:
                    self._claim_all(kind)
        return result

    def _claim(self, key: bytes, slot: _Slot) -> None:
        names = self.store.unique.get(slot.state.kind)
        if not names:
            return
        if slot.stored:
            self.store.db.execute("DELETE FROM claim WHERE key = ?", (key,))
        if slot.state.visible:
            self.store.db.executemany("INSERT OR IGNORE INTO claim VALUES (?, ?)", self._tags(key, slot.state, names))

    def _tags(self, key: bytes, state: EntryState, names: Iterable[str]) -> list[tuple[bytes, bytes]]:
        values = [(name, state.fields[name][-1].value) for name in names if name in state.fields]
        return [(self.store.claim_tag(state.kind, name, value), key) for name, value in values if value is not None]

    def _claim_all(self, kind: str) -> None:
        """Note the unique values of all entries of a kind, a page at a time."""
        store, after = self.store, 0
        names = store.unique[kind]
        number = store.kinds.get(kind)
        while number is not None:
            rows = store.db.execute(
                "SELECT number, key, sealed FROM entry WHERE kind = ? AND number > ? AND flags & 1"
                " ORDER BY number LIMIT 500",
                (number, after),
            ).fetchall()
            if not rows:
                return
            for _, key, sealed in rows:
                tags = self._tags(key, store.open_entry(key, sealed), names)
                store.db.execute("DELETE FROM claim WHERE key = ?", (key,))
                store.db.executemany("INSERT OR IGNORE INTO claim VALUES (?, ?)", tags)
            after = rows[-1][0]


def size_of(operation: EntryOperation) -> int:
    """At least the encoded length of an operation, bytes; exact for long ones.

    :raises UnicodeEncodeError: a text in it is not valid Unicode.
    """
    if isinstance(operation, Delete) or operation.fields is None:
        return 16 + _name_size(operation.kind) + _text_size(operation.id)
    size = 16 + _name_size(operation.kind) + _text_size(operation.id)
    for name, value in operation.fields.items():
        kind = type(value)
        size += 10 + _name_size(name)
        if kind is str:
            size += _text_size(value)
        elif kind is list or kind is dict or kind is bytes:
            return len(encode(operation))
    return size


@lru_cache(maxsize=1024)
def _name_size(text: str) -> int:
    """Names of kinds and fields are the same again and again."""
    return _text_size(text)


def _text_size(text: str) -> int:
    return 5 + (len(text) if text.isascii() else len(text.encode()))
