"""The plugin class that the entry point names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

from .settings import SpacedropSettings

if TYPE_CHECKING:
    import click

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import SpacedropService

__all__ = ["SpacedropPlugin"]

_IDLE_MARGIN_S = 60.0


class SpacedropPlugin:
    """Offers files to a device, whose person decides."""

    def __init__(self) -> None:
        self._service: SpacedropService | None = None

    @hookimpl
    def sdnet_config(self) -> type[SpacedropSettings]:
        return SpacedropSettings

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import SpacedropService

        self._service = SpacedropService(ctx)
        return [ServiceSpec(name="spacedrop", run=self._service.run, api=self._service)]

    @hookimpl
    def sdnet_protocols(self) -> Iterable[ProtocolSpec]:
        from sdnet_core import Access, Capability, ProtocolSpec

        from . import nearby_messages
        from .messages import MAX_MESSAGE_BYTES, PROTOCOL_NAME
        from .service import SpacedropHandler, StrangerHandler

        assert self._service is not None
        # Nothing moves while a person thinks.
        idle_timeout_s = self._service.settings.answer_timeout_s + _IDLE_MARGIN_S
        return [
            ProtocolSpec(
                protocol_name=PROTOCOL_NAME,
                version=1,
                handler=SpacedropHandler(self._service),
                access=Access.TRUSTED,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_streams=64,
                max_streams_per_peer=16,
                idle_timeout_s=idle_timeout_s,
            ),
            ProtocolSpec(
                protocol_name=nearby_messages.PROTOCOL_NAME,
                version=1,
                handler=StrangerHandler(self._service),
                access=Access.STRANGER,
                max_message_bytes=nearby_messages.MAX_HANDSHAKE_BYTES,
                max_streams=32,
                max_streams_per_peer=2,
                idle_timeout_s=idle_timeout_s,
                capabilities=frozenset({Capability.STRANGERS, Capability.ADVERTISE}),
            ),
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import routes

        assert self._service is not None
        return routes(ctx, self._service)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import drop

        return [drop]
