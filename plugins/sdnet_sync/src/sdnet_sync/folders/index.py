"""What this device knows of one of its folders: a small database beside the libraries (blocking).

It holds nothing that the folder itself does not show, so it is not sealed. It can be deleted: then the folder is read
anew. A row says that the file on the disk and the library's entry were the same, and how the disk told so.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdnet_core.errors import StorageError

from .entries import FileInfo
from .tree import DiskFile

__all__ = ["Index", "Kept", "Row"]

_FORMAT = 1
_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE file (
    key TEXT PRIMARY KEY, local TEXT NOT NULL,
    path TEXT NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, flags INTEGER NOT NULL, digest BLOB NOT NULL,
    disk_size INTEGER NOT NULL, disk_mtime INTEGER NOT NULL, disk_ctime INTEGER NOT NULL, inode INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX file_by_digest ON file (digest);
CREATE INDEX file_by_inode ON file (inode);
CREATE TABLE recipe (digest BLOB PRIMARY KEY, recipe BLOB NOT NULL);
CREATE TABLE kept (
    number INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT NOT NULL, path TEXT NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, at REAL NOT NULL, deleted INTEGER NOT NULL
);
CREATE INDEX kept_by_digest ON kept (digest);
CREATE INDEX kept_by_path ON kept (path);
PRAGMA user_version = {_FORMAT};
"""
_COLUMNS = "key, local, path, size, mtime, flags, digest, disk_size, disk_mtime, disk_ctime, inode"
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Row:
    """A file that is the same on the disk and in the library.

    :param local: its path as the disk spells it.
    :param info: as the library has it.
    :param disk: how the disk described it then.
    """

    key: str
    local: str
    info: FileInfo
    disk: DiskFile


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that was replaced or deleted.

    :param place: where it lies now, relative to the folder.
    :param at: when, seconds since the epoch.
    """

    number: int
    place: str
    path: str
    digest: bytes
    size: int
    at: float
    deleted: bool


class Index:
    """The rows of one folder. Several threads may use it; each call is a transaction.

    :raises StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.touch(mode=0o600)
            self._db = self._open(path)
        except sqlite3.DatabaseError:
            # It only saves work: what it knew is read from the folder again.
            for file in self.files():
                file.unlink(missing_ok=True)
            try:
                self._db = self._open(path)
            except (sqlite3.Error, OSError) as error:
                raise StorageError(f"{path} cannot be opened: {error}.") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error.strerror}.") from error

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            # Losing the last rows in a crash costs reading these files again, so NORMAL is enough.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY"):
                db.execute(f"PRAGMA {pragma}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                if version:
                    raise sqlite3.DatabaseError("another format")
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def files(self) -> list[Path]:
        """The files on disk."""
        return [self.path, *(self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm"))]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"{self.path} cannot be read: {error}.") from error

    # Rows

    def get(self, key: str) -> Row | None:
        """One row."""
        found = self._read(f"SELECT {_COLUMNS} FROM file WHERE key = ?", (key,))
        return _row(found[0]) if found else None

    def get_many(self, keys: Sequence[str]) -> dict[str, Row]:
        """Several rows."""
        rows: dict[str, Row] = {}
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            for found in self._read(f"SELECT {_COLUMNS} FROM file WHERE key IN ({marks})", chunk):
                row = _row(found)
                rows[row.key] = row
        return rows

    def page(self, after: str, limit: int = 1000, *, below: str = "") -> list[Row]:
        """Rows in the order of their keys.

        :param below: only those whose key begins with this.
        """
        query = f"SELECT {_COLUMNS} FROM file WHERE key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
        last = below + "\U0010ffff" if below else "\U0010ffff"
        return [_row(found) for found in self._read(query, (after, below, last, limit))]

    def with_digest(self, digest: bytes) -> list[Row]:
        """Files with these contents, some of them."""
        return [_row(f) for f in self._read(f"SELECT {_COLUMNS} FROM file WHERE digest = ? LIMIT 8", (digest,))]

    def with_digests(self, digests: Sequence[bytes]) -> dict[bytes, Row]:
        """A file with each of these contents, as far as there is one."""
        rows: dict[bytes, Row] = {}
        for start in range(0, len(digests), _CHUNK):
            chunk = digests[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            for found in self._read(f"SELECT {_COLUMNS} FROM file WHERE digest IN ({marks})", chunk):
                row = _row(found)
                rows[row.info.digest] = row
        return rows

    def with_inode(self, inode: int) -> list[Row]:
        """Files that had this inode."""
        return [_row(f) for f in self._read(f"SELECT {_COLUMNS} FROM file WHERE inode = ? LIMIT 8", (inode,))]

    def totals(self) -> tuple[int, int]:
        """How many files there are, and how many bytes they hold."""
        [(files, size)] = self._read("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM file")
        assert isinstance(files, int)
        assert isinstance(size, int)
        return files, size

    def change(
        self,
        rows: Iterable[Row] = (),
        *,
        gone: Iterable[str] = (),
        recipes: Iterable[tuple[bytes, bytes]] = (),
        meta: dict[str, str] | None = None,
    ) -> None:
        """Write and remove rows.

        :param gone: keys of those to remove; they are removed first.
        :param recipes: digests and recipes of files of several blocks.
        :raises StorageError: they could not be stored.
        """
        values = [_values(row) for row in rows]
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM file WHERE key = ?", [(key,) for key in gone])
                self._db.executemany(f"INSERT OR REPLACE INTO file ({_COLUMNS}) VALUES ({','.join('?' * 11)})", values)
                self._db.executemany("INSERT OR REPLACE INTO recipe VALUES (?, ?)", list(recipes))
                self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list((meta or {}).items()))
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise StorageError(f"{self.path} cannot be written: {error}.") from error

    def recipe(self, digest: bytes) -> bytes | None:
        """The recipe of a file of several blocks."""
        found = self._read("SELECT recipe FROM recipe WHERE digest = ?", (digest,))
        if not found:
            return None
        assert isinstance(found[0][0], bytes)
        return found[0][0]

    def prune_recipes(self) -> None:
        """Forget recipes of files that are no longer here."""
        with self._lock, suppress(sqlite3.Error):
            self._db.execute("DELETE FROM recipe WHERE digest NOT IN (SELECT digest FROM file)")

    def meta(self, name: str) -> str | None:
        """Something small that was remembered."""
        found = self._read("SELECT value FROM meta WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    # What was replaced or deleted

    def keep(self, kept: Iterable[tuple[str, str, bytes, int, float, bool]]) -> None:
        """Remember what was kept: place, path, digest, size, when, and whether it was deleted."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                query = "INSERT INTO kept (place, path, digest, size, at, deleted) VALUES (?, ?, ?, ?, ?, ?)"
                self._db.executemany(query, list(kept))
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise StorageError(f"{self.path} cannot be written: {error}.") from error

    def kept(self, *, path: str | None = None, digest: bytes | None = None, limit: int = 1000) -> list[Kept]:
        """What was kept, latest first.

        :param path: only versions of this file.
        :param digest: only files with these contents.
        """
        where, values = "", []
        if path is not None:
            where, values = "WHERE path = ?", [path]
        if digest is not None:
            where, values = "WHERE digest = ?", [digest]  # type: ignore[list-item]
        query = f"SELECT number, place, path, digest, size, at, deleted FROM kept {where} ORDER BY number DESC LIMIT ?"
        return [_kept(found) for found in self._read(query, (*values, limit))]

    def expired(self, *, before: float, versions: int, limit: int = 1000) -> list[Kept]:
        """What need not be kept any longer.

        :param before: kept before this time, seconds since the epoch.
        :param versions: so many replaced versions of a file stay; older ones go.
        """
        query = (
            "SELECT number, place, path, digest, size, at, deleted FROM (SELECT *, ROW_NUMBER() OVER "
            "(PARTITION BY path, deleted ORDER BY number DESC) AS rank FROM kept) "
            "WHERE at < ? OR (NOT deleted AND rank > ?) LIMIT ?"
        )
        return [_kept(found) for found in self._read(query, (before, versions, limit))]

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove what was kept."""
        with self._lock, suppress(sqlite3.Error):
            self._db.executemany("DELETE FROM kept WHERE number = ?", [(number,) for number in numbers])


def _row(found: tuple[object, ...]) -> Row:
    key, local, path, size, mtime, flags, digest, disk_size, disk_mtime, disk_ctime, inode = found
    info = FileInfo(path, size, mtime, flags, digest)  # type: ignore[arg-type]
    disk = DiskFile(disk_size, disk_mtime, disk_ctime, inode, bool(flags))  # type: ignore[arg-type]
    return Row(str(key), str(local), info, disk)


def _values(row: Row) -> tuple[object, ...]:
    info, disk = row.info, row.disk
    library = (info.path, info.size, info.mtime_ns, info.flags, info.digest)
    return (row.key, row.local, *library, disk.size, disk.mtime_ns, disk.ctime_ns, disk.inode)


def _kept(found: tuple[object, ...]) -> Kept:
    number, place, path, digest, size, at, deleted = found
    return Kept(number, place, path, digest, size, at, bool(deleted))  # type: ignore[arg-type]
