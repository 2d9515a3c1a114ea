"""The secrets that open a vault, and what can be wrong with them."""

from __future__ import annotations

import enum
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from sdnet_core.errors import StorageError
from sdnet_core.storage.envelope import MAX_SECRET_BYTES, Kdf, KdfParameters

__all__ = [
    "KeyFile",
    "Passphrase",
    "PassphraseRequiredError",
    "Protection",
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
        """The word a status shows: ``unprotected`` or ``protected``."""
        return "unprotected" if self is VaultMode.KEY_FILE else "protected"


@dataclass(frozen=True, slots=True)
class Protection:
    """What protects a vault, as its header says.

    :param kdf: how the key is made of the passphrase; None in key-file mode.
    """

    mode: VaultMode
    kdf: KdfParameters | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a status."""
        return {
            "mode": str(self.mode),
            "protection": self.mode.protection,
            "kdf": None if self.kdf is None else _describe_kdf(self.kdf),
        }


def _describe_kdf(kdf: KdfParameters) -> dict[str, Any]:
    costs = {"iterations": kdf.iterations, "memory_kib": kdf.memory_kib, "lanes": kdf.lanes}
    return {"name": _KDF_NAMES[kdf.kdf], **{name: cost for name, cost in costs.items() if cost}}


_KDF_NAMES = {Kdf.HKDF_SHA256: "hkdf-sha256", Kdf.PBKDF2_SHA256: "pbkdf2-sha256", Kdf.ARGON2ID: "argon2id"}


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Unlock with the key file; nobody is asked anything."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Unlock with a passphrase.

    Text is normalised (NFC), so that it opens whatever keyboard it is typed on.
    """

    secret: str | bytes = field(repr=False)
    kdf: KdfParameters | None = None
    """Used when sealing: when None that of the passphrase before, or else PBKDF2. Opening uses what the file says."""

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
