"""Writes a growing file, past the page cache where the system can (blocking).

A large file that is received is not read again soon. Written through the page cache it costs a copy, fresh pages for
all of it and a long sync at its end; written directly it costs none of these and is on the disk as it comes. Bytes that
begin at a page in memory are written from where they are; others are gathered first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

from .beneath import write_all

__all__ = ["PAGE_BYTES", "PartWriter", "page_memory"]

PAGE_BYTES = 4096
"""Direct writes begin and end at multiples of this; no common disk asks for more."""
_BUFFER_BYTES = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_REFUSED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))


def page_memory(size: int) -> mmap.mmap:
    """Memory that begins at a page, as direct writes ask; it costs nothing before it is used."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)


def _whole_pages(data: memoryview) -> int:
    """How many of the bytes can be written from where they are: whole pages, if they begin at one."""
    if len(data) < PAGE_BYTES or data.readonly or ctypes.addressof(ctypes.c_char.from_buffer(data)) % PAGE_BYTES:
        return 0
    return len(data) - len(data) % PAGE_BYTES


class _Block:
    """Bytes that are gathered.

    :ivar used: how many there are.
    :ivar written: how many of them are in the file.
    """

    __slots__ = ("memory", "used", "written")

    def __init__(self) -> None:
        self.memory = page_memory(_BUFFER_BYTES)
        self.used = self.written = 0

    def take(self, data: memoryview) -> int:
        """Take as much as there is room for."""
        count = min(len(data), _BUFFER_BYTES - self.used)
        self.memory[self.used : self.used + count] = data[:count]
        self.used += count
        return count


class PartWriter:
    """Appends to one file. What it was given is in the file after `flush`, and all but the last 1 MiB of it before.

    What was gathered and could not be written is tried again by the next call. Whole pages are not gathered: of those
    that could not be written the file has none, as far as the next ones are concerned.

    :param descriptor: of the file; `close` closes it.
    :param position: where it goes on.
    :param direct: past the page cache, if that works here.
    """

    def __init__(self, descriptor: int, position: int, *, direct: bool) -> None:
        self.descriptor = descriptor
        self._position = position
        """Where in the file the gathered bytes begin."""
        self._block: _Block | None = None
        if direct and _DIRECT and position % PAGE_BYTES == 0:
            try:
                self._set_direct(True)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
            else:
                self._block = _Block()

    @property
    def direct(self) -> bool:
        """Whether it writes past the page cache."""
        return self._block is not None

    def _set_direct(self, on: bool) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)

    def write(self, data: memoryview) -> None:
        """Append.

        :raises OSError: the disk is full or failed, now or with what was given before.
        """
        while len(data) and self._block is not None:
            whole = 0 if self._block.used else _whole_pages(data)
            if whole:
                with data[:whole] as pages:
                    self._write_pages(pages, self._position)
                self._position += whole
                data = data[whole:]
            elif self._block.used == _BUFFER_BYTES:
                self._write_block(self._block)
            else:
                data = data[self._block.take(data) :]
        if len(data):
            write_all(self.descriptor, data, self._position)
            self._position += len(data)

    def _write_block(self, block: _Block) -> None:
        """Write the whole pages of what was gathered."""
        whole = block.used - block.used % PAGE_BYTES
        while block.written < whole:
            # Both views are let go of, also when an error keeps this frame alive: else the memory could not be closed.
            with memoryview(block.memory) as view, view[block.written : whole] as rest:
                block.written += self._write_some(rest, self._position + block.written)
        if block.written == block.used:
            self._position += block.used
            block.used = block.written = 0

    def _write_pages(self, data: memoryview, position: int) -> None:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += self._write_some(rest, position + done)

    def _write_some(self, data: memoryview, position: int) -> int:
        try:
            return os.pwrite(self.descriptor, data, position)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
        self._set_direct(False)
        write_all(self.descriptor, data, position)
        return len(data)

    def flush(self) -> None:
        """Have everything in the file; after an odd end the rest goes through the page cache.

        :raises OSError: the disk is full or failed.
        """
        block = self._block
        if block is None:
            return
        self._write_block(block)
        if not block.used:
            return
        self._set_direct(False)
        with memoryview(block.memory) as view, view[block.written : block.used] as rest:
            write_all(self.descriptor, rest, self._position + block.written)
        self._position += block.used
        self._release()

    def _release(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.memory.close()

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._release()
        os.close(self.descriptor)
