"""What a node offers about its paired devices: find them, describe them, change how far they are trusted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .clock import Clock
from .commands import (
    AddPairedDevice,
    CommandChannel,
    ConfigureConnection,
    ConfirmPairing,
    ForgetDevice,
    RenameDevice,
    RevokeDevice,
    SetTrust,
)
from .devices.describe import describe_device, describe_more
from .devices.manager import PersistentConnectionManager
from .devices.records import ConnectionConfig
from .devices.registry import DeviceRegistry, PairedState
from .devices.trust import RemoteDevice, Trust
from .errors import ConflictError
from .events import EventBus, PairingEnded, PairingStarted
from .identity import DeviceInfo
from .protocols.dispatch import remote_device

__all__ = ["DeviceMethods"]


class DeviceMethods:
    """The methods of `NetworkingCore` that are about paired devices."""

    clock: Clock
    events: EventBus
    _commands: CommandChannel
    _connections: PersistentConnectionManager
    _registry: DeviceRegistry
    _seen: dict[uuid.UUID, tuple[PairedState, RemoteDevice]]

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
        state = self._registry.get(device_id)
        # A state never changes, but gives way to another one: asked for with every message, it is looked at once.
        seen = self._seen.get(device_id)
        if seen is None or seen[0] is not state:
            seen = self._seen[device_id] = state, remote_device(state)
        return seen[1]

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
        await self._commands.call(AddPairedDevice(info, pairing_id, pairing_root, tuple(addresses), pending))
        return self.remote_device(info.id)

    async def confirm_pairing(self, device_id: uuid.UUID, pairing_id: uuid.UUID) -> None:
        """Make a pending pairing final.

        :raises DeviceNotFoundError: there is no such pairing.
        """
        await self._commands.call(ConfirmPairing(device_id, pairing_id))

    async def set_trust(self, device_id: uuid.UUID, trust: Trust) -> None:
        """Trust a device, or have a person approve its sensitive operations ("verified"). Lowering ends its streams.

        :raises ConflictError: it is expired or revoked; only pairing anew helps.
        :raises InvalidRequestError: the trust is neither of the two.
        """
        await self._commands.call(SetTrust(device_id, trust))

    async def revoke_device(self, device_id: uuid.UUID) -> None:
        """Cut a device off at once, and refuse it until a person pairs it anew. Done durably when this returns.

        :raises StorageError: it is cut off, but that could not be stored.
        """
        await self._commands.call(RevokeDevice(device_id))

    async def forget_device(self, device_id: uuid.UUID) -> None:
        """End the pairing with a device, and keep nothing of it.

        :raises StorageError: it could not be stored.
        """
        await self._commands.call(ForgetDevice(device_id))

    async def configure_connection(
        self, device_id: uuid.UUID, config: ConnectionConfig, *, auto_connect: bool = True
    ) -> None:
        """Choose how a device is connected; kept over restarts. Keepalive changes with the next connection.

        :param auto_connect: connect to it whenever possible, instead of only when it is needed.
        :raises StorageError: it could not be stored; nothing changed.
        """
        await self._commands.call(ConfigureConnection(device_id, config, auto_connect))

    async def rename_device(self, device_id: uuid.UUID, name: str | None) -> None:
        """Call a device something else on this one; by its own name again when None.

        :raises ConflictError: another device is called so.
        :raises InvalidRequestError: that is no name.
        """
        await self._commands.call(RenameDevice(device_id, name))

    @contextmanager
    def pairing_with(self, peer_id: str, session_id: uuid.UUID) -> Iterator[None]:
        """A pairing with a peer goes on for the length of the block; a second one at the same time is not told."""
        try:
            self._registry.start_pairing(peer_id, session_id)
        except ConflictError:
            yield
            return
        self.events.publish(PairingStarted(peer_id=peer_id, session_id=session_id))
        try:
            yield
        finally:
            if self._registry.cancel_pairing(peer_id):
                self.events.publish(PairingEnded(peer_id=peer_id, session_id=session_id))

    def describe_devices(self) -> list[dict[str, Any]]:
        """Every paired device with its state, as plain values."""
        return [self._describe(state) for state in self._registry.devices()]

    def describe_device(self, device_id: uuid.UUID) -> dict[str, Any]:
        """One paired device with its state, as plain values.

        :raises DeviceNotFoundError: it is not paired.
        """
        state = self._registry.get(device_id)
        return {**self._describe(state), **describe_more(state)}

    async def device_history(self, device_id: uuid.UUID, *, latest: int | None = None) -> dict[str, Any]:
        """The past connections of a device, the latest first, and totals, as plain values.

        :param latest: at most so many entries.
        :raises DeviceNotFoundError: it is not paired.
        """
        self._registry.get(device_id)
        return (await self._connections.history.read(device_id)).to_dict(latest=latest)

    def _describe(self, state: PairedState) -> dict[str, Any]:
        device_id = state.device.device_id
        described = describe_device(state, now=self.clock.now(), last_error=self._connections.last_error(device_id))
        return {**described, **self._connections.describe(device_id)}
