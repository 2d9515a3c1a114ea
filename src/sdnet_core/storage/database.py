"""A plugin's own SQLite, in which work and the knowledge for which messages it was done commit together.

Transactions that wait at the same time go to the disk in one commit. What is remembered of messages is bounded: a
sender tells below which number it will send nothing again, and everything below is forgotten.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio

from ..clock import Runner
from ..errors import ConflictError, StorageError

__all__ = ["Database", "MessageKey", "StaleMessageError", "connect", "reported"]

logger = logging.getLogger(__name__)

MAX_JOBS = 256
"""Transactions made durable together."""

FORMAT = 1
"""Of our own tables beside the plugin's, in ``sdnet_format``; ``user_version`` is the plugin's."""

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS sdnet_format (number INTEGER NOT NULL);
INSERT INTO sdnet_format SELECT {FORMAT} WHERE NOT EXISTS (SELECT 1 FROM sdnet_format);
CREATE TABLE IF NOT EXISTS sdnet_lane (
    lane INTEGER PRIMARY KEY, pairing BLOB NOT NULL, name TEXT NOT NULL, below INTEGER NOT NULL DEFAULT 0,
    UNIQUE (pairing, name)
);
CREATE TABLE IF NOT EXISTS sdnet_done (
    lane INTEGER NOT NULL, number INTEGER NOT NULL, id BLOB NOT NULL, PRIMARY KEY (lane, number), UNIQUE (lane, id)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class MessageKey:
    """What tells a message from all others.

    :param pairing: the pairing under which it came.
    :param lane: protocol and priority; numbers ascend within it.
    :param below: the sender will send nothing with a lower number again.
    """

    pairing: bytes
    lane: str
    number: int
    id: bytes
    below: int


class HasKey(Protocol):
    """A message, as far as the database needs to know it."""

    @property
    def key(self) -> MessageKey: ...


class StaleMessageError(ConflictError):
    """The message's number was settled or used by another one: the sender's data were set back.

    :ivar next_number: the lowest number that is free.
    """

    def __init__(self, next_number: int) -> None:
        super().__init__(f"The number of the message is used up; {next_number} is the next one that is free.")
        self.next_number = next_number


M = TypeVar("M", bound=HasKey)
T = TypeVar("T")

Work = Callable[[sqlite3.Connection, Sequence[M]], T]


@dataclass(eq=False, slots=True)
class _Job(Generic[M, T]):
    work: Work[M, T]
    messages: tuple[M, ...]
    turn: anyio.Event = field(default_factory=anyio.Event)
    """Set when it is done, or when it is the one to commit what waits."""
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


class Database:
    """One SQLite file, opened when first used.

    :param path: of the file; made with mode 0600 in a directory that is there.
    :param pairings: those that there are; what is remembered of messages of others is forgotten.
    """

    def __init__(self, path: Path, runner: Runner, pairings: Collection[bytes] = ()) -> None:
        self._path = path
        self._pairings = frozenset(pairings)
        self._runner = runner
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self._busy = False
        self._waiting: deque[_Job[Any, Any]] = deque()

    async def transaction(self, work: Work[M, T], *messages: M) -> T:
        """Run ``work(connection, new)`` in a worker thread, in a transaction that is on the disk when this returns.

        If it raises, nothing of it stays. A caller that is cancelled does not undo work that has begun.

        :param messages: those that the work is for. ``new`` are those of them for which no work was done before; that
            it is done now commits together with the work.
        :returns: what ``work`` returned.
        :raises StaleMessageError: a message's number was used up; nothing was done.
        :raises StorageError: the disk is full, or the file cannot be read or written; nothing was done.
        """
        job: _Job[M, T] = _Job(work, messages)
        self._waiting.append(job)
        if self._busy:
            try:
                await job.turn.wait()
            except BaseException:
                if not job.done and job in self._waiting:
                    self._waiting.remove(job)
                    if job.turn.is_set():
                        self._hand_on()
                raise
        if not job.done:
            self._busy = True
            await self._commit_waiting()
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    async def close(self) -> None:
        """Close the file; nothing can be done any more."""
        self._closed = True
        while self._busy:
            # A transaction is under way; whoever began it hands on to those behind it, which now fail at once.
            await self.transaction(lambda db, new: None)
        db, self._db = self._db, None
        if db is not None:
            await self._runner(db.close)

    async def _commit_waiting(self) -> None:
        jobs = [self._waiting.popleft() for _ in range(min(MAX_JOBS, len(self._waiting)))]
        try:
            with anyio.CancelScope(shield=True):
                await self._runner(self._commit, jobs)
        finally:
            for job in jobs:
                job.done = True
                job.turn.set()
            self._hand_on()

    def _hand_on(self) -> None:
        if self._waiting:
            self._waiting[0].turn.set()
        else:
            self._busy = False

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            if self._closed:
                raise StorageError(f"{self._path.name} is closed.")
            db = connect(self._path)
            try:
                _check_format(db, self._path)
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
                _forget_others(db, self._pairings)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _commit(self, jobs: Sequence[_Job[Any, Any]]) -> None:
        try:
            with reported(self._path):
                db = self._open()
                db.execute("BEGIN IMMEDIATE")
                try:
                    for job in jobs:
                        self._do(db, job)
                    db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                    raise
        except Exception as error:
            for job in jobs:
                job.error = error

    def _do(self, db: sqlite3.Connection, job: _Job[Any, Any]) -> None:
        db.execute("SAVEPOINT job")
        try:
            job.result = job.work(db, _new(db, job.messages))
        except Exception as error:
            if not db.in_transaction:
                raise  # SQLite itself has rolled all back, as it does when the disk is full
            job.error = error
            if isinstance(error, sqlite3.OperationalError):
                job.error = StorageError(f"{self._path} cannot be read or written now: {error}.")
                job.error.__cause__ = error
            db.execute("ROLLBACK TO job")
        db.execute("RELEASE job")


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sdnet_format'").fetchone() is None:
        return  # new, or from before there was the table
    (number,) = db.execute("SELECT MAX(number) FROM sdnet_format").fetchone()
    if number > FORMAT:
        raise StorageError(f"{path} was written by a newer version of sdnet; update it to go on.")


def _new(db: sqlite3.Connection, messages: Sequence[M]) -> Sequence[M]:
    """Those that were not worked on before; remembers that they are now."""
    new: list[M] = []
    lanes: dict[tuple[bytes, str], list[int]] = {}
    for message in messages:
        key = message.key
        lane = lanes.get((key.pairing, key.lane))
        if lane is None:
            lane = lanes[key.pairing, key.lane] = _lane(db, key)
        number, below = lane
        if db.execute("SELECT 1 FROM sdnet_done WHERE lane = ? AND id = ?", (number, key.id)).fetchone():
            continue
        if key.number < below or not _remember(db, number, key):
            row = db.execute("SELECT MAX(number) FROM sdnet_done WHERE lane = ?", (number,)).fetchone()
            raise StaleMessageError(max(below, key.below, (row[0] or 0) + 1))
        if key.below > below:
            lane[1] = key.below
        new.append(message)
    for number, below in lanes.values():
        if db.execute("UPDATE sdnet_lane SET below = ? WHERE lane = ? AND below < ?", (below, number, below)).rowcount:
            db.execute("DELETE FROM sdnet_done WHERE lane = ? AND number < ?", (number, below))
    return new


def _forget_others(db: sqlite3.Connection, pairings: Collection[bytes]) -> None:
    rows = db.execute("SELECT lane, pairing FROM sdnet_lane").fetchall()
    gone = [(lane,) for lane, pairing in rows if pairing not in pairings]
    if gone:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM sdnet_done WHERE lane = ?", gone)
        db.executemany("DELETE FROM sdnet_lane WHERE lane = ?", gone)
        db.execute("COMMIT")


def _remember(db: sqlite3.Connection, lane: int, key: MessageKey) -> bool:
    """False if another message has the number."""
    cursor = db.execute("INSERT OR IGNORE INTO sdnet_done VALUES (?, ?, ?)", (lane, key.number, key.id))
    return cursor.rowcount == 1


def _lane(db: sqlite3.Connection, key: MessageKey) -> list[int]:
    query = "SELECT lane, below FROM sdnet_lane WHERE pairing = ? AND name = ?"
    row = db.execute(query, (key.pairing, key.lane)).fetchone()
    if row is None:
        db.execute("INSERT INTO sdnet_lane (pairing, name) VALUES (?, ?)", (key.pairing, key.lane))
        row = db.execute(query, (key.pairing, key.lane)).fetchone()
    return list(row)


MAX_PATH_BYTES = 500
"""SQLite takes paths of up to 512 bytes, and names its own files by longer ones."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite file (0600) whose commits are on the disk when they return; it may be used from any one thread."""
    if len(os.fsencode(path.absolute())) > MAX_PATH_BYTES:
        raise StorageError(f"{path} is too long a path for a database: at most {MAX_PATH_BYTES} bytes.")
    path.touch(mode=0o600)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = 1", "busy_timeout = 5000"):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into StorageError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise StorageError(f"There is no room left on the disk for {path}.") from error
        raise StorageError(f"{path} cannot be read or written now: {error}.") from error
    except sqlite3.ProgrammingError as error:
        raise StorageError(f"{path} is closed.") from error
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"{path} is damaged: {error}. Restore it from a backup, or move it away to go on with an empty one."
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}.") from error
