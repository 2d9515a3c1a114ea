"""Writes a growing file, past the page cache where the system can (blocking).

A large file that is received is not read again soon. Written through the page cache it costs a copy, fresh pages for
all of it and a long sync at its end; written directly it costs none of these and is on the disk as it comes.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from .beneath import write_all

__all__ = ["PAGE_BYTES", "PartWriter"]

PAGE_BYTES = 4096
"""Direct writes begin and end at multiples of this; no common disk asks for more."""
_BUFFER_BYTES = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_REFUSED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))


class PartWriter:
    """Appends to one file. What it was given is in the file after `flush`, and all but the last MiB of it before.

    :param descriptor: of the file; `close` closes it.
    :param position: where it goes on.
    :param direct: past the page cache, if that works here.
    """

    def __init__(self, descriptor: int, position: int, *, direct: bool) -> None:
        self.descriptor = descriptor
        self._position = position
        self._used = 0
        self._buffer: mmap.mmap | None = None
        if direct and _DIRECT and position % PAGE_BYTES == 0:
            try:
                self._set_direct(True)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
            else:
                # A mapping begins at a page, as direct writes ask.
                self._buffer = mmap.mmap(-1, _BUFFER_BYTES)

    @property
    def direct(self) -> bool:
        """Whether it writes past the page cache."""
        return self._buffer is not None

    def _set_direct(self, on: bool) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)

    def write(self, data: memoryview) -> None:
        """Append.

        :raises OSError: the disk is full or failed.
        """
        while len(data) and self._buffer is not None:
            if self._used == _BUFFER_BYTES:
                self._write_pages()
                continue
            count = min(len(data), _BUFFER_BYTES - self._used)
            self._buffer[self._used : self._used + count] = data[:count]
            self._used += count
            data = data[count:]
            if self._used % PAGE_BYTES == 0 and not len(data):
                self._write_pages()
        if len(data):
            write_all(self.descriptor, data, self._position)
            self._position += len(data)

    def _write_pages(self) -> None:
        """Write all whole pages of the buffer."""
        assert self._buffer is not None
        whole = self._used - self._used % PAGE_BYTES
        with memoryview(self._buffer) as view:
            done = 0
            while done < whole:
                try:
                    done += os.pwrite(self.descriptor, view[done:whole], self._position + done)
                except OSError as error:
                    if error.errno not in _REFUSED:
                        self._drop(done)
                        raise
                    self._set_direct(False)
                    write_all(self.descriptor, view[done:whole], self._position + done)
                    done = whole
        self._drop(whole)

    def _drop(self, written: int) -> None:
        """Forget what was written of the buffer."""
        assert self._buffer is not None
        if written:
            self._buffer.move(0, written, self._used - written)
            self._used -= written
            self._position += written

    def flush(self) -> None:
        """Have everything in the file; after an odd end the rest goes through the page cache.

        :raises OSError: the disk is full or failed.
        """
        if self._buffer is None:
            return
        self._write_pages()
        if self._used:
            self._set_direct(False)
            with memoryview(self._buffer) as view:
                write_all(self.descriptor, view[: self._used], self._position)
            self._position += self._used
            self._used = 0
            self._release()

    def _release(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._release()
        os.close(self.descriptor)
