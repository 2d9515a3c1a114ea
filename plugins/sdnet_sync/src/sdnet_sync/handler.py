"""The receiving side of ``/sdnet/sync/1``."""

from __future__ import annotations

from sdnet_core import PeerStream, ProtocolHandler
from sdnet_core.wire import decode, encode

from .link import MAX_FRAME_BYTES
from .messages import AnyOpening, Open
from .service import SyncService

__all__ = ["SyncHandler"]


class SyncHandler(ProtocolHandler):
    """Takes links and answers requests."""

    protocol_name = "sync"

    def __init__(self, service: SyncService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        device = stream.require_device()
        messages = stream.messages(max_bytes=MAX_FRAME_BYTES)
        while (data := await messages.receive_bytes_or_end()) is not None:
            request: AnyOpening = decode(data, AnyOpening, max_bytes=MAX_FRAME_BYTES)
            if isinstance(request, Open):
                await self._service.accept_link(stream, messages, device)
                return
            await messages.send_bytes(encode(await self._service.answer(device, request)))
