"""A disk that forgets, when its power is cut, what was not synced.

Files lie in a folder of a file system in memory. What ``os.fsync`` was called for is remembered: the contents of files,
and which names a directory holds. After a power cut only that is there. SQLite syncs by itself, outside Python: a
database keeps what it committed if its connection asks for full syncing, and otherwise falls back to what it was when
it was opened, as it may in the worst case.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["SimulatedDisk"]

_FULL_SYNC = 2
_DATABASE_SUFFIXES = ("", "-wal")


class SimulatedDisk:
    """The disks of all machines of a simulation.

    :param root: a folder of our own; each machine has a folder in it.
    :ivar on_sync: called with the path of what is about to be synced.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.on_sync: Callable[[str], None] = lambda path: None
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, dict[str, int]] = {}
        self._databases: list[tuple[Path, sqlite3.Connection, dict[str, bytes]]] = []

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Watch what is synced for the length of the block."""
        fsync, connect = os.fsync, sqlite3.connect

        def watched_connect(path: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
            before = {suffix: Path(f"{path}{suffix}") for suffix in _DATABASE_SUFFIXES}
            kept = {suffix: file.read_bytes() for suffix, file in before.items() if file.exists()}
            database: sqlite3.Connection = connect(path, *args, **kwargs)
            self._databases.append((Path(path), database, kept))
            return database

        os.fsync = self._fsync  # type: ignore[assignment]
        sqlite3.connect = watched_connect  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync, sqlite3.connect = fsync, connect

    def clone(self, source: Path, target: Path, *, power_cut: bool) -> None:
        """Make the folder that a machine finds when it starts again.

        :param power_cut: only what was synced is there; otherwise all that was written.
        """
        if not power_cut:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-shm", "lock"))
            for folder, names, files in os.walk(target):
                for name in (*names, *files):
                    self._note_copy(Path(folder, name))
                self._note_directory(folder)
            self._note_directory(str(target))
            return
        self._restore(source, target)

    def _restore(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        synced = self._names.get(str(source))
        for entry in sorted(os.scandir(source), key=lambda item: item.name):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                # Directories are made before anything in them is synced; an empty one does no harm.
                self._restore(path, target / entry.name)
            elif ".sqlite3" in entry.name:
                continue
            elif synced is not None and entry.name not in synced:
                continue  # the name was never synced
        for name, inode in sorted((synced or {}).items()):
            if ".sqlite3" in name or name == "lock" or (source / name).is_dir():
                continue
            (target / name).write_bytes(self._contents.get(inode, b""))
            (target / name).chmod(0o600)
            self._note_copy(target / name)
        self._restore_databases(source, target)
        target.chmod(0o700)
        self._note_directory(str(target))

    def _restore_databases(self, source: Path, target: Path) -> None:
        lazy: dict[str, dict[str, bytes]] = {}
        for path, database, before in self._databases:
            if path.parent == source and not _syncs(database):
                lazy[path.name] = before
        for path in sorted(source.glob("*.sqlite3")):
            for suffix in _DATABASE_SUFFIXES:
                file = path.with_name(path.name + suffix)
                if path.name in lazy:
                    data = lazy[path.name].get(suffix)
                else:
                    data = file.read_bytes() if file.exists() else None
                if data is not None:
                    (target / file.name).write_bytes(data)
                    (target / file.name).chmod(0o600)

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        link = f"/proc/self/fd/{number}"
        path = os.readlink(link)
        if not path.startswith(str(self.root)):
            return
        self.on_sync(path)
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            self._note_directory(path)
        else:
            self._contents[found.st_ino] = Path(link).read_bytes()

    def _note_directory(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._names[path] = {entry.name: entry.inode() for entry in os.scandir(path)}

    def _note_copy(self, path: Path) -> None:
        if path.is_file() and ".sqlite3" not in path.name:
            self._contents[path.stat().st_ino] = path.read_bytes()


def _syncs(database: sqlite3.Connection) -> bool:
    try:
        (level,) = database.execute("PRAGMA synchronous").fetchone()
    except sqlite3.ProgrammingError:
        return True  # closed in order, which checkpoints
    return int(level) >= _FULL_SYNC
