"""Files that are not whole yet: blocks that were checked one by one, kept until the rest has come (blocking)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from sdnet_core.errors import StorageError, TryLaterError

from .contents import HASH_BYTES, MIN_BLOCK_BYTES, block_size, hash_block, read_block
from .entries import EXECUTABLE, FileInfo
from .tree import Tree, set_attributes

__all__ = ["PartFile", "copy_small", "part_name", "write_small"]

_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def part_name(digest: bytes) -> str:
    """What the part of a file with these contents is called."""
    return digest.hex()


def write_small(tree: Tree, files: Iterable[tuple[FileInfo, bytes]], name: str | None = None) -> None:
    """Write files of one block, whose contents were checked.

    :param name: of the part; that for its contents if None.
    :raises OSError: they cannot be written.
    """
    with tree.parts() as parts:
        for info, data in files:
            descriptor = os.open(name or part_name(info.digest), _CREATE | os.O_TRUNC, 0o666, dir_fd=parts)
            try:
                _write(descriptor, data, 0)
                set_attributes(descriptor, mtime_ns=info.mtime_ns, executable=bool(info.flags & EXECUTABLE))
            finally:
                os.close(descriptor)


def copy_small(tree: Tree, info: FileInfo, local: str, name: str) -> bool:
    """Take the contents of a file of one block from another file of the folder.

    :param name: of the part.
    :returns: whether it holds them (still).
    """
    if info.size > MIN_BLOCK_BYTES:
        return False
    try:
        with tree.open(local) as descriptor:
            data = read_block(descriptor, info.size, 0)
    except (OSError, TryLaterError):
        return False
    if hash_block(data) != info.digest:
        return False
    write_small(tree, [(info, data)], name)
    return True


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


class PartFile:
    """One file of several blocks that is being put together.

    :param recipe: the hashes of its blocks.
    """

    def __init__(self, tree: Tree, info: FileInfo, recipe: bytes) -> None:
        self._tree = tree
        self.info = info
        self._block = block_size(info.size)
        self._hashes = [recipe[at : at + HASH_BYTES] for at in range(0, len(recipe), HASH_BYTES)]
        self._descriptor = -1

    def prepare(self, sources: Sequence[str]) -> list[int]:
        """Begin, or go on with what an earlier try left.

        :param sources: other files of the folder that may hold some of the blocks, such as the version before.
        :returns: which blocks are missing, in order.
        :raises StorageError: there is no room.
        :raises OSError: it cannot be written.
        """
        with self._tree.parts() as parts:
            self._descriptor = os.open(part_name(self.info.digest), _CREATE, 0o666, dir_fd=parts)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError("The place for unfinished files holds something else.")
        room = os.fstatvfs(self._descriptor)
        if self.info.size - status.st_blocks * 512 > room.f_bavail * room.f_frsize:
            raise StorageError(f"There is no room left on the disk for {self.info.path}.")
        missing = self._held(status.st_size)
        os.ftruncate(self._descriptor, self.info.size)
        for local in sources:
            if not missing:
                break
            self._take_from(local, missing)
        return sorted(index for indexes in missing.values() for index in indexes)

    def _held(self, length: int) -> dict[bytes, list[int]]:
        missing: dict[bytes, list[int]] = {}
        for index, wanted in enumerate(self._hashes):
            if min((index + 1) * self._block, self.info.size) <= length:
                if hash_block(read_block(self._descriptor, self.info.size, index)) == wanted:
                    continue
            missing.setdefault(wanted, []).append(index)
        return missing

    def _take_from(self, local: str, missing: dict[bytes, list[int]]) -> None:
        try:
            with self._tree.open(local) as descriptor:
                size = os.fstat(descriptor).st_size
                for offset in range(0, size, self._block):
                    data = os.pread(descriptor, self._block, offset)
                    for index in missing.pop(hash_block(data), ()):
                        _write(self._descriptor, data, index * self._block)
                    if not missing:
                        return
        except OSError:
            return  # it went away meanwhile: then the blocks come over the network

    def write(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Write blocks, which were checked.

        :raises OSError: they cannot be written.
        """
        for index, data in blocks:
            _write(self._descriptor, data, index * self._block)

    def finish(self) -> None:
        """All blocks are there: bring them to the disk.

        :raises OSError: the disk failed.
        """
        info = self.info
        set_attributes(self._descriptor, mtime_ns=info.mtime_ns, executable=bool(info.flags & EXECUTABLE))
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Let go of it; what has come stays for the next try."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
