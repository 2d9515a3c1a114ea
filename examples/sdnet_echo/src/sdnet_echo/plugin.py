"""What the plugin adds to a node and to the command line. Every command imports this: the rest comes when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click
    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import EchoService

__all__ = ["EchoPlugin"]


class EchoPlugin:
    """One instance for each node."""

    _service: EchoService

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import EchoService

        self._service = EchoService(ctx)
        return [ServiceSpec(name="echo", api=self._service)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        from sdnet_core import ProtocolSpec

        from .handler import EchoHandler
        from .messages import MAX_MESSAGE_BYTES

        return [
            ProtocolSpec(
                protocol_name="echo",
                version=1,
                handler=EchoHandler(),
                max_message_bytes=MAX_MESSAGE_BYTES,
                idle_timeout_s=30.0,
            )
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import routes

        return routes(ctx, self._service)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import echo

        return [echo]
