"""What protects a node's data at rest: looked at and changed, with the node running or not."""

from __future__ import annotations

import anyio

from .audit import AuditLog
from .clock import Clock, Randomness, Runner, run_in_thread
from .config import Config
from .errors import ConflictError
from .events import EventBus, VaultChanged
from .storage import (
    ARGON2ID,
    PBKDF2_SHA256,
    DirectoryLock,
    KeyFile,
    Passphrase,
    Protection,
    SecureStorage,
    Unlock,
    Vault,
    VaultMode,
)

__all__ = ["KDFS", "ProtectionMethods", "change_protection_offline"]

KDFS = {"pbkdf2": PBKDF2_SHA256, "argon2id": ARGON2ID}
"""The key derivations that a person can choose, by name."""


class ProtectionMethods:
    """The methods of `NetworkingCore` that are about what lies on disk."""

    clock: Clock
    events: EventBus
    audit: AuditLog
    runner: Runner
    _vault: Vault
    _changing_protection = False

    @property
    def protection(self) -> Protection:
        """What protects the data at rest."""
        return self._vault.protection

    async def change_protection(self, new: Unlock, *, current: Passphrase | None = None) -> Protection:
        """Seal the data key under another passphrase, or under a key file. Everything else on disk stays as it is.

        When this returns, what protected the data before opens nothing any more.

        :param current: the present passphrase, needed if there is one.
        :raises WrongPassphraseError: ``current`` is another one; nothing changed.
        :raises ConflictError: it is being changed already, or there is no passphrase to remove.
        :raises StorageError: it could not be stored.
        """
        if self._changing_protection:
            raise ConflictError("The passphrase is being changed already.")
        self._changing_protection = True
        try:
            # Whoever asked may leave; the answer of the disk is waited for all the same.
            with anyio.CancelScope(shield=True):
                await self.runner(_change, self._vault, new, current)
                self.events.publish(VaultChanged(mode=str(self._vault.mode)))
                await self.audit.flush()
        finally:
            self._changing_protection = False
        return self._vault.protection


def _change(vault: Vault, new: Unlock, current: Passphrase | None) -> None:
    if vault.mode is VaultMode.PASSPHRASE and current is None:
        raise ConflictError("The data has a passphrase already; changing or removing it needs that one.")
    if vault.mode is VaultMode.KEY_FILE and current is not None:
        raise ConflictError("The data has no passphrase yet.")
    vault.change_secret(new, current=current)


def change_protection_offline(
    config: Config, new: Unlock, *, current: Passphrase | None, clock: Clock, randomness: Randomness
) -> Protection:
    """Do what `ProtectionMethods.change_protection` does for a node that does not run (blocking).

    Where there is no data yet, the vault is made: the first start then finds it protected.

    :raises AlreadyRunningError: it runs.
    :raises NetworkingError: as `change_protection`.
    """
    directory = config.paths.data
    with DirectoryLock(directory):
        if not Vault.exists(directory):
            if current is not None or isinstance(new, KeyFile):
                raise ConflictError("The data has no passphrase yet.")
            return Vault.create(directory, new, clock, randomness).protection
        stored = Vault.stored_protection(directory)
        if stored is not None and stored.mode is VaultMode.PASSPHRASE and current is None:
            raise ConflictError("The data has a passphrase already; changing or removing it needs that one.")
        vault = Vault.open(directory, current or KeyFile(), clock, randomness)
        _change(vault, new, current)
        anyio.run(_note, config, vault, clock, randomness)
        return vault.protection


async def _note(config: Config, vault: Vault, clock: Clock, randomness: Randomness) -> None:
    """Put the change into the audit log."""
    data = config.paths.data
    storage = SecureStorage(
        data / "network", vault.subkey("network"), clock=clock, randomness=randomness, runner=run_in_thread
    )
    if await storage.load("identity") is None:
        return  # no node has ever run here: there is nothing to audit, and its first start must find nothing
    audit = AuditLog(data, vault.subkey("audit"), storage, clock=clock, runner=run_in_thread)
    async with anyio.create_task_group() as tasks:
        await tasks.start(audit.run)
        audit.take(VaultChanged(mode=str(vault.mode), at=clock.now()))
        await audit.flush()
        tasks.cancel_scope.cancel()
