"""The plugins of a running node: builds what they offer, runs their services, asks and tells them, isolates them.

A plugin that fails too often, leaks tasks or floods the node with events is quarantined: what runs for it is ended,
and its protocols, routes and hooks are taken out, until a person brings it back. What it was to forbid stays forbidden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus

from .clock import sleep_to_beat
from .context import PluginContext
from .devices.delivery import MESSAGES_SUFFIX, Delivery
from .devices.trust import RemoteDevice
from .errors import ConfigurationError, NotFoundError, PluginError, RefusedError
from .events import PluginFailed, PluginStateChanged
from .hookspecs import AuthorizationRequest, Decision, Route, ServiceSpec
from .log_context import log_context
from .plugin_runner import EVENT_FLOOD, EVENT_FLOOD_WINDOW_S, HANDLER_EVENT_TIMEOUT_S, RunningPlugin
from .plugin_tasks import PluginTasks, count_tasks
from .plugins import PluginRecord, PluginSet, PluginState, check_strict
from .protocols.handler import ProtocolSpec
from .protocols.registry import ProtocolRegistry, RegisteredProtocol
from .wording import format_count

if TYPE_CHECKING:
    from .core import NetworkingCore

__all__ = ["NodePlugins"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

STOP_TIMEOUT_S = 5.0
"""How long a plugin that is stopped may take to end its tasks."""
TASK_CHECK_INTERVAL_S = 15.0


class NodePlugins:
    """All plugins of one node.

    :param plugins: found and imported already.
    :param protocols: where their protocols are registered.
    :param start_serving: lets the swarm take streams of a protocol; used for a plugin that comes later.
    :param stop_serving: takes a protocol id out of the swarm.
    """

    def __init__(
        self,
        core: NetworkingCore,
        plugins: PluginSet,
        protocols: ProtocolRegistry,
        *,
        start_serving: Callable[[RegisteredProtocol], None],
        stop_serving: Callable[[str], None],
    ) -> None:
        self._core = core
        self._plugins = plugins
        self._protocols = protocols
        self._start_serving = start_serving
        self._stop_serving = stop_serving
        self._running: dict[str, RunningPlugin] = {}
        self._ending: dict[str, PluginTasks] = {}
        self._authorizing: list[PluginRecord] = []
        self._tasks: anyio.abc.TaskGroup | None = None
        self._changing = anyio.Lock()
        self.generation = 0
        """Grows with every plugin that comes or goes, and so does what `routes` gives."""

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
                self._build_failed(record, error)
        if self._core.config.plugins.strict:
            check_strict(self._plugins)

    def check_commands(self) -> None:
        """Make every plugin's commands too, to see whether they can be made."""
        self._plugins.commands()

    def _build_failed(self, record: PluginRecord, error: BaseException) -> None:
        detail = str(error) if isinstance(error, PluginError | ConfigurationError) else repr(error)
        self._stop(record, f"failed to start: {detail}", error)

    def _build(self, record: PluginRecord) -> None:
        if self._plugins.implements(record, "sdnet_authorize") and record not in self._authorizing:
            self._authorizing.append(record)
        ctx = PluginContext(self._core, record.name, self._read_config(record))
        running = self._running[record.name] = RunningPlugin(
            self._core, self._plugins, record, ctx, on_failure=self.report_failure, on_end=self._stop
        )
        services = list(self._plugins.call(record, "sdnet_services", ctx=ctx) or ())
        for service in services:
            if not isinstance(service, ServiceSpec):
                raise PluginError(f"sdnet_services gave {service!r}, which is no ServiceSpec.")
        running.services = services
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
        running.routes = routes
        self.generation += 1

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

    def _stop(
        self,
        record: PluginRecord,
        reason: str,
        error: BaseException | None = None,
        *,
        state: PluginState = PluginState.FAILED,
    ) -> None:
        """Take a plugin out of the node: its protocols, services, routes and hooks. Its tasks are told to end."""
        for protocol_id in self._protocols.unregister(record.name):
            self._stop_serving(protocol_id)
            self._stop_serving(protocol_id + MESSAGES_SUFFIX)
        running = self._running.pop(record.name, None)
        self._plugins.fail(record, reason, error, state=state)
        self.generation += 1
        if state is not PluginState.DISABLED:
            self._core.events.publish(PluginFailed(plugin=record.name, reason=reason))
        self._core.events.publish(PluginStateChanged(plugin=record.name, state=str(state), reason=reason))
        if running is not None:
            self._ending[record.name] = running.tasks
            running.tasks.stop()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Run the services, and bring events to handlers and hooks, until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for record in self._plugins.loaded:
                    await self._running[record.name].start(tasks, self._protocols)
                if self._core.config.plugins.strict:
                    check_strict(self._plugins)
                task_status.started()
                while True:
                    await sleep_to_beat(TASK_CHECK_INTERVAL_S)
                    self.check_tasks()
            finally:
                self._tasks = None

    async def hand_delivery(self, device: RemoteDevice, protocol_name: str, deliveries: Sequence[Delivery]) -> None:
        """Tell the handler of their protocol what became of messages."""
        registered = self._protocols.by_name(protocol_name)
        if registered is None:
            return
        try:
            with (
                log_context(device_id=device.device_id, peer_id=device.peer_id),
                anyio.fail_after(HANDLER_EVENT_TIMEOUT_S),
                self.serving(registered.plugin),
            ):
                for delivery in deliveries:
                    await registered.spec.handler.handle_delivery(device, delivery)
        except Exception as error:
            logger.exception("handle_delivery of %s raised", registered.spec.protocol_id)
            self.report_failure(registered.plugin, f"handle_delivery of {registered.spec.protocol_id} raised {error!r}")

    @contextmanager
    def serving(self, plugin: str) -> Iterator[anyio.CancelScope]:
        """Run a block for a plugin: it is cancelled when the plugin is stopped.

        :returns: the scope; ``cancelled_caught`` says afterwards whether that happened.
        """
        running = self._running.get(plugin)
        if running is None:
            with anyio.CancelScope() as scope:
                scope.cancel()
                yield scope
            return
        with running.tasks.running() as scope:
            yield scope

    # Failures

    def report_failure(self, plugin: str, reason: str, *, counts: bool = True) -> None:
        """A plugin raised while it was serving: it goes on, and the failure is shown. Too many put it in quarantine.

        :param counts: whether it counts towards that. What strangers bring about does not: they could switch a
            plugin off.
        """
        running, record = self._running.get(plugin), self._record(plugin)
        if record is None or running is None:
            return
        record.reason = reason
        self._core.events.publish(PluginFailed(plugin=plugin, reason=reason))
        if counts and running.failures.spend():
            settings = self._core.config.plugins
            often = f"failed more than {format_count(settings.max_failures, 'time')} in {settings.failure_window_s:g} s"
            self._quarantine(record, f"{often}, last: {reason}")

    def check_tasks(self) -> None:
        """Quarantine each plugin that has more tasks than the settings allow."""
        most = self._core.config.plugins.max_tasks
        counts = count_tasks({name: running.tasks.roots for name, running in self._running.items()})
        for name, count in counts.items():
            record = self._record(name)
            if count > most and record is not None:
                self._quarantine(record, f"has {format_count(count, 'task')}, more than {most:,}: it leaks them")

    def admit_event(self, plugin: str) -> bool:
        """Whether a plugin may publish one more event; one that floods the node is quarantined."""
        running, record = self._running.get(plugin), self._record(plugin)
        if running is None or record is None:
            return False
        if running.events.spend():
            self._quarantine(record, f"published more than {EVENT_FLOOD} events in {EVENT_FLOOD_WINDOW_S:g} s")
            return False
        return True

    def _quarantine(self, record: PluginRecord, reason: str) -> None:
        self._stop(
            record, f"{reason}. Bring it back with: sdnet plugins enable {record.name}", state=PluginState.QUARANTINED
        )

    def _record(self, name: str) -> PluginRecord | None:
        return next((record for record in self._plugins.records if record.name == name), None)

    # By hand

    async def disable(self, name: str) -> PluginRecord:
        """Stop a plugin while the node runs. What runs for it has ended when this returns, unless the record's reason
        says otherwise.

        :raises NotFoundError: none of that name is installed.
        """
        async with self._changing:
            record = self._find(name)
            if record.state is not PluginState.DISABLED:
                self._stop(record, "disabled while the node runs", state=PluginState.DISABLED)
            if not await self._has_ended(name):
                record.reason = "disabled, but its tasks do not end; restart the node to be rid of them"
            return record

    async def enable(self, name: str) -> PluginRecord:
        """Start a plugin that was disabled, quarantined or failed. Code that changed meanwhile needs a restart.

        :raises NotFoundError: none of that name is installed.
        :raises PluginError: it cannot be started; says why.
        """
        async with self._changing:
            record = self._find(name)
            if record in self._plugins.loaded:
                return record
            if record.find is None or self._tasks is None:
                raise PluginError(f"Plugin {name} cannot be started: {record.reason}.")
            if not await self._has_ended(name):
                raise PluginError(f"Plugin {name} still has tasks that do not end: sdnet restart.")
            self._plugins.load_one(record)
            if record in self._plugins.loaded:
                try:
                    self._build(record)
                except (Exception, SystemExit) as error:
                    self._build_failed(record, error)
                else:
                    await self._running[name].start(self._tasks, self._protocols)
            # By now a service may have failed.
            if record not in self._plugins.loaded:
                raise PluginError(f"Plugin {name} {record.reason}.")
            for registered in self._protocols:
                if registered.plugin == name:
                    self._start_serving(registered)
            self._core.events.publish(PluginStateChanged(plugin=name, state=str(record.state), reason=""))
            return record

    async def _has_ended(self, name: str) -> bool:
        ending = self._ending.get(name)
        if ending is not None and not await ending.wait_ended(STOP_TIMEOUT_S):
            return False
        self._ending.pop(name, None)
        return True

    def _find(self, name: str) -> PluginRecord:
        record = self._record(name)
        if record is None:
            raise NotFoundError(f"No plugin {name!r} is installed.")
        return record

    # Asking

    def authorize(self, protocol_name: str, peer_id: str, device: RemoteDevice | None) -> str:
        """Ask every plugin that wants to be asked. Deny wins over ask, ask over allow; an exception denies.

        :returns: the name of a plugin that wants a person to decide; empty if none does.
        :raises RefusedError: one does not allow it.
        """
        request = AuthorizationRequest(protocol_name=protocol_name, peer_id=peer_id, device=device)
        ask = ""
        for record in self._authorizing:
            if record.state is PluginState.DISABLED:
                continue  # a person decided that
            running, before = self._running.get(record.name), self._core.clock.monotonic()
            if running is None:
                raise RefusedError(f"Plugin {record.name}, which has a say in {protocol_name}, is {record.state}.")
            try:
                decision = self._plugins.call(record, "sdnet_authorize", ctx=running.ctx, request=request)
                if decision is not None:
                    decision = Decision(decision)
            except Exception as error:
                logger.exception("plugin %s raised in sdnet_authorize", record.name)
                self.report_failure(record.name, f"sdnet_authorize raised {error!r}")
                decision = Decision.DENY
            running.check_pace("sdnet_authorize", self._core.clock.monotonic() - before)
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
            running = self._running.get(record.name)
            for service in () if running is None else running.services:
                if isinstance(service.api, type_):
                    return service.api
        raise PluginError(f"No plugin that is loaded offers {type_.__name__}.")

    def routes(self) -> list[tuple[str, Route]]:
        """All routes, with the names of their plugins."""
        return [(name, route) for name, running in self._running.items() for route in running.routes]
