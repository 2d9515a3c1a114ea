"""Hook implementations of the pairing plugin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .limits import PairingLimits
    from .service import PairingService

__all__ = ["PairingPlugin"]


class PairingPlugin:
    """Pairs two devices with a 12-word code."""

    limits: PairingLimits | None = None
    """Other bounds than the usual ones."""
    _service: PairingService

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        """Run the sessions; the Python interface is `PairingService`."""
        from sdnet_core import ServiceSpec

        from .service import PairingService

        self._service = PairingService(ctx, self.limits)
        return [ServiceSpec(name="pairing", run=self._service.run, api=self._service)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        """Serve ``/sdnet/pairing/1`` to strangers."""
        from sdnet_core import Access, Capability, ProtocolSpec

        from .messages import MAX_MESSAGE_BYTES
        from .service import PairingHandler

        limits = self._service.limits
        talking_s = limits.conversation_timeout_s + limits.answer_timeout_s
        return [
            ProtocolSpec(
                protocol_name="pairing",
                version=1,
                handler=PairingHandler(self._service),
                access=Access.STRANGER,
                max_message_bytes=MAX_MESSAGE_BYTES,
                # More than are served at once: the oldest that proves nothing gives way to the newest.
                max_streams=2 * limits.max_unproven + limits.max_open_sessions * limits.max_proven,
                max_streams_per_peer=4,
                # Nothing moves while the person is asked.
                idle_timeout_s=limits.answer_timeout_s + limits.step_timeout_s,
                deadline_s=talking_s + limits.step_timeout_s,
                capabilities=frozenset({Capability.STRANGERS, Capability.PAIR, Capability.ADVERTISE}),
            )
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        """Serve ``/v1/pairing/…``."""
        from .api import routes

        return routes(self._service)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        """Add ``sdnet pair``."""
        from .cli import pair

        return [pair]
