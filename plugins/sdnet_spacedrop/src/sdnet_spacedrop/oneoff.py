"""The sealed stream with a device that is not paired: each message is a record, and the files' records follow."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import anyio

from sdnet_core import PeerStream
from sdnet_core.errors import ConnectionFailedError, SerializationError
from sdnet_core.wire import Message, decode, encode

from . import messages as m

__all__ = ["OneOffStream"]

T = TypeVar("T")

_MAP = 0xA0
"""CBOR's major type 5, in the upper three bits of the first byte: what no record of a file transfer begins with."""


class OneOffStream:
    """Messages first, then what the file transfer needs of a stream.

    :ivar cancelled: the sender's reason, if its cancellation came when the files' records were expected already.
    """

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        self.cancelled: str | None = None

    async def say(self, message: Message) -> None:
        """Send one message.

        :raises ConnectionFailedError: the stream is gone.
        """
        try:
            await self._stream.send_record(encode(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error

    async def hear(self, type_: type[T] | Any) -> T:
        """Receive one message; cancelling this loses none.

        :raises SerializationError: it is not a valid ``type_``.
        :raises ConnectionFailedError: the stream ended or broke.
        """
        try:
            record = await self._stream.receive_record()
        except anyio.EndOfStream:
            raise ConnectionFailedError("The other device ended the conversation.") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error
        return cast(T, decode(record, type_, max_bytes=m.MAX_MESSAGE_BYTES))

    async def send_record(self, data: bytes | bytearray | memoryview) -> None:
        """Send a record of the file transfer."""
        await self._stream.send_record(data)

    async def receive_record(self) -> bytes:
        """Receive a record of the file transfer.

        :raises anyio.BrokenResourceError: the stream broke, or the sender cancelled before it had heard the answer.
        """
        record = await self._stream.receive_record()
        self._check(record)
        return record

    async def receive_record_into(self, buffer: memoryview) -> int:
        """Receive a record of the file transfer into a buffer; raises as `receive_record`.

        :returns: how many bytes it has.
        """
        size = await self._stream.receive_record_into(buffer)
        self._check(buffer[:size])
        return size

    def _check(self, record: bytes | memoryview) -> None:
        """:raises anyio.BrokenResourceError: it is the sender's cancellation."""
        if record[0] & 0xE0 != _MAP:
            return
        try:
            cancel: m.SpacedropCancel = decode(record, m.SpacedropCancel, max_bytes=m.MAX_MESSAGE_BYTES)
        except SerializationError:
            return  # the file transfer refuses it
        self.cancelled = cancel.reason
        raise anyio.BrokenResourceError

    async def send_eof(self) -> None:
        """End our direction."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close in order."""
        await self._stream.aclose()

    async def reset(self) -> None:
        """Break off."""
        await self._stream.reset()
