"""One library's database: its tables, how it is opened, and what its columns hold.

Entries, batches and names are sealed. In the clear lie: how many entries, batches and members there are and how long
each is, which entries share a kind and in which order they came, keyed hashes of ids and of values that must be
unique, and when (stamps) and by which member batches were written.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sdnet_core.errors import NetworkingError, StorageError

__all__ = ["FORMAT", "open_database", "reported"]

FORMAT = 1

# Entries lie in the order in which they came, and so does what is found by kind: of what is written together, only the
# small index of keys, which are hashes, is touched all over. In the order of keys each entry would change its own page.
_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE author (
    number INTEGER PRIMARY KEY, device BLOB NOT NULL UNIQUE, head INTEGER NOT NULL, hash BLOB NOT NULL,
    stamp INTEGER NOT NULL, seen BLOB NOT NULL, base INTEGER NOT NULL DEFAULT 0, written INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE log (
    position INTEGER PRIMARY KEY AUTOINCREMENT, author INTEGER NOT NULL, sequence INTEGER NOT NULL,
    stamp INTEGER NOT NULL, sealed BLOB NOT NULL, UNIQUE (author, sequence)
);
CREATE TABLE entry (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL, flags INTEGER NOT NULL,
    hash BLOB NOT NULL, sealed BLOB NOT NULL
);
CREATE INDEX entry_by_kind ON entry (kind) WHERE flags & 1;
CREATE INDEX entry_conflict ON entry (key) WHERE flags & 2;
CREATE INDEX entry_deleted ON entry (key) WHERE flags & 4;
CREATE TABLE kind (number INTEGER PRIMARY KEY, tag BLOB NOT NULL UNIQUE, sealed BLOB NOT NULL);
CREATE TABLE leaf (number INTEGER PRIMARY KEY, sum BLOB NOT NULL);
CREATE TABLE claim (tag BLOB NOT NULL, key BLOB NOT NULL, PRIMARY KEY (tag, key)) WITHOUT ROWID;
CREATE INDEX claim_by_key ON claim (key);
CREATE TABLE membership (
    author BLOB NOT NULL, sequence INTEGER NOT NULL, place INTEGER NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (author, sequence, place)
) WITHOUT ROWID;
PRAGMA user_version = {FORMAT};
"""


def open_database(path: Path, *, writable: bool = True) -> sqlite3.Connection:
    """Open a library's file, making it (0600) if it is not there. One thread at a time may use the connection.

    :raises StorageError: it cannot be opened, is damaged, or was written by a newer version.
    """
    with reported(path):
        if writable:
            path.touch(mode=0o600)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            # An acknowledged batch must be on the disk: a number that was told to others is never used twice.
            pragmas = ["journal_mode = WAL", "synchronous = FULL", "fullfsync = 1", "busy_timeout = 5000"]
            pragmas += ["cache_size = -48000" if writable else "cache_size = -4000", "temp_store = MEMORY"]
            if writable:
                # Keys are hashes: between two checkpoints the same pages of their index change again and again.
                pragmas += ["wal_autocheckpoint = 16000", "journal_size_limit = 67108864"]
            else:
                pragmas.append("query_only = 1")
            for pragma in pragmas:
                db.execute(f"PRAGMA {pragma}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                raise StorageError(f"{path} was written by a newer version of sdnet-sync; update it to go on.")
            if version == 0 and writable:
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        except BaseException:
            db.close()
            raise
    return db


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into StorageError."""
    try:
        yield
    except NetworkingError:
        raise
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise StorageError(f"There is no room left on the disk for {path}.") from error
        raise StorageError(f"{path} cannot be read or written now: {error}.") from error
    except sqlite3.ProgrammingError as error:
        raise StorageError(f"{path} is closed.") from error
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{path} is damaged: {error}. Restore it from a backup or leave the library.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}.") from error
