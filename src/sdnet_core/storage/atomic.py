"""Files that are either the old ones or the new ones, whatever happens in between (blocking)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sdnet_core.clock import Randomness
from sdnet_core.errors import AlreadyRunningError, StorageError

__all__ = [
    "PREVIOUS_SUFFIX",
    "DamagedError",
    "DirectoryLock",
    "clean_temporary",
    "ensure_private_directory",
    "in_part",
    "link_tree",
    "previous_path",
    "read_bounded",
    "remove_durably",
    "rename_durably",
    "write_atomic",
]

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
PREVIOUS_SUFFIX = ".prev"
"""What is appended to a file's name for the generation before it."""
TEMPORARY_PREFIX = ".tmp-"
"""Every unfinished file begins so; names chosen by callers never begin with a dot."""

_NOTHING_CHANGED = "; nothing was changed"
_MAX_ATTEMPTS = 16
_READ_STEP_BYTES = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_BAD_MEDIUM = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class DamagedError(StorageError):
    """A file is there, but what it holds cannot be used: truncated, altered by accident, or not a file of ours."""


def previous_path(path: Path) -> Path:
    """Give the place of the generation before ``path``."""
    return path.with_name(path.name + PREVIOUS_SUFFIX)


def ensure_private_directory(directory: Path, *, below: Path | None = None) -> None:
    """Create a directory and its parents for the owner alone (0700), and tighten it if it is wider.

    :param below: the topmost directory that is ours; everything from there down to ``directory`` is tightened, and
        none of it may be a symbolic link but ``below`` itself.
    :raises StorageError: it cannot be created, something that is not a directory stands there, or it is a directory
        that all users share.
    """
    top = directory if below is None else below
    try:
        for level in (*reversed(top.parents), top):
            if not level.exists():
                level.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        for level in _levels(top, directory):
            if level != top:
                level.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            found = level.stat() if level == top else level.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise StorageError(f"{level} should be a directory but is not; move it away.")
            if found.st_mode & stat.S_ISVTX:
                raise StorageError(f"{level} is shared by all users; choose a directory of your own.")
            if stat.S_IMODE(found.st_mode) & 0o077:
                level.chmod(DIRECTORY_MODE)
    except FileExistsError as error:
        raise StorageError(f"{directory} cannot be created: a file stands in its way.") from error
    except OSError as error:
        raise _explained(error, directory, "create the directory") from error


def write_atomic(
    path: Path, data: bytes, *, randomness: Randomness, keep_previous: bool = True, exclusive: bool = False
) -> None:
    """Replace a file durably: when this returns, the new contents survive a crash and a power cut.

    A crash at any point leaves the old contents or the new ones, never a mixture and never nothing.

    :param keep_previous: what the file held stays readable at `previous_path`; otherwise that file is left alone.
    :param exclusive: refuse if the file exists, decided by the file system in one step.
    :raises StorageError: the disk is full, the place cannot be written, or ``exclusive`` and the file exists.
        Unless the message says otherwise, the file still holds what it held.
    """
    try:
        temporary, descriptor = _open_temporary(path.parent, randomness)
    except OSError as error:
        raise _explained(error, path, "write", unchanged=True) from error
    try:
        try:
            # The descriptor, and with it the lock that marks the file as in use, stays open until the rename.
            _write_fully(descriptor, data)
            _sync(descriptor)
            if keep_previous:
                _keep_previous(path, randomness)
            if exclusive:
                os.link(temporary, path, follow_symlinks=False)
                temporary.unlink()
            else:
                os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)
    except FileExistsError as error:
        raise StorageError(f"{path} exists already; nothing was changed.") from error
    except OSError as error:
        raise _explained(error, path, "write", unchanged=True) from error
    try:
        _sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} was written, but the system could not confirm that it is safe on disk: {error.strerror}."
        ) from error


