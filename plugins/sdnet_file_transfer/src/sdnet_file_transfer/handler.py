"""Brings inbound streams to the service."""

from __future__ import annotations

from sdnet_core import Access, PeerStream, ProtocolHandler, ProtocolSpec

from . import content_messages, fetch_messages
from .content import ContentService
from .conversation import STALL_S
from .messages import PROTOCOL_NAME
from .service import FileTransferService

__all__ = ["content_spec", "fetch_spec", "protocol_spec"]


class FileTransferHandler(ProtocolHandler):
    """Receives one transfer a stream."""

    protocol_name = PROTOCOL_NAME

    def __init__(self, service: FileTransferService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.receive(stream)


def protocol_spec(service: FileTransferService) -> ProtocolSpec:
    """The protocol, open to every paired device: what a device that is not trusted sends must have been granted."""
    return ProtocolSpec(
        protocol_name=PROTOCOL_NAME,
        version=1,
        handler=FileTransferHandler(service),
        access=Access.VERIFIED,
        max_streams=64,
        max_streams_per_peer=20,
        idle_timeout_s=2 * STALL_S,
    )


class ContentHandler(ProtocolHandler):
    """Serves contents of files of other plugins."""

    protocol_name = content_messages.PROTOCOL_NAME

    def __init__(self, service: ContentService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.answer(stream)


def content_spec(service: ContentService) -> ProtocolSpec:
    """The protocol, open to every paired device: each provider decides who gets what."""
    return ProtocolSpec(
        protocol_name=content_messages.PROTOCOL_NAME,
        version=1,
        handler=ContentHandler(service),
        access=Access.VERIFIED,
        max_streams=64,
        max_streams_per_peer=16,
        idle_timeout_s=2 * STALL_S,
    )


class FetchHandler(ProtocolHandler):
    """Gives what is shared."""

    protocol_name = fetch_messages.PROTOCOL_NAME

    def __init__(self, service: FileTransferService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.serve_shared(stream)


def fetch_spec(service: FileTransferService) -> ProtocolSpec:
    """The protocol, open to every paired device; about one that is only verified, a person is asked each time."""
    return ProtocolSpec(
        protocol_name=fetch_messages.PROTOCOL_NAME,
        version=1,
        handler=FetchHandler(service),
        access=Access.VERIFIED,
        max_streams=64,
        max_streams_per_peer=20,
        idle_timeout_s=2 * STALL_S,
    )
