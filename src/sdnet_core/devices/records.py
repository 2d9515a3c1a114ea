"""What is kept of each paired device, sealed on disk.

A pairing (`PairedDevice`, with its root) and what is learnt while connecting (`ConnectionRecord`) lie in files of their
own: the second is written often, and losing it costs nothing but time.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Iterable
from typing import Annotated

import msgspec

from ..errors import SerializationError, StorageError
from ..identity import DeviceInfo, DeviceName
from ..storage import SecureStorage
from ..wire import Bytes16, Bytes32, Message, decode, encode
from .trust import Trust

__all__ = ["ConnectionConfig", "ConnectionRecord", "DeviceStore", "KnownAddress", "PairedDevice"]

logger = logging.getLogger(__name__)

MAX_ADDRESSES = 16
ADDRESS_LIFETIME_S = 90 * 86400.0
"""An address that has not worked for so long is forgotten when the device is reached elsewhere…"""
KEPT_ADDRESSES = 4
"""…unless it is among these latest ones."""


_Address = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class ConnectionConfig(Message, frozen=True, kw_only=True, tag=3):
    """How a person wants one device to be connected; what is None is as for all devices.

    :param transports: preferred first, such as ``tcp`` and ``quic``; others are tried after them.
    :param addresses: where it is always looked for, besides where it was found.
    :param reconnect_min_s: first pause between attempts.
    :param reconnect_max_s: longest pause between attempts.
    """

    transports: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=32)], ...], msgspec.Meta(max_length=8)] = ()
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=16)] = ()
    reconnect_min_s: _Seconds | None = None
    reconnect_max_s: _Seconds | None = None
    keepalive_interval_s: _Seconds | None = None
    keepalive_misses: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class PairedDevice(Message, frozen=True, kw_only=True, tag=1):
    """One pairing.

    :param pairing_root: the secret both devices derived at pairing; every session grows from it.
    :param paired_at: seconds since the epoch.
    :param pending: we showed the code and the other side has not confirmed yet.
    :param alias: the name a person gave the device on this one.
    :param config: how a person wants it to be connected.
    """

    info: DeviceInfo
    pairing_id: Bytes16
    pairing_root: Bytes32
    paired_at: float
    trust: Trust = Trust.TRUSTED
    pending: bool = False
    auto_connect: bool = True
    # Left out when not set: a record is accepted only as it would be written, and older ones do not have it.
    alias: DeviceName | msgspec.UnsetType = msgspec.UNSET
    config: ConnectionConfig | msgspec.UnsetType = msgspec.UNSET

    @property
    def name(self) -> str:
        """What it is called here: the name a person gave it on this device, or else its own."""
        return self.info.name if isinstance(self.alias, msgspec.UnsetType) else self.alias

    @property
    def connection_config(self) -> ConnectionConfig:
        """How it is to be connected."""
        return ConnectionConfig() if isinstance(self.config, msgspec.UnsetType) else self.config

    def configured(self, config: ConnectionConfig, *, auto_connect: bool) -> PairedDevice:
        """The same with another way of being connected."""
        kept = msgspec.UNSET if config == ConnectionConfig() else config
        return msgspec.structs.replace(self, config=kept, auto_connect=auto_connect)

    def trusted(self, trust: Trust) -> PairedDevice:
        """The same with another trust. What ends a pairing takes its secret along."""
        if trust.access is not None:
            return msgspec.structs.replace(self, trust=trust)
        return msgspec.structs.replace(self, trust=trust, pairing_root=bytes(32), pending=False)

    def renamed(self, name: str | None) -> PairedDevice:
        """The same under another name on this device; its own again when None."""
        return msgspec.structs.replace(self, alias=msgspec.UNSET if name is None else name)

    @property
    def device_id(self) -> uuid.UUID:
        """The device's UUID."""
        return self.info.id

    @property
    def peer_id(self) -> str:
        """The device's libp2p peer id."""
        return self.info.peer_id

    def __repr__(self) -> str:
        return f"PairedDevice({self.name!r}, {self.device_id}, {self.trust}{', pending' if self.pending else ''})"


