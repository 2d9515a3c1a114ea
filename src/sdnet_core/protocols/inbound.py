"""The receiving side of message streams: what devices send with ``send_message`` goes to the handler, in order."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from ..devices.delivery import (
    MAX_ITEMS,
    Batch,
    Done,
    InboundMessage,
    Later,
    LaterReason,
    Priority,
    Settled,
    Stale,
    Verdict,
    max_frame_bytes,
)
from ..devices.trust import RemoteDevice
from ..errors import NetworkingError, ProtocolError, RefusedError, StorageError, TryLaterError
from ..storage.database import MessageKey, StaleMessageError
from ..wire import FrameDecoder, Message, decode, encode, encode_frame
from ..wording import format_count
from .handler import PeerStream
from .registry import RegisteredProtocol

__all__ = ["MessageReceiver", "OnFailure", "OnReceived"]

logger = logging.getLogger(__name__)

HANDLER_TIMEOUT_S = 30.0
"""How long a handler may take for one message, or one batch."""
READ_BYTES = 256 << 10

_LaneKey = tuple[uuid.UUID, str, Priority]


class OnFailure(Protocol):
    """Is told of a plugin's failure; ``counts`` says whether it brings the plugin nearer to quarantine."""

    def __call__(self, plugin: str, reason: str, /, *, counts: bool = True) -> None: ...


class OnReceived(Protocol):
    """Told of requests and messages that a handler has taken: how many, and their bytes together."""

    def __call__(self, device_id: uuid.UUID, protocol_name: str, count: int, size_bytes: int, /) -> None: ...


class _StreamEndsError(Exception):
    """The answer that was given last ends the stream."""


