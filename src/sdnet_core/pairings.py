"""Changes to pairings: added, confirmed, trusted, renamed, revoked, forgotten, lost. One at a time, in the order of
the command channel."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from .clock import Clock
from .commands import (
    AddPairedDevice,
    ConfigureConnection,
    ConfirmPairing,
    ForgetDevice,
    PairingCommand,
    PairingLost,
    RenameDevice,
    RevokeDevice,
    SetTrust,
)
from .devices.manager import PersistentConnectionManager
from .devices.records import ConnectionRecord, DeviceStore, PairedDevice
from .devices.registry import Connected, DeviceRegistry
from .devices.revocations import Ended, RevocationList
from .devices.trust import Trust
from .errors import ConflictError, DeviceNotFoundError, InvalidRequestError, StorageError
from .events import (
    DevicePaired,
    DeviceRemoved,
    DeviceRenamed,
    DeviceRevoked,
    EventBus,
    StoreRecovered,
    TrustChanged,
)
from .identity import is_small_order
from .log_context import log_context
from .session import GoodbyeReason

__all__ = ["Pairings", "restore_devices"]

logger = logging.getLogger(__name__)


async def restore_devices(
    registry: DeviceRegistry, store: DeviceStore, revocations: RevocationList, events: EventBus
) -> list[str]:
    """Put the stored devices into the registry, as far as the list of revocations lets them.

    :returns: which records had come back although their pairing has ended for good, one sentence each.
    :raises StorageError: a record is damaged in both generations, or the list is.
    """
    await revocations.load()
    told = list(revocations.recovered)
    for stored in await store.load_pairings():
        device = stored
        ended = revocations.get(device.pairing_id)
        if ended is not None and ended.how is Ended.FORGOTTEN:
            told.append(f"The record of {device.name}, which was forgotten, had come back; it was removed.")
            await store.delete_pairing(device.device_id)
            continue
        revoked = device.trusted(Trust.REVOKED)
        if (ended is not None or device.trust is Trust.REVOKED) and device != revoked:
            told.append(f"The record of {device.name}, which was revoked, had come back; it stays revoked.")
            device = revoked
            try:
                await store.save_pairing(device)
            except StorageError as error:
                logger.warning("the record of device %s could not be corrected: %s", device.device_id, error)
        registry.restore(device, await store.load_connection(device.device_id))
    for sentence in told:
        logger.warning("%s", sentence)
        events.publish(StoreRecovered(detail=sentence))
    return told


@dataclass(slots=True, kw_only=True)
class Pairings:
    """Carries out the commands that change pairings.

    :param public_key: our own device key.
    :param flush: waits until the audit log has what was published.
    """

    registry: DeviceRegistry
    store: DeviceStore
    connections: PersistentConnectionManager
    revocations: RevocationList
    public_key: bytes
    clock: Clock
    events: EventBus
    flush: Callable[[], Awaitable[None]]

    async def carry_out(self, command: PairingCommand) -> None:
        """Carry one out; what it changes is on disk when this returns.

        :raises NetworkingError: as the methods of `NetworkingCore` say.
        """
        match command:
            case AddPairedDevice():
                await self._add(command)
            case ConfirmPairing(device_id, pairing_id):
                device = self.registry.get(device_id).device
                if device.pairing_id != pairing_id.bytes:
                    raise DeviceNotFoundError("That pairing was replaced by another one.")
                await self.connections.confirm(device)
                self.connections.reconsider(device_id)
            case PairingLost(device_id, pairing_id, reason):
                await self._lost(device_id, pairing_id, reason)
            case SetTrust(device_id, trust):
                await self._set_trust(self.registry.get(device_id).device, trust)
            case RenameDevice(device_id, name):
                await self._rename(self.registry.get(device_id).device, name)
            case ConfigureConnection(device_id, config, auto_connect):
                device = self.registry.get(device_id).device
                changed = device.configured(config, auto_connect=auto_connect)
                await self.store.save_pairing(changed)
                self.registry.update(changed)
                self.connections.reconsider(device_id)
            case RevokeDevice(device_id):
                await self._revoke(device_id)
            case ForgetDevice(device_id):
                await self._forget(self.registry.get(device_id).device)
        self.connections.changed()
        await self.flush()

    async def _add(self, command: AddPairedDevice) -> None:
        info = command.info
        if is_small_order(info.public_key) or info.public_key == self.public_key:
            raise ConflictError("The device shows a key that is not its own.")
        device = PairedDevice(
            info=info,
            pairing_id=command.pairing_id.bytes,
            pairing_root=command.pairing_root,
            paired_at=self.clock.now(),
            pending=command.pending,
        )
        if device.pairing_id in self.revocations:
            raise ConflictError("That pairing has ended for good; pair the devices anew.")
        self.registry.check_identity(device)
        old = self.registry.by_peer(info.peer_id)
        if old is not None and old.device.name != old.device.info.name:
            device = device.renamed(old.device.name)
        connection = ConnectionRecord.hinted(command.addresses)
        # Before anything is written, so that nothing of an old pairing is written after the new one.
        await self._end_old_pairing(info.id)
        try:
            await self.store.save_pairing(device)
        except StorageError:
            if self.registry.by_peer(info.peer_id) is not None:
                self.connections.supervise(info.id)
            raise
        await self.store.save_connection(info.id, connection)
        while isinstance(self.registry.by_peer(info.peer_id), Connected):  # it came back under the old one meanwhile
            await self._end_old_pairing(info.id)
        self.registry.complete_pairing(device, connection)
        self.connections.supervise(info.id)
        self.events.publish(DevicePaired(device_id=info.id, device_name=device.name, peer_id=info.peer_id))

    async def _end_old_pairing(self, device_id: uuid.UUID) -> None:
        # The connection below stays: the two are just talking on it.
        await self.connections.release(device_id, GoodbyeReason.NOT_PAIRED, "the devices were paired anew")

    async def _lost(self, device_id: uuid.UUID, pairing_id: bytes, reason: str) -> None:
        try:
            state = self.registry.get(device_id)
        except DeviceNotFoundError:
            return
        device = state.device
        if device.pairing_id != pairing_id or isinstance(state, Connected) or device.trust.access is None:
            return  # it was paired anew, has proven the pairing since, or it has ended already
        expired = device.trusted(Trust.EXPIRED)
        self.registry.update(expired)
        if device.pending:
            await self.connections.history.forget(device_id)
            await self.store.delete_pairing(device_id)
            await self.connections.release(device_id, GoodbyeReason.NOT_PAIRED, reason)
            self.registry.remove(device_id)
        else:
            await self.store.save_pairing(expired)
        self._removed(device, reason)

    async def _set_trust(self, device: PairedDevice, trust: Trust) -> None:
        if trust.access is None:
            raise InvalidRequestError(f"A device can be made trusted or verified, not {trust}; revoke it instead.")
        changed = device.trusted(trust)
        self.registry.check_update(changed)
        if trust is device.trust:
            return
        # In both generations: recovering an older one must not give more trust than a person wants.
        await self.store.save_pairing(changed, both_generations=True)
        self.registry.update(changed)
        if trust is Trust.VERIFIED:
            # What is under way was let in with more trust.
            await self.connections.reset_streams(device.device_id)
        self.events.publish(
            TrustChanged(
                device_id=device.device_id, device_name=device.name, old=str(device.trust), new=str(changed.trust)
            )
        )

    async def _rename(self, device: PairedDevice, name: str | None) -> None:
        if name is not None:
            self.registry.check_name(device.device_id, name)
        changed = device.renamed(None if name == device.info.name else name)
        if changed == device:
            return
        await self.store.save_pairing(changed)
        self.registry.update(changed)
        self.events.publish(DeviceRenamed(device_id=device.device_id, old_name=device.name, device_name=changed.name))

    async def _revoke(self, device_id: uuid.UUID) -> None:
        state = self.registry.get(device_id)
        device = state.device
        if device.trust is Trust.REVOKED and device.pairing_id in self.revocations:
            return
        revoked = device.trusted(Trust.REVOKED)
        # From here on nothing passes, whatever becomes of the rest.
        reason = "it was revoked"
        self.connections.cut(device_id, reason)
        self.registry.update(revoked)
        failure: StorageError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._part, device, reason)
            try:
                await self.revocations.add(device, Ended.REVOKED)
            except StorageError as error:
                failure = error
            else:
                await self._save_revoked(revoked)
        if failure is not None:
            raise StorageError(
                f"{device.name} is cut off and refused as long as this node runs, but that could not be stored: it "
                f"could come back after a restart. Revoke it again. ({failure.detail})"
            ) from failure
        self.events.publish(
            DeviceRevoked(
                device_id=device_id,
                device_name=device.name,
                peer_id=device.peer_id,
                told=isinstance(state, Connected),
            )
        )
        self._removed(device, reason)

    async def _save_revoked(self, revoked: PairedDevice) -> None:
        try:
            await self.store.save_pairing(revoked)
        except StorageError as error:
            # The list refuses the pairing; the next start takes the secret out of the record.
            with log_context(device_id=revoked.device_id, peer_id=revoked.peer_id):
                logger.warning("the record of device %s could not be overwritten: %s", revoked.device_id, error)

    async def _forget(self, device: PairedDevice) -> None:
        reason = "it was forgotten"
        # First of all, so that the record cannot come back from an older generation or a backup.
        await self.revocations.add(device, Ended.FORGOTTEN)
        self.connections.cut(device.device_id, reason)
        self.registry.update(device.trusted(Trust.REVOKED))  # no session comes about before it is gone
        await self._part(device, reason)
        await self.connections.history.forget(device.device_id)
        await self.store.delete_pairing(device.device_id)
        self.registry.remove(device.device_id)
        self._removed(device, reason)

    async def _part(self, device: PairedDevice, reason: str) -> None:
        await self.connections.release(device.device_id, GoodbyeReason.NOT_PAIRED, reason, hang_up=device.peer_id)

    def _removed(self, device: PairedDevice, reason: str) -> None:
        with log_context(device_id=device.device_id, peer_id=device.peer_id):
            logger.warning("device %s (%s) is not paired any more: %s", device.device_id, device.name, reason)
        self.events.publish(DeviceRemoved(device_id=device.device_id, device_name=device.name, reason=reason))
