"""The plugins of a running node: builds what they offer, runs their services, asks and tells them, isolates them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus

from .context import PluginContext
from .devices.delivery import MESSAGES_SUFFIX, Delivery
from .devices.trust import RemoteDevice
from .errors import ConfigurationError, PluginError, RefusedError
from .events import ConnectionEstablished, ConnectionLost, PluginFailed
from .hookspecs import AuthorizationRequest, Decision, Route, ServiceSpec
from .plugins import PluginRecord, PluginSet, check_strict
from .protocols.handler import ProtocolSpec
from .protocols.registry import ProtocolRegistry

if TYPE_CHECKING:
    from .core import NetworkingCore

__all__ = ["NodePlugins"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SERVICE_START_TIMEOUT_S = 10.0
HANDLER_EVENT_TIMEOUT_S = 10.0


class NodePlugins:
    """All plugins of one node.

    :param plugins: found and imported already.
    :param protocols: where their protocols are registered.
    :param stop_serving: takes a protocol id out of the swarm.
    """

    def __init__(
        self,
        core: NetworkingCore,
        plugins: PluginSet,
        protocols: ProtocolRegistry,
        stop_serving: Callable[[str], None],
    ) -> None:
        self._core = core
        self._plugins = plugins
        self._protocols = protocols
        self._stop_serving = stop_serving
        self._contexts: dict[str, PluginContext] = {}
        self._services: dict[str, list[ServiceSpec]] = {}
        self._routes: dict[str, list[Route]] = {}
        self._authorizing: list[PluginRecord] = []

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins."""
        return self._plugins.records

    def build(self) -> None:
        """Call every plugin's configuration, services, protocols and routes hooks, one plugin after the other.

        :raises PluginError: one failed and the configuration is strict.
        """
        for record in self._plugins.loaded:
            try:
                self._build(record)
            except (Exception, SystemExit) as error:
                detail = str(error) if isinstance(error, PluginError | ConfigurationError) else repr(error)
                self._drop(record, f"failed to start: {detail}", error)
        self._authorizing = [r for r in self._plugins.loaded if self._plugins.implements(r, "sdnet_authorize")]
        if self._core.config.plugins.strict:
            check_strict(self._plugins)

    def check_commands(self) -> None:
        """Make every plugin's commands too, to see whether they can be made."""
        self._plugins.commands()

    def _build(self, record: PluginRecord) -> None:
        ctx = PluginContext(self._core, record.name, self._read_config(record))
        self._contexts[record.name] = ctx
        services = list(self._plugins.call(record, "sdnet_services", ctx=ctx) or ())
        for service in services:
            if not isinstance(service, ServiceSpec):
                raise PluginError(f"sdnet_services gave {service!r}, which is no ServiceSpec.")
        self._services[record.name] = services
        specs = list(self._plugins.call(record, "sdnet_protocols", ctx=ctx) or ())
        for spec in specs:
            if not isinstance(spec, ProtocolSpec):
                raise PluginError(f"sdnet_protocols gave {spec!r}, which is no ProtocolSpec.")
            self._protocols.register(spec, plugin=record.name, distribution=record.distribution or record.name)
        ctx._grant(capability for spec in specs for capability in spec.capabilities)
        record.protocols = tuple(spec.protocol_id for spec in specs)
        record.capabilities = tuple(sorted({str(c) for spec in specs for c in spec.capabilities}))
        routes = list(self._plugins.call(record, "sdnet_routes", ctx=ctx) or ())
        for route in routes:
            if not isinstance(route, Route):
                raise PluginError(f"sdnet_routes gave {route!r}, which is no Route.")
        self._routes[record.name] = routes

    def _read_config(self, record: PluginRecord) -> Any:
        table = self._core.config.plugins.tables.get(record.name, {})
        type_ = self._plugins.call(record, "sdnet_config")
        if type_ is None:
            if table:
                raise ConfigurationError(f"[plugins.{record.name}] is set, but the plugin takes no settings.")
            return None
        try:
            return msgspec.convert(table, type_, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"[plugins.{record.name}]: {error}.") from error

    def _drop(self, record: PluginRecord, reason: str, error: BaseException | None = None) -> None:
        """Take a plugin out of the node: its protocols, services, routes and hooks."""
        for protocol_id in self._protocols.unregister(record.name):
            self._stop_serving(protocol_id)
            self._stop_serving(protocol_id + MESSAGES_SUFFIX)
        self._services.pop(record.name, None)
        self._routes.pop(record.name, None)
        self._plugins.fail(record, reason, error)
        self._core.events.publish(PluginFailed(plugin=record.name, reason=reason))

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Run the services, and bring events to handlers and hooks, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for record in self._plugins.loaded:
                for service in self._services.get(record.name, ()):
                    if service.run is not None:
                        await self._start_service(tasks, record, service)
            async with self._core.events.subscribe(buffer=4096) as events:
                if self._core.config.plugins.strict:
                    check_strict(self._plugins)
                task_status.started()
                async for event in events:
                    for record in self._plugins.loaded:
                        try:
                            self._plugins.call(record, "sdnet_event", ctx=self._contexts[record.name], event=event)
                        except Exception as error:
                            logger.exception("plugin %s raised in sdnet_event", record.name)
                            self.report_failure(record.name, f"sdnet_event raised {error!r}")
                    if isinstance(event, ConnectionEstablished | ConnectionLost):
                        await self._tell_handlers(event)

    async def _start_service(self, tasks: anyio.abc.TaskGroup, record: PluginRecord, service: ServiceSpec) -> None:
        ready = anyio.Event()

        class _Status:
            def started(self, value: object = None) -> None:
                ready.set()

        async def run() -> None:
            try:
                assert service.run is not None
                await service.run(task_status=_Status())
            except Exception as error:
                self._drop(record, f"service {service.name} raised {error!r}", error)
            finally:
                ready.set()

        tasks.start_soon(run)
        with anyio.move_on_after(SERVICE_START_TIMEOUT_S) as waiting:
            await ready.wait()
        if waiting.cancelled_caught:
            self._drop(record, f"service {service.name} was not ready within {SERVICE_START_TIMEOUT_S:g} s")

    async def _tell_handlers(self, event: ConnectionEstablished | ConnectionLost) -> None:
        for registered in self._protocols:
            try:
                with anyio.fail_after(HANDLER_EVENT_TIMEOUT_S):
                    await registered.spec.handler.handle_event(event)
            except Exception as error:
                logger.exception("handle_event of %s raised", registered.spec.protocol_id)
                reason = f"handle_event of {registered.spec.protocol_id} raised {error!r}"
                self.report_failure(registered.plugin, reason)

    async def hand_delivery(self, device: RemoteDevice, protocol_name: str, deliveries: Sequence[Delivery]) -> None:
        """Tell the handler of their protocol what became of messages."""
        registered = self._protocols.by_name(protocol_name)
        if registered is None:
            return
        try:
            with anyio.fail_after(HANDLER_EVENT_TIMEOUT_S):
                for delivery in deliveries:
                    await registered.spec.handler.handle_delivery(device, delivery)
        except Exception as error:
            logger.exception("handle_delivery of %s raised", registered.spec.protocol_id)
            self.report_failure(registered.plugin, f"handle_delivery of {registered.spec.protocol_id} raised {error!r}")

    def report_failure(self, plugin: str, reason: str) -> None:
        """A plugin raised while it was serving: it goes on, and the failure is shown."""
        for record in self._plugins.records:
            if record.name == plugin and record.state == "loaded":
                record.reason = reason
        self._core.events.publish(PluginFailed(plugin=plugin, reason=reason))

    def authorize(self, protocol_name: str, peer_id: str, device: RemoteDevice | None) -> str:
        """Ask every plugin that wants to be asked. Deny wins over ask, ask over allow; an exception denies.

        :returns: the name of a plugin that wants a person to decide; empty if none does.
        :raises RefusedError: one does not allow it.
        """
        request = AuthorizationRequest(protocol_name=protocol_name, peer_id=peer_id, device=device)
        ask = ""
        for record in self._authorizing:
            try:
                decision = self._plugins.call(
                    record, "sdnet_authorize", ctx=self._contexts[record.name], request=request
                )
                if decision is not None:
                    decision = Decision(decision)
            except Exception as error:
                logger.exception("plugin %s raised in sdnet_authorize", record.name)
                self.report_failure(record.name, f"sdnet_authorize raised {error!r}")
                decision = Decision.DENY
            if decision is Decision.DENY:
                raise RefusedError(f"Plugin {record.name} denies {protocol_name}.")
            if decision is Decision.ASK:
                ask = record.name
        return ask

    def get_service(self, type_: type[T]) -> T:
        """A plugin's Python interface, by its class.

        :raises PluginError: no loaded plugin offers it.
        """
        for record in self._plugins.loaded:
            for service in self._services.get(record.name, ()):
                if isinstance(service.api, type_):
                    return service.api
        raise PluginError(f"No plugin that is loaded offers {type_.__name__}.")

    def routes(self) -> list[tuple[str, Route]]:
        """All routes, with the names of their plugins."""
        return [(r.name, route) for r in self._plugins.loaded for route in self._routes.get(r.name, ())]
