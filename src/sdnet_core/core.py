"""The composition root: the one place where the layers meet, and the owner of the root tasks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio

from .approvals import Approvals
from .audit import AuditLog
from .clock import Clock, Randomness, Runner, SystemClock, SystemRandomness, run_in_thread
from .commands import (
    Command,
    CommandChannel,
    PairingLost,
    SendMessage,
    SwarmHappened,
)
from .config import Config
from .core_devices import DeviceMethods
from .core_messages import MessageMethods, Messages
from .devices.delivery import MESSAGES_SUFFIX
from .devices.describe import describe_identity
from .devices.gate import PeerGate
from .devices.manager import PersistentConnectionManager
from .devices.outbox_store import Sealer
from .devices.records import DeviceStore
from .devices.refusals import Refusals
from .devices.registry import Connected, DeviceRegistry
from .devices.revocations import RevocationList
from .devices.trust import Access
from .discovery.candidates import Discovery, DiscoverySource
from .errors import ConnectionFailedError, NetworkTimeoutError, ProtocolError
from .events import (
    EventBus,
    NodeStarted,
    PeerDisconnected,
    PeerDiscovered,
    StoreRecovered,
    Subscription,
)
from .hookspecs import Route
from .identity import NetworkIdentity
from .node_plugins import NodePlugins
from .node_store import NodeStore
from .pairings import Pairings, restore_devices
from .plugins import PluginRecord, PluginSet, PluginState, find_plugins, given_plugins
from .protocols.dispatch import Dispatcher, remote_device
from .protocols.handler import PeerStream
from .protocols.registry import ProtocolRegistry
from .session import PROTOCOL_ID as SESSION_PROTOCOL
from .storage import DirectoryLock, KeyFile, SecureStorage, Unlock, Vault, ensure_private_directory
from .swarm.abc import AddressesChanged, Disconnected, Swarm

__all__ = ["NetworkingCore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
SwarmFactory = Callable[[NetworkIdentity], Swarm]
SourcesFactory = Callable[[NetworkIdentity], Iterable[DiscoverySource]]


class NetworkingCore(DeviceMethods, MessageMethods):
    """One node: its identity, swarm, devices and plugins.

    Use: ``async with NetworkingCore(config) as core: …``. Everything it started has ended when the block is left.

    :param plugins: plugin classes to use instead of those found through entry points.
    :param swarm: makes the swarm; libp2p by default.
    :param sources: makes the discovery sources; mDNS by default, if the configuration has it.
    :param unlock: opens the vault; the key file by default.
    """

    def __init__(
        self,
        config: Config,
        *,
        plugins: Sequence[Any] | None = None,
        swarm: SwarmFactory | None = None,
        sources: SourcesFactory | None = None,
        unlock: Unlock | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        runner: Runner = run_in_thread,
    ) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.randomness: Randomness = randomness or SystemRandomness()
        self.runner = runner
        self.events = EventBus(self.clock)
        self._given_plugins = plugins
        self._make_swarm = swarm or self._libp2p_swarm
        self._make_sources = sources or self._default_sources
        self._unlock = unlock or KeyFile()
        self._protocols = ProtocolRegistry()
        self._registry = DeviceRegistry(self.clock)
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
        data = self.config.paths.data
        await self.runner(ensure_private_directory, data)
        lock = DirectoryLock(data)
        await self.runner(lock.acquire)
        stack.callback(lock.release)
        self._vault = await self.runner(Vault.open_or_create, data, self._unlock, self.clock, self.randomness)
        self._storage = SecureStorage(
            data / "network",
            self._vault.subkey("network"),
            clock=self.clock,
            randomness=self.randomness,
            runner=self.runner,
        )
        self.audit = AuditLog(data, self._vault.subkey("audit"), self._storage, clock=self.clock, runner=self.runner)
        self.events.add_tap(self.audit.take)
        self._node_store = NodeStore(self._storage, self.clock, self.randomness)
        self.identity, self.device_info = await self._node_store.identity(self.config.device_name)
        self._store = DeviceStore(self._storage, self.device_info.id)
        revocations = RevocationList(
            data,
            self._vault.subkey("revocations"),
            self._storage,
            clock=self.clock,
            randomness=self.randomness,
            runner=self.runner,
        )
        self._recovered = await restore_devices(self._registry, self._store, revocations, self.events)
        for detail in (*self._vault.recovered, *self._storage.recovered):
            self.events.publish(StoreRecovered(detail=detail))
        refusals = self._refusals = Refusals(self.clock, self.events)
        self.gate = PeerGate(self.clock, self._registry, revocations, refusals, self._pairing_window_closed)
        self._swarm = self._make_swarm(self.identity)
        self._swarm.gate = self.gate.admits
        self._swarm.knows = lambda peer_id: self._registry.by_peer(peer_id) is not None
        self.discovery = Discovery(self._make_sources(self.identity), self.clock, peer_id=self.identity.peer_id)
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
        sealed = SecureStorage(
            data / "outbox",
            self._vault.subkey("outbox"),
            clock=self.clock,
            randomness=self.randomness,
            runner=self.runner,
        )
        self.messages = Messages(self, self._protocols, Sealer(sealed.encrypt_data, sealed.decrypt_data))
        self._plugins = NodePlugins(self, self._plugin_set(), self._protocols, self._swarm.remove_stream_handler)
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
        stack.push_async_callback(self._farewell)
        dispatcher = Dispatcher(
            protocols=self._protocols,
            devices=self._registry,
            connections=self._connections,
            authorize=self._plugins.authorize,
            approve=self.approvals.ask,
            gate=self.gate,
            refusals=self._refusals,
            on_failure=self._plugins.report_failure,
        )
        for registered in self._protocols:
            self._swarm.set_stream_handler(registered.spec.protocol_id, dispatcher.handle)
            if registered.spec.access is not Access.STRANGER:
                self._swarm.set_stream_handler(registered.spec.protocol_id + MESSAGES_SUFFIX, dispatcher.handle)
        self._swarm.set_stream_handler(SESSION_PROTOCOL, self._connections.serve)
        self._started_at = self.clock.monotonic()
        self.events.publish(NodeStarted(peer_id=self.identity.peer_id, addresses=self._swarm.addresses))

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

    def _plugin_set(self) -> PluginSet:
        if self._given_plugins is not None:
            return given_plugins(self._given_plugins)
        return find_plugins(self.config.plugins)

    def _libp2p_swarm(self, identity: NetworkIdentity) -> Swarm:
        from .swarm.libp2p import Libp2pSwarm, SwarmLimits

        most = self.config.connections.max_connections
        # Strangers, who may want to pair or to drop something, do not take the places of paired devices.
        limits = SwarmLimits(max_connections=most, max_strangers=max(1, most // 2))
        transports = tuple(dict.fromkeys(self.config.node.transports))
        return Libp2pSwarm(identity.seed, limits=limits, transports=transports)

    def _default_sources(self, identity: NetworkIdentity) -> Iterable[DiscoverySource]:
        if not self.config.discovery.mdns:
            return ()
        from .discovery.mdns import MdnsDiscovery

        interfaces = self.config.discovery.mdns_interfaces or None
        return (MdnsDiscovery(identity.peer_id, self.clock, self.randomness, interfaces=interfaces),)

    # The event loop task

    async def _follow_swarm(self) -> None:
        async for event in self._swarm.events:
            await self._commands.call(SwarmHappened(event))

    async def _follow_interfaces(self) -> None:
        """Notice that the machine has other addresses than before; the swarm tells only of what it listens on."""
        while True:
            await anyio.sleep(max(1.0, self.config.connections.keepalive_interval_s / 6))
            addresses = self._swarm.addresses
            if set(addresses) != set(self._last_addresses):
                await self._commands.call(SwarmHappened(AddressesChanged(addresses)))

    async def _follow_discovery(self) -> None:
        async with self.discovery.subscribe() as candidates:
            async for candidate in candidates:
                if self._registry.add_discovered_peer(candidate.peer_id, candidate.addresses):
                    self.events.publish(
                        PeerDiscovered(
                            peer_id=candidate.peer_id, addresses=candidate.addresses, source=candidate.source
                        )
                    )
                self._connections.sighted(candidate.peer_id)

    async def _carry_out(self, command: Command) -> Any:
        match command:
            case SwarmHappened(Disconnected(peer_id, generation)):
                self._connections.lost(peer_id, generation)
                self.events.publish(PeerDisconnected(peer_id=peer_id))
            case SwarmHappened(AddressesChanged(addresses)):
                self.discovery.set_addresses(addresses)
                if set(addresses) != set(self._last_addresses):
                    self._connections.look_around("this device has other addresses")
                self._last_addresses = addresses
            case SwarmHappened():
                pass
            case SendMessage():
                return self.messages.put(command)
            case _:
                await self._pairings.carry_out(command)
        return None

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

    async def connect(self, device_id: uuid.UUID, *, timeout_s: float = 15.0) -> None:
        """Have a live session to a device.

        :raises ConnectionFailedError: none came about in time.
        """
        await self._connections.connected(device_id, timeout_s=timeout_s)

    async def ping(self, device_id: uuid.UUID, *, timeout_s: float = 10.0) -> float:
        """Measure the round-trip time to a device over its session's control stream.

        :returns: seconds.
        :raises ConnectionFailedError: it is not connected.
        :raises NetworkTimeoutError: no answer came in time.
        """
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        round_trip_s = await live.control.ping(timeout_s=timeout_s)
        live.measured(round_trip_s)
        return round_trip_s

    # Streams and messages

    async def open_stream(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        *,
        versions: Sequence[int] = (1,),
        timeout_s: float = 10.0,
        suffix: str = "",
    ) -> PeerStream:
        """Open a sealed stream to a paired device. Errors: see `PluginContext.open_stream`.

        :param suffix: behind the protocol's id.
        """
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        state = self._registry.get(device_id)
        try:
            stream = await self._swarm.open_stream(
                live.peer_id, [f"/sdnet/{protocol_name}/{version}{suffix}" for version in versions], timeout_s=timeout_s
            )
        except ProtocolError:
            raise ProtocolError(f"{state.device.name} has no plugin for {protocol_name}.") from None
        if live.ended.is_set():
            await stream.reset()
            raise ConnectionFailedError(f"The connection to {state.device.name} has just ended.")
        return PeerStream(live.session.open_stream(stream), remote_device(state))

    async def open_stranger_stream(
        self, peer_id: str, addresses: Sequence[str], protocol_name: str, *, version: int = 1, timeout_s: float = 10.0
    ) -> PeerStream:
        """Open a stream to any peer. Errors: see `PluginContext.open_stranger_stream`."""
        await self._swarm.dial(peer_id, addresses, timeout_s=timeout_s)
        stream = await self._swarm.open_stream(peer_id, [f"/sdnet/{protocol_name}/{version}"], timeout_s=timeout_s)
        return PeerStream(stream, None)

    async def request(self, device_id: uuid.UUID, protocol_name: str, data: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Send one request and wait for its answer. Errors: see `PluginContext.request`."""
        registered = self._protocols.by_name(protocol_name)
        max_bytes = registered.spec.max_message_bytes if registered is not None else 1 << 20
        deadline = anyio.current_time() + timeout_s
        stream = await self.open_stream(device_id, protocol_name, timeout_s=timeout_s)
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                messages = stream.messages(max_bytes=max_bytes)
                await messages.send_bytes(data)
                return await messages.receive_bytes()
        except TimeoutError:
            name = self._registry.get(device_id).device.name
            raise NetworkTimeoutError(f"{name} did not answer within {timeout_s:g} s.") from None
        finally:
            with anyio.move_on_after(1, shield=True):
                await stream.aclose()

    # Plugins

    def get_service(self, type_: type[T]) -> T:
        """A plugin's Python interface, by its class.

        :raises PluginError: no loaded plugin offers it.
        """
        return self._plugins.get_service(type_)

    def plugin_records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins and what became of them."""
        return self._plugins.records

    def routes(self) -> list[tuple[str, Route]]:
        """The plugins' routes of the local API, with the plugins' names."""
        return self._plugins.routes()

    def plugin_storage(self, name: str) -> SecureStorage:
        """A plugin's own sealed store."""
        return self._storage.scoped(f"plugins/{name}")

    def plugin_directory(self, name: str) -> Path:
        """A plugin's private directory; made when first asked for."""
        directory = self.config.paths.data / "plugins" / name
        ensure_private_directory(directory, below=self.config.paths.data)
        return directory

    @contextmanager
    def advertise(self, tag: bytes, *, pairing: bool = False) -> Iterator[None]:
        """Announce a tag in discovery for the length of the block.

        :param pairing: this device waits to be paired meanwhile.
        """
        token = self.discovery.advertise(tag)
        try:
            with self.gate.window() if pairing else nullcontext():
                yield
        finally:
            self.discovery.withdraw(token)

    # Looking at it

    def subscribe_events(self, kinds: Iterable[str] | None = None) -> Subscription:
        """Listen to what happens: ``async with core.subscribe_events() as events: async for event in events``."""
        return self.events.subscribe(kinds)

    def status(self) -> dict[str, Any]:
        """The node at a glance, as plain values."""
        devices = self._registry.devices()
        return {
            **describe_identity(self.device_info),
            "instance": self.config.instance,
            "addresses": list(self._swarm.addresses),
            "storage": {
                "mode": str(self._vault.mode),
                "protection": self._vault.mode.protection,
                "recovered": [*self._vault.recovered, *self._storage.recovered, *self._recovered],
            },
            "uptime_s": 0.0 if self._started_at is None else self.clock.monotonic() - self._started_at,
            "devices": {"paired": len(devices), "connected": sum(isinstance(s, Connected) for s in devices)},
            "plugins": {"failed": [r.name for r in self._plugins.records if r.state is PluginState.FAILED]},
            "data": str(self.config.paths.data),
        }


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
