"""The outbox on disk: SQLite whose payloads are sealed. Everything here blocks; call it in a worker thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StorageError
from ..storage.database import connect, reported

__all__ = ["OutboxStore", "Sealer", "StoredLane", "StoredMessage"]

_FORMAT = 1
_SCHEMA = f"""
CREATE TABLE lane (
    lane INTEGER PRIMARY KEY,
    device BLOB NOT NULL, protocol TEXT NOT NULL, priority INTEGER NOT NULL,
    next INTEGER NOT NULL DEFAULT 1,
    UNIQUE (device, protocol, priority)
);
CREATE TABLE message (
    lane INTEGER NOT NULL, number INTEGER NOT NULL,
    id BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL, expires_at REAL,
    size INTEGER NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (lane, number)
) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
"""


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens payloads, bound to a context.

    :param seal: plain bytes and context to sealed bytes.
    :param open: the reverse; raises StorageError.
    """

    seal: Callable[[bytes, str], bytes]
    open: Callable[[bytes, str], bytes]


@dataclass(frozen=True, slots=True)
class StoredLane:
    """Messages of one protocol and priority to one device.

    :param next: the lowest number not used yet.
    """

    lane: int
    device: bytes
    protocol: str
    priority: int
    next: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message, without its payload.

    :param expires_at: wall clock, seconds since the epoch; None for never.
    :param size: of the payload, bytes.
    """

    lane: int
    number: int
    id: bytes
    created_at: float
    expires_at: float | None
    size: int
    data: bytes = field(default=b"", repr=False)


class OutboxStore:
    """The open database.

    :param path: of the file; made with mode 0600 if it is not there.
    :raises StorageError: it cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, sealer: Sealer) -> None:
        self._path = path
        self._sealer = sealer
        self._lock = threading.Lock()
        self._homes: dict[int, str] = {}
        with reported(path):
            self._db = connect(path)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _FORMAT:
            raise StorageError(f"{self._path} was written by a newer version of sdnet; update it to go on.")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def load(self) -> tuple[list[StoredLane], list[StoredMessage]]:
        """Read everything but the payloads, in the order of the numbers."""
        with self._lock, reported(self._path):
            lanes = [
                StoredLane(*row) for row in self._db.execute("SELECT lane, device, protocol, priority, next FROM lane")
            ]
            self._homes = {lane.lane: _home(lane.device, lane.protocol) for lane in lanes}
            messages = self._db.execute(
                "SELECT lane, number, id, created_at, expires_at, size FROM message ORDER BY lane, number"
            )
            return lanes, [StoredMessage(*row) for row in messages]

    def payload(self, lane: int, id_: bytes) -> bytes:
        """Read one payload.

        :raises StorageError: it is not there or damaged.
        """
        with self._lock, reported(self._path):
            row = self._db.execute("SELECT sealed FROM message WHERE id = ?", (id_,)).fetchone()
        if row is None:
            raise StorageError("The message is not in the outbox any more.")
        return self._sealer.open(row[0], f"{self._homes[lane]}/{id_.hex()}")

    def add_lane(self, device: bytes, protocol: str, priority: int) -> int:
        """Make a lane durable; gives its row."""
        with self._changing():
            cursor = self._db.execute(
                "INSERT INTO lane (device, protocol, priority) VALUES (?, ?, ?)", (device, protocol, priority)
            )
        assert cursor.lastrowid is not None
        self._homes[cursor.lastrowid] = _home(device, protocol)
        return cursor.lastrowid

    def remove_lanes(self, lanes: Sequence[int]) -> None:
        """Forget lanes with all that is in them."""
        rows = [(lane,) for lane in lanes]
        with self._changing():
            self._db.executemany("DELETE FROM message WHERE lane = ?", rows)
            self._db.executemany("DELETE FROM lane WHERE lane = ?", rows)

    def change(self, added: Sequence[StoredMessage], removed: Sequence[bytes]) -> None:
        """Add messages and remove others by their ids, in one transaction.

        :raises StorageError: nothing was changed.
        """
        rows = [
            (m.lane, m.number, m.id, m.created_at, m.expires_at, m.size, self._sealer.seal(m.data, self._context(m)))
            for m in added
        ]
        with self._changing():
            self._db.executemany("DELETE FROM message WHERE id = ?", [(id_,) for id_ in removed])
            if rows:
                self._db.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                highest = {m.lane: m.number + 1 for m in added}
                self._db.executemany(
                    "UPDATE lane SET next = MAX(next, ?) WHERE lane = ?", [(n, lane) for lane, n in highest.items()]
                )

    def renumber(self, lane: int, numbers: Sequence[tuple[int, int]], next_number: int) -> None:
        """Give messages of a lane new numbers.

        :param numbers: old and new number of each; every new one is higher than all old ones.
        """
        with self._changing():
            for old, new in numbers:
                self._db.execute("UPDATE message SET number = ? WHERE lane = ? AND number = ?", (new, lane, old))
            self._db.execute("UPDATE lane SET next = MAX(next, ?) WHERE lane = ?", (next_number, lane))

    def _context(self, message: StoredMessage) -> str:
        return f"{self._homes[message.lane]}/{message.id.hex()}"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, reported(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise


def _home(device: bytes, protocol: str) -> str:
    """What a payload is bound to, besides its id."""
    return f"outbox/{device.hex()}/{protocol}"
