"""Finds out what has changed in a folder since it was read last (blocking)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec

from sdnet_core.errors import NetworkingError
from sdnet_file_transfer import check_path

from .entries import Mode, file_key
from .index import Index, Row
from .tree import PRIVATE, DiskFile, Tree, has_changed

__all__ = ["IGNORE_FILE", "MAX_PROBLEMS", "Found", "Ignore", "Scan", "scan_all", "scan_some"]

IGNORE_FILE = ".sdnetignore"
_MAX_IGNORE_BYTES = 1 << 20
_UNFINISHED = ".sdnet-partial-"
_PAGE = 500
MAX_CHANGED = 200_000
"""Changed files that one scan finds."""
MAX_PROBLEMS = 100
"""Problems that are listed; more are only counted."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is new or may have changed.

    :param path: as it goes into the library.
    :param local: as the disk spells it.
    :param row: what we knew of it.
    """

    key: str
    path: str
    local: str
    disk: DiskFile
    row: Row | None


@dataclass(slots=True)
class Scan:
    """What a scan found.

    :ivar missing: files that were there and are no longer.
    :ivar clashes: files whose name means the same as another's on some disks.
    :ivar problems: what is left out, and why, by path.
    :ivar whole: whether all of it could be read; if not, nothing counts as missing.
    :ivar more: it ended early because so much has changed; scan again.
    """

    changed: list[Found] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    clashes: list[Found] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    files: int = 0
    whole: bool = True
    more: bool = False

    def problem(self, path: str, text: str) -> None:
        """Note what is left out."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems[path] = text


class Ignore:
    """Which files are left alone: gitignore patterns from ``.sdnetignore`` at the top of the folder."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._spec = GitIgnoreSpec.from_lines(lines)
        self._empty = not len(self._spec)

    @classmethod
    def read(cls, tree: Tree) -> Ignore:
        """The folder's own; none if there is no such file, or it cannot be read."""
        try:
            with tree.open(IGNORE_FILE) as descriptor:
                data = os.read(descriptor, _MAX_IGNORE_BYTES)
            return cls(data.decode(errors="replace").splitlines())
        except (OSError, ValueError):
            return cls()

    def matches(self, path: str, *, directory: bool = False) -> bool:
        """Whether a path is left alone."""
        # Our own corner by any spelling: some disks do not tell them apart.
        first = path.split("/", 1)[0].casefold()
        if first == PRIVATE or path.rsplit("/", 1)[-1].startswith(_UNFINISHED):
            return True
        return not self._empty and bool(self._spec.match_file(path + "/" if directory else path))

    def matches_any_part(self, path: str) -> bool:
        """Whether a path, or a directory above it, is left alone."""
        parts = path.split("/")
        return self.matches(path) or any(
            self.matches("/".join(parts[:depth]), directory=True) for depth in range(1, len(parts))
        )


def scan_all(tree: Tree, index: Index, mode: Mode, ignore: Ignore, *, stopped: Callable[[], bool]) -> Scan:
    """Look at the whole folder.

    :param stopped: asked now and then; if it says so, the scan ends and is not whole.
    """
    scan = Scan()
    # Hashes, not the keys themselves, so that a million files stay cheap; equal hashes delay one deletion.
    seen: set[int] = set()
    for found in _batched(_walk(tree, (), ignore, scan, stopped)):
        _compare(tree, found, index, mode, scan, seen)
        if len(scan.changed) >= MAX_CHANGED:
            scan.whole, scan.more = False, True
            return scan
    if scan.whole:
        after = ""
        while rows := index.page(after):
            after = rows[-1].key
            scan.missing += [
                row for row in rows if hash(row.key) not in seen and not ignore.matches_any_part(row.info.path)
            ]
    return scan