class MessageReceiver:
    """Serves the message streams of all protocols.

    There is one stream for each device, protocol and priority: a new one puts an end to the one before, whose
    messages come again on it.

    :param on_failure: told of a handler that raised something other than a `NetworkingError`.
    :param on_received: told of messages that a handler has taken.
    """

    def __init__(self, on_failure: OnFailure, on_received: OnReceived) -> None:
        self._on_failure = on_failure
        self._on_received = on_received
        self._streams: dict[_LaneKey, tuple[anyio.CancelScope, anyio.Event]] = {}

    async def serve(self, stream: PeerStream, registered: RegisteredProtocol) -> None:
        """Serve one stream until it ends.

        :raises NetworkingError: the device broke the protocol, or the connection broke.
        """
        device = stream.require_device()
        reader = _Reader(stream, registered)
        batches = await reader.read()
        if not batches:
            return
        lane = (device.pairing_id, registered.spec.protocol_name, batches[0].priority)
        async with self._alone(lane):
            try:
                while batches:
                    await self._take(stream, registered, device, lane, batches)
                    batches = await reader.read()
            except _StreamEndsError:
                await stream.send_eof()

    @asynccontextmanager
    async def _alone(self, lane: _LaneKey) -> AsyncIterator[None]:
        """For the length of the block no other stream of the lane is served; a later one cancels the block."""
        while (before := self._streams.get(lane)) is not None:
            before[0].cancel()
            await before[1].wait()
        ended = anyio.Event()
        with anyio.CancelScope() as scope:
            self._streams[lane] = scope, ended
            try:
                yield
            finally:
                del self._streams[lane]
                ended.set()
        if scope.cancelled_caught:
            raise ProtocolError("The device has opened another stream for the same messages.")

    async def _take(
        self,
        stream: PeerStream,
        registered: RegisteredProtocol,
        device: RemoteDevice,
        lane: _LaneKey,
        batches: Sequence[Batch],
    ) -> None:
        messages = []
        name = f"{lane[1]}/{lane[2].value}"
        for batch in batches:
            if batch.priority is not lane[2]:
                raise ProtocolError("Messages of another priority came on the stream.")
            for item in batch.items:
                if len(item.data) > registered.spec.max_message_bytes:
                    raise ProtocolError("A message is longer than its protocol allows.")
                key = MessageKey(device.pairing_id.bytes, name, item.number, item.id, batch.below)
                messages.append(InboundMessage(id=uuid.UUID(bytes=item.id), priority=lane[2], data=item.data, key=key))
        size = max(1, registered.spec.handler.message_batch)
        for start in range(0, len(messages), size):
            await self._hand_over(stream, registered, device, messages[start : start + size])

    async def _hand_over(
        self,
        stream: PeerStream,
        registered: RegisteredProtocol,
        device: RemoteDevice,
        messages: Sequence[InboundMessage],
    ) -> None:
        """Have the handler do its work, and answer.

        :raises _StreamEndsError: it cannot be done now; that was answered.
        """
        responses: Sequence[bytes | None] = ()
        verdict = Verdict.DELIVERED
        last: Message | None = None
        try:
            with anyio.fail_after(HANDLER_TIMEOUT_S):
                responses = await registered.spec.handler.handle_messages(device, messages)
            if len(responses) != len(messages):
                raise ProtocolError(
                    f"{format_count(len(messages), 'message')} got {format_count(len(responses), 'response')}."
                )
            if any(response is not None and len(response) > 1 << 20 for response in responses):
                raise ProtocolError("The response to a message is longer than 1 MiB.")
        except (StaleMessageError, TryLaterError, StorageError) as error:
            if len(messages) > 1:
                # Those before the one that it is about are good, or known.
                for message in messages:
                    await self._hand_over(stream, registered, device, (message,))
                return
            last = self._not_now(registered, device, error)
        except Exception as error:
            verdict = self._failed(registered, device, error)
        if last is not None:
            await stream.send(encode_frame(encode(last)))
            raise _StreamEndsError
        answers: list[Message] = []
        if verdict is Verdict.DELIVERED:
            size_bytes = sum(len(message.data) for message in messages)
            self._on_received(device.device_id, registered.spec.protocol_name, len(messages), size_bytes)
            answers += [
                Settled(number=message.key.number, verdict=verdict, response=bytes(response))
                for message, response in zip(messages, responses, strict=True)
                if response
            ]
        else:
            answers += [Settled(number=m.key.number, verdict=verdict, response=b"") for m in messages]
        answers.append(Done(up_to=messages[-1].key.number))
        await stream.send(b"".join(encode_frame(encode(answer)) for answer in answers))

    def _not_now(self, registered: RegisteredProtocol, device: RemoteDevice, error: NetworkingError) -> Message:
        if isinstance(error, StaleMessageError):
            return Stale(next_number=error.next_number)
        logger.warning("messages of %s from %s wait: %s", registered.spec.protocol_id, device.device_id, error)
        return Later(reason=LaterReason.STORAGE if isinstance(error, StorageError) else LaterReason.FULL)

    def _failed(self, registered: RegisteredProtocol, device: RemoteDevice, error: Exception) -> Verdict:
        spec = registered.spec
        if isinstance(error, NetworkingError | TimeoutError):
            logger.warning(
                "a message of %s from %s failed: %s", spec.protocol_id, device.device_id, error or "it took too long"
            )
            return Verdict.REFUSED if isinstance(error, RefusedError) else Verdict.FAILED
        logger.error("handler of %s (plugin %s) raised", spec.protocol_id, registered.plugin, exc_info=error)
        self._on_failure(registered.plugin, f"handler of {spec.protocol_id} raised {error!r}")
        return Verdict.FAILED


class _Reader:
    """Reads batches, all that have come at once."""

    def __init__(self, stream: PeerStream, registered: RegisteredProtocol) -> None:
        self._stream = stream
        self._max_bytes = max_frame_bytes(registered.spec.max_message_bytes)
        self._decoder = FrameDecoder(self._max_bytes)

    async def read(self) -> list[Batch]:
        """At least one batch; none when the stream has ended in order.

        :raises SerializationError: something else came.
        """
        batches: list[Batch] = []
        count = 0
        while True:
            while count < MAX_ITEMS and (frame := self._decoder.next_frame()) is not None:
                batch: Batch = decode(frame, Batch, max_bytes=self._max_bytes)
                batches.append(batch)
                count += len(batch.items)
            if batches:
                return batches
            try:
                data = await self._stream.receive(READ_BYTES)
            except anyio.EndOfStream:
                if self._decoder.pending:
                    raise ProtocolError("The stream ended in the middle of a message.") from None
                return []
            self._decoder.feed(data)
