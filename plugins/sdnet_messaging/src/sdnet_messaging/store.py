"""The inbox on disk: SQLite whose message contents are sealed. Everything here blocks; call it in a worker thread."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sdnet_core.errors import StorageError

from .messages import Outcome

__all__ = [
    "MAX_BYTES_PER_DEVICE",
    "MAX_MESSAGES_PER_DEVICE",
    "InboxStore",
    "NewRow",
    "PeerState",
    "Sealer",
    "StoredRow",
]

logger = logging.getLogger(__name__)

MAX_MESSAGES_PER_DEVICE = 4096
"""Messages kept for one pairing. The oldest that was read gives way to a new one; unread ones never do."""
MAX_BYTES_PER_DEVICE = 16 << 20
"""The same in bytes on disk."""

_FORMAT = 1
_SCHEMA = f"""
CREATE TABLE message (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    pairing BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    token BLOB NOT NULL,
    read INTEGER NOT NULL DEFAULT 0,
    sealed BLOB NOT NULL
);
CREATE INDEX message_by_pairing ON message (pairing, read, number);
CREATE INDEX message_unread ON message (number) WHERE read = 0;
CREATE INDEX message_by_token ON message (token);
CREATE TABLE seen (
    pairing BLOB NOT NULL, sequence INTEGER NOT NULL, token BLOB NOT NULL, PRIMARY KEY (pairing, sequence)
) WITHOUT ROWID;
CREATE TABLE peer (
    pairing BLOB PRIMARY KEY, below INTEGER NOT NULL DEFAULT 1, reserved INTEGER NOT NULL DEFAULT 1
) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
"""


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens contents, bound to a context.

    :param seal: plain bytes and context to sealed bytes.
    :param open: the reverse; raises StorageError.
    """

    seal: Callable[[bytes, str], bytes]
    open: Callable[[bytes, str], bytes]


