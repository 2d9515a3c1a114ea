"""The composition root: the one place where the layers meet, and the owner of the root tasks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio

from .approvals import Approvals
from .clock import Clock, Randomness, Runner, SystemClock, SystemRandomness, run_in_thread, sleep_to_beat
from .commands import (
    Command,
    CommandChannel,
    PairingLost,
    SendMessage,
    SwarmHappened,
)
from .config import Config
from .core_devices import DeviceMethods
from .core_factories import SourcesFactory, SwarmFactory, default_sources, default_swarm, plugin_set
from .core_meeting import MeetingMethods
from .core_messages import MessageMethods, Messages
from .core_protection import ProtectionMethods
from .core_stores import open_stores
from .core_streams import StreamMethods
from .core_watch import NodeMetrics, WatchMethods
from .devices.delivery import MESSAGES_SUFFIX
from .devices.gate import PeerGate
from .devices.manager import PersistentConnectionManager
from .devices.refusals import Refusals
from .devices.registry import Connected, DeviceRegistry
from .devices.trust import Access
from .discovery.candidates import Discovery
from .events import (
    EventBus,
    MessageReceived,
    NodeStarted,
    PeerDisconnected,
    StoreRecovered,
)
from .hookspecs import Route
from .identity import HostIdentity
from .node_plugins import NodePlugins
from .pairings import Pairings, restore_devices
from .plugins import PluginRecord
from .protocols.dispatch import Dispatcher
from .protocols.registry import ProtocolRegistry, RegisteredProtocol
from .session import PROTOCOL_ID as SESSION_PROTOCOL
from .storage import KeyFile, SecureStorage, Unlock, ensure_private_directory
from .swarm.abc import AddressesChanged, Disconnected, PathChanged

__all__ = ["NetworkingCore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class NetworkingCore(DeviceMethods, MeetingMethods, MessageMethods, ProtectionMethods, StreamMethods, WatchMethods):
    """One node: its identity, swarm, devices and plugins.

    Use: ``async with NetworkingCore(config) as core: …``. Everything it started has ended when the block is left.

    :param plugins: plugin classes to use instead of those found through entry points.
    :param swarm: makes the swarm; libp2p by default.
    :param sources: makes the discovery sources; mDNS by default, if the configuration has it.
    :param unlock: opens the vault; the key file by default.
    :param identity: kept by the host application; by default the node makes one at its first start and keeps it.
    """

    def __init__(
        self,
        config: Config,
        *,
        plugins: Sequence[Any] | None = None,
        swarm: SwarmFactory | None = None,
        sources: SourcesFactory | None = None,
        unlock: Unlock | None = None,
        identity: HostIdentity | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        runner: Runner = run_in_thread,
    ) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.randomness: Randomness = randomness or SystemRandomness()
        self.runner = runner
        self.events = EventBus(self.clock)
        self.metrics = NodeMetrics(self, self.events)
        self._given_plugins = plugins
        self._make_swarm = swarm or partial(default_swarm, config)
        self._make_sources = sources or (
            lambda identity: default_sources(config, identity, self.clock, self.randomness, far=self._far_source)
        )
        self._unlock = unlock or KeyFile()
        self._host_identity = identity
        self._protocols = ProtocolRegistry()
        self._registry = DeviceRegistry(self.clock)
        self._seen = {}
        self.approvals = Approvals(self.clock, self.randomness, self.events)
        self._stack = AsyncExitStack()
        self._stop_requested = anyio.Event()
        self._started_at: float | None = None

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        self._started_at = None
        return await self._stack.__aexit__(*exc_info)

    async def _prepare(self, stack: AsyncExitStack) -> None:
        """Open the store and put the layers together; nothing runs yet."""
        self._commands = CommandChannel()
        stack.callback(self._commands.close)
        stores = await open_stores(
            stack,
            self.config,
            unlock=self._unlock,
            clock=self.clock,
            randomness=self.randomness,
            runner=self.runner,
            events=self.events,
            host=self._host_identity,
        )
        self._vault, self._storage, self.audit, self._store = stores.vault, stores.storage, stores.audit, stores.devices
        self._node_store, revocations = stores.node, stores.revocations
        self.identity, self.device_info = stores.identity, stores.device_info
        await self._load_meeting_points()
        self._recovered = await restore_devices(self._registry, self._store, revocations, self.events)
        for detail in (*self._vault.recovered, *self._storage.recovered):
            self.events.publish(StoreRecovered(detail=detail))
        refusals = self._refusals = Refusals(self.clock, self.events)
        self.gate = PeerGate(self.clock, self._registry, revocations, refusals, self._pairing_window_closed)
        self._swarm = self._make_swarm(self.identity)
        self._swarm.gate = self.gate.admits
        self._swarm.knows = lambda peer_id: self._registry.by_peer(peer_id) is not None or self.gate.talks_with(peer_id)
        self._swarm.awaits_stranger = lambda: self.gate.is_open
        self.discovery = Discovery(
            self._make_sources(self.identity), self.clock, peer_id=self.identity.peer_id, on_progress=self._on_progress
        )
        self._connections = PersistentConnectionManager(
            swarm=self._swarm,
            discovery=self.discovery,
            registry=self._registry,
            store=self._store,
            identity=self.identity,
            clock=self.clock,
            randomness=self.randomness,
            events=self.events,
            settings=self.config.connections,
            pairing_lost=self._pairing_lost,
            refusals=refusals,
            has_messages=lambda device_id: self.messages.outbox.has_messages(device_id),
        )
        self._pairings = Pairings(
            registry=self._registry,
            store=self._store,
            connections=self._connections,
            revocations=revocations,
            public_key=self.identity.public_key,
            clock=self.clock,
            events=self.events,
            flush=self.audit.flush,
        )
        self.messages = Messages(self, self._protocols, stores.outbox_sealer)
        self._plugins = NodePlugins(
            self,
            plugin_set(self.config, self._given_plugins),
            self._protocols,
            start_serving=self._serve_protocol,
            stop_serving=self._swarm.remove_stream_handler,
        )
        self._plugins.build()

    async def _start(self, stack: AsyncExitStack) -> None:
        await self._prepare(stack)
        await self.messages.open(stack)
        stack.callback(self.events.close)
        await stack.enter_async_context(self._swarm.run())
        await self._node_store.listen(self._swarm, self.config.node.listen)
        await stack.enter_async_context(self.discovery.run())
        self._last_addresses = self._swarm.addresses
        self.discovery.set_addresses(self._last_addresses)
        tasks = self._tasks = await stack.enter_async_context(_background())
        # Before the first stream can come: everything that serves one.
        await self.messages.start(tasks)
        await tasks.start(self.audit.run)
        tasks.start_soon(self._commands.run, self._carry_out)
        await tasks.start(self._plugins.run)
        tasks.start_soon(self._follow_swarm)
        tasks.start_soon(self._follow_interfaces)
        tasks.start_soon(self._follow_discovery)
        await tasks.start(self._connections.run)
        tasks.start_soon(self._keep_port)
        stack.push_async_callback(self._farewell)
        self._dispatcher = Dispatcher(
            protocols=self._protocols,
            devices=self._registry,
            connections=self._connections,
            authorize=self._plugins.authorize,
            approve=self.approvals.ask,
            gate=self.gate,
            refusals=self._refusals,
            clock=self.clock,
            serving=self._plugins.serving,
            on_failure=self._plugins.report_failure,
            on_received=self._received,
        )
        for registered in self._protocols:
            self._serve_protocol(registered)
        self._swarm.set_stream_handler(SESSION_PROTOCOL, self._connections.serve)
        self._started_at = self.clock.monotonic()
        self.events.publish(NodeStarted(peer_id=self.identity.peer_id, addresses=self._swarm.addresses))

    def _serve_protocol(self, registered: RegisteredProtocol) -> None:
        self._swarm.set_stream_handler(registered.spec.protocol_id, self._dispatcher.handle)
        if registered.spec.access is not Access.STRANGER:
            self._swarm.set_stream_handler(registered.spec.protocol_id + MESSAGES_SUFFIX, self._dispatcher.handle)

    async def inspect_plugins(self) -> tuple[PluginRecord, ...]:
        """Build the plugins and say what became of them, without starting the node."""
        async with AsyncExitStack() as stack:
            await self._prepare(stack)
            self._plugins.check_commands()
            return self._plugins.records

    async def _farewell(self) -> None:
        # A device that hears that we stop may dial at once; it would only be lost again.
        self._swarm.remove_stream_handler(SESSION_PROTOCOL)
        await self._connections.farewell()

    def request_stop(self) -> None:
        """Ask whoever runs this node to leave its block."""
        self._stop_requested.set()

    async def wait_stop_requested(self) -> None:
        """Wait until somebody called `request_stop`."""
        await self._stop_requested.wait()

    # The event loop task

    async def _follow_swarm(self) -> None:
        async for event in self._swarm.events:
            await self._commands.call(SwarmHappened(event))

    async def _follow_interfaces(self) -> None:
        """Notice that the machine has other addresses than before; the swarm tells only of what it listens on."""
        while True:
            await sleep_to_beat(max(1.0, self.config.connections.keepalive_interval_s / 6))
            addresses = self._swarm.addresses
            if set(addresses) != set(self._last_addresses):
                await self._commands.call(SwarmHappened(AddressesChanged(addresses)))

    async def _carry_out(self, command: Command) -> Any:
        match command:
            case SwarmHappened(Disconnected(peer_id, generation)):
                self._connections.lost(peer_id, generation)
                self._hung_up(peer_id)
                self.events.publish(PeerDisconnected(peer_id=peer_id))
            case SwarmHappened(AddressesChanged(addresses)):
                self.discovery.set_addresses(addresses)
                if set(addresses) != set(self._last_addresses):
                    self._connections.look_around("this device has other addresses")
                self._last_addresses = addresses
            case SwarmHappened(PathChanged(peer_id=peer_id, generation=generation)):
                self._connections.paths.changed(peer_id, generation)
            case SwarmHappened():
                pass
            case SendMessage():
                return self.messages.put(command)
            case _:
                await self._pairings.carry_out(command)
        return None

    def _received(self, device_id: uuid.UUID, protocol_name: str, count: int, size_bytes: int) -> None:
        if isinstance(state := self._registry.get(device_id), Connected):
            state.live.messages_received += count
        self.events.publish(
            MessageReceived(device_id=device_id, protocol=protocol_name, size_bytes=size_bytes, count=count)
        )

    async def _pairing_lost(self, device_id: uuid.UUID, pairing_id: bytes, reason: str) -> None:
        await self._commands.call(PairingLost(device_id, pairing_id, reason))

    def _pairing_window_closed(self) -> None:
        for peer_id in self._registry.revoked_peers():
            if (
                self._swarm.is_connected(peer_id)
                and not self.gate.may_pair(peer_id)
                and not self._tasks.cancel_scope.cancel_called
            ):
                self._tasks.start_soon(self._swarm.hang_up, peer_id)

    # Devices

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses this node listens on."""
        return self._swarm.addresses

    # Plugins

    def get_service(self, type_: type[T]) -> T:
        """A plugin's Python interface, by its class.

        :raises PluginError: no loaded plugin offers it.
        """
        return self._plugins.get_service(type_)

    def plugin_records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins and what became of them."""
        return self._plugins.records

    def admits_event(self, plugin: str) -> bool:
        """Whether a plugin may publish one more event; one that floods the node is quarantined."""
        return self._plugins.admit_event(plugin)

    async def enable_plugin(self, name: str) -> PluginRecord:
        """Start a plugin that was disabled, quarantined or failed.

        :raises NotFoundError: none of that name is installed.
        :raises PluginError: it cannot be started; says why.
        """
        return await self._plugins.enable(name)

    async def disable_plugin(self, name: str) -> PluginRecord:
        """Stop a plugin while the node runs.

        :raises NotFoundError: none of that name is installed.
        """
        return await self._plugins.disable(name)

    def routes(self) -> list[tuple[str, Route]]:
        """The plugins' routes of the local API, with the plugins' names."""
        return self._plugins.routes()

    @property
    def plugin_generation(self) -> int:
        """Grows with every plugin that comes or goes, and so whenever `routes` changes."""
        return self._plugins.generation

    def plugin_storage(self, name: str) -> SecureStorage:
        """A plugin's own sealed store."""
        return self._storage.scoped(f"plugins/{name}")

    def plugin_directory(self, name: str) -> Path:
        """A plugin's private directory; made when first asked for."""
        directory = self.config.paths.data / "plugins" / name
        ensure_private_directory(directory, below=self.config.paths.data)
        return directory

    @property
    def uptime_s(self) -> float:
        """Seconds since it was ready; 0 before that and after its end."""
        return 0.0 if self._started_at is None else self.clock.monotonic() - self._started_at


@asynccontextmanager
async def _background() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Tasks that are cancelled when the block is left. What the block raises comes out as it is, not in a group."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
