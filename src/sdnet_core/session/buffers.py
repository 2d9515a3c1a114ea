"""Memory for large records, used again and again: fresh memory costs more than sealing what goes into it."""

from __future__ import annotations

import mmap
from collections import deque

import anyio

from sdnet_core.swarm.abc import ReceiveBuffer, SwarmStream

__all__ = ["LARGE_BYTES", "Incoming", "sealing_buffer"]

LARGE_BYTES = 65536
"""Records from this size on have buffers that are used again."""

_READ_BYTES = 65536
_MAX_RECORD_BYTES = 4 + (1 << 20) + 16
"""The longest record with its header and its tag."""
_INCOMING_BYTES = 5 << 19
"""Room for two records and what comes with them, so that few have to be moved to the front."""
_MAX_INCOMING = 8
"""So many streams keep such a buffer; any others have one for a record at a time."""
_MAX_SPARE = 2
_MAX_LENT = 6

_lent: deque[bytearray] = deque(maxlen=_MAX_LENT)


def sealing_buffer(size: int) -> memoryview:
    """Memory for a sealed record; it is given out again when no view of it is left.

    :param size: bytes, at most those of the largest record.
    """
    buffer = _take_free() or bytearray(_MAX_RECORD_BYTES)
    view = memoryview(buffer)[:size]
    _lent.append(buffer)
    return view


def _take_free() -> bytearray | None:
    """The buffer that was given out longest ago, if nobody has it any more.

    Nodes may run in several threads: a buffer is looked at while no other thread can find it.
    """
    try:
        buffer = _lent.popleft()
    except IndexError:
        return None
    if _is_free(buffer):
        return buffer
    _lent.appendleft(buffer)
    return None


def _is_free(buffer: bytearray) -> bool:
    try:
        buffer.append(0)  # which Python refuses while there is a view of it
    except BufferError:
        return False
    buffer.pop()
    return True


class _Lender:
    """Has the buffers that streams keep; for nodes in several threads."""

    def __init__(self) -> None:
        # One for each buffer that may be lent yet; None where there is no memory for it.
        self._free: deque[memoryview | None] = deque([None] * _MAX_INCOMING)

    @property
    def lent(self) -> int:
        """How many are kept."""
        return _MAX_INCOMING - len(self._free)

    def lend(self) -> memoryview | None:
        """A buffer, if fewer than the most are lent."""
        try:
            memory = self._free.pop()
        except IndexError:
            return None
        return memoryview(mmap.mmap(-1, _INCOMING_BYTES, access=mmap.ACCESS_COPY)) if memory is None else memory

    def take_back(self, memory: memoryview) -> None:
        """Have a buffer back that nobody writes to any more."""
        if len(self._free) - self._free.count(None) < _MAX_SPARE:
            self._free.append(memory)
        else:
            self._free.appendleft(None)


_lender = _Lender()


class Incoming:
    """What has come of a stream and is not used.

    It lies in the pieces in which it came, until there is a large record; then in a buffer.
    """

    __slots__ = ("_buffer", "_closed", "_data", "_lender", "_start")

    def __init__(self) -> None:
        self._data = memoryview(b"")
        self._buffer: ReceiveBuffer | None = None
        self._lender: _Lender | None = None
        """Where the buffer goes back to, if it is kept."""
        self._closed = False
        self._start = 0
        """Where in the buffer what is not used begins."""

    def feed(self, data: bytes) -> None:
        """Take bytes that were received already; only at the beginning."""
        self._data = memoryview(data)

    def take(self, size: int) -> memoryview | None:
        """Take the next bytes.

        :returns: as many; valid until something is awaited. None if they are not all here.
        """
        if self._buffer is not None:
            start = self._start
            if self._buffer.end - start < size:
                return None
            self._start = start + size
            return self._buffer.memory[start : start + size]
        data = self._data
        if len(data) < size:
            return None
        self._data = data[size:]
        return data[:size]

    def used(self) -> None:
        """What was taken is not needed any more."""
        if self._buffer is not None and self._start == self._buffer.end:
            self._start = self._buffer.end = 0
            if self._lender is None:
                self._buffer = None

    async def receive(self, stream: SwarmStream, size: int) -> None:
        """Receive what is missing of the next ``size`` bytes, or some of it. A call that is cancelled loses nothing.

        :raises anyio.ClosedResourceError: this was closed. Else as the stream.
        """
        if self._closed:
            raise anyio.ClosedResourceError("The stream was closed.")
        if self._buffer is None and size < LARGE_BYTES:
            chunk = await stream.receive(max(size - len(self._data), _READ_BYTES))
            self._data = memoryview(bytes(self._data) + chunk if self._data else chunk)
            return
        buffer = self._buffer or self._begin_buffer(size)
        if self._start + size > len(buffer.memory):
            have = buffer.end - self._start
            buffer.memory[:have] = buffer.memory[self._start : buffer.end]
            self._start, buffer.end = 0, have
        await stream.receive_into(buffer, self._start + size)

    def _begin_buffer(self, size: int) -> ReceiveBuffer:
        memory = _lender.lend()
        self._lender = None if memory is None else _lender
        self._buffer = ReceiveBuffer(memoryview(bytearray(size)) if memory is None else memory)
        self._buffer.put(self._data)
        self._data = memoryview(b"")
        return self._buffer

    def close(self) -> None:
        """Drop everything; nothing is received any more."""
        self._closed = True
        buffer, self._buffer, self._data = self._buffer, None, memoryview(b"")
        if buffer is None:
            return
        # The stream below may still have it, and must neither write into memory that is another's nor keep any.
        memory, buffer.memory, buffer.end = buffer.memory, memoryview(bytearray()), 0
        if self._lender is not None:
            self._lender.take_back(memory)

    __del__ = close
