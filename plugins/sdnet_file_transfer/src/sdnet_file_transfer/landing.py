"""The receiving end on disk (blocking; used from one thread at a time).

Everything lands in a private folder beside its final place. Files that came whole and whose hash matched build up a
tree there; a larger one grows in a part file first, with a journal. What was sent under one name moves to its final
name in one step, when all of it is verified and safe on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from blake3 import blake3

from sdnet_core.errors import ProtocolError

from . import beneath, recovery
from .journal import Journal, Mark
from .layout import Group, Layout
from .messages import DATA, SEGMENT_HEADER, FileChunk, Item, ItemResume
from .names import printable
from .part import PartWriter
from .staging import explained

__all__ = ["Landing", "MismatchError"]

MARK_BYTES = 4 << 20
"""A part file's journal entries are so far apart: the most that comes again after a crash."""
SYNC_BYTES = 64 << 20
"""So much of a file may be written before it is brought to the disk."""
SYNC_FILES = 2500
"""So many files may be written before they are brought to the disk, while more of them come."""
SYNCED_SIZE_BYTES = 8 << 20
"""From this size on a file is brought to the disk when it ends; smaller ones together, before they are exposed."""
_READY_GROUPS = 512
_UNSYNCED_FILES = 16
_NO_DIGEST = bytes(32)
_TREE = "tree"
_JOURNAL = "journal"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class MismatchError(ProtocolError):
    """A file that came does not have the hash that its sender named."""

    code = "mismatch"