@dataclass(slots=True)
class NewRow:
    """A message to put into the inbox.

    :param below: numbers lower than this are settled.
    :ivar outcome: what became of it, set by `InboxStore.add`.
    :ivar number: its place in the inbox if it was delivered.
    """

    pairing: bytes
    sequence: int
    token: bytes
    below: int
    content: bytes = field(repr=False)
    outcome: Outcome | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A message in the inbox."""

    number: int
    token: bytes
    read: bool
    content: bytes = field(repr=False)


@dataclass(slots=True)
class PeerState:
    """What is remembered of one pairing.

    :param below: the sender's limit; see `ReceiveWindow`.
    :param reserved: our own numbers below this may be used up; see `SendSequence`.
    :param seen: delivered messages at or above ``below``, number to token.
    """

    below: int = 1
    reserved: int = 1
    seen: dict[int, bytes] = field(default_factory=dict)


class InboxStore:
    """The open database.

    :param path: of the file; made with mode 0600 if it is not there.
    :raises StorageError: it cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, sealer: Sealer) -> None:
        self._path = path
        self._sealer = sealer
        self._lock = threading.Lock()
        with self._reporting():
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
                self._count()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        # A message is acknowledged when its transaction is committed: the log must be on the disk by then.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = 1", "busy_timeout = 5000"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _FORMAT:
            raise StorageError(f"{self._path} was written by a newer version of sdnet-messaging; update it to go on.")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")

    def _count(self) -> None:
        self._messages: Counter[bytes] = Counter()
        self._bytes: Counter[bytes] = Counter()
        rows = self._db.execute("SELECT pairing, COUNT(*), SUM(LENGTH(sealed)) FROM message GROUP BY pairing")
        for pairing, count, size in rows:
            self._messages[pairing] = count
            self._bytes[pairing] = size

    def close(self) -> None:
        """Close the file. Harmless when done already."""
        with self._lock:
            self._db.close()

    def load_peers(self, pairings: Iterable[bytes]) -> dict[bytes, PeerState]:
        """Read what is remembered of these pairings, and forget all others, which can never come again."""
        known = set(pairings)
        peers: dict[bytes, PeerState] = {}
        with self._changing():
            for pairing, below, reserved in self._db.execute("SELECT pairing, below, reserved FROM peer").fetchall():
                if pairing in known:
                    peers[pairing] = PeerState(below, reserved)
                else:
                    self._db.execute("DELETE FROM peer WHERE pairing = ?", (pairing,))
                    self._db.execute("DELETE FROM seen WHERE pairing = ?", (pairing,))
            for pairing, sequence, token in self._db.execute("SELECT pairing, sequence, token FROM seen"):
                peers.setdefault(pairing, PeerState()).seen[sequence] = token
        return peers

    def reserve(self, pairing: bytes, reserved: int) -> None:
        """Remember that our numbers below ``reserved`` may be used."""
        with self._changing():
            self._db.execute(
                "INSERT INTO peer (pairing, reserved) VALUES (?, ?)"
                " ON CONFLICT (pairing) DO UPDATE SET reserved = MAX(reserved, excluded.reserved)",
                (pairing, reserved),
            )

    def add(self, rows: Sequence[NewRow]) -> None:
        """Put messages into the inbox, all in one transaction, and set what became of each.

        :raises StorageError: nothing was stored.
        """
        with self._changing():
            for row in rows:
                row.outcome = self._add(row)

    def _add(self, row: NewRow) -> Outcome:
        sealed = self._sealer.seal(row.content, _context(row.pairing, row.sequence, row.token))
        if not self._make_room(row.pairing, len(sealed)):
            return Outcome.INBOX_FULL
        cursor = self._db.execute(
            "INSERT INTO message (pairing, sequence, token, sealed) VALUES (?, ?, ?, ?)",
            (row.pairing, row.sequence, row.token, sealed),
        )
        assert cursor.lastrowid is not None
        row.number = cursor.lastrowid
        self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (row.pairing, row.sequence, row.token))
        self._db.execute("DELETE FROM seen WHERE pairing = ? AND sequence < ?", (row.pairing, row.below))
        self._db.execute(
            "INSERT INTO peer (pairing, below) VALUES (?, ?)"
            " ON CONFLICT (pairing) DO UPDATE SET below = MAX(below, excluded.below)",
            (row.pairing, row.below),
        )
        self._messages[row.pairing] += 1
        self._bytes[row.pairing] += len(sealed)
        return Outcome.DELIVERED

    def _make_room(self, pairing: bytes, size: int) -> bool:
        while self._messages[pairing] >= MAX_MESSAGES_PER_DEVICE or self._bytes[pairing] + size > MAX_BYTES_PER_DEVICE:
            oldest = self._db.execute(
                "SELECT number, LENGTH(sealed) FROM message WHERE pairing = ? AND read = 1 ORDER BY number LIMIT 1",
                (pairing,),
            ).fetchone()
            if oldest is None:
                return False
            self._remove(pairing, *oldest)
        return True

    def _remove(self, pairing: bytes, number: int, size: int) -> None:
        self._db.execute("DELETE FROM message WHERE number = ?", (number,))
        self._messages[pairing] -= 1
        self._bytes[pairing] -= size

    def last_number(self) -> int:
        """The highest number given so far, 0 for none."""
        with self._using():
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
        return 0 if row is None else int(row[0])

    def messages(self, after: int | None, *, unread_only: bool, limit: int) -> list[StoredRow]:
        """Read messages in the order in which they came.

        :param after: those with higher numbers, the first ``limit`` of them; None for the last ``limit``.
        """
        where = "number > ?" + (" AND read = 0" if unread_only else "")
        order = "DESC" if after is None else "ASC"
        with self._using():
            found = self._db.execute(
                f"SELECT number, pairing, sequence, token, read, sealed FROM message WHERE {where}"
                f" ORDER BY number {order} LIMIT ?",
                (after or 0, limit),
            ).fetchall()
        rows = []
        for number, pairing, sequence, token, read, sealed in found if after is not None else reversed(found):
            try:
                content = self._sealer.open(sealed, _context(pairing, sequence, token))
                rows.append(StoredRow(number, token, bool(read), content))
            except StorageError as error:
                logger.error("message %d of the inbox is damaged and is left out: %s", number, error)
        return rows

    def mark_read(self, tokens: Sequence[bytes] | None, up_to: int | None = None) -> int:
        """Mark messages as read.

        :param tokens: which; None for all with numbers up to ``up_to``.
        :returns: how many were unread.
        """
        with self._changing():
            if tokens is None:
                return self._db.execute("UPDATE message SET read = 1 WHERE read = 0 AND number <= ?", (up_to,)).rowcount
            return sum(
                self._db.execute("UPDATE message SET read = 1 WHERE read = 0 AND token = ?", (token,)).rowcount
                for token in tokens
            )

    def delete(self, token: bytes) -> bool:
        """Remove a message from the inbox; it is still known to have been delivered.

        :returns: whether it was there.
        """
        with self._changing():
            rows = self._db.execute(
                "SELECT pairing, number, LENGTH(sealed) FROM message WHERE token = ?", (token,)
            ).fetchall()
            for row in rows:
                self._remove(*row)
        return bool(rows)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._using():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                with contextlib.suppress(sqlite3.Error):
                    self._count()
                raise

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock, self._reporting():
            yield

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(f"The inbox {self._path} cannot be read or written now: {error}.") from error
        except sqlite3.ProgrammingError as error:
            raise StorageError("The inbox is closed.") from error
        except sqlite3.DatabaseError as error:
            raise StorageError(
                f"The inbox {self._path} is damaged: {error}. Restore it from a backup, or move it away to go on with "
                "an empty one."
            ) from error
        except OSError as error:
            raise StorageError(f"The inbox {self._path} cannot be opened: {error.strerror}.") from error


def _context(pairing: bytes, sequence: int, token: bytes) -> str:
    return f"inbox/{pairing.hex()}/{sequence}/{token.hex()}"
