"""Whole libraries for devices that are new or too far behind: read page by page, taken in page by page."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import cbor2

from sdnet_core.errors import ProtocolError

from .fingerprints import LeafSums
from .limits import MAX_MESSAGE_BYTES, MAX_PUSH_BYTES
from .members import RoleWrite
from .messages import HeadRecord, RoleRecord, SnapshotBegin, SnapshotPage
from .operations import Role
from .standing import NO_HEAD, Head
from .state import EntryState, Write, decode_foreign_states, merge_states
from .store import Store
from .transaction import Transaction
from .vectors import merged

__all__ = ["SnapshotReader", "SnapshotWriter"]

LAST_KEY = b"\xff" * 16
MAX_STATE_BYTES = 32 << 20
"""Longest state of one entry that a snapshot brings."""
_PAGE_ENTRIES = 4096


class SnapshotReader:
    """Gives a library as it stood when this was opened. Blocks; for one worker thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._context: AbstractContextManager[sqlite3.Connection] = store.snapshot()
        self._db = self._context.__enter__()
        self._pages = self._read()

    def close(self) -> None:
        """Let go of the library."""
        self._context.__exit__(None, None, None)

    def begin(self) -> SnapshotBegin:
        """What comes first."""
        store = self._store
        query = "SELECT device, head, hash, stamp, seen, written FROM author WHERE head > 0 ORDER BY device"
        heads = [
            HeadRecord(device, head, digest, stamp, cbor2.loads(seen), written)
            for device, head, digest, stamp, seen, written in self._db.execute(query)
        ]
        vector = {head.author: head.sequence for head in heads}
        members = store.members
        sums = self._db.execute("SELECT number, sum FROM leaf").fetchall()
        (count,) = self._db.execute("SELECT COUNT(*) FROM entry").fetchone()
        return SnapshotBegin(
            library=store.keys.library,
            heads=tuple(heads),
            roles=tuple(
                RoleRecord(write.author, write.sequence, dict(write.seen), write.operation)
                for write in members.writes
                if write.known_to(vector)
            ),
            vouched=dict(members.vouched),
            root=LeafSums({number: int.from_bytes(total, "big") for number, total in sums}).root(),
            entries=count,
        )

    def next_page(self) -> SnapshotPage | None:
        """The next page, None after the last."""
        return next(self._pages, None)

    def _read(self) -> Iterator[SnapshotPage]:
        library, after = self._store.keys.library, b""
        states: list[bytes] = []
        size = 0
        while True:
            rows = self._db.execute(
                "SELECT key, sealed FROM entry WHERE key > ? ORDER BY key LIMIT ?", (after, _PAGE_ENTRIES)
            ).fetchall()
            for key, sealed in rows:
                state = self._store.sealer.open(sealed, b"entry" + key)
                while len(state) > MAX_PUSH_BYTES:
                    if states:
                        yield SnapshotPage(library=library, through=after or bytes(16), states=tuple(states))
                        states, size = [], 0
                    part, state = state[:MAX_PUSH_BYTES], state[MAX_PUSH_BYTES:]
                    yield SnapshotPage(library=library, through=after or bytes(16), states=(part,), continues=True)
                after = key
                states.append(state)
                size += len(state)
                if size >= MAX_PUSH_BYTES or len(states) >= _PAGE_ENTRIES:
                    yield SnapshotPage(library=library, through=after, states=tuple(states))
                    states, size = [], 0
            if not rows:
                break
        yield SnapshotPage(library=library, through=LAST_KEY, states=tuple(states))


