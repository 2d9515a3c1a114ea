"""The sending end on disk: what there is to send, and records full of it (blocking)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from blake3 import blake3

from sdnet_core.errors import InvalidRequestError, NotFoundError

from . import messages as m
from .beneath import opened_beneath
from .names import InvalidNameError, check_component, check_length, check_path, numbered, printable
from .part import PAGE_BYTES
from .recovery import hash_file

__all__ = ["Left", "Manifest", "SourceReader", "scan", "scan_beneath"]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_WAIT: int = getattr(os, "RWF_NOWAIT", -1)
_LITTLE_ROOM = 4096
_HASH_BUFFER_BYTES = 1 << 20

_Lister: TypeAlias = Callable[[str, tuple[str, ...]], AbstractContextManager[Iterator[os.DirEntry[str]]]]
"""Opens a folder, given its path and its place in the manifest."""


@dataclass(frozen=True, slots=True)
class Left:
    """Something that is not sent.

    :param path: as a person would write it.
    :param expected: it is no regular file or folder, and nobody would expect it to arrive.
    """

    path: str
    reason: str
    expected: bool = False


@dataclass(slots=True)
class Manifest:
    """What is to be sent.

    :ivar items: as they go over the wire.
    :ivar sources: by item, where it is here and which file it was (device, inode).
    :ivar left: what is not sent, and why.
    :ivar root: a folder that all sources are in; they are opened beneath it, without following links. Empty: sources
        are absolute paths.
    """

    items: list[m.Item] = field(default_factory=list)
    sources: list[tuple[str, int, int]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    total_bytes: int = 0
    root: str = ""

    @property
    def files(self) -> int:
        """How many of the items are files."""
        return sum(not item.directory for item in self.items)


def scan(paths: Sequence[Path], *, max_items: int = m.MAX_ITEMS) -> Manifest:
    """List the files and folders to send.

    A link that is named itself is followed; links and special files inside folders are left out.

    :raises InvalidRequestError: nothing can be sent, there is too much, or a named path is missing.
    """
    manifest = Manifest()
    taken: set[str] = set()
    for path in paths:
        path = Path(os.path.abspath(path))
        try:
            status = os.stat(path)
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from error
        name = _free_name(path.name, stat.S_ISDIR(status.st_mode), taken)
        _add(manifest, os.path.realpath(path), (name,), status, max_items, lambda folder, _: os.scandir(folder))
    if not manifest.items:
        reason = manifest.left[0].reason if manifest.left else "no path was given"
        raise InvalidRequestError(f"There is nothing to send: {reason}.")
    return manifest


def scan_beneath(root: str, parts: Sequence[str], name: str, *, max_items: int = m.MAX_ITEMS) -> Manifest:
    """List a file or folder below a shared folder, following no link, not even one that is put there meanwhile.

    :param parts: where it is below ``root``; empty for the folder itself.
    :param name: what it is called if ``parts`` are empty.
    :raises NotFoundError: there is nothing there, or a link stands in the way.
    :raises InvalidRequestError: nothing can be sent, or there is too much.
    """
    manifest = Manifest(root=root)
    try:
        with opened_beneath(root) as folders:
            found = folders.find(parts)
            if found:
                status = os.stat(found[-1], dir_fd=folders.get(found[:-1]), follow_symlinks=False)
            else:
                status = os.fstat(folders.get(()))

            def entries(path: str, _: tuple[str, ...]) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
                return os.scandir(folders.get(path.split("/") if path else ()))

            _add(manifest, "/".join(found), (parts[-1] if parts else name,), status, max_items, entries)
    except OSError as error:
        shown = printable("/".join(parts)) or name
        raise NotFoundError(f"{shown} cannot be opened: {error.strerror}.") from error
    if not manifest.items:
        raise InvalidRequestError(f"There is nothing to send: {manifest.left[0].reason}.")
    return manifest


def _free_name(name: str, directory: bool, taken: set[str]) -> str:
    candidates = (numbered(name, number, directory=directory) for number in range(10_000))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free


def _add(
    manifest: Manifest, path: str, parts: tuple[str, ...], status: os.stat_result, max_items: int, list_folder: _Lister
) -> None:
    pending: list[tuple[str, tuple[str, ...], os.stat_result]] = [(path, parts, status)]
    while pending:
        path, parts, status = pending.pop()
        directory = stat.S_ISDIR(status.st_mode)
        if not directory and not stat.S_ISREG(status.st_mode):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
            manifest.left.append(Left(printable(path), f"is {kind}", expected=True))
            continue
        try:
            checked = check_path(parts) if len(parts) == 1 else check_length(parts)
        except InvalidNameError as error:
            manifest.left.append(Left(printable(path), error.detail))
            continue
        if len(manifest.items) >= max_items:
            raise InvalidRequestError(f"There are more than {max_items} files and folders; send them in parts.")
        size = 0 if directory else status.st_size
        executable = not directory and bool(status.st_mode & stat.S_IXUSR)
        manifest.items.append(m.Item(checked, directory, size, status.st_mtime_ns, executable))
        manifest.sources.append((path, status.st_dev, status.st_ino))
        manifest.total_bytes += size
        if directory:
            pending += reversed(list(_entries(manifest, path, checked, list_folder)))


def _entries(
    manifest: Manifest, path: str, parts: tuple[str, ...], list_folder: _Lister
) -> Iterator[tuple[str, tuple[str, ...], os.stat_result]]:
    try:
        with list_folder(path, parts) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        manifest.left.append(Left(printable(path), f"cannot be read: {error.strerror}"))
        return
    seen: set[str] = set()
    for entry in found:
        try:
            status = entry.stat(follow_symlinks=False)
            sendable = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            name = check_component(entry.name) if sendable else entry.name
        except OSError as error:
            manifest.left.append(Left(printable(entry.path), f"cannot be read: {error.strerror}"))
        except InvalidNameError as error:
            manifest.left.append(Left(printable(entry.path), error.detail))
        else:
            if name in seen:
                manifest.left.append(Left(printable(entry.path), "has the name of another file, written differently"))
            else:
                seen.add(name)
                yield f"{path}/{entry.name}" if path else entry.name, (*parts, name), status


@dataclass(frozen=True, slots=True)
class Filled:
    """One record's worth.

    :param length: bytes of the buffer in use, 0 when everything was read.
    :param done_bytes: bytes of the transfer behind us with this record.
    :param done_items: files behind us with this record.
    """

    length: int
    done_bytes: int
    done_items: int


def _length(position: int, room: int, size: int) -> int:
    """How much of a file comes next: all that fits, ending at a page, so that the other side can write whole pages."""
    end = min(size, position + room)
    if end < size and end - end % PAGE_BYTES > position:
        end -= end % PAGE_BYTES
    return end - position


class _ChangedError(Exception):
    """The file is not what it was, or cannot be read."""


class SourceReader:
    """Fills records with files, one behind the other, hashing on the way.

    :param resume: what the receiver holds, by item; it is compared with the files here before it counts.
    :param stop: asked now and then during long work without output; True ends it.
    """

    def __init__(
        self, manifest: Manifest, resume: Mapping[int, m.ItemResume], *, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.failed: list[Left] = []
        self.done_items = 0
        self.done_bytes = 0
        self._manifest = manifest
        self._resume = resume
        self._stop = stop
        self._next = 0
        self._item = -1
        self._file = -1
        self._position = 0
        self._hasher = blake3()
        self._opened = contextlib.ExitStack()
        self._folders = self._opened.enter_context(opened_beneath(manifest.root)) if manifest.root else None

    def fill(self, buffer: bytearray | memoryview) -> Filled:
        """Fill a record.

        :param buffer: at most `MAX_RECORD_BYTES`; what is beyond the length given back is undefined.
        """
        view = memoryview(buffer)
        view[0] = m.DATA
        used = 1
        while not self._stop():
            room = len(view) - used - m.SEGMENT_HEADER.size - m.DIGEST_BYTES
            if self._file < 0 and not self._choose():
                break
            left = self._manifest.items[self._item].size - self._position
            if used > 1 and (room < _LITTLE_ROOM or room < left <= len(view) // 2):
                break  # a file that fits into the next record is not cut
            used += self._segment(view[used:], room)
        return Filled(used if used > 1 else 0, self.done_bytes, self.done_items)

    def fill_at_once(self, buffer: memoryview) -> Filled | None:
        """Fill a record from the middle of a file that is open, without waiting for a disk.

        :param buffer: as with `fill`.
        :returns: None if that is not possible; `fill` goes on there.
        """
        start = 1 + m.SEGMENT_HEADER.size
        room = len(buffer) - start - m.DIGEST_BYTES
        size = self._manifest.items[self._item].size if self._file >= 0 else 0
        length = min(_length(self._position, room, size), room)
        if length <= 0 or self._position + length >= size:
            return None
        data = buffer[start : start + length]
        try:
            if os.preadv(self._file, [data], self._position, _NO_WAIT) < length:
                return None
        except OSError:  # it is not in memory, or this system does not tell
            return None
        self._hasher.update(data)
        buffer[0] = m.DATA
        m.SEGMENT_HEADER.pack_into(buffer, 1, 0, self._item, self._position, length)
        self._position += length
        self.done_bytes += length
        return Filled(start + length, self.done_bytes, self.done_items)

    @property
    def item(self) -> int:
        """The item that comes next, or the one that is being read; it changes with every file."""
        return self._item if self._item >= 0 else self._next

    def _choose(self) -> bool:
        """Go to the next file that has something to send, without opening it."""
        items = self._manifest.items
        if self._item >= 0:
            return True
        while self._next < len(items):
            index, self._next = self._next, self._next + 1
            if items[index].directory:
                continue
            held = self._resume.get(index)
            if held is not None and held.landed:
                self.done_bytes += held.length
                self.done_items += 1
                continue
            self._item, self._position = index, 0
            return True
        return False

    def _segment(self, view: memoryview, room: int) -> int:
        item = self._manifest.items[self._item]
        try:
            # One look at the file is enough for one that is read in one go: it shows a change before and during that.
            at_once = self._file < 0 and item.size <= room
            if self._file < 0:
                self._begin(item, look=not at_once)
            length = _length(self._position, room, item.size)
            start = m.SEGMENT_HEADER.size
            data = view[start : start + length]
            self._read(data)
            self._hasher.update(data)
            last = self._position + length == item.size
            if last:
                self._check_unchanged(item, at_end=not at_once)
        except (OSError, _ChangedError) as error:
            return self._fail(view, error)
        flags = int(m.SegmentFlag.LAST) if last else 0
        m.SEGMENT_HEADER.pack_into(view, 0, flags, self._item, self._position, length)
        self._position += length
        self.done_bytes += length
        if not last:
            return start + length
        view[start + length : start + length + m.DIGEST_BYTES] = self._hasher.digest()
        self.done_items += 1
        self._close()
        return start + length + m.DIGEST_BYTES

    def _begin(self, item: m.Item, *, look: bool) -> None:
        self._file = self._open_source(self._manifest.sources[self._item][0])
        held = self._resume.get(self._item)
        if look or held is not None:
            self._check_unchanged(item)
        self._hasher = blake3()
        if held is None or not held.length:
            return
        buffer = bytearray(_HASH_BUFFER_BYTES)
        hasher = blake3()
        position = 0
        while position < held.length and not self._stop():
            step = min(held.length - position, 64 << 20)
            if hash_file(self._file, step, hasher, buffer, position) != step:
                raise _ChangedError("became shorter while it was sent")
            position += step
        if hasher.digest() == held.digest:
            self._hasher = hasher
            self._position = position
            self.done_bytes += position

    def _open_source(self, path: str) -> int:
        if self._folders is None:
            return os.open(path, _OPEN)
        parts = path.split("/")
        return os.open(parts[-1], _OPEN, dir_fd=self._folders.get(parts[:-1]))

    def _read(self, data: memoryview) -> None:
        done = os.preadv(self._file, [data], self._position)
        while done < len(data):
            count = os.preadv(self._file, [data[done:]], self._position + done)
            if not count:
                raise _ChangedError("became shorter while it was sent")
            done += count

    def _check_unchanged(self, item: m.Item, *, at_end: bool = False) -> None:
        status = os.fstat(self._file)
        _, device, inode = self._manifest.sources[self._item]
        if (
            status.st_size != item.size
            or status.st_mtime_ns != item.mtime_ns
            or status.st_ino != inode
            or status.st_dev != device
            or not stat.S_ISREG(status.st_mode)
        ):
            raise _ChangedError("changed while it was sent" if at_end else "changed since it was chosen")

    def _fail(self, view: memoryview, error: OSError | _ChangedError) -> int:
        if isinstance(error, FileNotFoundError):
            reason = "vanished"
        elif isinstance(error, IsADirectoryError):
            reason = "changed since it was chosen"
        elif isinstance(error, OSError):
            reason = f"cannot be read: {error.strerror}"
        else:
            reason = str(error)
        self.failed.append(Left(printable(self._manifest.sources[self._item][0]), reason))
        text = reason.encode()
        m.SEGMENT_HEADER.pack_into(view, 0, int(m.SegmentFlag.FAILED), self._item, self._position, len(text))
        view[m.SEGMENT_HEADER.size : m.SEGMENT_HEADER.size + len(text)] = text
        self.done_bytes -= self._position
        self._close()
        return m.SEGMENT_HEADER.size + len(text)

    def _close(self) -> None:
        self._item = -1
        if self._file >= 0:
            descriptor, self._file = self._file, -1
            os.close(descriptor)

    def close(self) -> None:
        """Close the file being read."""
        with self._opened, contextlib.suppress(OSError):
            self._close()
