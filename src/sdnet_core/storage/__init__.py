"""Everything that lies on disk, sealed.

What each module is for:

- ``atomic``: files that are the old ones or the new ones, never a mixture; the lock against two processes.
- ``envelope``: the sealed file format, its key derivations and their limits.
- ``unlock``: the secrets a person or a key file gives.
- ``vault``: one secret unlocks the data key; subkeys for each purpose.
- ``secure``: `SecureStorage`, named sealed files in two generations.
- ``migration``: what older versions stored becomes what this one stores.
- ``keyring``: the passphrase in the desktop's keyring.
- ``database``: a plugin's own SQLite; ``chained``: files that are only added to.

CORE DATA LAYOUT, below the instance's data directory (0700; every file 0600)::

    lock                                        process id of the running node (`DirectoryLock`); not sealed
    vault, vault.prev                           the data key, sealed under passphrase or key file; two equal copies
    vault.key                                   key-file mode only: the one secret in clear
    keyring                                     names the keyring's entry for the passphrase, if it is in one
    network/                                    `SecureStorage` under the subkey "network"
        format                                  the number of the format of all of this
        identity                                the device's private key, id and name
        devices/<device id>                     one paired device: record, trust, pairing root with its dates
        connections/<local id>/<remote id>      how that device is reached: addresses, connection settings
        history/<device id>                     past connections, pruned
        plugins/<name>/…                        a plugin's own files, under its own subkey (`SecureStorage.scoped`)

    network.v<number>/                          the store as it was before the last migration

Only `SecureStorage` writes below ``network``; databases and logs lie beside it. Next to a sealed file ``x`` there may
be ``x.prev``, the generation before it, and ``x.damaged``, the first damaged file that was replaced by it, kept to look
at. ``.tmp-*`` are unfinished writes, removed at the next start.

Files are read when asked for, not at start. Each is bound to its name: one put in another's place does not open. An
attacker who can write to the disk can still put back an older generation of a file; what must never come back is
stored with ``both_generations=True``.
"""

from sdnet_core.storage.atomic import DamagedError, DirectoryLock, ensure_private_directory, write_atomic
from sdnet_core.storage.envelope import (
    ARGON2ID,
    FORMAT_VERSION,
    PBKDF2_SHA256,
    Kdf,
    KdfParameters,
    NewerFormatError,
    WrongKeyError,
)
from sdnet_core.storage.secure import SecureStorage
from sdnet_core.storage.unlock import (
    KeyFile,
    Passphrase,
    PassphraseRequiredError,
    Protection,
    Unlock,
    VaultMode,
    WrongPassphraseError,
)
from sdnet_core.storage.vault import Vault

__all__ = [
    "ARGON2ID",
    "FORMAT_VERSION",
    "PBKDF2_SHA256",
    "DamagedError",
    "DirectoryLock",
    "Kdf",
    "KdfParameters",
    "KeyFile",
    "NewerFormatError",
    "Passphrase",
    "PassphraseRequiredError",
    "Protection",
    "SecureStorage",
    "Unlock",
    "Vault",
    "VaultMode",
    "WrongKeyError",
    "WrongPassphraseError",
    "ensure_private_directory",
    "write_atomic",
]
