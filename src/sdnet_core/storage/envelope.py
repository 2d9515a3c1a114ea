"""The sealed file format: a header that is authenticated, AES-256-GCM, and a checksum over everything.

A file is ``header ‖ ciphertext ‖ GCM tag ‖ SHA-256 of all before``. The checksum is no protection against an
attacker (the tag is): it tells damage apart from a wrong secret, before a key derivation is spent on the file.

The header, big-endian, 88 bytes::

    magic 8 · format version u16 · mode u8 · kdf u8 · iterations u32 · memory_kib u32 · lanes u32
    salt 32 · nonce 12 · stored_at u64 (milliseconds since 1970) · plaintext length u64 · reserved u32 (zero)

Every version keeps the magic, the version and the trailing checksum where they are, so that an older program
can tell a newer file from a damaged one. The associated data is the context (a file's name) and the header.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from sdnet_core.clock import Randomness
from sdnet_core.errors import StorageError
from sdnet_core.storage.atomic import DamagedError

__all__ = [
    "ARGON2ID",
    "FORMAT_VERSION",
    "HKDF_SHA256",
    "MAGIC",
    "MAX_PLAINTEXT_BYTES",
    "OVERHEAD_BYTES",
    "PBKDF2_SHA256",
    "READERS",
    "EnvelopeHeader",
    "Kdf",
    "KdfParameters",
    "Mode",
    "NewerFormatError",
    "Reader",
    "WrongKeyError",
    "looks_sealed",
    "read_header",
    "seal",
    "unseal",
]

MAGIC: Final = b"sdnet\x00\x1a\n"
FORMAT_VERSION: Final = 1
KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
CHECKSUM_BYTES: Final = 32
MAX_PLAINTEXT_BYTES: Final = 64 << 20
"""Longest plaintext of one file; what is larger belongs in a database or a plain file of sealed records."""

_PREFIX = struct.Struct(">8sH")
_HEADER = struct.Struct(">8sHBBIII32s12sQQI")
OVERHEAD_BYTES: Final = _HEADER.size + TAG_BYTES + CHECKSUM_BYTES
"""What sealing adds to a file's size."""

PBKDF2_MIN_ITERATIONS: Final = 100_000
PBKDF2_MAX_ITERATIONS: Final = 10_000_000
ARGON2_MIN_ITERATIONS: Final = 2
ARGON2_MAX_ITERATIONS: Final = 16
ARGON2_MIN_MEMORY_KIB: Final = 19 << 10
ARGON2_MAX_MEMORY_KIB: Final = 256 << 10
ARGON2_MAX_LANES: Final = 16
MAX_SECRET_BYTES: Final = 1024

_HKDF_INFO = b"sdnet/envelope/v1"
_AAD_LABEL = b"sdnet/envelope/v1\x00"


class WrongKeyError(StorageError):
    """A sealed file is whole, but the secret or the name it was sealed for is another one, or it was forged."""


class NewerFormatError(StorageError):
    """A sealed file was written by a newer version of sdnet."""


class Mode(enum.IntEnum):
    """What opens a sealed file."""

    SUBKEY = 1
    """A key of the vault; every file but the vault itself."""
    KEY_FILE = 2
    """The key file beside the vault: no protection against who can read the disk."""
    PASSPHRASE = 3
    """A passphrase that a person knows."""


class Kdf(enum.IntEnum):
    """How the key is made of the secret."""

    HKDF_SHA256 = 1
    """RFC 5869; for secrets that are random keys already. The salt gives every file its own key."""
    PBKDF2_SHA256 = 2
    """RFC 8018 with HMAC-SHA256."""
    ARGON2ID = 3
    """RFC 9106; needs OpenSSL 3.2."""


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """A key derivation and what it costs; what a derivation does not use is zero."""

    kdf: Kdf
    iterations: int = 0
    memory_kib: int = 0
    lanes: int = 0

    def check(self, mode: Mode) -> None:
        """Refuse parameters too weak to protect, and ones so strong that running them would be an attack.

        :raises DamagedError: outside the floors and ceilings, or not meant for ``mode``.
        """
        if (self.kdf is Kdf.HKDF_SHA256) is (mode is Mode.PASSPHRASE):
            raise DamagedError(f"The key derivation {self.kdf.name} does not go with the mode {mode.name}.")
        match self.kdf:
            case Kdf.HKDF_SHA256:
                fits = self.iterations == self.memory_kib == self.lanes == 0
            case Kdf.PBKDF2_SHA256:
                fits = (
                    PBKDF2_MIN_ITERATIONS <= self.iterations <= PBKDF2_MAX_ITERATIONS
                    and self.memory_kib == self.lanes == 0
                )
            case Kdf.ARGON2ID:
                fits = (
                    ARGON2_MIN_ITERATIONS <= self.iterations <= ARGON2_MAX_ITERATIONS
                    and ARGON2_MIN_MEMORY_KIB <= self.memory_kib <= ARGON2_MAX_MEMORY_KIB
                    and 1 <= self.lanes <= ARGON2_MAX_LANES
                )
        if not fits:
            raise DamagedError(f"The parameters of the key derivation {self.kdf.name} are out of bounds.")


