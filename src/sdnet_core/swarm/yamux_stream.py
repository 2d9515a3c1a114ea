"""One stream of a Yamux connection, as py-libp2p knows it."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from typing import TYPE_CHECKING

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from .abc import ReceiveBuffer
from .muxed import MuxedStream
from .yamux_window import StreamCore

if TYPE_CHECKING:
    from .yamux import Yamux

__all__ = ["YamuxStream"]

_YIELD_BYTES = 256 * 1024
"""What is read or written without letting other tasks run."""
_YIELD_CALL_BYTES = 8 * 1024
"""What one call counts for at least."""


class YamuxStream(StreamCore, MuxedStream):
    """One stream. One task may read while another writes."""

    __slots__ = ("_readers", "_unyielded", "_wanted", "_writers", "muxed_conn")

    muxed_conn: Yamux

    def __init__(self, conn: Yamux, stream_id: int) -> None:
        super().__init__(conn.core, stream_id)
        self.muxed_conn = conn
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._unyielded = _YIELD_BYTES
        self._wanted = 0

    def readable(self) -> None:
        if not self._readers:
            return
        buffer = self._buffer
        ended = self._fin_received or self._read_closed or self._broken is not None
        if ended or buffer is None or buffer.end >= self._wanted:
            self._readers.unpark_all()

    def writable(self) -> None:
        if self._writers:
            self._writers.unpark_all()

    async def read(self, n: int | None = None) -> bytes:
        """Receive at least one and at most ``n`` bytes.

        :raises MuxedStreamEOF: the other side has ended its direction and everything was read.
        :raises MuxedStreamReset: the stream was reset, or its connection was lost.
        :raises MuxedStreamClosed: we have closed it for reading.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (data := self.take(n)):
            await self._await_data()
        await self._yield(len(data))
        return data

    async def read_into(self, buffer: ReceiveBuffer, end: int) -> None:
        """Receive into a buffer until it is filled up to ``end``. What comes later goes into it too.

        :raises MuxedStreamError: as :meth:`read`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        before = buffer.end
        self.fill(buffer)
        self._wanted = end
        while buffer.end < end:
            await self._await_data()
            before = buffer.end
        await self._yield(buffer.end - before)

    async def _await_data(self) -> None:
        if self._read_closed:
            raise MuxedStreamClosed("The stream is closed for reading.")
        if self._fin_received:
            raise MuxedStreamEOF("The other side has ended the stream.")
        if self._broken is not None:
            raise MuxedStreamReset(self._broken)
        self._unyielded = 0
        await self._readers.park()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Cancelling sends some of it, in whole frames, and leaves the stream usable.

        It returns when everything is taken: at most 1 MiB of a stream waits to be sent, none of it without window.

        :param data: bytes and read-only views are sent from where they are: what they show must not change any more.
        :raises MuxedStreamReset: the stream was reset, or its connection was lost.
        :raises MuxedStreamClosed: we have ended our direction.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        left: bytes | memoryview = data if isinstance(data, bytes) else memoryview(data)
        kept = isinstance(left, bytes) or left.readonly
        while True:
            if self._broken is not None:
                raise MuxedStreamReset(self._broken)
            if self._fin_sent:
                raise MuxedStreamClosed("The stream is closed for writing.")
            size = len(left)
            if not size:
                break
            room = self.room_for(size)
            if not room:
                self._unyielded = 0
                await self._writers.park()
                continue
            piece: bytes | memoryview
            if room < size:
                view = memoryview(left)
                piece, left = view[:room], view[room:]
            else:
                piece, left = left, b""
            # A buffer that its owner may change is copied.
            self.put(piece if kept else bytes(piece))
        # What was not copied took no time, and there is only so much room for it without waiting.
        await self._yield(0 if kept else len(data))

    async def _yield(self, size: int) -> None:
        self._unyielded += max(size, _YIELD_CALL_BYTES)
        if self._unyielded >= _YIELD_BYTES:
            self._unyielded = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def close(self) -> None:
        """End our direction; what the other side sends can still be read."""
        self.finish()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Reset the stream; never raises anything but cancellation."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines belong to the caller.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Use a cancel scope.")

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self.muxed_conn.get_remote_address()
