"""A folder on the disk: reading and changing what lies beneath it, never through a link (blocking).

Everything of ours lies in ``.sdnet`` at its top: the marker that says which location it is, parts of files that are
not whole yet, and what was replaced or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdnet_core.errors import ConflictError, StorageError
from sdnet_file_transfer import move_exclusive, open_directory, open_private_directory

__all__ = ["PRIVATE", "DiskFile", "Placing", "Tree", "has_changed", "set_attributes"]

PRIVATE = ".sdnet"
_PARTS, _TRASH, _VERSIONS, _MARKER = "parts", "trash", "versions", "location"
_README = "This folder is a mirror of an sdnet library. Without this file it counts as unmounted.\n"
_OPEN_DIRECTORIES = 64
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class DiskFile:
    """What the disk says about a file, to see later whether it has changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    executable: bool

    @classmethod
    def of(cls, status: os.stat_result) -> DiskFile:
        """From what ``stat`` gives."""
        return cls(
            status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, bool(status.st_mode & stat.S_IXUSR)
        )


def has_changed(one: DiskFile | None, other: DiskFile | None) -> bool:
    """Whether a file may have other contents now. Another name alone changes nothing."""
    if one is None or other is None:
        return one is not other
    return (one.size, one.mtime_ns, one.inode) != (other.size, other.mtime_ns, other.inode)