HKDF_SHA256: Final = KdfParameters(Kdf.HKDF_SHA256)
PBKDF2_SHA256: Final = KdfParameters(Kdf.PBKDF2_SHA256, iterations=600_000)
"""The default for passphrases; OWASP's figure for PBKDF2-HMAC-SHA256."""
ARGON2ID: Final = KdfParameters(Kdf.ARGON2ID, iterations=3, memory_kib=64 << 10, lanes=4)
"""RFC 9106's second recommended choice."""


@dataclass(frozen=True, slots=True)
class EnvelopeHeader:
    """What a sealed file says of itself; trustworthy only once `unseal` has opened it."""

    version: int
    mode: Mode
    kdf: KdfParameters
    salt: bytes
    nonce: bytes
    stored_at: float
    """Seconds since the Unix epoch."""
    plaintext_bytes: int


Reader = Callable[[bytes, bytes, Mode, bytes], bytes]
"""Opens a file of one format version: ``reader(data, secret, mode, context) -> plaintext``.

It raises `DamagedError` and `WrongKeyError` only. The checksum and the version were looked at before."""


def seal(
    plaintext: bytes,
    secret: bytes,
    *,
    mode: Mode,
    kdf: KdfParameters,
    context: bytes,
    stored_at: float,
    randomness: Randomness,
) -> bytes:
    """Seal a plaintext in the newest format.

    :param secret: 32 random bytes, or in `Mode.PASSPHRASE` the passphrase.
    :param context: what the file is bound to, such as its name; the same is needed to open it.
    :param stored_at: seconds since the Unix epoch, readable without the secret.
    :raises StorageError: too long, the secret does not fit the mode, or this machine lacks the key derivation.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise StorageError(f"{len(plaintext)} bytes are too many for one file; at most {MAX_PLAINTEXT_BYTES} fit.")
    kdf.check(mode)
    salt, nonce = randomness.bytes(SALT_BYTES), randomness.bytes(NONCE_BYTES)
    header = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        mode,
        kdf.kdf,
        kdf.iterations,
        kdf.memory_kib,
        kdf.lanes,
        salt,
        nonce,
        max(0, int(stored_at * 1000)),
        len(plaintext),
        0,
    )
    key = _derive(secret, mode, kdf, salt)
    body = header + AESGCM(key).encrypt(nonce, plaintext, _associated_data(context, header))
    return body + hashlib.sha256(body).digest()


def unseal(
    data: bytes, secret: bytes, *, mode: Mode, context: bytes, readers: Mapping[int, Reader] | None = None
) -> bytes:
    """Open a sealed file of any format version that has a reader.

    :param mode: the mode the file must have.
    :param readers: reader by format version; `READERS` by default.
    :raises DamagedError: truncated, altered, of another mode, or nothing of ours.
    :raises WrongKeyError: whole, but sealed for another secret or context.
    :raises NewerFormatError: written by a newer version.
    :raises StorageError: this machine lacks the key derivation or the memory it needs.
    """
    reader = _check_frame(data, READERS if readers is None else readers)
    return reader(data, secret, mode, context)


def read_header(data: bytes, *, checked: bool = True) -> EnvelopeHeader:
    """Read what a file of the newest version says of itself, without opening it.

    :param checked: ``data`` is the whole file and its checksum must fit; otherwise it may end after the header.
    :raises DamagedError: this is no such file.
    :raises NewerFormatError: written by a newer version.
    """
    if checked:
        _check_frame(data, {FORMAT_VERSION: _open_v1})
    if len(data) < _HEADER.size:
        raise DamagedError("The file ends before its header does.")
    return _parse_header(data)


def looks_sealed(data: bytes) -> bool:
    """Say whether bytes begin like a sealed file of any version."""
    return data.startswith(MAGIC)


def header_version(data: bytes) -> int:
    """Give the format version of a file that `looks_sealed`."""
    return int(_PREFIX.unpack_from(data)[1])


def _check_frame(data: bytes, known: Mapping[int, Reader]) -> Reader:
    if len(data) < _PREFIX.size + CHECKSUM_BYTES:
        raise DamagedError("The file is too short to be a sealed file.")
    if not looks_sealed(data):
        raise DamagedError("The file does not begin like a sealed file.")
    body = memoryview(data)[:-CHECKSUM_BYTES]
    if not hmac.compare_digest(hashlib.sha256(body).digest(), data[-CHECKSUM_BYTES:]):
        raise DamagedError("The checksum of the file does not fit what it holds.")
    version = header_version(data)
    if version in known:
        return known[version]
    if version > max(known):
        raise NewerFormatError(
            f"The file has format {version}; this version of sdnet reads up to {max(known)}. Update sdnet."
        )
    raise DamagedError(f"The file has format {version}, which does not exist.")


def _parse_header(data: bytes) -> EnvelopeHeader:
    magic, version, mode, kdf, iterations, memory_kib, lanes, salt, nonce, stored_ms, length, reserved = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version != FORMAT_VERSION or reserved != 0:
        raise DamagedError("The header of the file is not one of this format.")
    if length > MAX_PLAINTEXT_BYTES:
        raise DamagedError("The header of the file names an impossible length.")
    try:
        parameters = KdfParameters(Kdf(kdf), iterations, memory_kib, lanes)
        header = EnvelopeHeader(version, Mode(mode), parameters, salt, nonce, stored_ms / 1000, length)
    except ValueError as error:
        raise DamagedError("The header of the file names an unknown mode or key derivation.") from error
    parameters.check(header.mode)
    return header


def _open_v1(data: bytes, secret: bytes, mode: Mode, context: bytes) -> bytes:
    if len(data) < OVERHEAD_BYTES:
        raise DamagedError("The file is too short to be a sealed file.")
    header = _parse_header(data)
    if len(data) != OVERHEAD_BYTES + header.plaintext_bytes:
        raise DamagedError("The file is not as long as its header says.")
    if header.mode is not mode:
        raise DamagedError(f"The file has the mode {header.mode.name}, not {mode.name}.")
    key = _derive(secret, mode, header.kdf, header.salt)
    associated = _associated_data(context, data[: _HEADER.size])
    try:
        return AESGCM(key).decrypt(header.nonce, data[_HEADER.size : -CHECKSUM_BYTES], associated)
    except InvalidTag as error:
        raise WrongKeyError("The file was sealed for another secret or another place.") from error


READERS: Final[Mapping[int, Reader]] = MappingProxyType({1: _open_v1})
"""Every format version that can be read. A new version adds a reader here; files are rewritten when next stored."""


def _associated_data(context: bytes, header: bytes) -> bytes:
    return _AAD_LABEL + len(context).to_bytes(8, "big") + context + header


def _derive(secret: bytes, mode: Mode, parameters: KdfParameters, salt: bytes) -> bytes:
    if mode is Mode.PASSPHRASE:
        if not 0 < len(secret) <= MAX_SECRET_BYTES:
            raise StorageError(f"A passphrase has 1 to {MAX_SECRET_BYTES} bytes.")
    elif len(secret) != KEY_BYTES:
        raise StorageError(f"A key has {KEY_BYTES} bytes, not {len(secret)}.")
    match parameters.kdf:
        case Kdf.HKDF_SHA256:
            return HKDF(hashes.SHA256(), KEY_BYTES, salt, _HKDF_INFO).derive(secret)
        case Kdf.PBKDF2_SHA256:
            return PBKDF2HMAC(hashes.SHA256(), KEY_BYTES, salt, parameters.iterations).derive(secret)
        case Kdf.ARGON2ID:
            try:
                return Argon2id(
                    salt=salt,
                    length=KEY_BYTES,
                    iterations=parameters.iterations,
                    lanes=parameters.lanes,
                    memory_cost=parameters.memory_kib,
                ).derive(secret)
            except UnsupportedAlgorithm as error:
                raise StorageError(
                    "This machine's cryptography library lacks Argon2id (OpenSSL 3.2); use PBKDF2 instead."
                ) from error
            except MemoryError as error:
                raise StorageError(
                    f"There is not enough memory to unlock: Argon2id needs {parameters.memory_kib >> 10} MiB."
                ) from error
