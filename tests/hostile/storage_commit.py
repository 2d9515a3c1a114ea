"""One commit, for strace to fail at one of its system calls: ``storage_commit.py <directory> <job> prepare|commit``.

``prepare`` makes what was there before. ``commit`` does the job between two system calls that mark its beginning and
its end, and writes to standard output what the store said: ``done``, or the error.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import NetworkingError
from sdnet_core.storage import KeyFile, SecureStorage, Vault
from sdnet_core.storage.chained import append_durably
from sdnet_core.storage.database import Database
from tests.hostile.storage_writer import PASSPHRASE, inline, storage_of

BEGIN, END = "/sdnet-commit-begins", "/sdnet-commit-ends"
JOBS = ("store", "replace", "delete", "protect", "append", "database")
OLD, NEW = b"old " * 20, b"new " * 30


def look(directory: Path, job: str) -> bytes | None:
    """What is there now, in whatever way a start of the node would find it."""
    match job:
        case "append":
            return (directory / "log").read_bytes()
        case "database":
            database = sqlite3.connect(directory / "db")
            found = database.execute("SELECT value FROM work").fetchone()
            database.close()
            return None if found is None else bytes(found[0])
        case "protect":
            protection = Vault.stored_protection(directory)
            assert protection is not None
            unlock = KeyFile() if protection.kdf is None else PASSPHRASE
            Vault.open(directory, unlock, SystemClock(), SystemRandomness())
            return OLD if protection.kdf is None else NEW
        case _:
            return anyio.run(open_storage(directory).load, "identity")


def open_storage(directory: Path) -> SecureStorage:
    """The store there, opened anew."""
    return storage_of(directory, open_vault(directory))


def open_vault(directory: Path) -> Vault:
    return Vault.open_or_create(directory, KeyFile(), SystemClock(), SystemRandomness())


def put(value: bytes, directory: Path, job: str) -> None:
    """Do the job, or what comes before it."""
    match job:
        case "append":
            append_durably(directory / "log", value)
        case "database":
            anyio.run(in_database, directory, value)
        case "protect":
            if value == NEW:
                open_vault(directory).change_secret(PASSPHRASE)
        case "delete" if value == NEW:
            anyio.run(open_storage(directory).delete, "identity")
        case _:
            storage, final = open_storage(directory), job == "replace" and value == NEW
            anyio.run(keep, storage, value, final)


async def keep(storage: SecureStorage, value: bytes, final: bool) -> None:
    await storage.store("identity", value, both_generations=final)


async def in_database(directory: Path, value: bytes) -> None:
    def work(db: sqlite3.Connection, _: Any) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS work (value BLOB)")
        db.execute("DELETE FROM work")
        db.execute("INSERT INTO work VALUES (?)", (value,))

    database = Database(directory / "db", inline)
    await database.transaction(work)
    await database.close()


def main() -> None:
    """Prepare or commit."""
    directory, job = Path(sys.argv[1]), sys.argv[2]
    if sys.argv[3] == "prepare":
        open_vault(directory)
        put(OLD, directory, job)
        return
    warm = Path(tempfile.mkdtemp(dir=directory.parent))
    put(OLD, warm, job)  # so that everything is imported
    os.access(BEGIN, os.F_OK)
    try:
        put(NEW, directory, job)
        said = "done"
    except NetworkingError as error:
        said = f"failed {error.detail}"
    os.access(END, os.F_OK)
    sys.stdout.write(said)


if __name__ == "__main__":
    main()
