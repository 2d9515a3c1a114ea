"""The receiving side of ``/sdnet/messaging/1``."""

from __future__ import annotations

import anyio

from sdnet_core import PeerStream, ProtocolHandler, RemoteDevice
from sdnet_core.errors import NetworkingError
from sdnet_core.wire import MessageStream, decode

from .inbox import Delivery
from .link import FrameWriter
from .messages import MAX_MESSAGE_BYTES, Ack, AnyMessage, Data, Ping, Pong, Reply
from .service import MessagingService

__all__ = ["MAX_UNDER_WAY", "MessagingHandler"]

MAX_UNDER_WAY = 32
"""Messages of one stream that may be unsettled before the next one is read."""


class MessagingHandler(ProtocolHandler):
    """Takes what devices send, several messages at a time, and answers each when it is settled."""

    protocol_name = "messaging"

    def __init__(self, service: MessagingService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        device = stream.require_device()
        messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
        writer = FrameWriter(stream)
        failure: NetworkingError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, writer, tasks.cancel_scope)
                async with anyio.create_task_group() as under_way:
                    room = anyio.Semaphore(MAX_UNDER_WAY)
                    try:
                        while (message := await _receive(messages)) is not None:
                            await room.acquire()
                            # Taken here, in the order of arrival; the task only waits for what becomes of it.
                            accepted = message if isinstance(message, Data) else self._accept(device, message)
                            under_way.start_soon(self._settle, device, accepted, writer, room)
                    except NetworkingError as error:
                        failure = error
                        tasks.cancel_scope.cancel()
                writer.end()
        finally:
            writer.abandon()
        if failure is not None:
            # Raised out here, where it is no group: for the other side's garbage the stream is reset, and that is all.
            raise failure

    def _accept(self, device: RemoteDevice, message: AnyMessage) -> Delivery | Reply:
        if isinstance(message, Ping):
            return Pong(nonce=message.nonce)
        assert not isinstance(message, Data)
        return self._service.accept(device, message)

    async def _settle(
        self, device: RemoteDevice, accepted: Data | Delivery | Reply, writer: FrameWriter, room: anyio.Semaphore
    ) -> None:
        reply: Reply
        match accepted:
            case Data():
                reply = await self._service.handle_data(device, accepted)
            case Delivery():
                reply = await accepted.ack()
            case Ack() | Pong():
                reply = accepted
        try:
            await writer.put(reply)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the stream has ended; the message is settled all the same
        room.release()

    async def _write(self, writer: FrameWriter, scope: anyio.CancelScope) -> None:
        try:
            await writer.run()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()


async def _receive(messages: MessageStream) -> AnyMessage | None:
    data = await messages.receive_bytes_or_end()
    return None if data is None else decode(data, AnyMessage, max_bytes=MAX_MESSAGE_BYTES)
