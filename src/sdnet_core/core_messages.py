"""What a node does with messages that may wait: part of `NetworkingCore`."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from .commands import CommandChannel, SendMessage
from .devices.courier import Courier
from .devices.delivery import MESSAGES_SUFFIX, Delivery, DeliveryOutcome, Priority
from .devices.lanes import Lane, OutboxLimits, QueuedMessage
from .devices.outbox import Outbox
from .devices.outbox_store import Sealer
from .devices.registry import Connected
from .devices.trust import Trust
from .errors import DeviceNotFoundError, InvalidRequestError, NotFoundError
from .events import ConnectionEstablished, DeviceRemoved, EventsDropped
from .protocols.handler import PeerStream
from .protocols.registry import ProtocolRegistry
from .storage.database import Database

if TYPE_CHECKING:
    from .core import NetworkingCore

__all__ = ["MessageMethods", "Messages", "WaitingMessage"]

OPEN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMessage:
    """A message in the outbox.

    :param created_at: seconds since the epoch.
    :param expires_at: the same; None for never.
    :param sending: it is on its way just now.
    :param reason: why it has not been delivered yet, if more is wrong than that the device is away.
    :param data: the payload; None if it could not be read.
    """

    id: uuid.UUID
    device_id: uuid.UUID
    protocol_name: str
    priority: Priority
    created_at: float
    expires_at: float | None
    sending: bool
    reason: str
    data: bytes | None = field(repr=False)


class Messages:
    """The outbox of a node and what belongs to it.

    :param limits: of the outbox.
    """

    def __init__(
        self, core: NetworkingCore, protocols: ProtocolRegistry, sealer: Sealer, limits: OutboxLimits | None = None
    ) -> None:
        self._core = core
        self._protocols = protocols
        self._databases: dict[str, Database] = {}
        self.outbox = Outbox(
            core.config.paths.data / "outbox.sqlite3",
            sealer,
            clock=core.clock,
            randomness=core.randomness,
            runner=core.runner,
            settled=self._settled,
            limits=limits,
        )
        self._courier = Courier(
            self.outbox,
            open_stream=self._open_stream,
            is_connected=self._is_connected,
            retry_s=core.config.connections.reconnect_min_s,
        )

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the outbox; it and the plugins' databases are closed with the stack.

        :raises StorageError: it cannot be opened or is damaged.
        """
        await self.outbox.open(device.device_id for device in self._core.remote_devices())
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            for database in self._databases.values():
                await database.close()
            await self.outbox.close()

    async def start(self, tasks: TaskGroup) -> None:
        """Deliver until the task group is cancelled."""
        await tasks.start(self.outbox.run)
        tasks.start_soon(self._follow)
        await tasks.start(self._courier.run)

    def put(self, command: SendMessage) -> QueuedMessage:
        """Carry out the command: put the message into the outbox."""
        registered = self._protocols.by_name(command.protocol_name)
        max_bytes = registered.spec.max_message_bytes if registered is not None else 1 << 20
        if len(command.data) > max_bytes:
            raise InvalidRequestError(
                f"The message has {len(command.data):,} bytes; at most {max_bytes:,} can be sent."
            )
        state = self._core._registry.get(command.device_id)
        if state.device.trust is Trust.REVOKED:
            raise DeviceNotFoundError(f"{state.device.name} is revoked; nothing is sent to it.")
        if state.device.trust is Trust.EXPIRED:
            raise DeviceNotFoundError(f"{state.device.name} must be paired again; nothing is sent to it before.")
        message = self.outbox.put(
            command.device_id,
            command.protocol_name,
            command.data,
            priority=command.priority,
            ttl_s=command.ttl_s,
            message_id=command.message_id,
        )
        if not isinstance(state, Connected):
            self._core._connections.needed(command.device_id)
        return message

    async def waiting(
        self, *, device_id: uuid.UUID | None = None, protocols: Collection[str] | None = None
    ) -> list[WaitingMessage]:
        """What waits in the outbox, in the order in which it goes out, device by device."""
        messages = self.outbox.messages(device_id=device_id, protocols=protocols)
        payloads = await self.outbox.payloads(messages)
        return [
            WaitingMessage(
                id=message.id,
                device_id=message.lane.device_id,
                protocol_name=message.lane.protocol_name,
                priority=message.lane.priority,
                created_at=message.created_at,
                expires_at=message.expires_at,
                sending=message.sending,
                reason=message.lane.error if self._is_connected(message.lane.device_id) else "",
                data=data,
            )
            for message, data in zip(messages, payloads, strict=True)
        ]

    def trouble(self, message_id: uuid.UUID) -> str:
        """What is wrong with a message that waits although its device is connected; empty for nothing."""
        message = self.outbox.find(message_id)
        return "" if message is None else message.lane.error

    async def cancel(self, message_id: uuid.UUID, protocols: Collection[str]) -> bool:
        """See `PluginContext.cancel_message`."""
        message = self.outbox.find(message_id)
        if message is not None and message.lane.protocol_name not in protocols:
            raise NotFoundError("No message of this plugin with that id waits.")
        return await self.outbox.cancel(message_id)

    def database(self, plugin: str) -> Database:
        """A plugin's own database."""
        database = self._databases.get(plugin)
        if database is None:
            path = self._core.plugin_directory(plugin) / "plugin.sqlite3"
            pairings = [device.pairing_id.bytes for device in self._core.remote_devices()]
            database = self._databases[plugin] = Database(path, self._core.runner, pairings)
        return database

    # Inside

    def _is_connected(self, device_id: uuid.UUID) -> bool:
        return isinstance(self._core._registry.get(device_id), Connected)

    async def _open_stream(self, device_id: uuid.UUID, protocol_name: str) -> PeerStream:
        registered = self._protocols.by_name(protocol_name)
        version = 1 if registered is None else registered.spec.version
        return await self._core.open_stream(
            device_id, protocol_name, versions=(version,), timeout_s=OPEN_TIMEOUT_S, suffix=MESSAGES_SUFFIX
        )

    async def _settled(self, lane: Lane, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._core.metrics.deliveries[lane.protocol_name, str(delivery.outcome)] += 1
        try:
            device = self._core.remote_device(lane.device_id)
        except DeviceNotFoundError:
            return
        if isinstance(state := self._core._registry.get(lane.device_id), Connected):
            state.live.messages_sent += sum(d.outcome is DeliveryOutcome.DELIVERED for d in deliveries)
        await self._core._plugins.hand_delivery(device, lane.protocol_name, deliveries)

    async def _follow(self) -> None:
        kinds = (ConnectionEstablished.kind, DeviceRemoved.kind)
        async with self._core.subscribe_events(kinds) as events:
            async for event in events:
                match event:
                    case ConnectionEstablished(device_id=device_id):
                        self._courier.connected(device_id)
                    case DeviceRemoved(device_id=device_id):
                        await self._forget(device_id)
                    case EventsDropped():
                        for device in self._core.remote_devices():
                            self._courier.connected(device.device_id)

    async def _forget(self, device_id: uuid.UUID) -> None:
        """Drop what waits for a device that was revoked or forgotten; keep it while it only has to be paired again."""
        try:
            kept = self._core.remote_device(device_id).trust is not Trust.REVOKED
        except DeviceNotFoundError:
            kept = False
        if not kept:
            await self.outbox.remove_device(device_id)


class MessageMethods:
    """The methods of `NetworkingCore` that are about messages that may wait."""

    messages: Messages
    _commands: CommandChannel

    async def send_message(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
        message_id: uuid.UUID | None = None,
    ) -> uuid.UUID:
        """Put a message into the outbox. See `PluginContext.send_message`."""
        command = SendMessage(device_id, protocol_name, bytes(data), Priority(priority), ttl_s, message_id)
        message: QueuedMessage = await self._commands.call(command)
        await self.messages.outbox.wait_stored(message)
        return message.id
