"""What the messaging plugin adds to a node and to the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click
    import msgspec

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import MessagingService

__all__ = ["MessagingPlugin"]


class MessagingPlugin:
    """Texts, notifications and data between paired devices."""

    _service: MessagingService

    @hookimpl
    def sdnet_config(self) -> type[msgspec.Struct]:
        from .settings import MessagingSettings

        return MessagingSettings

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import MessagingService

        self._service = MessagingService(ctx, ctx.config)
        return [ServiceSpec(name="messaging", run=self._service.run, api=self._service)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        from sdnet_core import Access, ProtocolSpec

        from .handler import MessagingDataHandler, MessagingHandler
        from .messages import MAX_MESSAGE_BYTES

        return [
            # A text is nothing that a person must approve.
            ProtocolSpec(
                protocol_name="messaging",
                version=1,
                handler=MessagingHandler(self._service),
                access=Access.VERIFIED,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_streams_per_peer=4,
            ),
            ProtocolSpec(
                protocol_name="messaging-data",
                version=1,
                handler=MessagingDataHandler(self._service),
                max_message_bytes=MAX_MESSAGE_BYTES,
            ),
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import MessagingApi

        return MessagingApi(ctx, self._service).routes()

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import msg, notify

        return [msg, notify]