def scan_some(tree: Tree, index: Index, mode: Mode, ignore: Ignore, paths: Iterable[str]) -> Scan:
    """Look at some paths only, files or directories.

    :param paths: relative to the folder, as the disk spells them.
    """
    scan = Scan()
    seen: set[int] = set()
    gone: list[str] = []
    plain: list[tuple[str, os.stat_result]] = []
    for path in _outermost(paths):
        if ignore.matches_any_part(path):
            continue
        try:
            status = tree.status(path)
        except OSError as error:
            scan.problem(path, error.strerror or str(error))
            scan.whole = False
            continue
        if status is not None and stat.S_ISDIR(status.st_mode) and status.st_dev == tree.device:
            walked = _walk(tree, tuple(path.split("/")), ignore, scan, lambda: False)
        elif status is not None and stat.S_ISREG(status.st_mode):
            plain.append((path, status))
            continue
        else:
            walked = iter(())
        for found in _batched(walked):
            _compare(tree, found, index, mode, scan, seen)
        gone.append(path)
    for found in _batched(plain):
        _compare(tree, found, index, mode, scan, seen)
    if scan.whole:
        for path in gone:
            key = file_key(path, mode)
            row = index.get(key)
            rows = [row] if row is not None else []
            after = ""
            while page := index.page(after, below=key + "/"):
                rows += page
                after = page[-1].key
            scan.missing += [r for r in rows if hash(r.key) not in seen and not ignore.matches_any_part(r.info.path)]
    return scan


def _outermost(paths: Iterable[str]) -> list[str]:
    """Leave out paths that lie below another one."""
    chosen: list[str] = []
    for path in sorted(set(paths), key=lambda p: p.split("/")):
        if not chosen or not path.startswith(chosen[-1] + "/"):
            chosen.append(path)
    return chosen


def _walk(
    tree: Tree, start: Sequence[str], ignore: Ignore, scan: Scan, stopped: Callable[[], bool]
) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [tuple(start)]
    while waiting:
        if stopped():
            scan.whole = False
            return
        directory = waiting.pop()
        prefix = "/".join(directory) + "/" if directory else ""
        try:
            entries = tree.list(directory)
        except OSError as error:
            if directory and isinstance(error, FileNotFoundError | NotADirectoryError):
                continue  # it went away meanwhile; the next scan sees that
            scan.problem(prefix or ".", error.strerror or str(error))
            scan.whole = False
            continue
        inner = []
        for name, status in entries:
            path = prefix + name
            if stat.S_ISDIR(status.st_mode):
                if ignore.matches(path, directory=True):
                    continue
                if status.st_dev == tree.device:  # other disks that are mounted in here are not ours
                    inner.append((*directory, name))
                else:
                    scan.problem(path, "lies on another disk")
            elif stat.S_ISREG(status.st_mode):
                if not ignore.matches(path):
                    yield path, status
            elif not ignore.matches(path):
                scan.problem(path, "is a link" if stat.S_ISLNK(status.st_mode) else "is no plain file")
        waiting += reversed(inner)


def _batched(walked: Iterable[tuple[str, os.stat_result]]) -> Iterator[list[tuple[str, os.stat_result]]]:
    batch = []
    for item in walked:
        batch.append(item)
        if len(batch) >= _PAGE:
            yield batch
            batch = []
    if batch:
        yield batch


def _compare(
    tree: Tree, walked: list[tuple[str, os.stat_result]], index: Index, mode: Mode, scan: Scan, seen: set[int]
) -> None:
    named = []
    for local, status in walked:
        try:
            local.encode()
            path = "/".join(check_path(local.split("/")))
        except NetworkingError as error:
            scan.problem(local, str(error))
            continue
        except UnicodeEncodeError:
            scan.problem(local.encode(errors="replace").decode(), "has a name that is not UTF-8")
            continue
        named.append((file_key(path, mode), path, local, DiskFile.of(status)))
    rows = index.get_many([key for key, *_ in named])
    for key, path, local, disk in named:
        row = rows.get(key)
        scan.files += 1
        if hash(key) in seen or (row is not None and row.local != local and _is_another(tree, row, disk)):
            scan.clashes.append(Found(key, path, local, disk, None))
            continue
        seen.add(hash(key))
        if (
            row is None
            or row.local != local
            or has_changed(row.disk, disk)
            or row.disk.ctime_ns != disk.ctime_ns
            or bool(row.info.flags) != disk.executable
        ):
            scan.changed.append(Found(key, path, local, disk, row))


def _is_another(tree: Tree, row: Row, disk: DiskFile) -> bool:
    """Whether the file that we know by a key is still there beside another one: that one was not just renamed."""
    known = tree.disk_file(row.local)
    return known is not None and known.inode != disk.inode