class Landing:
    """Where one transfer's files go.

    :param destination: the folder for the final names; created if it is missing.
    :param name: of the private folder in it, from `sdnet_file_transfer.staging.staging_name`.
    :param layout: of its manifest; for this landing alone, which notes in it how far it is.
    :param adopt: another private folder whose contents may be used: an earlier attempt at the same.
    :param fresh: throw away what a private folder of this name holds.
    :raises StorageError: the destination cannot be used.
    """

    def __init__(
        self, destination: Path, name: str, layout: Layout, *, adopt: str | None = None, fresh: bool = False
    ) -> None:
        self.destination = destination
        self.landed_names: list[str] = []
        self.failed = 0
        """Files that the sender gave up, or that an earlier attempt left out."""
        self.done_items = 0
        self.done_bytes = 0
        """Bytes of this transfer that are here, the file that is coming included."""
        self._name = name
        self._items = layout.items
        self._keys = layout.keys
        self._groups = layout.groups
        self._whole: dict[int, bytes] = {}
        self._partial: dict[int, tuple[int, blake3]] = {}
        self._current: int | None = None
        self._file: PartWriter | None = None
        self._hasher = blake3()
        self._position = self._hashed = self._marked = 0
        """Of the file that is coming: how much of it is here, is hashed (which may be more), is in the journal."""
        self._hashes: dict[int, bytes] = {}
        """What was hashed before it was written: the hashes up to the ends of its records."""
        self._digest = b""
        """The hash of what is here, if the hasher is beyond it."""
        self._unsynced_bytes = self._unsynced_files = 0
        self._unsynced: list[tuple[str, ...]] | None = []
        self._ready: list[Group] = []
        self._open_files = contextlib.ExitStack()
        with explained(destination, "prepared"), contextlib.ExitStack() as undo:
            undo.callback(self._open_files.close)
            self._open(adopt, fresh)
            undo.pop_all()

    def _open(self, adopt: str | None, fresh: bool) -> None:
        self.destination.mkdir(parents=True, exist_ok=True)
        self._top = self._closing(os.open(self.destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if fresh:
            beneath.remove_tree(self._name, below=self._top)
        if adopt is not None:
            with contextlib.suppress(FileNotFoundError):
                os.rename(adopt, self._name, src_dir_fd=self._top, dst_dir_fd=self._top)
        self._staging = self._closing(beneath.open_private_directory(self._name, below=self._top))
        self._tree = self._closing(beneath.open_private_directory(_TREE, below=self._staging))
        self._folders = beneath.DirectoryCache(self._tree)
        self._open_files.callback(self._folders.close)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._journal = Journal(os.open(_JOURNAL, flags, 0o600, dir_fd=self._staging))
        self._open_files.callback(self._journal.close)

    def _closing(self, descriptor: int) -> int:
        self._open_files.callback(os.close, descriptor)
        return descriptor

    @property
    def file_system(self) -> int:
        """The number of the file system that the destination is on."""
        return os.fstat(self._top).st_dev

    def free_bytes(self) -> int:
        """Room for more on the destination's file system."""
        return beneath.free_bytes(self._top)

    def verify(self) -> list[ItemResume]:
        """Read back what is held, forget what does not match, make the folders.

        :returns: what need not be sent again.
        :raises StorageError: the disk cannot be read or written.
        """
        with explained(self.destination, "read back"):
            held = self._journal.load()
            resume: list[ItemResume] = []
            for group in self._groups.values():
                if group.key in held.landing and not self._staged(group.name):
                    resume += self._landed_before(group, held.done)

            def staged(index: int) -> bool:
                return not self._groups[self._items[index].path[0]].landed

            self._whole = recovery.clean_tree(
                self._tree, self._items, lambda index: held.done.get(self._keys[index]) if staged(index) else None
            )
            self._partial = dict(
                recovery.clean_parts(
                    self._staging, self._items, held, lambda index: staged(index) and index not in self._whole
                )
            )
            resume += [ItemResume(i, self._items[i].size, digest, False) for i, digest in self._whole.items()]
            resume += [ItemResume(i, length, h.digest(), False) for i, (length, h) in self._partial.items()]
            for index, item in enumerate(self._items):
                if item.directory and staged(index):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(item.path[-1], dir_fd=self._folders.get(item.path[:-1]))
        self.done_bytes = sum(held_item.length for held_item in resume)
        self._ready = [group for group in self._groups.values() if not group.waiting and not group.landed]
        return resume

    def _staged(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._tree, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _landed_before(self, group: Group, done: dict[bytes, bytes]) -> list[ItemResume]:
        group.landed, group.waiting = True, 0
        resume = []
        for index in group.items:
            if self._items[index].directory:
                continue
            digest = done.get(self._keys[index])
            self.failed += digest is None
            self.done_items += digest is not None
            resume.append(ItemResume(index, self._items[index].size, digest or _NO_DIGEST, True))
        return resume

    def hash_at_once(self, record: memoryview) -> None:
        """Hash a record before it is written, if all it has is what comes next of the file that is coming."""
        start = 1 + SEGMENT_HEADER.size
        if self._current is None or len(record) <= start or record[0] != DATA:
            return
        flags, item, offset, length = SEGMENT_HEADER.unpack_from(record, 1)
        if not flags and item == self._current and offset == self._hashed and start + length == len(record):
            self._hasher.update(record[start:])
            self._hashed += length
            self._hashes[self._hashed] = self._hasher.digest()

    def write(self, *chunks: FileChunk) -> None:
        """Take the next bytes, in the order in which `ReceiverMachine.chunks` lets them through."""
        self.write_all(chunks)

    def write_all(self, chunks: Iterable[FileChunk]) -> None:
        """Take the next bytes, in the order in which `ReceiverMachine.chunks` lets them through.

        :raises MismatchError: a file ended and is not what its sender says it is.
        :raises DiskFullError: no room. What is held stays of use.
        :raises StorageError: it could not be written.
        """
        with explained(self.destination, "written"):
            for chunk in chunks:
                self._write(chunk)

    def _write(self, chunk: FileChunk) -> None:
        if chunk.failure is not None:
            self._give_up(chunk.item)
        elif chunk.item == self._current:
            self._append(chunk)
        elif chunk.item in self._whole and chunk.offset == self._items[chunk.item].size and chunk.digest:
            self._confirm(chunk.item, chunk.digest)
        elif chunk.digest is not None and chunk.offset == 0 and chunk.item not in self._partial:
            self._write_whole(chunk)
        else:
            self._begin(chunk)
            self._append(chunk)

    def _confirm(self, index: int, digest: bytes) -> None:
        if self._whole.pop(index) != digest:
            raise self._mismatch(index)
        self._finished(index)

    def _write_whole(self, chunk: FileChunk) -> None:
        """A file that came in one piece: no part file, no second look at the disk."""
        item = self._items[chunk.item]
        if blake3(chunk.data).digest() != chunk.digest:
            raise self._mismatch(chunk.item)
        if chunk.item in self._whole:  # held, but its sender begins anew; a part of it would have gone to `_begin`
            self._forget(chunk.item)
        mode = 0o777 if item.executable else 0o666  # less what the umask takes
        name, folder, length = item.path[-1], self._folders.get(item.path[:-1]), len(chunk.data)
        descriptor = os.open(name, _CREATE, mode, dir_fd=folder)
        try:
            if length and os.write(descriptor, chunk.data) != length:
                beneath.write_all(descriptor, chunk.data, 0)
            os.utime(descriptor, ns=(item.mtime_ns, item.mtime_ns))
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)
        self.done_bytes += length
        self._unsynced_bytes += length
        self._note_unsynced(item)
        self._journal.add(Mark.DONE, self._keys[chunk.item], item.size, chunk.digest)
        self._finished(chunk.item)

    def _begin(self, chunk: FileChunk) -> None:
        index = chunk.item
        item = self._items[index]
        length, hasher = self._partial.get(index, (0, blake3()))
        if chunk.offset != length or not length:
            self._forget(index)
            length, hasher = 0, blake3()
        self._partial.pop(index, None)
        mode = 0o777 if item.executable else 0o666
        descriptor = os.open(recovery.part_name(self._keys[index]), _PART, mode, dir_fd=self._staging)
        self._file = PartWriter(descriptor, length, direct=item.size >= SYNCED_SIZE_BYTES)
        self._current = index
        self._hasher = hasher
        self._position = self._hashed = self._marked = length
        self._hashes, self._digest = {}, b""
        if not length:
            os.ftruncate(descriptor, 0)
            self._journal.add(Mark.PART, self._keys[index], 0, blake3().digest())

    def _append(self, chunk: FileChunk) -> None:
        assert self._file is not None
        if chunk.data:
            self._file.write(chunk.data)
            self._position += len(chunk.data)
            self._digest = self._hashes.pop(self._position, b"")
            if not self._digest:
                self._hasher.update(chunk.data)
                self._hashed = self._position
            self.done_bytes += len(chunk.data)
            if not self._file.direct:
                self._unsynced_bytes += len(chunk.data)
        if chunk.digest is not None:
            self._end(chunk.item, chunk.digest)
        elif self._position - self._marked >= MARK_BYTES:
            self._mark()

    def _mark(self) -> None:
        if self._current is not None and self._position > self._marked:
            held = self._digest or self._hasher.digest()
            self._journal.add(Mark.PART, self._keys[self._current], self._position, held)
            self._marked = self._position

    def _end(self, index: int, digest: bytes) -> None:
        item = self._items[index]
        name = recovery.part_name(self._keys[index])
        assert self._file is not None
        if self._hasher.digest() != digest:
            self._close_file()
            os.unlink(name, dir_fd=self._staging)
            raise self._mismatch(index)
        self._file.flush()
        os.utime(self._file.descriptor, ns=(item.mtime_ns, item.mtime_ns))
        if item.size >= SYNCED_SIZE_BYTES:
            os.fsync(self._file.descriptor)
        else:
            self._note_unsynced(item)
        self._close_file()
        beneath.move_exclusive(self._staging, name, self._folders.get(item.path[:-1]), item.path[-1])
        self._journal.add(Mark.DONE, self._keys[index], item.size, digest)
        self._finished(index)

    def _mismatch(self, index: int) -> MismatchError:
        return MismatchError(f"{printable(self._items[index].path[-1])} came damaged: its hash does not match.")

    def _give_up(self, index: int) -> None:
        if index == self._current:
            self.done_bytes -= self._position
            self._close_file()
        self._forget(index)
        self.failed += 1
        self._settled(index)

    def _forget(self, index: int) -> None:
        """Remove what is held of a file."""
        self.done_bytes -= self._partial.pop(index, (0, None))[0]
        if self._whole.pop(index, None) is not None:
            self.done_bytes -= self._items[index].size
            path = self._items[index].path
            beneath.remove_tree(path[-1], below=self._folders.get(path[:-1]))
        beneath.remove_tree(recovery.part_name(self._keys[index]), below=self._staging)

    def _close_file(self) -> None:
        file, self._file, self._current = self._file, None, None
        if file is not None:
            file.close()

    def _note_unsynced(self, item: Item) -> None:
        self._unsynced_files += 1
        if self._unsynced is not None:
            self._unsynced.append(item.path)
            if len(self._unsynced) > _UNSYNCED_FILES:
                self._unsynced = None  # too many to name: the whole file system is synced

    def _finished(self, index: int) -> None:
        group = self._groups[self._items[index].path[0]]
        group.delivered += 1
        self.done_items += 1
        self._settled(index)

    def _settled(self, index: int) -> None:
        group = self._groups[self._items[index].path[0]]
        group.waiting -= 1
        if group.waiting:
            return
        if not group.directory and self._items[index].size >= SYNCED_SIZE_BYTES:
            self._land([group])
            return
        self._ready.append(group)
        if len(self._ready) >= _READY_GROUPS:
            self._land_ready()

    def _land_ready(self) -> None:
        ready, self._ready = self._ready, []
        self._land(ready)

    def _land(self, groups: Sequence[Group]) -> None:
        groups = [group for group in groups if group.delivered or self._only_folders(group)]
        if not groups:
            return
        for group in groups:
            for index in reversed(group.items if group.directory else []):  # a folder's time changes with its contents
                if (item := self._items[index]).directory:
                    os.utime(self._folders.get(item.path), ns=(item.mtime_ns, item.mtime_ns))
            self._journal.add(Mark.LANDING, group.key, 0, _NO_DIGEST)
        self._journal.flush()
        self._sync_before_landing(any(group.directory for group in groups))
        for group in groups:
            final = beneath.expose(self._tree, group.name, self._top, group.name, directory=group.directory)
            self.landed_names.append(final)
            group.landed = True
        os.fsync(self._top)

    def _only_folders(self, group: Group) -> bool:
        return all(self._items[index].directory for index in group.items)

    def _sync_before_landing(self, folders: bool) -> None:
        if self._unsynced is None or folders:
            beneath.sync_filesystem(self._tree)
        else:
            for path in self._unsynced:
                descriptor = os.open(path[-1], recovery.READ, dir_fd=self._folders.get(path[:-1]))
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            self._journal.sync()
        self._unsynced, self._unsynced_bytes, self._unsynced_files = [], 0, 0

    def flush(self) -> None:
        """Write the journal's new entries; call it after some writes.

        :raises DiskFullError: no room.
        """
        with explained(self.destination, "noted"):
            self._journal.flush()

    def take_sync(self, *, busy: bool = False) -> Callable[[], None] | None:
        """When enough was written: what brings it to the disk, to be called once, in another thread.

        :param busy: the last one is not done yet. Small files do not wait for that, as other programs may have written
            to their file system for minutes.
        """
        if self._unsynced_files >= SYNC_FILES and not busy:
            self._unsynced_bytes = self._unsynced_files = 0
            return partial(self._bring_to_disk, beneath.sync_filesystem, os.dup(self._tree))
        if self._unsynced_bytes < SYNC_BYTES or self._file is None:
            return None
        self._unsynced_bytes = 0
        return partial(self._bring_to_disk, os.fdatasync, os.dup(self._file.descriptor))

    def _bring_to_disk(self, sync: Callable[[int], None], descriptor: int) -> None:
        try:
            with explained(self.destination, "brought to the disk"):
                sync(descriptor)
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Give the rest its final names; everything is safe on disk when this returns.

        :raises StorageError: it could not be written.
        """
        with explained(self.destination, "put in place"):
            self._land_ready()

    def close(self) -> None:
        """Let go, keeping what is held for another attempt."""
        with self._open_files:
            if self._file is None:
                return
            try:
                # A full disk may refuse even this; the entries before it count then.
                with contextlib.suppress(OSError):
                    self._file.flush()
                    self._mark()
                    self._journal.flush()
            finally:
                self._close_file()

    def discard(self) -> None:
        """Let go and remove everything that has no final name yet.

        :raises StorageError: it cannot be removed.
        """
        with explained(self.destination, "removed"), self._open_files:
            if self._current is not None:
                self._close_file()
            beneath.remove_tree(self._name, below=self._top)
