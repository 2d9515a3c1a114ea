"""Writes a growing file, past the page cache where the system can (blocking).

A large file that is received is not read again soon. Written through the page cache it costs a copy, fresh pages for
all of it and a long sync at its end; written directly it costs none of these and is on the disk as it comes. Direct
writes wait for the disk: a thread does that, while the next bytes are taken and hashed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

from .beneath import write_all

__all__ = ["PAGE_BYTES", "PartWriter"]

PAGE_BYTES = 4096
"""Direct writes begin and end at multiples of this; no common disk asks for more."""
_BUFFER_BYTES = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_REFUSED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))


class _Block:
    """Bytes on their way to the file.

    :ivar used: how many there are.
    :ivar written: how many of them are in the file.
    :ivar position: where in the file they begin.
    """

    __slots__ = ("memory", "position", "used", "written")

    def __init__(self, position: int) -> None:
        # A mapping begins at a page, as direct writes ask.
        self.memory = mmap.mmap(-1, _BUFFER_BYTES)
        self.reset(position)

    def reset(self, position: int) -> None:
        self.position = position
        self.used = self.written = 0

    def take(self, data: memoryview) -> int:
        """Take as much as there is room for."""
        count = min(len(data), _BUFFER_BYTES - self.used)
        self.memory[self.used : self.used + count] = data[:count]
        self.used += count
        return count


class PartWriter:
    """Appends to one file. What it was given is in the file after `flush`, and all but the last 2 MiB of it before.

    What could not be written is tried again by the next call.

    :param descriptor: of the file; `close` closes it.
    :param position: where it goes on.
    :param direct: past the page cache, if that works here.
    """

    def __init__(self, descriptor: int, position: int, *, direct: bool) -> None:
        self.descriptor = descriptor
        self._position = position
        self._front: _Block | None = None
        self._behind: _Block | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        if direct and _DIRECT and position % PAGE_BYTES == 0:
            try:
                self._set_direct(True)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
            else:
                self._front = _Block(position)

    @property
    def direct(self) -> bool:
        """Whether it writes past the page cache."""
        return self._front is not None

    def _set_direct(self, on: bool) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)

    def write(self, data: memoryview) -> None:
        """Append.

        :raises OSError: the disk is full or failed, now or with what was given before.
        """
        while len(data) and self._front is not None:
            if self._front.used == _BUFFER_BYTES:
                self._hand_over(self._front)
            else:
                data = data[self._front.take(data) :]
        if len(data):
            write_all(self.descriptor, data, self._position)
            self._position += len(data)

    def _hand_over(self, full: _Block) -> None:
        """Have a full block written while the other one is filled."""
        self._settle()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sdnet-part")
        behind = self._behind or _Block(0)
        behind.reset(full.position + full.used)
        self._front, self._behind = behind, full
        self._writing = self._thread.submit(self._write_pages, full)

    def _settle(self) -> None:
        """Wait until the block that was handed over is in the file; what an error has left of it is tried again."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        elif self._behind is not None:
            self._write_pages(self._behind)

    def _write_pages(self, block: _Block) -> None:
        """Write all whole pages of a block."""
        whole = block.used - block.used % PAGE_BYTES
        while block.written < whole:
            # Both views are let go of, also when an error keeps this frame alive: else the memory could not be closed.
            with memoryview(block.memory) as view, view[block.written : whole] as rest:
                position = block.position + block.written
                try:
                    block.written += os.pwrite(self.descriptor, rest, position)
                except OSError as error:
                    if error.errno not in _REFUSED:
                        raise
                    self._set_direct(False)
                    write_all(self.descriptor, rest, position)
                    block.written = whole

    def flush(self) -> None:
        """Have everything in the file; after an odd end the rest goes through the page cache.

        :raises OSError: the disk is full or failed.
        """
        front = self._front
        if front is None:
            return
        self._settle()
        self._write_pages(front)
        if front.written == front.used:
            return
        self._set_direct(False)
        with memoryview(front.memory) as view, view[front.written : front.used] as rest:
            write_all(self.descriptor, rest, front.position + front.written)
        self._position = front.position + front.used
        self._release()

    def _release(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        self._writing = None
        for block in (self._front, self._behind):
            if block is not None:
                block.memory.close()
        self._front = self._behind = None

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._release()
        os.close(self.descriptor)