def read_bounded(path: Path, max_bytes: int) -> bytes | None:
    """Read a whole regular file, without following a link in its last component.

    :returns: ``None`` if there is no such file; a directory of that name is none.
    :raises DamagedError: it is longer than ``max_bytes``, is not a regular file, or the medium cannot read it.
    :raises StorageError: it cannot be read now, which says nothing about what it holds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _NO_FOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _read_failure(error, path) from error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise DamagedError("It is not a regular file.")
        if found.st_size > max_bytes:
            raise DamagedError(f"It has {found.st_size} bytes; at most {max_bytes} are allowed there.")
        parts = []
        left = max_bytes + 1
        while left > 0 and (part := os.read(descriptor, min(left, _READ_STEP_BYTES))):
            parts.append(part)
            left -= len(part)
        if left <= 0:
            raise DamagedError(f"It grew beyond the {max_bytes} bytes that are allowed there.")
        return b"".join(parts)
    except OSError as error:
        raise _read_failure(error, path) from error
    finally:
        os.close(descriptor)


def remove_durably(*paths: Path) -> bool:
    """Remove files of one directory in this order, each removal on disk before the next one begins.

    :returns: whether any of them existed.
    :raises StorageError: one could not be removed; the ones after it are untouched.
    """
    removed = False
    for path in paths:
        try:
            path.unlink()
            _sync_directory(path.parent)
            removed = True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _explained(error, path, "remove") from error
    return removed


def link_tree(source: Path, target: Path) -> None:
    """Give every file below a directory a second name below another one, which is made; copied where links are not
    possible. Files that are replaced, and never written in place, stay as they are under the second name.

    :raises StorageError: one cannot be made.
    """
    for folder, _, names in os.walk(source, followlinks=False):
        made = target / Path(folder).relative_to(source)
        try:
            made.mkdir(mode=DIRECTORY_MODE)
            for name in names:
                if not name.startswith(TEMPORARY_PREFIX):
                    _link_or_copy(Path(folder, name), made / name)
            _sync_directory(made)
        except OSError as error:
            raise _explained(error, made, "write") from error


def rename_durably(source: Path, target: Path) -> None:
    """Give a file or directory another name in its directory; on disk when this returns.

    :raises StorageError: that is not possible.
    """
    try:
        os.rename(source, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _explained(error, target, "write") from error


def clean_temporary(directory: Path) -> int:
    """Remove what interrupted writes left in a directory and below it; writes in progress are left alone.

    :returns: how many files were removed.
    """
    removed = 0
    for folder, _, names in os.walk(directory, followlinks=False):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX) and _remove_if_abandoned(Path(folder, name)):
                removed += 1
    return removed


class DirectoryLock:
    """Keeps a data directory to one process; the system lets go of it when the process dies, however it dies.

    Take it after the last fork: a lock is shared with children that inherit it.
    """

    def __init__(self, directory: Path, name: str = "lock") -> None:
        self._path = directory / name
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        """The lock file; it holds the process id and stays after release."""
        return self._path

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock and write our process id into the file.

        :raises AlreadyRunningError: another process, or another object of this one, holds it.
        :raises StorageError: the lock file cannot be created.
        """
        if self._descriptor is not None:
            raise AlreadyRunningError(f"This node already holds the lock on {self._path.parent}.")
        ensure_private_directory(self._path.parent)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NO_FOLLOW, FILE_MODE)
        except OSError as error:
            raise _explained(error, self._path, "lock") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            _write_fully(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError as error:
            holder = _read_pid(descriptor)
            os.close(descriptor)
            who = "Another process" if holder is None else f"Process {holder}"
            raise AlreadyRunningError(
                f"{who} is already using {self._path.parent}. Stop it first, or use another instance."
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise _explained(error, self._path, "lock") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock; harmless if it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # The file itself stays: removing it would let two processes lock two different files of the same name.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _levels(top: Path, directory: Path) -> Iterator[Path]:
    yield top
    for part in directory.relative_to(top).parts:
        top = top / part
        yield top


def _open_temporary(directory: Path, randomness: Randomness) -> tuple[Path, int]:
    """Create a temporary file that `clean_temporary` of any process recognises as in use."""
    for _ in range(_MAX_ATTEMPTS):
        path = directory / f"{TEMPORARY_PREFIX}{randomness.bytes(8).hex()}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | _NO_FOLLOW, FILE_MODE)
        except FileExistsError:
            continue
        if _lock_quietly(descriptor) and os.fstat(descriptor).st_nlink > 0:
            return path, descriptor
        os.close(descriptor)  # a cleaner saw it before it was locked, and removes it
    raise OSError(errno.EEXIST, "no temporary name is free", str(directory))


def _lock_quietly(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: cleaning does nothing there either
    return True


def _remove_if_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _NO_FOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _keep_previous(path: Path, randomness: Randomness) -> None:
    previous = previous_path(path)
    for _ in range(_MAX_ATTEMPTS):
        link = path.with_name(f"{TEMPORARY_PREFIX}{randomness.bytes(8).hex()}")
        try:
            # A second name first, so that the file is never without its own name.
            os.link(path, link, follow_symlinks=False)
            os.replace(link, previous)
        except FileNotFoundError:
            if not os.path.lexists(path):
                return  # the first generation
            continue  # a cleaner took the link
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links: for a moment only the previous generation exists.
            os.replace(path, previous)
            return
        # Renaming one name of a file onto another name of the same file leaves both.
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        return
    raise OSError(errno.EEXIST, "no temporary name is free", str(path.parent))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            _write_fully(descriptor, source.read_bytes())
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _write_fully(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a write may be short: a signal, a nearly full disk; EINTR itself is retried by Python
        written = os.write(descriptor, view)
        view = view[written:]


def _sync(descriptor: int) -> None:
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
    if full_sync is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems have nothing to sync here
            raise
    finally:
        os.close(descriptor)


def _read_pid(descriptor: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(descriptor, 32, 0))
    return None


def _read_failure(error: OSError, path: Path) -> StorageError:
    if error.errno in _BAD_MEDIUM:
        return DamagedError(f"The disk cannot read it: {error.strerror}.")
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return DamagedError("It is not a regular file.")
    return _explained(error, path, "read")


def in_part(error: StorageError) -> str:
    """What an error says, for when something before it did change."""
    return str(error).replace(_NOTHING_CHANGED, "")


def _explained(error: OSError, path: Path, action: str, *, unchanged: bool = False) -> StorageError:
    """Turn a system error into a sentence for the person who has to do something about it."""
    end = f"{_NOTHING_CHANGED}." if unchanged else "."
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageError(f"The disk is full: {path} could not be written{end}")
        case errno.EFBIG:
            return StorageError(f"{path} could not be written: it is over the limit for the size of a file{end}")
        case errno.EROFS:
            return StorageError(f"Cannot {action} {path}: the file system is read-only{end}")
        case errno.EACCES | errno.EPERM:
            return StorageError(f"Cannot {action} {path}: permission denied. Check who owns it{end}")
        case errno.ELOOP:
            return StorageError(f"Cannot {action} {path}: it is a symbolic link, which is not allowed there{end}")
        case _:
            return StorageError(f"Cannot {action} {path}: {error.strerror or error}{end}")
