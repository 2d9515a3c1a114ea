"""Runs what one plugin has: its services, and what brings events to its hook and its handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from .context import PluginContext
from .event_bus import Subscription
from .events import ConnectionEstablished, ConnectionLost, NetworkEvent
from .hookspecs import Route, ServiceSpec
from .plugin_tasks import FailureBudget, PluginTasks
from .plugins import PluginRecord, PluginSet
from .protocols.handler import ProtocolHandler
from .protocols.registry import RegisteredProtocol

if TYPE_CHECKING:
    from .core import NetworkingCore

__all__ = ["RunningPlugin"]

logger = logging.getLogger(__name__)

SERVICE_START_TIMEOUT_S = 10.0
HANDLER_EVENT_TIMEOUT_S = 10.0
SLOW_HOOK_S = 2.0
"""A hook that takes longer, and holds up the whole node meanwhile, counts as a failure."""
EVENT_FLOOD = 50_000
"""Events from one plugin within `EVENT_FLOOD_WINDOW_S` that are still borne."""
EVENT_FLOOD_WINDOW_S = 10.0


class RunningPlugin:
    """What a node has of one plugin that is loaded.

    :param on_failure: told of what goes wrong and does not end the plugin: its name and the reason.
    :param on_end: told of what ends it: its record, the reason, and what was raised.
    """

    def __init__(
        self,
        core: NetworkingCore,
        plugins: PluginSet,
        record: PluginRecord,
        ctx: PluginContext,
        *,
        on_failure: Callable[[str, str], None],
        on_end: Callable[[PluginRecord, str, BaseException | None], None],
    ) -> None:
        settings = core.config.plugins
        self._core = core
        self._plugins = plugins
        self._record = record
        self._on_failure = on_failure
        self._on_end = on_end
        self.ctx = ctx
        self.services: list[ServiceSpec] = []
        self.routes: list[Route] = []
        self.tasks = PluginTasks()
        self.failures = FailureBudget(core.clock, most=settings.max_failures, window_s=settings.failure_window_s)
        self.events = FailureBudget(core.clock, most=EVENT_FLOOD, window_s=EVENT_FLOOD_WINDOW_S)

    async def start(self, tasks: TaskGroup, protocols: Iterable[RegisteredProtocol]) -> None:
        """Start the services and what brings events; returns when the services are ready or given up.

        :param protocols: all that the node serves.
        """
        handlers = [
            registered.spec.handler
            for registered in protocols
            if registered.plugin == self._record.name and _hears_events(registered.spec.handler)
        ]
        if handlers or self._plugins.implements(self._record, "sdnet_event"):
            subscription = self._core.events.subscribe(buffer=4096)
            tasks.start_soon(self._pump_events, handlers, subscription)
        for service in self.services:
            if service.run is not None and not self.tasks.stopped:
                await self._start_service(tasks, service)

    def check_pace(self, hook: str, took_s: float) -> None:
        """Count a hook that held up the node as a failure."""
        if took_s > SLOW_HOOK_S:
            self._on_failure(self._record.name, f"{hook} held up the node for {took_s:.1f} s")

    async def _pump_events(self, handlers: Sequence[ProtocolHandler], subscription: Subscription) -> None:
        observes = self._plugins.implements(self._record, "sdnet_event")
        with self.tasks.running():
            async with subscription as events:
                async for event in events:
                    if observes:
                        self._show(event)
                    if isinstance(event, ConnectionEstablished | ConnectionLost):
                        await self._tell_handlers(handlers, event)

    def _show(self, event: NetworkEvent) -> None:
        name, begun = self._record.name, self._core.clock.monotonic()
        try:
            self._plugins.call(self._record, "sdnet_event", ctx=self.ctx, event=event)
        except Exception as error:
            logger.exception("plugin %s raised in sdnet_event", name)
            self._on_failure(name, f"sdnet_event raised {error!r}")
        self.check_pace("sdnet_event", self._core.clock.monotonic() - begun)

    async def _tell_handlers(self, handlers: Sequence[ProtocolHandler], event: NetworkEvent) -> None:
        for handler in handlers:
            try:
                with anyio.fail_after(HANDLER_EVENT_TIMEOUT_S):
                    await handler.handle_event(event)
            except Exception as error:
                logger.exception("handle_event of %s raised", handler.protocol_name)
                self._on_failure(self._record.name, f"handle_event of {handler.protocol_name} raised {error!r}")

    async def _start_service(self, tasks: TaskGroup, service: ServiceSpec) -> None:
        ready = anyio.Event()

        class _Status:
            def started(self, value: object = None) -> None:
                ready.set()

        async def run() -> None:
            try:
                assert service.run is not None
                with self.tasks.running():
                    await service.run(task_status=_Status())
            except Exception as error:
                if not self.tasks.stopped:
                    self._on_end(self._record, f"service {service.name} raised {error!r}", error)
            finally:
                ready.set()

        tasks.start_soon(run)
        with anyio.move_on_after(SERVICE_START_TIMEOUT_S) as waiting:
            await ready.wait()
        if waiting.cancelled_caught:
            reason = f"service {service.name} was not ready within {SERVICE_START_TIMEOUT_S:g} s"
            self._on_end(self._record, reason, None)


def _hears_events(handler: ProtocolHandler) -> bool:
    return type(handler).handle_event is not ProtocolHandler.handle_event
