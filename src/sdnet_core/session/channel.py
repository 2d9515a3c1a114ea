"""The record layer: a byte stream sealed under keys of its own, over a stream of the swarm.

The byte-exact specification is ``docs/protocol/session.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import NoReturn, cast

import anyio
import anyio.lowlevel
from cryptography.exceptions import InvalidTag

from sdnet_core.errors import (
    AuthenticationFailedError,
    ConnectionFailedError,
    EncryptionError,
    ProtocolError,
)
from sdnet_core.session.buffers import LARGE_BYTES, Incoming, sealing_buffer
from sdnet_core.session.epoch import Epoch
from sdnet_core.session.keys import TAG_BYTES, Role
from sdnet_core.session.preamble import Preamble
from sdnet_core.swarm.abc import SwarmStream

__all__ = ["MAX_RECORD_BYTES", "SealedStream"]

MAX_RECORD_BYTES = 1 << 20
"""Most plaintext in one record."""

_OPEN, _DATA, _END = range(3)
_HEADER_BYTES = 4
_CLOSE_TIMEOUT_S = 5.0
_YIELD_RECORDS = 256
"""What is received without letting other tasks run: a buffer may hold a hundred thousand small records."""

_Buffer = bytes | bytearray | memoryview


class _Direction:
    """The key and counter of one direction of a stream."""

    __slots__ = ("_cipher", "_context", "_counter", "epoch")

    def __init__(self, epoch: Epoch, opener: Role, sender: Role, protocol: str, number: int) -> None:
        self.epoch = epoch
        self._cipher = epoch.keys.suite.cipher(epoch.keys.stream_key(opener, sender, protocol, number))
        self._context = epoch.keys.epoch_id + number.to_bytes(8, "big")
        self._counter = 0

    def seal(self, kind: int, data: _Buffer = b"") -> memoryview:
        """Make a record: header and sealed data in one buffer."""
        view = memoryview(data)
        self.epoch.count_sent(view.nbytes)
        length = view.nbytes + TAG_BYTES
        header = (kind << 24 | length).to_bytes(_HEADER_BYTES, "big")
        size = _HEADER_BYTES + length
        record = sealing_buffer(size) if size >= LARGE_BYTES else memoryview(bytearray(size))
        record[:_HEADER_BYTES] = header
        self._cipher.encrypt_into(self._nonce(), cast(bytes, view), self._context + header, record[_HEADER_BYTES:])
        return record

    def open(self, header: bytes, sealed: memoryview) -> bytes:
        """Open a record.

        :raises EncryptionError: it does not open, or the keys are used up.
        """
        self.epoch.check_receive()
        try:
            data = self._cipher.decrypt(self._nonce(), sealed, self._context + header)
        except InvalidTag as error:
            raise EncryptionError("A sealed record did not open.") from error
        self.epoch.count_received(len(data))
        return data

    def open_into(self, header: bytes, sealed: memoryview, target: memoryview) -> int:
        """Open a record into a buffer.

        :param target: at least as long as what was sealed.
        :returns: the bytes of it in use.
        :raises EncryptionError: as `open`; the buffer is undefined then.
        """
        size = sealed.nbytes - TAG_BYTES
        self.epoch.check_receive()
        try:
            self._cipher.decrypt_into(self._nonce(), cast(bytes, sealed), self._context + header, target[:size])
        except InvalidTag as error:
            raise EncryptionError("A sealed record did not open.") from error
        self.epoch.count_received(size)
        return size

    def _nonce(self) -> bytes:
        nonce = self._counter.to_bytes(12, "big")
        self._counter += 1
        return nonce


class SealedStream(SwarmStream):
    """A stream encrypted and authenticated end to end, on top of what the connection below does.

    An :class:`anyio.abc.ByteStream` like the stream below. ``receive()`` raises :exc:`anyio.EndOfStream` only after the
    other side's authenticated end; a stream that was cut off, or in which a byte was changed, raises
    :exc:`anyio.BrokenResourceError` whose ``__cause__`` is the :exc:`~sdnet_core.errors.NetworkingError` that says why.

    ``aclose()`` ends our direction as ``send_eof()`` does, then closes. Leaving an ``async with`` block by an exception
    resets the stream instead, so that the other side does not take what it has for the whole.

    A ``send`` that is cancelled while it waits for the stream below breaks the stream; a cancelled ``receive`` loses
    nothing. Any number of tasks may send, each record stays whole; one task at a time may receive.

    Made by :class:`~sdnet_core.session.session.Session`.

    :param opener: who opened the stream.
    :param number: of the stream, 0 for the control stream of a session.
    :param begin: whether we have to send the preamble.
    """

    def __init__(self, inner: SwarmStream, epoch: Epoch, *, opener: Role, number: int, begin: bool = False) -> None:
        self._inner = inner
        self.opener = opener
        self.number = number
        self._sender = self._direction(epoch, epoch.keys.role)
        self._receiver = self._direction(epoch, epoch.keys.role.other)
        self._preamble = b""
        if begin:
            tag = bytes(self._sender.seal(_OPEN)[_HEADER_BYTES:])
            self._preamble = Preamble(epoch.keys.epoch_id, number, tag).encode()
        self._send_lock = anyio.Lock(fast_acquire=True)
        self._reading = anyio.ResourceGuard("receiving from")
        self._closed = False
        self._failure: BaseException | None = None
        self._end_sent = False
        self._end_received = False
        self._incoming = Incoming()
        self._unyielded = 0
        self._header = b""
        """Of the record that comes, once it is here."""
        # What is left of a record that `receive` handed out in part.
        self._rest = memoryview(b"")

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream below that were read already; done before anything is received."""
        self._incoming.feed(data)

    def check_opening(self, preamble: Preamble) -> None:
        """Check that the opener holds the stream's key; done once, before anything is received.

        :raises AuthenticationFailedError: it does not.
        """
        header = (_OPEN << 24 | TAG_BYTES).to_bytes(_HEADER_BYTES, "big")
        try:
            self._receiver.open(header, memoryview(preamble.tag))
        except EncryptionError as error:
            raise AuthenticationFailedError("The first record of a stream did not open.") from error

    @property
    def peer_id(self) -> str:
        return self._inner.peer_id

    @property
    def protocol(self) -> str:
        return self._inner.protocol

    @property
    def generation(self) -> int:
        return self._inner.generation

    @property
    def epoch(self) -> Epoch:
        """The epoch that protects what we send."""
        return self._sender.epoch

    @property
    def draining(self) -> bool:
        """Whether the session has newer keys: a long-lived stream is to end at a record's end and be opened anew.

        The stream breaks when the old keys end, two minutes after the rotation.
        """
        return self._sender.epoch.retired

    @property
    def ended(self) -> bool:
        """Whether nothing can be sent or received any more."""
        return self._closed or self._failure is not None or (self._end_sent and self._end_received)

    async def send(self, item: _Buffer) -> None:
        """Send bytes: one record if they fit, else several with nothing in between.

        :raises anyio.BrokenResourceError: the stream or its session is gone.
        :raises anyio.ClosedResourceError: we have ended our direction or closed the stream.
        """
        view = memoryview(item).cast("B")
        if view.nbytes <= MAX_RECORD_BYTES:
            await self._send((view,) if view.nbytes else ())
        else:
            starts = range(0, view.nbytes, MAX_RECORD_BYTES)
            await self._send(view[start : start + MAX_RECORD_BYTES] for start in starts)

    async def send_record(self, data: _Buffer) -> None:
        """Send one record, which `receive_record` of the other side gives back whole.

        :param data: 1 byte to 1 MiB.
        :raises ValueError: it is empty or longer.
        :raises anyio.BrokenResourceError: the stream or its session is gone.
        :raises anyio.ClosedResourceError: we have ended our direction or closed the stream.
        """
        view = memoryview(data).cast("B")
        if not 0 < view.nbytes <= MAX_RECORD_BYTES:
            raise ValueError(f"a record holds 1 to {MAX_RECORD_BYTES} bytes")
        await self._send((view,))

    async def send_eof(self) -> None:
        """End our direction, so that the other side knows it has everything. Does nothing if that was done.

        :raises anyio.BrokenResourceError: the stream or its session is gone.
        :raises anyio.ClosedResourceError: we have closed the stream.
        """
        async with self._send_lock:
            if self._end_sent and not self._closed and self._failure is None:
                return
            self._check_sending()
            self._end_sent = True
            await self._send_sealed(_END)
            try:
                await self._inner.send_eof()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the other side has our end, and may have gone already

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte and at most ``max_bytes``.

        :raises anyio.EndOfStream: the other side has ended its direction.
        :raises anyio.BrokenResourceError: the stream was cut off, changed on the way, or its session is gone.
        :raises anyio.ClosedResourceError: we have closed the stream.
        """
        with self._reading:
            if not self._rest:
                record = await self._receive_record()
                if len(record) <= max_bytes:
                    return record
                self._rest = memoryview(record)
            else:
                await anyio.lowlevel.checkpoint_if_cancelled()
            data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
            return bytes(data)

    async def receive_record(self) -> bytes:
        """Receive one record as it was sent, or what `receive` left of one.

        :returns: 1 byte to 1 MiB.
        :raises anyio.EndOfStream: the other side has ended its direction.
        :raises anyio.BrokenResourceError: the stream was cut off, changed on the way, or its session is gone.
        :raises anyio.ClosedResourceError: we have closed the stream.
        """
        with self._reading:
            if self._rest:
                data, self._rest = bytes(self._rest), memoryview(b"")
                return data
            return await self._receive_record()

    async def receive_record_into(self, buffer: memoryview) -> int:
        """Receive one record, as `receive_record` does, into a buffer: nothing is allocated for a large one.

        :param buffer: 1 MiB long, of bytes; what is beyond the number given back is undefined.
        :returns: how many bytes the record has.
        :raises ValueError: the buffer is shorter.
        """
        if len(buffer) < MAX_RECORD_BYTES:
            raise ValueError(f"a record holds up to {MAX_RECORD_BYTES} bytes")
        with self._reading:
            if self._rest:
                size = len(self._rest)
                buffer[:size], self._rest = self._rest, memoryview(b"")
                return size
            header, sealed = await self._receive_sealed()
            try:
                size = self._receiver.open_into(header, sealed, buffer)
            except EncryptionError as error:
                await self._fail(error)
            self._opened(size)
            return size

    async def aclose(self) -> None:
        """End our direction if that was not done, and close. Waits at most 5 s for the other side to take it."""
        try:
            if not self._closed and not self._end_sent and self._failure is None:
                with anyio.move_on_after(_CLOSE_TIMEOUT_S):
                    await self.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the stream is gone anyway
        finally:
            self._closed = True
            self._incoming.close()
            await self._inner.aclose()

    async def reset(self) -> None:
        self._closed = True
        self._incoming.close()
        with anyio.CancelScope(shield=True):
            await self._inner.reset()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            await self.aclose()
        else:
            await self.reset()

    async def send_last_record_of_epoch(self, data: _Buffer, epoch: Epoch) -> None:
        """Send one record, and seal everything behind it under the keys of another epoch (the control stream only).

        :raises anyio.BrokenResourceError: the stream or its session is gone.
        :raises anyio.ClosedResourceError: we have ended our direction or closed the stream.
        """
        async with self._send_lock:
            self._check_sending()
            await self._send_sealed(_DATA, data)
            self._sender = self._direction(epoch, epoch.keys.role)

    def receive_under(self, epoch: Epoch) -> None:
        """Open every further record under the keys of another epoch (the control stream only)."""
        self._receiver = self._direction(epoch, epoch.keys.role.other)

    def _direction(self, epoch: Epoch, sender: Role) -> _Direction:
        return _Direction(epoch, self.opener, sender, self._inner.protocol, self.number)

    def _check_sending(self) -> None:
        if self._closed or self._end_sent:
            raise anyio.ClosedResourceError("The stream was closed for sending.")
        if self._failure is not None:
            raise anyio.BrokenResourceError(str(self._failure)) from self._failure

    async def _send(self, records: Iterable[memoryview]) -> None:
        async with self._send_lock:
            self._check_sending()
            for data in records:
                await self._send_sealed(_DATA, data)

    async def _send_sealed(self, kind: int, data: _Buffer = b"") -> None:
        """Seal and send one record; the caller holds the lock."""
        try:
            record = self._sender.seal(kind, data)
        except EncryptionError as error:
            await self._fail(error)
        # The first record carries the preamble along, so that opening a stream costs no frame of its own.
        preamble, self._preamble = self._preamble, b""
        await self._write(preamble + record if preamble else record)

    async def _write(self, data: bytes | memoryview) -> None:
        try:
            # Streams take any buffer; a large one is not touched while there is a view of it, and need not be copied.
            item = data.toreadonly() if isinstance(data, memoryview) and len(data) >= LARGE_BYTES else data
            await self._inner.send(cast(bytes, item))
        except BaseException as error:
            # Part of the record may be on its way: nothing behind it would open.
            if self._failure is None:
                self._failure = ConnectionFailedError("A send was interrupted, which ended the stream.")
            with anyio.CancelScope(shield=True):
                await self._inner.reset()
            if isinstance(error, anyio.ClosedResourceError) and not self._closed:
                raise anyio.BrokenResourceError("The stream below was closed.") from error
            raise

    async def _receive_record(self) -> bytes:
        header, sealed = await self._receive_sealed()
        try:
            data = self._receiver.open(header, sealed)
        except EncryptionError as error:
            await self._fail(error)
        self._opened(len(data))
        return data

    async def _receive_sealed(self) -> tuple[bytes, memoryview]:
        """The header and the sealed part of the next record; `_opened` follows."""
        if self._closed:
            raise anyio.ClosedResourceError("The stream was closed.")
        if self._end_received:
            raise anyio.EndOfStream
        if self._failure is not None:
            raise anyio.BrokenResourceError(str(self._failure)) from self._failure
        if self._preamble:
            await self._begin()
        self._unyielded += 1
        if self._unyielded < _YIELD_RECORDS:
            await anyio.lowlevel.checkpoint_if_cancelled()
        else:
            self._unyielded = 0
            await anyio.lowlevel.checkpoint()
        try:
            if not self._header:
                self._header = bytes(self._incoming.take(_HEADER_BYTES) or await self._take(_HEADER_BYTES))
            size = _sealed_size(self._header)
            sealed = self._incoming.take(size) or await self._take(size)
        except ProtocolError as error:
            await self._fail(error)
        header, self._header = self._header, b""
        return header, sealed

    def _opened(self, size: int) -> None:
        """A record was opened.

        :raises anyio.EndOfStream: it is the one that ends the stream.
        """
        self._incoming.used()
        if not size:
            self._end_received = True
            self._incoming.close()
            raise anyio.EndOfStream

    async def _begin(self) -> None:
        """Send the preamble alone: whoever receives first must not wait for data that the other side waits for."""
        async with self._send_lock:
            if self._preamble:
                preamble, self._preamble = self._preamble, b""
                await self._write(preamble)

    async def _take(self, size: int) -> memoryview:
        """The next bytes of the stream below.

        :raises ProtocolError: it ended before.
        """
        while (data := self._incoming.take(size)) is None:
            try:
                await self._incoming.receive(self._inner, size)
            except anyio.EndOfStream:
                raise ProtocolError("The stream was cut off.") from None
            except anyio.ClosedResourceError as error:
                if self._closed:
                    raise
                raise anyio.BrokenResourceError("The stream below was closed.") from error
        return data

    async def _fail(self, cause: ProtocolError | EncryptionError) -> NoReturn:
        if self._failure is None:
            self._failure = cause
        self._incoming.close()
        with anyio.CancelScope(shield=True):
            await self._inner.reset()
        raise anyio.BrokenResourceError(str(cause)) from cause


def _sealed_size(header: bytes) -> int:
    """How long the sealed part of a record is.

    :raises ProtocolError: that is no record's header.
    """
    kind, length = header[0], int.from_bytes(header[1:], "big")
    size = length - TAG_BYTES
    if not (kind == _DATA and 0 < size <= MAX_RECORD_BYTES) and not (kind == _END and size == 0):
        raise ProtocolError("The stream holds something that is not a sealed record.")
    return length
