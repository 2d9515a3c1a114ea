"""The answering side."""

from __future__ import annotations

from sdnet_core import ProtocolHandler, RemoteDevice
from sdnet_core.wire import decode, encode

from .messages import MAX_MESSAGE_BYTES, EchoAnswer, EchoRequest

__all__ = ["EchoHandler"]


class EchoHandler(ProtocolHandler):
    """Answers what paired devices ask: with what they said."""

    protocol_name = "echo"

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        request: EchoRequest = decode(data, EchoRequest, max_bytes=MAX_MESSAGE_BYTES)
        return encode(EchoAnswer(text=request.text))
