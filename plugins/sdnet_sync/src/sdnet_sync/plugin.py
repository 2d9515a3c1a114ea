"""What the sync plugin adds to a node and to the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click
    import msgspec

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import SyncService

__all__ = ["SyncPlugin"]


class SyncPlugin:
    """Libraries that are the same on all of a person's devices."""

    _service: SyncService

    @hookimpl
    def sdnet_config(self) -> type[msgspec.Struct]:
        from .settings import SyncSettings

        return SyncSettings

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import SyncService

        self._service = SyncService(ctx, ctx.config)
        return [ServiceSpec(name="sync", run=self._service.run, api=self._service)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        from sdnet_core import Access, ProtocolSpec

        from .folders.content_messages import MAX_CONTENT_FRAME_BYTES
        from .folders.serving import ContentHandler
        from .handler import SyncHandler
        from .link import MAX_FRAME_BYTES

        return [
            ProtocolSpec(
                protocol_name="sync",
                version=1,
                handler=SyncHandler(self._service),
                access=Access.TRUSTED,
                max_message_bytes=MAX_FRAME_BYTES,
                max_streams_per_peer=8,
                # A link is quiet while nothing changes; that its connection is alive is the connection's own affair.
                idle_timeout_s=86400.0,
            ),
            ProtocolSpec(
                protocol_name="sync-content",
                version=1,
                handler=ContentHandler(self._service.folders, ctx.run_blocking),
                access=Access.TRUSTED,
                max_message_bytes=MAX_CONTENT_FRAME_BYTES,
                max_streams_per_peer=16,
            ),
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import SyncApi
        from .document_api import DocumentApi
        from .folders.api import FolderApi

        folders = FolderApi(ctx, self._service.folders, self._service.find)
        documents = DocumentApi(self._service.find)
        return [*SyncApi(ctx, self._service).routes(), *folders.routes(), *documents.routes()]

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import sync

        return [sync]