class Tree:
    """One folder. Several threads may use it at once.

    :param private: the name of our corner in it.
    :raises StorageError: it is not there.
    """

    def __init__(self, root: Path, *, private: str = PRIVATE) -> None:
        self.root = root
        self._corner = private
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{root} cannot be opened: {error.strerror}.") from error
        status = os.fstat(self._root)
        self.device, self.inode = status.st_dev, status.st_ino

    def close(self) -> None:
        """Let go of it."""
        os.close(self._root)

    def present(self) -> bool:
        """Whether the folder's path still leads to what was opened."""
        try:
            status = os.stat(self.root)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    # Our own corner

    def marker(self) -> str | None:
        """The location that the marker names."""
        with contextlib.suppress(OSError), self._private() as private:
            descriptor = os.open(_MARKER, _READ, dir_fd=private)
            with open(descriptor, "rb") as file:
                return file.read(1024).split(b"\n", 1)[0].decode(errors="replace")
        return None

    def mark(self, location: str) -> None:
        """Write the marker.

        :raises ConflictError: the folder belongs to another location.
        :raises StorageError: it cannot be written.
        """
        found = self.marker()
        if found not in (None, location):
            raise ConflictError(f"{self.root} is a mirror already, of another location ({found}).")
        try:
            with self._private(create=True) as private:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(_MARKER, flags, 0o600, dir_fd=private), "wb") as file:
                    file.write(f"{location}\n{_README}".encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.fsync(private)
        except OSError as error:
            raise StorageError(f"{self.root} cannot be written to: {error.strerror}.") from error

    def unmark(self) -> None:
        """Remove the marker; what was kept stays."""
        with contextlib.suppress(OSError), self._private() as private:
            os.unlink(_MARKER, dir_fd=private)
        self.drop_parts()

    @contextlib.contextmanager
    def _private(self, *, create: bool = False) -> Iterator[int]:
        opened = open_private_directory if create else open_directory
        descriptor = opened(self._corner, below=self._root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def parts(self) -> Iterator[int]:
        """The directory of files that are not whole yet."""
        with self._private(create=True) as private:
            descriptor = open_private_directory(_PARTS, below=private)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def drop_parts(self, keep: frozenset[str] = frozenset()) -> None:
        """Delete parts that nobody waits for, and our corner if nothing is in it then.

        :param keep: names of those that are still wanted.
        """
        with contextlib.suppress(OSError), self.parts() as parts:
            for name in os.listdir(parts):
                if name not in keep:
                    os.unlink(name, dir_fd=parts)
        with contextlib.suppress(OSError):
            with self._private() as private:
                os.rmdir(_PARTS, dir_fd=private)
            os.rmdir(self._corner, dir_fd=self._root)

    # Reading

    def list(self, path: Sequence[str]) -> list[tuple[str, os.stat_result]]:
        """The entries of a directory with their status, in the order of their names.

        :raises OSError: it cannot be read.
        """
        with self.directory(path) as descriptor, os.scandir(descriptor) as entries:
            found = []
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return sorted(found, key=lambda item: item[0])

    def status(self, path: str) -> os.stat_result | None:
        """The status of what lies at a path; None if nothing does.

        :raises OSError: it cannot be told.
        """
        parts = path.split("/")
        try:
            with self.directory(parts[:-1]) as descriptor:
                return os.stat(parts[-1], dir_fd=descriptor, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def disk_file(self, path: str) -> DiskFile | None:
        """What the disk says about the file at a path; None if there is no plain file."""
        status = self.status(path)
        return DiskFile.of(status) if status is not None and stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Open a file for reading.

        :raises OSError: it is not there, or no plain file.
        """
        parts = path.split("/")
        with self.directory(parts[:-1]) as directory:
            descriptor = os.open(parts[-1], _READ, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "no plain file", path)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def directory(self, path: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """Open a directory, component by component.

        :raises OSError: it is not there, or a component is a link.
        """
        descriptor = os.dup(self._root)
        try:
            for name in path:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptor)
                inner = open_directory(name, below=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    # Changing

    @contextlib.contextmanager
    def placing(self) -> Iterator[Placing]:
        """Make several parts visible, with directories that are opened once."""
        with self.parts() as parts, contextlib.ExitStack() as stack:
            yield Placing(self, parts, stack)

    def place(self, part: str, path: str, *, replaces: DiskFile | None, keep: str | None) -> DiskFile:
        """Make one part visible; see `Placing.place`."""
        with self.placing() as placing:
            return placing.place(part, path, replaces=replaces, keep=keep)

    def expect(self, directory: int, name: str, expected: DiskFile, path: str) -> None:
        """Check that a file is what we know.

        :raises ConflictError: it is not.
        """
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            raise ConflictError(f"{path} is gone.") from None
        if not stat.S_ISREG(status.st_mode) or has_changed(DiskFile.of(status), expected):
            raise ConflictError(f"{path} has changed.")

    def keep(self, directory: int, name: str, keep: str) -> None:
        """Keep another name for a file that is about to be replaced: its own stays taken until then."""
        with self._kept_directory(keep) as (target, kept_name):
            try:
                os.link(name, kept_name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                    raise
                os.rename(name, kept_name, src_dir_fd=directory, dst_dir_fd=target)  # no hard links on this disk

    def retire(self, path: str, *, expected: DiskFile, keep: str) -> None:
        """Take a file away into our corner, and the directories that are empty then.

        :raises ConflictError: it is not what was expected.
        :raises OSError: it cannot be moved.
        """
        parts = path.split("/")
        with self.directory(parts[:-1]) as directory:
            self.expect(directory, parts[-1], expected, path)
            with self._kept_directory(keep) as (target, name):
                os.rename(parts[-1], name, src_dir_fd=directory, dst_dir_fd=target)
        self.prune(parts[:-1])

    def prune(self, path: Sequence[str]) -> None:
        """Remove a directory and those above it, as far as they are empty."""
        for depth in range(len(path), 0, -1):
            try:
                with self.directory(path[: depth - 1]) as directory:
                    os.rmdir(path[depth - 1], dir_fd=directory)
            except OSError:
                return

    def move(self, path: str, target: str, *, expected: DiskFile) -> DiskFile:
        """Give a file another place, where nothing lies.

        :raises ConflictError: it is not what was expected, or something lies there.
        :raises OSError: it cannot be moved.
        """
        parts, new = path.split("/"), target.split("/")
        with self.directory(parts[:-1]) as source, self.directory(new[:-1], create=True) as directory:
            self.expect(source, parts[-1], expected, path)
            same = path.casefold() == target.casefold()
            try:
                if same:  # on a disk that ignores case, the name seems to be taken by the file itself
                    status = os.stat(new[-1], dir_fd=directory, follow_symlinks=False)
                    if status.st_ino != expected.inode:
                        raise FileExistsError
                    os.rename(parts[-1], new[-1], src_dir_fd=source, dst_dir_fd=directory)
                else:
                    move_exclusive(source, parts[-1], directory, new[-1])
            except FileNotFoundError:
                move_exclusive(source, parts[-1], directory, new[-1])
            except FileExistsError:
                raise ConflictError(f"Something else lies at {target}.") from None
            found = DiskFile.of(os.stat(new[-1], dir_fd=directory, follow_symlinks=False))
        self.prune(parts[:-1])
        return found

    def touch(self, path: str, *, mtime_ns: int, executable: bool) -> DiskFile:
        """Set a file's time and whether it can be executed.

        :raises OSError: it cannot be changed.
        """
        with self.open(path) as descriptor:
            set_attributes(descriptor, mtime_ns=mtime_ns, executable=executable)
            return DiskFile.of(os.fstat(descriptor))

    # What was replaced or deleted

    def kept_place(self, path: str, *, deleted: bool, batch: str) -> str:
        """Where a file goes that is deleted or replaced now, relative to the folder.

        :param batch: tells apart what is kept within one second.
        """
        day = time.strftime("%Y%m%d-%H%M%S")
        return f"{self._corner}/{_TRASH if deleted else _VERSIONS}/{day}-{batch}/{path}"

    @contextlib.contextmanager
    def _kept_directory(self, keep: str) -> Iterator[tuple[int, str]]:
        parts = keep.split("/")
        with self._private(create=True) as private, contextlib.ExitStack() as stack:
            descriptor = private
            for name in parts[1:-1]:
                descriptor = open_private_directory(name, below=descriptor)
                stack.callback(os.close, descriptor)
            yield descriptor, parts[-1]

    def forget(self, keep: str) -> None:
        """Delete something that was kept, for good."""
        parts = keep.split("/")
        with contextlib.suppress(OSError), self.directory(parts[:-1]) as directory:
            os.unlink(parts[-1], dir_fd=directory)
        for depth in range(len(parts) - 1, 2, -1):
            try:
                with self.directory(parts[: depth - 1]) as directory:
                    os.rmdir(parts[depth - 1], dir_fd=directory)
            except OSError:
                return

    def restore(self, keep: str, path: str) -> None:
        """Bring back something that was kept, to a place where nothing lies.

        :raises ConflictError: something lies there.
        :raises OSError: it cannot be moved.
        """
        parts, new = keep.split("/"), path.split("/")
        with self.directory(parts[:-1]) as source, self.directory(new[:-1], create=True) as directory:
            try:
                move_exclusive(source, parts[-1], directory, new[-1])
            except FileExistsError:
                raise ConflictError(f"Something lies at {path}.") from None
            # It counts as changed now, so that the others get it back, too.
            os.utime(new[-1], dir_fd=directory, follow_symlinks=False)


class Placing:
    """Makes whole parts visible, each at one stroke; see `Tree.placing`."""

    def __init__(self, tree: Tree, parts: int, stack: contextlib.ExitStack) -> None:
        self._tree = tree
        self._parts = parts
        self._stack = stack
        self._open: dict[tuple[str, ...], int] = {}

    def place(self, part: str, path: str, *, replaces: DiskFile | None, keep: str | None) -> DiskFile:
        """Make a whole part visible at its place.

        :param replaces: what should lie there now; None for nothing.
        :param keep: where in our corner what is replaced goes (see `Tree.kept_place`); None to let it go.
        :raises ConflictError: something else lies there.
        :raises OSError: it cannot be placed.
        """
        *folders, name = path.split("/")
        directory = self._directory(tuple(folders))
        if replaces is None:
            try:
                move_exclusive(self._parts, part, directory, name)
            except FileExistsError:
                raise ConflictError(f"Something else lies at {path}.") from None
        else:
            self._tree.expect(directory, name, replaces, path)
            if keep is not None:
                self._tree.keep(directory, name, keep)
            os.rename(part, name, src_dir_fd=self._parts, dst_dir_fd=directory)
        return DiskFile.of(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _directory(self, path: tuple[str, ...]) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _OPEN_DIRECTORIES:
                self._stack.close()
                self._open.clear()
            found = self._open[path] = self._stack.enter_context(self._tree.directory(path, create=True))
        return found


def set_attributes(descriptor: int, *, mtime_ns: int, executable: bool) -> None:
    """Set an open file's time and whether those who may read it can execute it."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    wanted = mode | (mode >> 2 & 0o111) if executable else mode & ~0o111
    if wanted != mode:
        os.fchmod(descriptor, wanted)
    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
