"""What a node keeps of itself between runs: its identity, and the ports it listened on."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated

import msgspec

from .clock import Clock, Randomness
from .errors import ConflictError, SerializationError, StorageError, TransportError
from .identity import DeviceInfo, HostIdentity, NetworkIdentity
from .storage import SecureStorage
from .swarm.abc import Swarm
from .wire import Bytes16, Bytes32, Message, decode, encode

__all__ = ["NodeStore"]

logger = logging.getLogger(__name__)


class _StoredIdentity(Message, frozen=True, kw_only=True, tag=1):
    """The sealed identity file."""

    seed: Bytes32
    device_id: Bytes16
    created_at: float


class _StoredHostIdentity(Message, frozen=True, kw_only=True, tag=3):
    """The sealed identity file of a node whose host keeps the key: whose data these are."""

    public_key: Bytes32
    device_id: Bytes16
    created_at: float


class _StoredPorts(Message, frozen=True, kw_only=True, tag=2):
    """The ports of the last run, by IP version and transport (``ip4/tcp``)."""

    ports: dict[str, Annotated[int, msgspec.Meta(ge=1, le=65535)]]


@dataclass(frozen=True, slots=True)
class NodeStore:
    """Reads and writes what a node keeps of itself.

    :param storage: the node's sealed store.
    """

    storage: SecureStorage
    clock: Clock
    randomness: Randomness

    async def identity(self, device_name: str, host: HostIdentity | None = None) -> tuple[NetworkIdentity, DeviceInfo]:
        """The device's identity; made at the first start, and never again, or the host's.

        :raises ConflictError: the data belong to another identity than the one given, or than none.
        :raises StorageError: it is damaged, or missing where other data show that it was there.
        """
        data = await self.storage.load("identity")
        if data is None and host is None and await self.storage.list():
            raise StorageError(
                f"The identity of this device is missing from {self.storage.root}, but other data of it are there. "
                "Restore the file 'identity' from a backup. To start anew, with another identity and no paired "
                "devices, move the whole folder away."
            )
        try:
            stored = None if data is None else decode(data, _StoredIdentity | _StoredHostIdentity)
        except SerializationError as error:
            raise StorageError(f"The identity file opens but is not an identity: {error}") from error
        if host is not None:
            identity = NetworkIdentity(host.seed)
            await self._claim(identity, host.device_id, stored)
            device_id, device_name = host.device_id, host.name or device_name
        else:
            identity, device_id = await self._own(stored)
        return identity, identity.device_info(device_id, device_name, metadata.version("sdnet-core"))

    async def _own(self, stored: _StoredIdentity | _StoredHostIdentity | None) -> tuple[NetworkIdentity, uuid.UUID]:
        if isinstance(stored, _StoredHostIdentity):
            raise ConflictError(
                f"The data in {self.storage.root} belong to a host application that keeps the identity itself; use "
                "another instance."
            )
        if stored is None:
            identity = NetworkIdentity.generate(self.randomness)
            device_id = uuid.UUID(bytes=self.randomness.bytes(16), version=4)
            stored = _StoredIdentity(seed=identity.seed, device_id=device_id.bytes, created_at=self.clock.now())
            await self.storage.store("identity", encode(stored))
        return NetworkIdentity(stored.seed), uuid.UUID(bytes=stored.device_id)

    async def _claim(
        self,
        identity: NetworkIdentity,
        device_id: uuid.UUID,
        stored: _StoredIdentity | _StoredHostIdentity | None,
    ) -> None:
        """Bind the data to the host's identity, or see that they are."""
        if stored is None:
            mine = _StoredHostIdentity(
                public_key=identity.public_key, device_id=device_id.bytes, created_at=self.clock.now()
            )
            await self.storage.store("identity", encode(mine))
        elif (
            not isinstance(stored, _StoredHostIdentity)
            or stored.public_key != identity.public_key
            or stored.device_id != device_id.bytes
        ):
            raise ConflictError(
                f"The data in {self.storage.root}, with its paired devices, belong to another identity than the one "
                "the host gives; use the other identity, or another instance."
            )

    async def listen(self, swarm: Swarm, addresses: tuple[str, ...]) -> None:
        """Listen, where the port is 0 on the port of the last run if it is free: others remember it.

        :raises TransportError: as `Swarm.listen`.
        """
        last = await self._last_ports()
        again = tuple(_with_port(address, last) for address in addresses)
        try:
            await swarm.listen(again)
        except TransportError:
            if again == addresses:
                raise
            logger.info("a port of the last run is taken; listening on others")
            await swarm.listen(addresses)
        ports = dict(found for address in swarm.addresses if (found := _port_of(address)) is not None)
        if ports and ports != last:
            await self.storage.store("ports", encode(_StoredPorts(ports=ports)))

    async def _last_ports(self) -> dict[str, int]:
        try:
            data = await self.storage.load("ports")
            return {} if data is None else decode(data, _StoredPorts).ports
        except (StorageError, SerializationError) as error:
            logger.warning("the ports of the last run are lost: %s", error)
            return {}


def _port_of(address: str) -> tuple[str, int] | None:
    parts = address.strip("/").split("/")
    if len(parts) < 4 or not parts[3].isdigit():
        return None
    # With what follows the port: TCP and WebSocket listen on ports of their own.
    return "/".join((parts[0], parts[2], *parts[4:])), int(parts[3])


def _with_port(address: str, ports: dict[str, int]) -> str:
    found = _port_of(address)
    if found is None or found[1] != 0 or found[0] not in ports:
        return address
    parts = address.strip("/").split("/")
    parts[3] = str(ports[found[0]])
    return "/" + "/".join(parts)
