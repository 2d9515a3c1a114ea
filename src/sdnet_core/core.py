"""The composition root: the one place where the layers meet, and the owner of the root tasks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio

from .clock import Clock, Randomness, Runner, SystemClock, SystemRandomness, run_in_thread
from .commands import AddPairedDevice, Command, CommandChannel, ConfirmPairing, SendMessage, SwarmHappened
from .config import Config
from .devices.describe import describe_device, describe_identity
from .devices.manager import PersistentConnectionManager
from .devices.outbox import OutboundMessage, Outboxes
from .devices.records import ConnectionRecord, DeviceStore, PairedDevice
from .devices.registry import Connected, DeviceRegistry, PairedState
from .devices.trust import RemoteDevice
from .discovery.candidates import Discovery, DiscoverySource
from .errors import (
    ConflictError,
    DeviceNotFoundError,
    NetworkTimeoutError,
    ProtocolError,
    StorageError,
)
from .events import DevicePaired, EventBus, NodeStarted, PeerDisconnected, PeerDiscovered, Subscription
from .hookspecs import Route
from .identity import DeviceInfo, NetworkIdentity, is_small_order
from .node_plugins import NodePlugins
from .node_store import NodeStore
from .plugins import PluginRecord, PluginSet, PluginState, find_plugins, given_plugins
from .protocols.dispatch import Dispatcher, remote_device
from .protocols.handler import PeerStream
from .protocols.registry import ProtocolRegistry
from .session import PROTOCOL_ID as SESSION_PROTOCOL
from .session import GoodbyeReason
from .storage import DirectoryLock, KeyFile, SecureStorage, Unlock, Vault, ensure_private_directory
from .swarm.abc import AddressesChanged, Disconnected, Swarm

__all__ = ["NetworkingCore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
SwarmFactory = Callable[[NetworkIdentity], Swarm]
SourcesFactory = Callable[[NetworkIdentity], Iterable[DiscoverySource]]


class NetworkingCore:
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
        self._node_store = NodeStore(self._storage, self.clock, self.randomness)
        self.identity, self.device_info = await self._node_store.identity(self.config.device_name)
        self._store = DeviceStore(self._storage, self.device_info.id)
        for device in await self._store.load_pairings():
            self._registry.restore(device, await self._store.load_connection(device.device_id))

        self._swarm = self._make_swarm(self.identity)
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
        )
        self._plugins = NodePlugins(self, self._plugin_set(), self._protocols, self._swarm.remove_stream_handler)
        self._plugins.build()

    async def _start(self, stack: AsyncExitStack) -> None:
        await self._prepare(stack)
        stack.callback(self.events.close)
        await stack.enter_async_context(self._swarm.run())
        await self._node_store.listen(self._swarm, self.config.node.listen)
        await stack.enter_async_context(self.discovery.run())
        self.discovery.set_addresses(self._swarm.addresses)
        tasks = self._tasks = await stack.enter_async_context(_background())
        # Before the first stream can come: everything that serves one.
        self._outboxes = Outboxes(
            tasks, self.request, self._hand_response, retry_s=self.config.connections.reconnect_min_s
        )
        tasks.start_soon(self._commands.run, self._carry_out)
        await tasks.start(self._plugins.run)
        tasks.start_soon(self._follow_swarm)
        tasks.start_soon(self._follow_discovery)
        await tasks.start(self._connections.run)
        stack.push_async_callback(self._connections.farewell)
        dispatcher = Dispatcher(
            protocols=self._protocols,
            devices=self._registry,
            connections=self._connections,
            authorize=self._plugins.authorize,
            on_failure=self._plugins.report_failure,
        )
        for registered in self._protocols:
            self._swarm.set_stream_handler(registered.spec.protocol_id, dispatcher.handle)
        self._swarm.set_stream_handler(SESSION_PROTOCOL, self._connections.serve)
        self._started_at = self.clock.monotonic()
        self.events.publish(NodeStarted(peer_id=self.identity.peer_id, addresses=self._swarm.addresses))

    async def inspect_plugins(self) -> tuple[PluginRecord, ...]:
        """Build the plugins and say what became of them, without starting the node."""
        async with AsyncExitStack() as stack:
            await self._prepare(stack)
            self._plugins.check_commands()
            return self._plugins.records

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
        from .swarm.libp2p import Libp2pSwarm

        return Libp2pSwarm(identity.seed)

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
            case SwarmHappened():
                pass
            case SendMessage(device_id, protocol_name, data):
                self._registry.get(device_id)
                self._outboxes.put(device_id, OutboundMessage(protocol_name, data))
            case AddPairedDevice():
                return await self._add_paired_device(command)
            case ConfirmPairing(device_id, pairing_id):
                device = self._registry.get(device_id).device
                if device.pairing_id != pairing_id.bytes:
                    raise DeviceNotFoundError("That pairing was replaced by another one.")
                await self._connections.confirm(device)
        return None

    async def _add_paired_device(self, command: AddPairedDevice) -> RemoteDevice:
        info = command.info
        if is_small_order(info.public_key) or info.public_key == self.identity.public_key:
            raise ConflictError("The device shows a key that is not its own.")
        device = PairedDevice(
            info=info,
            pairing_id=command.pairing_id.bytes,
            pairing_root=command.pairing_root,
            paired_at=self.clock.now(),
            pending=command.pending,
        )
        self._registry.check_identity(device)
        connection = ConnectionRecord(addresses=command.addresses[:16])
        # Before anything is written, so that nothing of an old pairing is written after the new one.
        await self._end_old_pairing(info.id)
        try:
            await self._store.save_pairing(device)
        except StorageError:
            if self._registry.by_peer(info.peer_id) is not None:
                self._connections.supervise(info.id)
            raise
        await self._store.save_connection(info.id, connection)
        while isinstance(self._registry.by_peer(info.peer_id), Connected):  # it came back under the old one meanwhile
            await self._end_old_pairing(info.id)
        self._registry.complete_pairing(device, connection)
        self._connections.supervise(info.id)
        self.events.publish(DevicePaired(device_id=info.id, device_name=info.name, peer_id=info.peer_id))
        return self.remote_device(info.id)

    async def _end_old_pairing(self, device_id: uuid.UUID) -> None:
        # The connection below stays: the two are just talking on it.
        await self._connections.release(
            device_id, GoodbyeReason.NOT_PAIRED, "the devices were paired anew", hang_up=False
        )

    # Devices

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses this node listens on."""
        return self._swarm.addresses

    def remote_devices(self) -> tuple[RemoteDevice, ...]:
        """All paired devices, by name."""
        return tuple(remote_device(state) for state in self._registry.devices())

    def get_connected_devices(self) -> tuple[RemoteDevice, ...]:
        """The paired devices with a live session."""
        return tuple(device for device in self.remote_devices() if device.connected)

    def remote_device(self, device_id: uuid.UUID) -> RemoteDevice:
        """One paired device.

        :raises DeviceNotFoundError: it is not paired.
        """
        return remote_device(self._registry.get(device_id))

    def find_device(self, reference: str) -> RemoteDevice:
        """A paired device by name, id, or a unique prefix of either.

        :raises DeviceNotFoundError: none fits, or several do.
        """
        return remote_device(self._registry.find(reference))

    async def add_paired_device(
        self,
        info: DeviceInfo,
        *,
        pairing_id: uuid.UUID,
        pairing_root: bytes,
        addresses: Sequence[str] = (),
        pending: bool = False,
    ) -> RemoteDevice:
        """Store a device as paired, durably, and start connecting to it.

        :raises ConflictError: it claims the identity of another device.
        :raises StorageError: it could not be stored; nothing changed.
        """
        command = AddPairedDevice(info, pairing_id, pairing_root, tuple(addresses), pending)
        device: RemoteDevice = await self._commands.call(command)
        return device

    async def confirm_pairing(self, device_id: uuid.UUID, pairing_id: uuid.UUID) -> None:
        """Make a pending pairing final.

        :raises DeviceNotFoundError: there is no such pairing.
        """
        await self._commands.call(ConfirmPairing(device_id, pairing_id))

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
        self, device_id: uuid.UUID, protocol_name: str, *, versions: Sequence[int] = (1,), timeout_s: float = 10.0
    ) -> PeerStream:
        """Open a sealed stream to a paired device. Errors: see `PluginContext.open_stream`."""
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        state = self._registry.get(device_id)
        try:
            stream = await self._swarm.open_stream(
                live.peer_id, [f"/sdnet/{protocol_name}/{version}" for version in versions], timeout_s=timeout_s
            )
        except ProtocolError:
            raise ProtocolError(f"{state.device.info.name} has no plugin for {protocol_name}.") from None
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
            name = self._registry.get(device_id).device.info.name
            raise NetworkTimeoutError(f"{name} did not answer within {timeout_s:g} s.") from None
        finally:
            with anyio.move_on_after(1, shield=True):
                await stream.aclose()

    async def send_message(self, device_id: uuid.UUID, protocol_name: str, data: bytes) -> None:
        """Send a message; the answer goes to the handler's ``handle_response``.

        At least once while this node runs: it waits (in memory) for a device that is away.

        :raises DeviceNotFoundError: the device is not paired.
        :raises RefusedError: too many messages wait for it already.
        """
        await self._commands.call(SendMessage(device_id, protocol_name, data))

    async def _hand_response(self, device_id: uuid.UUID, protocol_name: str, answer: bytes) -> None:
        await self._plugins.hand_response(self.remote_device(device_id), protocol_name, answer)

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
    def advertise(self, tag: bytes) -> Iterator[None]:
        """Announce a tag in discovery for the length of the block."""
        token = self.discovery.advertise(tag)
        try:
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
                "recovered": [*self._vault.recovered, *self._storage.recovered],
            },
            "uptime_s": 0.0 if self._started_at is None else self.clock.monotonic() - self._started_at,
            "devices": {"paired": len(devices), "connected": sum(isinstance(s, Connected) for s in devices)},
            "plugins": {"failed": [r.name for r in self._plugins.records if r.state is PluginState.FAILED]},
            "data": str(self.config.paths.data),
        }

    def describe_devices(self) -> list[dict[str, Any]]:
        """Every paired device with its state, as plain values."""
        return [self._describe(state) for state in self._registry.devices()]

    def describe_device(self, device_id: uuid.UUID) -> dict[str, Any]:
        """One paired device with its state, as plain values.

        :raises DeviceNotFoundError: it is not paired.
        """
        return self._describe(self._registry.get(device_id))

    def _describe(self, state: PairedState) -> dict[str, Any]:
        return describe_device(
            state, now=self.clock.now(), last_error=self._connections.last_error(state.device.device_id)
        )


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
