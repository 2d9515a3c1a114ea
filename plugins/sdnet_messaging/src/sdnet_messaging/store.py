"""The inbox on disk, in the plugin's own database; contents are sealed. For use inside ``ctx.transaction``."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sdnet_core.errors import StorageError, TryLaterError

__all__ = ["MAX_BYTES_PER_DEVICE", "MAX_MESSAGES_PER_DEVICE", "InboxStore", "NewRow", "Sealer", "StoredRow"]

logger = logging.getLogger(__name__)

MAX_MESSAGES_PER_DEVICE = 4096
"""Messages kept for one pairing. The oldest that was read gives way to a new one; unread ones never do."""
MAX_BYTES_PER_DEVICE = 16 << 20
"""The same in bytes on disk."""

_FORMAT = 1
_SCHEMA = (
    """CREATE TABLE message (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        pairing BLOB NOT NULL,
        id BLOB NOT NULL,
        reply_to BLOB,
        read INTEGER NOT NULL DEFAULT 0,
        sealed BLOB NOT NULL
    )""",
    "CREATE INDEX message_by_pairing ON message (pairing, number) WHERE read = 1",
    "CREATE INDEX message_unread ON message (number) WHERE read = 0",
    "CREATE INDEX message_by_id ON message (id)",
    "CREATE INDEX message_by_reply ON message (reply_to) WHERE reply_to IS NOT NULL",
    "CREATE TABLE total (pairing BLOB PRIMARY KEY, messages INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {_FORMAT}",
)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens contents, bound to a context.

    :param seal: plain bytes and context to sealed bytes.
    :param open: the reverse; raises StorageError.
    """

    seal: Callable[[bytes, str], bytes]
    open: Callable[[bytes, str], bytes]


@dataclass(frozen=True, slots=True)
class NewRow:
    """A message to put into the inbox.

    :param reply_to: the id of the message of ours that it answers.
    """

    id: bytes
    content: bytes = field(repr=False)
    reply_to: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A message in the inbox."""

    number: int
    pairing: bytes
    id: bytes
    read: bool
    content: bytes = field(repr=False)


class InboxStore:
    """What can be done with the inbox. Every method takes the connection of a transaction."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def prepare(self, db: sqlite3.Connection) -> None:
        """Make the tables if they are not there.

        :raises StorageError: the inbox was written by a newer version.
        """
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _FORMAT:
            raise StorageError("The inbox was written by a newer version of sdnet-messaging; update it to go on.")
        if version == 0:
            for statement in _SCHEMA:
                db.execute(statement)

    def add(self, db: sqlite3.Connection, pairing: bytes, rows: Sequence[NewRow]) -> list[int]:
        """Put messages of one pairing into the inbox.

        :returns: their places there.
        :raises TryLaterError: there is no room for all of them.
        """
        total = db.execute("SELECT messages, bytes FROM total WHERE pairing = ?", (pairing,)).fetchone() or (0, 0)
        count, size = total
        numbers = []
        for row in rows:
            sealed = self._sealer.seal(row.content, _context(pairing, row.id))
            while count >= MAX_MESSAGES_PER_DEVICE or size + len(sealed) > MAX_BYTES_PER_DEVICE:
                oldest = db.execute(
                    "SELECT number, LENGTH(sealed) FROM message WHERE pairing = ? AND read = 1 ORDER BY number LIMIT 1",
                    (pairing,),
                ).fetchone()
                if oldest is None:
                    raise TryLaterError("The inbox is full of unread messages from this device.")
                db.execute("DELETE FROM message WHERE number = ?", oldest[:1])
                count, size = count - 1, size - oldest[1]
            cursor = db.execute(
                "INSERT INTO message (pairing, id, reply_to, sealed) VALUES (?, ?, ?, ?)",
                (pairing, row.id, row.reply_to, sealed),
            )
            assert cursor.lastrowid is not None
            numbers.append(cursor.lastrowid)
            count, size = count + 1, size + len(sealed)
        db.execute("INSERT OR REPLACE INTO total VALUES (?, ?, ?)", (pairing, count, size))
        return numbers

    def last_number(self, db: sqlite3.Connection) -> int:
        """The highest number given so far, 0 for none."""
        row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
        return 0 if row is None else int(row[0])

    def messages(
        self, db: sqlite3.Connection, after: int | None, *, unread_only: bool = False, limit: int
    ) -> list[StoredRow]:
        """Read messages in the order in which they came.

        :param after: those with higher numbers, the first ``limit`` of them; None for the last ``limit``.
        """
        where = "number > ?" + (" AND read = 0" if unread_only else "")
        order = "DESC" if after is None else "ASC"
        found = self._read(db, f"{where} ORDER BY number {order} LIMIT ?", after or 0, limit)
        return found if after is not None else found[::-1]

    def find(self, db: sqlite3.Connection, id_: bytes) -> StoredRow | None:
        """A message by its id."""
        return next(iter(self._read(db, "id = ?", id_)), None)

    def reply(self, db: sqlite3.Connection, to: bytes) -> StoredRow | None:
        """The first answer to a message of ours."""
        return next(iter(self._read(db, "reply_to = ? ORDER BY number LIMIT 1", to)), None)

    def replace(self, db: sqlite3.Connection, row: StoredRow, content: bytes) -> None:
        """Change what a message holds."""
        sealed = self._sealer.seal(content, _context(row.pairing, row.id))
        (old,) = db.execute("SELECT LENGTH(sealed) FROM message WHERE number = ?", (row.number,)).fetchone()
        db.execute("UPDATE message SET sealed = ? WHERE number = ?", (sealed, row.number))
        db.execute("UPDATE total SET bytes = bytes + ? WHERE pairing = ?", (len(sealed) - old, row.pairing))

    def mark_read(self, db: sqlite3.Connection, ids: Sequence[bytes] | None, up_to: int | None = None) -> int:
        """Mark messages as read.

        :param ids: which; None for all with numbers up to ``up_to``.
        :returns: how many were unread.
        """
        if ids is None:
            return db.execute("UPDATE message SET read = 1 WHERE read = 0 AND number <= ?", (up_to,)).rowcount
        update = "UPDATE message SET read = 1 WHERE read = 0 AND id = ?"
        return sum(db.execute(update, (id_,)).rowcount for id_ in ids)

    def delete(self, db: sqlite3.Connection, id_: bytes) -> bool:
        """Remove a message from the inbox; that it was delivered stays known.

        :returns: whether it was there.
        """
        rows = db.execute("SELECT number, pairing, LENGTH(sealed) FROM message WHERE id = ?", (id_,)).fetchall()
        for number, pairing, size in rows:
            db.execute("DELETE FROM message WHERE number = ?", (number,))
            db.execute("UPDATE total SET messages = messages - 1, bytes = bytes - ? WHERE pairing = ?", (size, pairing))
        return bool(rows)

    def _read(self, db: sqlite3.Connection, where: str, *values: object) -> list[StoredRow]:
        rows = []
        found = db.execute(f"SELECT number, pairing, id, read, sealed FROM message WHERE {where}", values).fetchall()
        for number, pairing, id_, read, sealed in found:
            try:
                content = self._sealer.open(sealed, _context(pairing, id_))
                rows.append(StoredRow(number, pairing, id_, bool(read), content))
            except StorageError as error:
                logger.error("message %d of the inbox is damaged and is left out: %s", number, error)
        return rows


def _context(pairing: bytes, id_: bytes) -> str:
    return f"inbox/{pairing.hex()}/{id_.hex()}"
