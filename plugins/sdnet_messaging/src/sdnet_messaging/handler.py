"""The receiving side of messaging's two protocols."""

from __future__ import annotations

from collections.abc import Sequence

from sdnet_core import Delivery, InboundMessage, ProtocolHandler, RemoteDevice
from sdnet_core.wire import decode, encode

from .messages import Ping, Pong
from .service import DATA_PROTOCOL, PROTOCOL, MessagingService

__all__ = ["MessagingDataHandler", "MessagingHandler"]


class MessagingHandler(ProtocolHandler):
    """What goes into the inbox, many messages in one transaction; and pings."""

    protocol_name = PROTOCOL
    message_batch = 128

    def __init__(self, service: MessagingService) -> None:
        self._service = service

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        ping: Ping = decode(data, Ping)
        return encode(Pong(nonce=ping.nonce))

    async def handle_messages(self, device: RemoteDevice, messages: Sequence[InboundMessage]) -> Sequence[bytes | None]:
        return await self._service.take(device, messages)

    async def handle_delivery(self, device: RemoteDevice, delivery: Delivery) -> None:
        self._service.delivered(device, delivery)


class MessagingDataHandler(ProtocolHandler):
    """Data for other protocols."""

    protocol_name = DATA_PROTOCOL

    def __init__(self, service: MessagingService) -> None:
        self._service = service

    async def handle_message(self, device: RemoteDevice, message: InboundMessage) -> bytes | None:
        return await self._service.handle_data(device, message)

    async def handle_delivery(self, device: RemoteDevice, delivery: Delivery) -> None:
        self._service.delivered(device, delivery)