class KnownAddress(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An address of a device.

    :param worked_at: when it last answered there as itself, whole seconds since the epoch; 0 if that was only said.
    """

    address: _Address
    worked_at: Annotated[int, msgspec.Meta(ge=0)] = 0


class ConnectionRecord(Message, frozen=True, kw_only=True, tag=4):
    """How a device was reached.

    :param known: where it answered as itself, latest first.
    :param last_seen: seconds since the epoch, 0 if never.
    """

    known: Annotated[tuple[KnownAddress, ...], msgspec.Meta(max_length=16)] = ()
    last_seen: float = 0.0

    @classmethod
    def hinted(cls, addresses: Iterable[str]) -> ConnectionRecord:
        """Of a device that somebody says is at these addresses."""
        usable = [address for address in dict.fromkeys(addresses) if 0 < len(address) <= 256]
        return cls(known=tuple(map(KnownAddress, usable[:MAX_ADDRESSES])))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to look for it, the most promising first."""
        return tuple(known.address for known in self.known)

    def seen(self, at: float, address: str | None) -> ConnectionRecord:
        """The same after a connection at an address. Addresses that have not worked for long go, but for a few."""
        known = self.known
        if address is not None:
            latest = KnownAddress(address, max(0, int(at)))
            known = (latest, *(one for one in known if one.address != address))[:MAX_ADDRESSES]
            stale = at - ADDRESS_LIFETIME_S
            known = (*known[:KEPT_ADDRESSES], *(one for one in known[KEPT_ADDRESSES:] if one.worked_at >= stale))
        return ConnectionRecord(known=known, last_seen=at)


@dataclasses.dataclass(slots=True)
class DeviceStore:
    """Reads and writes the records of paired devices.

    :param storage: the node's sealed store.
    :param local_id: our own device id.
    """

    storage: SecureStorage
    local_id: uuid.UUID

    async def load_pairings(self) -> tuple[PairedDevice, ...]:
        """All pairings.

        :raises StorageError: one is damaged in both generations; says which.
        """
        pairings: list[PairedDevice] = []
        for name in await self.storage.list("devices"):
            data = await self.storage.load(name)
            if data is None:
                continue
            try:
                pairings.append(decode(data, PairedDevice))
            except SerializationError as error:
                raise StorageError(f"The record {name} opens but is not a device: {error}") from error
        return tuple(pairings)

    async def save_pairing(self, device: PairedDevice, *, both_generations: bool = False) -> None:
        """Store a pairing durably. A revoked or expired one overwrites both generations: its root must not come back.

        :param both_generations: no recovery may bring back what was stored before.
        :raises StorageError: it could not be stored; nothing changed.
        """
        final = both_generations or device.trust.access is None
        await self.storage.store(f"devices/{device.device_id}", encode(device), both_generations=final)

    async def delete_pairing(self, device_id: uuid.UUID) -> None:
        """Forget a device altogether."""
        await self.storage.delete(f"devices/{device_id}")
        await self.storage.delete(self._connection(device_id))
        await self.storage.delete(f"history/{device_id}")

    async def load_connection(self, device_id: uuid.UUID) -> ConnectionRecord:
        """What is known of reaching a device. A damaged file counts as nothing known."""
        try:
            data = await self.storage.load(self._connection(device_id))
            return ConnectionRecord() if data is None else decode(data, ConnectionRecord)
        except (StorageError, SerializationError) as error:
            logger.warning("connection record of device %s is lost: %s", device_id, error)
            return ConnectionRecord()

    async def save_connection(self, device_id: uuid.UUID, record: ConnectionRecord) -> None:
        """Remember how a device was reached; a failure is logged, since nothing but time is lost."""
        try:
            await self.storage.store(self._connection(device_id), encode(record))
        except StorageError as error:
            logger.warning("connection record of device %s could not be written: %s", device_id, error)

    def _connection(self, device_id: uuid.UUID) -> str:
        return f"connections/{self.local_id}/{device_id}"
