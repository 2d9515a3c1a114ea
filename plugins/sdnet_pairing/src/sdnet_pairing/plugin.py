"""Hook implementations of the pairing plugin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click
    import msgspec

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .introduction.service import IntroductionService
    from .limits import PairingLimits
    from .service import PairingService

__all__ = ["PairingPlugin"]


class PairingPlugin:
    """Pairs two devices with a 12-word code, or by an introduction."""

    limits: PairingLimits | None = None
    """Other bounds than the usual ones."""
    _service: PairingService
    _introductions: IntroductionService

    @hookimpl
    def sdnet_config(self) -> type[msgspec.Struct]:
        """``[plugins.pairing]``."""
        from .settings import PairingSettings

        return PairingSettings

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        """Run sessions and introductions; the Python interfaces are `PairingService` and `IntroductionService`."""
        from sdnet_core import ServiceSpec

        from .introduction.service import IntroductionService
        from .service import PairingService

        self._service = PairingService(ctx, self.limits)
        self._introductions = IntroductionService(
            ctx,
            self._service.limits,
            local_side=self._service.local_side,
            interface=lambda: self._service.user_interface,
        )
        return [
            ServiceSpec(name="pairing", run=self._service.run, api=self._service),
            ServiceSpec(name="introductions", run=self._introductions.run, api=self._introductions),
        ]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        """Serve ``/sdnet/pairing/1`` to strangers, and ``/sdnet/introduction/1`` to paired devices."""
        from sdnet_core import Access, Capability, ProtocolSpec

        from .introduction.messages import MAX_MESSAGE_BYTES as MAX_INTRODUCTION_BYTES
        from .introduction.service import PROTOCOL_NAME, IntroductionHandler
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
            ),
            ProtocolSpec(
                protocol_name=PROTOCOL_NAME,
                version=1,
                handler=IntroductionHandler(self._introductions),
                # One whose trust is only "verified" may introduce too: a person is asked in any case then.
                access=Access.VERIFIED,
                max_message_bytes=MAX_INTRODUCTION_BYTES,
                max_streams_per_peer=4,
                capabilities=frozenset({Capability.PAIR}),
            ),
        ]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        """Serve ``/v1/pairing/…``."""
        from .api import routes

        return routes(self._service, self._introductions)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        """Add ``sdnet pair``."""
        from .cli import pair

        return [pair]
