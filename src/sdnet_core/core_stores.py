"""What a node keeps on disk, opened in the right order: the lock, the vault, and every store beneath its keys."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from .audit import AuditLog
from .clock import Clock, Randomness, Runner
from .config import Config
from .devices.formats import CURRENT_FORMAT, STEPS
from .devices.outbox_store import Sealer
from .devices.records import DeviceStore
from .devices.revocations import RevocationList
from .events import EventBus
from .identity import DeviceInfo, HostIdentity, NetworkIdentity
from .node_store import NodeStore
from .storage import DirectoryLock, SecureStorage, Unlock, Vault, ensure_private_directory
from .storage.migration import mark_format, migrate

__all__ = ["Stores", "open_stores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Everything that a node reads and writes, each part under a key of its own."""

    vault: Vault
    storage: SecureStorage
    audit: AuditLog
    node: NodeStore
    identity: NetworkIdentity
    device_info: DeviceInfo
    devices: DeviceStore
    revocations: RevocationList
    outbox_sealer: Sealer


async def open_stores(
    stack: AsyncExitStack,
    config: Config,
    *,
    unlock: Unlock,
    clock: Clock,
    randomness: Randomness,
    runner: Runner,
    events: EventBus,
    host: HostIdentity | None = None,
) -> Stores:
    """Take the data directory for this process and open what is in it; made at the first start.

    :param stack: gives the directory free in the end.
    :param events: the audit log takes from it.
    :param host: the identity that a host application keeps.
    :raises ConflictError: the data belong to another identity.
    :raises StorageError: it is in use, does not open, or is damaged beyond repair.
    """
    data = config.paths.data
    await runner(ensure_private_directory, data)
    lock = DirectoryLock(data)
    await runner(lock.acquire)
    stack.callback(lock.release)
    vault = await runner(Vault.open_or_create, data, unlock, clock, randomness)
    storage = SecureStorage(
        data / "network", vault.subkey("network"), clock=clock, randomness=randomness, runner=runner
    )
    await migrate(storage, CURRENT_FORMAT, STEPS)
    audit = AuditLog(data, vault.subkey("audit"), storage, clock=clock, runner=runner)
    events.add_tap(audit.take)
    node = NodeStore(storage, clock, randomness)
    identity, device_info = await node.identity(config.device_name, host)
    # After the identity: until there is one, nothing else may be there.
    await mark_format(storage, CURRENT_FORMAT)
    revocations = RevocationList(
        data, vault.subkey("revocations"), storage, clock=clock, randomness=randomness, runner=runner
    )
    sealed = SecureStorage(data / "outbox", vault.subkey("outbox"), clock=clock, randomness=randomness, runner=runner)
    return Stores(
        vault=vault,
        storage=storage,
        audit=audit,
        node=node,
        identity=identity,
        device_info=device_info,
        devices=DeviceStore(storage, device_info.id),
        revocations=revocations,
        outbox_sealer=Sealer(sealed.encrypt_data, sealed.decrypt_data),
    )
