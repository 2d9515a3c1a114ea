"""What the plugin adds to a node and to the command line. Every command imports this: the rest comes when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click
    import msgspec
    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import ClipboardService

__all__ = ["ClipboardPlugin"]


class ClipboardPlugin:
    """One instance for each node."""

    _service: ClipboardService

    @hookimpl
    def sdnet_config(self) -> type[msgspec.Struct]:
        from .settings import ClipboardSettings

        return ClipboardSettings

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import ClipboardService

        self._service = ClipboardService(ctx, ctx.config)
        return [ServiceSpec(name="clipboard", run=self._service.run, api=self._service)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        from sdnet_core import ProtocolSpec

        from .messages import MAX_MESSAGE_BYTES
        from .service import ClipboardHandler

        return [
            ProtocolSpec(
                protocol_name="clipboard",
                version=1,
                handler=ClipboardHandler(self._service),
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_streams_per_peer=2,
                idle_timeout_s=30.0,
            )
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import routes

        return routes(self._service)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import clip

        return [clip]
