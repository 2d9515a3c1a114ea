"""A library on disk. Everything here blocks and belongs to a worker thread; the event loop sees `View`.

Writes go through `transaction`, one at a time: entries, log, heads and clock commit together or not at all. Reads use
a connection of their own and do not wait for writes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cbor2

from sdnet_core import Clock
from sdnet_core.errors import StorageError

from .clock import HybridClock
from .fingerprints import LeafSums
from .limits import LEAF_BITS
from .members import MembershipHistory, RoleWrite
from .operations import Membership, Role, SignedBatch
from .schema import open_database, reported
from .sealing import RowSealer, entry_key, tag_of
from .standing import Head, View
from .state import EntryState, decode_state
from .vectors import Vector

__all__ = ["LibraryKeys", "Store"]

STRATEGY_KIND = "$strategy"
UNIQUE_KIND = "$unique"
LIBRARY_KIND = "$library"
_LAST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class LibraryKeys:
    """What makes a library's database readable, and who began it.

    :param secret: the library's, the same on all replicas: blinds ids.
    :param row_key: this replica's own.
    :param founder: device id of the one who made the library.
    """

    library: bytes
    secret: bytes = field(repr=False)
    row_key: bytes = field(repr=False)
    founder: bytes
    founder_key: bytes


class Store:
    """One library's database.

    :param device: our device id.
    :param sign: signs with the device key.
    :raises StorageError: it cannot be opened or is damaged.
    """

    def __init__(
        self,
        path: Path,
        keys: LibraryKeys,
        *,
        device: bytes,
        sign: Callable[[bytes], bytes],
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.path = path
        self.keys = keys
        self.device = device
        self.sign = sign
        self.sealer = RowSealer(keys.row_key, random_bytes)
        self._wall = clock
        self.db = open_database(path)
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self.load()

    def load(self) -> None:
        """Read into memory what every transaction needs; again after one that failed."""
        with reported(self.path):
            meta = dict(self.db.execute("SELECT name, value FROM meta").fetchall())
            self.clock = HybridClock(self._wall, int(meta.get("clock", 0)))
            self.loading = "snapshot" in meta
            self.rebuild = "rebuild" in meta
            self.heads: dict[bytes, Head] = {}
            self.numbers: dict[bytes, int] = {}
            rows = self.db.execute("SELECT number, device, head, hash, stamp, seen, base, written FROM author")
            for number, device, head, digest, stamp, seen, base, written in rows:
                self.numbers[device] = number
                self.heads[device] = Head(head, digest, stamp, cbor2.loads(seen), base, written)
            self.devices = {number: device for device, number in self.numbers.items()}
            self.members = MembershipHistory(self.keys.founder, self.keys.founder_key)
            self.members.add(self._membership())
            self.members.vouched = cbor2.loads(meta["vouched"]) if "vouched" in meta else {}
            sums = self.db.execute("SELECT number, sum FROM leaf").fetchall()
            self.leaves = LeafSums({number: int.from_bytes(total, "big") for number, total in sums})
            self.kinds: dict[str, int] = {}
            for number, tag, sealed in self.db.execute("SELECT number, tag, sealed FROM kind"):
                self.kinds[self.sealer.open(sealed, b"kind" + tag).decode()] = number
            self.load_settings()

    def reload_members(self) -> None:
        """Read the decisions about members anew. In a transaction only."""
        vouched = self.members.vouched
        self.members = MembershipHistory(self.keys.founder, self.keys.founder_key, self._membership(), dict(vouched))

    def _membership(self) -> list[RoleWrite]:
        writes = []
        rows = self.db.execute(
            "SELECT author, sequence, place, sealed FROM membership ORDER BY author, sequence, place"
        )
        for author, sequence, place, sealed in rows:
            context = b"member" + author + sequence.to_bytes(8, "big") + place.to_bytes(2, "big")
            seen, device, key, role, name, through = cbor2.loads(self.sealer.open(sealed, context))
            writes.append(RoleWrite(author, sequence, seen, Membership(device, key, Role(role), name, through)))
        return writes

    def load_settings(self) -> None:
        """Read the entries that say how the library works."""
        self.settings: dict[str, dict[str, Any]] = {}
        self.unique: dict[str, tuple[str, ...]] = {}
        self.name = ""
        for state in self.states_of_kind(self.db, STRATEGY_KIND):
            self.settings[state.id] = {name: writes[-1].value for name, writes in state.fields.items()}
        for state in self.states_of_kind(self.db, UNIQUE_KIND):
            names = state.fields["fields"][-1].value if "fields" in state.fields else None
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                self.unique[state.id] = tuple(names)
        for state in self.states_of_kind(self.db, LIBRARY_KIND):
            if state.id == "name" and isinstance(name := state.fields["name"][-1].value, str):
                self.name = name

    def states_of_kind(self, db: sqlite3.Connection, kind: str) -> list[EntryState]:
        """All visible entries of a kind that has few."""
        number = self.kinds.get(kind)
        if number is None:
            return []
        rows = db.execute("SELECT key, sealed FROM entry WHERE kind = ? AND flags & 1", (number,)).fetchall()
        return [self.open_entry(key, sealed) for key, sealed in rows]

    def view(self) -> View:
        """What the event loop may know."""
        leaves = self.leaves
        return View(
            heads=dict(self.heads),
            members=self.members,
            root=leaves.root,
            loading=self.loading,
            rebuild=self.rebuild,
            settings=self.settings,
            unique=self.unique,
            name=self.name,
        )

    def close(self) -> None:
        """Close the files."""
        with reported(self.path), self._reading:
            if self._reader is not None:
                self._reader.close()
            self.db.close()

    # Keys and seals

    def key(self, kind: str, entry_id: str) -> bytes:
        """The key of an entry."""
        return entry_key(self.keys.secret, kind, entry_id)

    def claim_tag(self, kind: str, name: str, value: Any) -> bytes:
        """The keyed hash of a value that must be unique."""
        encoded = cbor2.dumps(value, canonical=True)
        return tag_of(self.keys.secret, b"unique", kind.encode(), name.encode(), encoded)

    def open_entry(self, key: bytes, sealed: bytes) -> EntryState:
        """Open an entry's row."""
        return decode_state(self.sealer.open(sealed, b"entry" + key))

    def kind_number(self, kind: str) -> int:
        """The number of a kind, given now if it has none. In a transaction only."""
        number = self.kinds.get(kind)
        if number is None:
            tag = tag_of(self.keys.secret, b"kind", kind.encode())
            sealed = self.sealer.seal(kind.encode(), b"kind" + tag)
            cursor = self.db.execute("INSERT INTO kind (tag, sealed) VALUES (?, ?)", (tag, sealed))
            assert cursor.lastrowid is not None
            number = self.kinds[kind] = cursor.lastrowid
        return number

    # Writing

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One transaction; if the block raises, nothing of it stays, on disk or in memory.

        :raises StorageError: the disk is full, or the file cannot be read or written.
        """
        with reported(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.set_meta("clock", str(self.clock.last).encode())
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
                self.load()
                raise

    def set_meta(self, name: str, value: bytes | None) -> None:
        """Remember, or forget, a small thing. In a transaction only."""
        if value is None:
            self.db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def set_head(self, device: bytes, head: Head) -> None:
        """Say how far an author's chain goes. In a transaction only."""
        seen = cbor2.dumps(dict(head.seen))
        values = (head.sequence, head.hash, head.stamp, seen, head.base, head.written)
        number = self.numbers.get(device)
        if number is None:
            cursor = self.db.execute(
                "INSERT INTO author (device, head, hash, stamp, seen, base, written) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (device, *values),
            )
            assert cursor.lastrowid is not None
            number = self.numbers[device] = cursor.lastrowid
            self.devices[number] = device
        else:
            self.db.execute(
                "UPDATE author SET head = ?, hash = ?, stamp = ?, seen = ?, base = ?, written = ? WHERE number = ?",
                (*values, number),
            )
        self.heads[device] = head

    def add_log(self, device: bytes, sequence: int, stamp: int, batch: SignedBatch) -> None:
        """Keep a batch for others. In a transaction only."""
        place = b"log" + device + sequence.to_bytes(8, "big")
        self.db.execute(
            "INSERT INTO log (author, sequence, stamp, sealed) VALUES (?, ?, ?, ?)",
            (self.numbers[device], sequence, stamp, self.sealer.seal(batch.signature + batch.body, place)),
        )

    def open_log(self, device: bytes, sequence: int, sealed: bytes) -> SignedBatch:
        """Open a row of the log."""
        raw = self.sealer.open(sealed, b"log" + device + sequence.to_bytes(8, "big"))
        return SignedBatch(body=raw[64:], signature=raw[:64])

    def add_membership(self, writes: list[RoleWrite]) -> None:
        """Keep decisions about members. In a transaction only."""
        for place, write in enumerate(writes):
            o = write.operation
            context = b"member" + write.author + write.sequence.to_bytes(8, "big") + place.to_bytes(2, "big")
            content = [dict(write.seen), o.device, o.public_key, int(o.role), o.name, o.through]
            self.db.execute(
                "INSERT OR REPLACE INTO membership VALUES (?, ?, ?, ?)",
                (write.author, write.sequence, place, self.sealer.seal(cbor2.dumps(content), context)),
            )
        # A copy, because the event loop may be looking at the old one.
        self.members = self.members.copy()
        self.members.add(writes)

    def vouch(self, device: bytes, sequence: int) -> None:
        """Let a device's batches count up to this one, whatever was decided later. In a transaction only."""
        self.members = self.members.copy()
        self.members.vouched[device] = sequence
        self.set_meta("vouched", cbor2.dumps(self.members.vouched))

    def set_base(self, device: bytes, base: int) -> None:
        """Say that an author's batches up to this one are no longer in the log. In a transaction only."""
        self.set_head(device, replace(self.heads[device], base=base))

    # Reading

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading, for one reader at a time."""
        with self._reading, reported(self.path):
            if self._reader is None:
                self._reader = open_database(self.path, writable=False)
            yield self._reader

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, on which nothing changes any more."""
        with reported(self.path):
            db = open_database(self.path, writable=False)
            try:
                db.execute("BEGIN")
                yield db
            finally:
                db.close()

    def get(self, key: bytes) -> EntryState | None:
        """One entry."""
        with self.reading() as db:
            row = db.execute("SELECT sealed FROM entry WHERE key = ?", (key,)).fetchone()
        return None if row is None else self.open_entry(key, row[0])

    def get_many(self, keys: list[bytes]) -> dict[bytes, EntryState]:
        """Several entries, at most 500."""
        marks = ",".join("?" * len(keys))
        with self.reading() as db:
            rows = db.execute(f"SELECT key, sealed FROM entry WHERE key IN ({marks})", keys).fetchall()
        return {key: self.open_entry(key, sealed) for key, sealed in rows}

    def encoded_states(self, keys: Sequence[bytes]) -> list[bytes]:
        """The encoded states of some entries, those that are there."""
        marks = ",".join("?" * len(keys))
        with self.reading() as db:
            rows = db.execute(f"SELECT key, sealed FROM entry WHERE key IN ({marks})", list(keys)).fetchall()
        return [self.sealer.open(sealed, b"entry" + key) for key, sealed in rows]

    def page(
        self, after: int, limit: int, *, kind: str | None = None, until: int | None = None
    ) -> list[tuple[int, EntryState]]:
        """Visible entries and their numbers, which tell the order in which they came here.

        :param after: begin behind this number.
        :param kind: only of this kind.
        :param until: none with a higher number; None for all.
        """
        query = "SELECT number, key, sealed FROM entry WHERE number > ? AND number <= ?"
        values = [after, _LAST if until is None else until]
        if kind is not None:
            number = self.kinds.get(kind)
            if number is None:
                return []
            query += " AND kind = ?"
            values.append(number)
        with self.reading() as db:
            rows = db.execute(f"{query} AND flags & 1 ORDER BY number LIMIT ?", (*values, limit)).fetchall()
        return [(number, self.open_entry(key, sealed)) for number, key, sealed in rows]

    def newest(self) -> int:
        """The highest number of an entry."""
        with self.reading() as db:
            return int(db.execute("SELECT COALESCE(MAX(number), 0) FROM entry").fetchone()[0])

    def conflicted(self, after: bytes, limit: int) -> list[tuple[bytes, EntryState]]:
        """Entries in conflict, visible or not, in the order of their keys.

        :param after: begin behind this key.
        """
        query = "SELECT key, sealed FROM entry WHERE key > ? AND flags & 2 ORDER BY key LIMIT ?"
        with self.reading() as db:
            rows = db.execute(query, (after, limit)).fetchall()
        return [(key, self.open_entry(key, sealed)) for key, sealed in rows]

    def claimants(self, tag: bytes) -> list[bytes]:
        """The keys of the entries that hold a unique value."""
        with self.reading() as db:
            return [row[0] for row in db.execute("SELECT key FROM claim WHERE tag = ?", (tag,))]

    def contested(self) -> list[list[bytes]]:
        """The keys of entries that hold the same unique value, by value."""
        with self.reading() as db:
            tags = db.execute("SELECT tag FROM claim GROUP BY tag HAVING COUNT(*) > 1 LIMIT 1000").fetchall()
            return [[row[0] for row in db.execute("SELECT key FROM claim WHERE tag = ?", tag)] for tag in tags]

    def count_kind(self, kind: str) -> int:
        """How many visible entries of a kind there are."""
        with self.reading() as db:
            query = "SELECT COUNT(*) FROM entry WHERE flags & 1 AND kind = ?"
            return int(db.execute(query, (self.kinds.get(kind, -1),)).fetchone()[0])

    def leaf_entries(self, leaf: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Keys and hashes of the entries in a leaf, those that count for fingerprints."""
        # One lower bound: given two, SQLite may look for the lesser and read all that lies between.
        first = max((leaf << (16 - LEAF_BITS)).to_bytes(2, "big"), after + b"\x00")
        last = (((leaf + 1) << (16 - LEAF_BITS)) - 1).to_bytes(2, "big") + b"\xff" * 14
        with self.reading() as db:
            query = "SELECT key, hash FROM entry WHERE key >= ? AND key <= ? AND hash != x'' ORDER BY key LIMIT ?"
            return db.execute(query, (first, last, limit)).fetchall()

    def counts(self) -> dict[str, int]:
        """Numbers for people: entries, conflicts, deletions, batches in the log, bytes on disk."""
        hidden = [self.kinds[kind] for kind in (STRATEGY_KIND, UNIQUE_KIND, LIBRARY_KIND) if kind in self.kinds]
        marks = ",".join("?" * len(hidden))
        with self.reading() as db:

            def one(query: str, *values: Any) -> int:
                return int(db.execute(query, values).fetchone()[0])

            return {
                "entries": one("SELECT COUNT(*) FROM entry INDEXED BY entry_by_kind WHERE flags & 1")
                - one(f"SELECT COUNT(*) FROM entry WHERE flags & 1 AND kind IN ({marks})", *hidden),
                "conflicts": one("SELECT COUNT(*) FROM entry WHERE flags & 2"),
                "deletions": one("SELECT COUNT(*) FROM entry WHERE flags & 4"),
                "batches": one("SELECT COUNT(*) FROM log"),
                "bytes": sum(p.stat().st_size for p in self.files() if p.exists()),
            }

    def files(self) -> list[Path]:
        """The files on disk."""
        return [self.path, *(self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm"))]

    def read_log(
        self, after: Vector, cursor: int | None, *, max_bytes: int, max_batches: int
    ) -> tuple[list[tuple[bytes, int, SignedBatch]], int]:
        """Batches that somebody lacks, in an order in which they can be applied.

        :param after: what they have.
        :param cursor: where the last reading ended; None to look for the beginning.
        :returns: author, sequence and batch of each, and the new cursor.
        :raises StorageError: what they lack is no longer in the log.
        """
        found: list[tuple[bytes, int, SignedBatch]] = []
        size = 0
        with self.reading() as db:
            if cursor is None:
                cursor = self._log_start(db, after)
            after = dict(after)
            while size < max_bytes and len(found) < max_batches:
                rows = db.execute(
                    "SELECT position, author, sequence, sealed FROM log WHERE position > ? ORDER BY position LIMIT 64",
                    (cursor,),
                ).fetchall()
                if not rows:
                    break
                for position, number, sequence, sealed in rows:
                    if size >= max_bytes or len(found) >= max_batches:
                        break
                    cursor = position
                    device = self.devices[number]
                    if sequence <= after.get(device, 0):
                        continue
                    found.append((device, sequence, self.open_log(device, sequence, sealed)))
                    after[device] = sequence
                    size += len(sealed)
        return found, cursor

    def _log_start(self, db: sqlite3.Connection, after: Vector) -> int:
        first: int | None = None
        for number, device, head, base in db.execute("SELECT number, device, head, base FROM author").fetchall():
            have = after.get(device, 0)
            if have >= head:
                continue
            if have < base:
                raise StorageError("What the other device lacks is no longer in the log.")
            (position,) = db.execute(
                "SELECT MIN(position) FROM log WHERE author = ? AND sequence > ?", (number, have)
            ).fetchone()
            if position is not None and (first is None or position < first):
                first = position
        if first is None:
            (last,) = db.execute("SELECT COALESCE(MAX(position), 0) FROM log").fetchone()
            return int(last)
        return first - 1