@dataclass(slots=True)
class SnapshotWriter:
    """Takes a snapshot into a store. Each method runs in a transaction of its own.

    What we wrote and the other side has not got stays, and so does what we have of others beyond the snapshot, unless
    ours is to be rebuilt.
    """

    begin: SnapshotBegin
    rebuild: bool = False
    _cursor: bytes = b""
    _part: bytes = b""
    _have: dict[bytes, int] = field(default_factory=dict)
    _theirs: dict[bytes, int] = field(default_factory=dict)
    _our_device: bytes = b""

    def start(self, transaction: Transaction) -> None:
        """Remember that the library is not whole until `finish`.

        :raises ProtocolError: it is no snapshot of this library.
        """
        store = transaction.store
        if self.begin.library != store.keys.library:
            raise ProtocolError("The snapshot is of another library.")
        self._theirs = {head.author: head.sequence for head in self.begin.heads}
        if len(self._theirs) < len(self.begin.heads):
            raise ProtocolError("The snapshot names an author twice.")
        self._our_device = store.device
        self._have = {author: head.sequence for author, head in store.heads.items()}
        self._part = b""
        store.loading = True
        store.set_meta("snapshot", b"1")

    def add(self, transaction: Transaction, page: SnapshotPage) -> None:
        """Take in a page.

        :raises SerializationError: it is malformed.
        :raises ProtocolError: its entries are not where they belong.
        """
        states = list(page.states)
        if states and self._part:
            states[0] = self._part + states[0]
        self._part = states.pop() if page.continues and states else b""
        if len(self._part) > MAX_STATE_BYTES:
            raise ProtocolError("An entry of the snapshot is too long.")
        store, before = transaction.store, self._cursor
        rows = store.db.execute("SELECT key FROM entry WHERE key > ? AND key <= ?", (before, page.through)).fetchall()
        ours = {row[0] for row in rows}
        foreign: dict[bytes, tuple[EntryState, list[Write], bytes]] = {}
        decoded = decode_foreign_states(states, max_bytes=MAX_STATE_BYTES + 2 * MAX_MESSAGE_BYTES)
        for state, encoded in zip(decoded, states, strict=True):
            key = store.key(state.kind, state.id)
            if not self._cursor < key <= page.through:
                raise ProtocolError("The entries of the snapshot are not in order.")
            self._cursor = key
            writes = state.writes()
            if any(write.sequence > self._theirs.get(write.author, 0) for write in writes):
                raise ProtocolError("The snapshot holds a write that its sender says it has not got.")
            foreign[key] = state, writes, encoded
        if not page.continues:
            self._cursor = page.through
        transaction.prefetch(sorted(ours))
        for key in ours - foreign.keys() if not page.continues else ():
            transaction.replace_state(
                key, merge_states(transaction.state(key), None, have=self._knew, lacks=self._newer)
            )
        for key, (state, writes, encoded) in foreign.items():
            transaction.hold(key, state.kind, state.id)
            if key in ours or (self._have and any(map(self._knew, writes))):
                merged_state = merge_states(transaction.state(key), state, have=self._knew, lacks=self._newer)
                transaction.replace_state(key, merged_state, writes[-1].author)
            else:
                transaction.replace_state(key, state, writes[-1].author, encoded=encoded)

    def _knew(self, write: Write) -> bool:
        return not self.rebuild and write.sequence <= self._have.get(write.author, 0)

    def _newer(self, write: Write) -> bool:
        if self.rebuild and write.author != self._our_device:
            return False
        return write.sequence > self._theirs.get(write.author, 0)

    def finish(self, transaction: Transaction) -> None:
        """The library is whole.

        :raises ProtocolError: it is not what was promised.
        """
        if self._part or self._cursor != LAST_KEY:
            raise ProtocolError("The snapshot ended before its end.")
        store = transaction.store
        for record in self.begin.heads:
            self._take_head(store, record)
            store.clock.observe(record.stamp)
        if self.rebuild:
            for author in set(store.heads) - self._theirs.keys() - {store.device}:
                self._drop_log(store, author, store.heads[author].sequence)
                store.set_head(author, Head())
        self._take_roles(store)
        for author, sequence in self.begin.vouched.items():
            if sequence > store.members.vouched.get(author, 0):
                store.vouch(author, sequence)
        store.loading = store.rebuild = False
        store.set_meta("snapshot", None)
        store.set_meta("rebuild", None)
        # What we have now holds up what the others keep for us until they hear of it.
        transaction.acknowledge = store.members.role(store.device) > Role.NONE

    def _take_head(self, store: Store, record: HeadRecord) -> None:
        ours = store.heads.get(record.author, NO_HEAD)
        keep_ours = not self.rebuild or record.author == store.device
        if keep_ours and ours.sequence >= record.sequence:
            return
        self._drop_log(store, record.author, max(record.sequence, ours.sequence))
        store.set_head(
            record.author,
            Head(
                sequence=record.sequence,
                hash=record.hash,
                stamp=record.stamp,
                seen=record.seen,
                base=record.sequence,
                written=record.written,
            ),
        )

    def _drop_log(self, store: Store, author: bytes, through: int) -> None:
        number = store.numbers.get(author)
        if number is not None:
            store.db.execute("DELETE FROM log WHERE author = ? AND sequence <= ?", (number, through))

    def _take_roles(self, store: Store) -> None:
        known = {(write.author, write.sequence) for write in store.members.writes}
        if self.rebuild:
            known = set()
            store.db.execute("DELETE FROM membership WHERE author != ?", (store.device,))
        groups: dict[tuple[bytes, int], list[RoleWrite]] = {}
        for record in self.begin.roles:
            place = record.author, record.sequence
            if place not in known:
                write = RoleWrite(record.author, record.sequence, merged(record.seen), record.operation)
                groups.setdefault(place, []).append(write)
        for writes in groups.values():
            store.add_membership(writes)
        if self.rebuild:
            store.reload_members()
