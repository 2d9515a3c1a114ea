"""File operations below an open directory that follow no links (blocking)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .names import numbered

__all__ = [
    "DirectoryCache",
    "expose",
    "free_bytes",
    "move_exclusive",
    "open_directory",
    "open_private_directory",
    "opened_beneath",
    "remove_tree",
    "sync_filesystem",
    "write_all",
]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # macOS sys/stdio.h
_UNSUPPORTED = frozenset((errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))
_MAX_NUMBER = 10_000


def open_directory(name: str, *, below: int) -> int:
    """Open a directory that is an entry of ``below``, not a link to one.

    :raises OSError: it is missing, or no directory.
    """
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=below)


def open_private_directory(name: str, *, below: int) -> int:
    """Open, or create, a directory that only its owner can enter.

    :raises OSError: something else stands there, or it belongs to somebody else.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=below)
    descriptor = open_directory(name, below=below)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to somebody else", name)
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_tree(name: str, *, below: int) -> None:
    """Remove a file or a directory with all that is in it; harmless if it is not there."""
    try:
        os.unlink(name, dir_fd=below)
    except FileNotFoundError:
        return
    except OSError:  # a directory: EISDIR on Linux, EPERM by POSIX
        shutil.rmtree(name, dir_fd=below)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    done = 0
    while done < len(data):
        # Let go of at once, also when an error keeps this frame alive, so that what it shows can be closed.
        with data[done:] as rest:
            done += os.pwrite(descriptor, rest, offset + done)


def free_bytes(descriptor: int) -> int:
    """Bytes that we may still write to the file system of an open file."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize


@functools.cache
def _libc_function(name: str) -> Callable[..., int] | None:
    function: Any = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return None if function is None else function


def sync_filesystem(descriptor: int) -> None:
    """Bring everything written to the file system of an open file to the disk.

    :raises OSError: the disk failed.
    """
    function = _libc_function("syncfs")
    if function is None:
        os.sync()
    elif function(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def expose(source: int, name: str, destination: int, wanted: str, *, directory: bool) -> str:
    """Move a finished file or folder to its final place, never over another.

    :returns: the name it got: ``wanted``, or that with a number.
    :raises OSError: it could not be moved.
    """
    for number in range(_MAX_NUMBER):
        final = numbered(wanted, number, directory=directory)
        with contextlib.suppress(FileExistsError):
            move_exclusive(source, name, destination, final, directory=directory)
            return final
    raise FileExistsError(errno.EEXIST, "every numbered name is taken", wanted)


def move_exclusive(source: int, name: str, destination: int, final: str, *, directory: bool = False) -> None:
    """Rename without replacing.

    :raises FileExistsError: the name is taken.
    :raises OSError: it could not be moved.
    """
    if sys.platform == "darwin":
        function, flag = _libc_function("renameatx_np"), _RENAME_EXCL
    else:
        function, flag = _libc_function("renameat2"), _RENAME_NOREPLACE
    if function is not None:
        if function(source, os.fsencode(name), destination, os.fsencode(final), ctypes.c_uint(flag)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), final)
    _move_portably(source, name, destination, final, directory=directory)


def _move_portably(source: int, name: str, destination: int, final: str, *, directory: bool) -> None:
    """For file systems and systems without an exclusive rename: take the name first, then move onto it."""
    if directory:
        os.mkdir(final, dir_fd=destination)
    else:
        try:
            os.link(name, final, src_dir_fd=source, dst_dir_fd=destination, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system
            os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=destination))
        else:
            os.unlink(name, dir_fd=source)
            return
    os.rename(name, final, src_dir_fd=source, dst_dir_fd=destination)


@contextlib.contextmanager
def opened_beneath(root: str | os.PathLike[str]) -> Iterator[DirectoryCache]:
    """The directories below one that is opened by its path, for the length of the block.

    :raises OSError: it is missing, or no directory.
    """
    top = os.open(root, _DIRECTORY)
    folders = DirectoryCache(top)
    try:
        yield folders
    finally:
        folders.close()
        os.close(top)


class DirectoryCache:
    """Open directories below a root, the last used ones kept.

    :param root: an open directory; stays the caller's.
    """

    def __init__(self, root: int, *, size: int = 32) -> None:
        self._root = root
        self._size = size
        self._open: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def get(self, path: Sequence[str]) -> int:
        """The directory at a path, opened component by component without following links.

        :raises OSError: a component is missing or no directory.
        """
        key = tuple(path)
        if not key:
            return self._root
        found = self._open.get(key)
        if found is not None:
            self._open.move_to_end(key)
            return found
        descriptor = open_directory(key[-1], below=self.get(key[:-1]))
        self._open[key] = descriptor
        # Walking down opens at most one directory a level; what is in use now is the newest and stays.
        while len(self._open) > max(self._size, 2):
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def find(self, path: Sequence[str]) -> tuple[str, ...]:
        """The names that the components of a path have on the disk, where they may be composed in another way.

        :param path: in Unicode NFC.
        :raises OSError: a component is missing or no directory.
        """
        found: tuple[str, ...] = ()
        for name in path:
            below = self.get(found)
            try:
                os.stat(name, dir_fd=below, follow_symlinks=False)
            except FileNotFoundError:
                with os.scandir(below) as entries:
                    other = next((e.name for e in entries if unicodedata.normalize("NFC", e.name) == name), None)
                if other is None:
                    raise
                name = other
            found = (*found, name)
        return found

    def close(self) -> None:
        """Close all but the root."""
        while self._open:
            os.close(self._open.popitem()[1])
