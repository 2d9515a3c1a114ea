"""One secret unlocks everything: secret → key-encryption key → wrapped data key → a subkey for each purpose.

The vault is the file ``vault`` in the instance's data directory, with a copy in ``vault.prev``. It holds the data key,
sealed under a passphrase or under the key file ``vault.key`` beside it. All other sealed files lie in the same
directory or below it, so that a vault is never created anew where sealed data waits for the old one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.clock import Clock, Randomness
from sdnet_core.errors import ConflictError, StorageError
from sdnet_core.storage.atomic import (
    FILE_MODE,
    TEMPORARY_PREFIX,
    DamagedError,
    clean_temporary,
    ensure_private_directory,
    in_part,
    previous_path,
    read_bounded,
    remove_durably,
    write_atomic,
)
from sdnet_core.storage.envelope import (
    HKDF_SHA256,
    KEY_BYTES,
    MAGIC,
    PBKDF2_SHA256,
    KdfParameters,
    Mode,
    NewerFormatError,
    WrongKeyError,
    looks_sealed,
    read_header,
    seal,
    unseal,
)
from sdnet_core.storage.unlock import (
    KeyFile,
    Passphrase,
    PassphraseRequiredError,
    Protection,
    Unlock,
    VaultMode,
    WrongPassphraseError,
)

__all__ = ["KEY_FILE_NAME", "VAULT_FILE_NAME", "Vault"]

logger = logging.getLogger(__name__)

VAULT_FILE_NAME = "vault"
KEY_FILE_NAME = "vault.key"

_MAX_VAULT_BYTES = 4096
_MAX_LABEL_BYTES = 255
_CONTEXT = b"sdnet/vault/v1"
_SUBKEY_INFO = b"sdnet/subkey/v1\x00"
_CONTENTS = struct.Struct(">32sQ")
"""The data key, and when the vault was created in milliseconds since 1970."""


class Vault:
    """The unlocked data key. All methods block; in passphrase mode `open` and `change_secret` take a good while.

    Hold the directory's `DirectoryLock` while creating, opening or changing a vault.
    """

    __slots__ = ("_clock", "_created_at", "_data_key", "_directory", "_protection", "_randomness", "_recovered")

    def __init__(
        self,
        directory: Path,
        data_key: bytes,
        protection: Protection,
        created_at: float,
        clock: Clock,
        randomness: Randomness,
        recovered: list[str],
    ) -> None:
        """Not for callers: use `create`, `open` or `open_or_create`."""
        self._directory = directory
        self._data_key = data_key
        self._protection = protection
        self._created_at = created_at
        self._clock = clock
        self._randomness = randomness
        self._recovered = recovered

    def __repr__(self) -> str:
        return f"<Vault {self._directory} {self.mode.value}>"

    @property
    def mode(self) -> VaultMode:
        """What protects the data at rest."""
        return self._protection.mode

    @property
    def protection(self) -> Protection:
        """The mode, and how the key is made of the passphrase."""
        return self._protection

    @property
    def created_at(self) -> float:
        """Seconds since the Unix epoch."""
        return self._created_at

    @property
    def recovered(self) -> list[str]:
        """What was found damaged and put right when the vault was opened, one sentence each."""
        return list(self._recovered)

    def subkey(self, label: str) -> bytes:
        """Derive the key for one purpose, such as ``identity``, ``devices`` or ``plugins/<name>``.

        :returns: 32 bytes, the same for the same label for the life of the vault, whatever the secret.
        :raises ValueError: the label is empty or too long.
        """
        encoded = label.encode()
        if not 0 < len(encoded) <= _MAX_LABEL_BYTES:
            raise ValueError(f"a label has 1 to {_MAX_LABEL_BYTES} bytes")
        return HKDFExpand(hashes.SHA256(), KEY_BYTES, _SUBKEY_INFO + encoded).derive(self._data_key)

    @classmethod
    def exists(cls, directory: Path) -> bool:
        """Say whether there is a vault, or anything that a vault would have sealed."""
        vault = directory / VAULT_FILE_NAME
        return os.path.lexists(vault) or os.path.lexists(previous_path(vault)) or _sealed_file(directory) is not None

    @classmethod
    def stored_protection(cls, directory: Path) -> Protection | None:
        """Read what protects a vault without unlocking it, so as to know whether to ask for a passphrase.

        :returns: ``None`` if neither generation of the vault can be read.
        """
        vault = directory / VAULT_FILE_NAME
        for path in (vault, previous_path(vault)):
            with contextlib.suppress(StorageError):
                if (data := read_bounded(path, _MAX_VAULT_BYTES)) is not None:
                    return _protection_of(data)
        return None

    @classmethod
    def check(cls, directory: Path, unlock: Unlock) -> None:
        """Find out whether a secret opens the vault, without changing anything; needs no `DirectoryLock`.

        :raises StorageError: as `open`.
        """
        _read_and_open(directory, unlock)

    @classmethod
    def create(cls, directory: Path, unlock: Unlock, clock: Clock, randomness: Randomness) -> Vault:
        """Make a new vault with a new data key.

        :raises StorageError: there is a vault or sealed data already, or the directory cannot be written.
        """
        ensure_private_directory(directory)
        vault = directory / VAULT_FILE_NAME
        if cls.exists(directory):
            raise StorageError(
                f"{directory} holds sealed data already; a new vault there would make it unreadable. {_RESTORE_HINT}"
            )
        clean_temporary(directory)
        created_ms = max(0, int(clock.now() * 1000))
        data_key = randomness.bytes(KEY_BYTES)
        secret = _new_secret(directory, unlock, randomness)
        sealed = _seal(_CONTENTS.pack(data_key, created_ms), secret, unlock, clock, randomness)
        # Exclusive: of two processes that both found nothing, one is refused here.
        write_atomic(vault, sealed, randomness=randomness, keep_previous=False, exclusive=True)
        write_atomic(previous_path(vault), sealed, randomness=randomness, keep_previous=False)
        return cls(directory, data_key, _protection_of(sealed), created_ms / 1000, clock, randomness, [])

    @classmethod
    def open(cls, directory: Path, unlock: Unlock, clock: Clock, randomness: Randomness) -> Vault:
        """Unlock the vault of a directory.

        A damaged vault is put right from its copy, which `recovered` and the log tell.

        :raises WrongPassphraseError: the passphrase is another one.
        :raises PassphraseRequiredError: the vault needs a passphrase and a `KeyFile` was given.
        :raises StorageError: there is no vault, or vault or key file are missing or damaged beyond recovery.
            Nothing is created or changed then.
        """
        vault = directory / VAULT_FILE_NAME
        source, damage, current, contents = _read_and_open(directory, unlock)
        data_key, created_ms = _CONTENTS.unpack(contents)
        recovered: list[str] = []
        if source != vault:
            recovered.append(f"{vault} was {damage or 'missing'}; it was restored from its copy {source}.")
        elif (previous_damage := _read_generation(previous_path(vault))[1]) is not None:
            recovered.append(f"{previous_path(vault)} was {previous_damage}; it was restored from {vault}.")
        for sentence in recovered:
            logger.warning("%s", sentence)
        clean_temporary(directory)
        ensure_private_directory(directory)
        _settle(directory, current, randomness)
        return cls(directory, data_key, _protection_of(current), created_ms / 1000, clock, randomness, recovered)

    @classmethod
    def open_or_create(cls, directory: Path, unlock: Unlock, clock: Clock, randomness: Randomness) -> Vault:
        """Unlock the vault, or make one where there is neither a vault nor sealed data.

        :raises StorageError: as `open` and `create` do.
        """
        if cls.exists(directory):
            return cls.open(directory, unlock, clock, randomness)
        return cls.create(directory, unlock, clock, randomness)

    def change_secret(self, new: Unlock, *, current: Unlock | None = None) -> None:
        """Seal the data key under another secret; everything sealed with subkeys stays as it is.

        A crash in between leaves a vault that opens with the old secret or with the new one. When this returns, the
        old secret opens neither generation, and a key file that is no longer needed is gone.

        :param current: proves that whoever asks knows the present secret.
        :raises WrongPassphraseError: ``current`` is not the present secret.
        :raises ConflictError: a key file is asked for and is in use already.
        :raises StorageError: it cannot be written; the old secret is still the one unless the message says otherwise.
        """
        vault = self._directory / VAULT_FILE_NAME
        if current is not None:
            sealed, damage = _read_generation(vault)
            if sealed is None:
                raise StorageError(f"{vault} is {damage or 'missing'}; restart the node to recover it first.")
            _check_unlock(sealed, current)
            _open_contents(self._directory, vault, sealed, current)
        if self.mode is VaultMode.KEY_FILE and isinstance(new, KeyFile):
            raise ConflictError("The data is in key-file mode already.")
        secret = _new_secret(self._directory, new, self._randomness)
        contents = _CONTENTS.pack(self._data_key, round(self._created_at * 1000))
        sealed = _seal(contents, secret, new, self._clock, self._randomness, self._protection.kdf)
        write_atomic(vault, sealed, randomness=self._randomness, keep_previous=False)
        self._protection = _protection_of(sealed)
        try:
            _settle(self._directory, sealed, self._randomness)
        except StorageError as error:
            raise StorageError(
                f"The new secret is in force, but the old one still opens {previous_path(vault)}: {in_part(error)} "
                "The next start puts that right."
            ) from error


_RESTORE_HINT = (
    f"Put {VAULT_FILE_NAME} (or {VAULT_FILE_NAME}.prev) and, in key-file mode, {KEY_FILE_NAME} back from a backup; "
    "or move the whole directory away to start as a new device, which then has to be paired again."
)


def _protection_of(sealed: bytes) -> Protection:
    header = read_header(sealed)
    mode = _vault_mode(header.mode)
    return Protection(mode, None if mode is VaultMode.KEY_FILE else header.kdf)


def _vault_mode(mode: Mode) -> VaultMode:
    match mode:
        case Mode.KEY_FILE:
            return VaultMode.KEY_FILE
        case Mode.PASSPHRASE:
            return VaultMode.PASSPHRASE
        case Mode.SUBKEY:
            raise DamagedError("The file is sealed, but is not a vault.")


def _seal(
    contents: bytes,
    secret: bytes,
    unlock: Unlock,
    clock: Clock,
    randomness: Randomness,
    before: KdfParameters | None = None,
) -> bytes:
    if isinstance(unlock, KeyFile):
        mode, kdf = Mode.KEY_FILE, HKDF_SHA256
    else:
        mode, kdf = Mode.PASSPHRASE, unlock.kdf or before or PBKDF2_SHA256
    return seal(contents, secret, mode=mode, kdf=kdf, context=_CONTEXT, stored_at=clock.now(), randomness=randomness)


def _new_secret(directory: Path, unlock: Unlock, randomness: Randomness) -> bytes:
    """Give the secret to seal under; in key-file mode that of the key file, which is written if there is none."""
    if isinstance(unlock, Passphrase):
        return unlock.encoded()
    key_path = directory / KEY_FILE_NAME
    with contextlib.suppress(DamagedError):
        # Left by a crash before the vault that it was for, or just written by another process that creates the same
        # vault and may get there first: overwriting it would take that one's key away.
        if (left := read_bounded(key_path, KEY_BYTES)) is not None and len(left) == KEY_BYTES:
            key_path.chmod(FILE_MODE)
            return left
    secret = randomness.bytes(KEY_BYTES)
    write_atomic(key_path, secret, randomness=randomness, keep_previous=False)
    return secret


def _read_generation(path: Path) -> tuple[bytes | None, str | None]:
    """Read one generation of the vault: its bytes, or ``None`` and what is wrong with it (``None``: missing).

    :raises StorageError: it cannot be read now; that is no reason to use the other one.
    """
    try:
        data = read_bounded(path, _MAX_VAULT_BYTES)
        if data is None:
            return None, None
        _vault_mode(read_header(data).mode)
    except NewerFormatError as error:
        raise NewerFormatError(f"{path}: {error}") from error
    except DamagedError as error:
        return None, f"damaged ({str(error).rstrip('.')})"
    return data, None


def _read_and_open(directory: Path, unlock: Unlock) -> tuple[Path, str | None, bytes, bytes]:
    """Open the newest generation that is whole.

    :returns: its path, what is wrong with the one before it in line, the file, and what it holds.
    """
    source = directory / VAULT_FILE_NAME
    current, damage = _read_generation(source)
    if current is None:
        source = previous_path(source)
        current, previous_damage = _read_generation(source)
        if current is None:
            raise StorageError(_lost_vault_message(directory, damage, previous_damage))
    _check_unlock(current, unlock)
    return source, damage, current, _open_contents(directory, source, current, unlock)


def _check_unlock(sealed: bytes, unlock: Unlock) -> None:
    mode = _protection_of(sealed).mode
    if mode is VaultMode.PASSPHRASE and isinstance(unlock, KeyFile):
        raise PassphraseRequiredError("The data is protected by a passphrase; give it to unlock.")
    if mode is VaultMode.KEY_FILE and isinstance(unlock, Passphrase):
        raise StorageError("The data is in key-file mode: no passphrase is set, so none opens it. Start without one.")


def _open_contents(directory: Path, source: Path, sealed: bytes, unlock: Unlock) -> bytes:
    """Open a whole generation; gives its contents."""
    key_path = directory / KEY_FILE_NAME
    if isinstance(unlock, Passphrase):
        try:
            contents = unseal(sealed, unlock.encoded(), mode=Mode.PASSPHRASE, context=_CONTEXT)
        except WrongKeyError as error:
            raise WrongPassphraseError("The passphrase is wrong; the data is still locked.") from error
    else:
        key = _read_key_file(key_path)
        try:
            contents = unseal(sealed, key, mode=Mode.KEY_FILE, context=_CONTEXT)
        except WrongKeyError as error:
            raise StorageError(
                f"The key file {key_path} is not the one that {source} was sealed with, or is damaged. "
                f"Restore {KEY_FILE_NAME} from a backup; nothing was changed."
            ) from error
    if len(contents) != _CONTENTS.size:
        raise StorageError(f"{source} opened, but does not hold what a vault holds. {_RESTORE_HINT}")
    return contents


def _read_key_file(path: Path) -> bytes:
    try:
        key = read_bounded(path, _MAX_VAULT_BYTES)
    except DamagedError as error:
        raise StorageError(f"The key file {path} is damaged. {error} Restore it from a backup.") from error
    if key is None:
        raise StorageError(
            f"The key file {path} is missing; without it the data cannot be opened. Restore it from a backup; "
            "nothing was changed."
        )
    if len(key) != KEY_BYTES:
        raise StorageError(
            f"The key file {path} is damaged: it has {len(key)} bytes instead of {KEY_BYTES}. Restore it from a "
            "backup; nothing was changed."
        )
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("The key file %s was readable by other users; its permissions are now 0600.", path)
            path.chmod(FILE_MODE)
    return key


def _lost_vault_message(directory: Path, damage: str | None, previous_damage: str | None) -> str:
    vault = directory / VAULT_FILE_NAME
    if damage is None and previous_damage is None and _sealed_file(directory) is None:
        return f"There is no data in {directory} yet."
    return (
        f"The vault {vault} is {damage or 'missing'} and its copy {previous_path(vault)} is "
        f"{previous_damage or 'missing'}, so the data in {directory} cannot be opened. {_RESTORE_HINT} "
        "Nothing was changed."
    )


def _settle(directory: Path, sealed: bytes, randomness: Randomness) -> None:
    """Make both generations equal to the one that opened, and drop a key file that opens nothing.

    This also finishes a change of the secret that was cut short.
    """
    vault = directory / VAULT_FILE_NAME
    for path in (vault, previous_path(vault)):
        present: bytes | None = None
        with contextlib.suppress(DamagedError):
            present = read_bounded(path, _MAX_VAULT_BYTES)
        if present != sealed:
            write_atomic(path, sealed, randomness=randomness, keep_previous=False)
    if _protection_of(sealed).mode is VaultMode.PASSPHRASE:
        remove_durably(directory / KEY_FILE_NAME)


def _sealed_file(directory: Path) -> Path | None:
    """Find any finished file in the directory or below that begins like a sealed one."""
    for path in _files_below(directory):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if looks_sealed(file.read(len(MAGIC))):
                return path
    return None


def _files_below(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory, followlinks=False):
        for name in names:
            path = Path(folder, name)
            if name.startswith(TEMPORARY_PREFIX):
                continue
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
