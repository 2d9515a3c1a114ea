"""The secrets that open a vault, and what can be wrong with them."""

from __future__ import annotations

import enum
import unicodedata
from dataclasses import dataclass, field

from sdnet_core.errors import StorageError
from sdnet_core.storage.envelope import MAX_SECRET_BYTES, PBKDF2_SHA256, KdfParameters

__all__ = [
    "KeyFile",
    "Passphrase",
    "PassphraseRequiredError",
    "Unlock",
    "VaultMode",
    "WrongPassphraseError",
]


class WrongPassphraseError(StorageError):
    """The passphrase is not the one this data was sealed with."""

    code = "wrong-passphrase"
    http_status = 403


class PassphraseRequiredError(StorageError):
    """The data is sealed under a passphrase, and none was given."""

    code = "passphrase-required"
    http_status = 403


class VaultMode(enum.StrEnum):
    """What protects the data at rest."""

    KEY_FILE = "key-file"
    """A key file beside the data: whoever reads the disk reads the data."""
    PASSPHRASE = "passphrase"
    """A passphrase: whoever reads the disk has to guess it."""

    @property
    def protection(self) -> str:
        """The word a status shows: ``unprotected`` or ``passphrase``."""
        return "unprotected" if self is VaultMode.KEY_FILE else "passphrase"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Unlock with the key file; nobody is asked anything."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Unlock with a passphrase.

    Text is normalised (NFC), so that it opens whatever keyboard it is typed on.
    """

    secret: str | bytes = field(repr=False)
    kdf: KdfParameters = PBKDF2_SHA256
    """Used when sealing; opening uses what the file says."""

    def encoded(self) -> bytes:
        """Give the bytes the key is derived from.

        :raises StorageError: empty, too long, or not encodable.
        """
        try:
            data = (
                unicodedata.normalize("NFC", self.secret).encode()
                if isinstance(self.secret, str)
                else bytes(self.secret)
            )
        except UnicodeEncodeError:
            raise StorageError("The passphrase contains characters that cannot be encoded.") from None
        if not 0 < len(data) <= MAX_SECRET_BYTES:
            raise StorageError(f"A passphrase must not be empty, nor longer than {MAX_SECRET_BYTES} bytes.")
        return data


Unlock = KeyFile | Passphrase
