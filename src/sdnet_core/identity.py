"""Who a device is: its Ed25519 key, peer id and fingerprint, and what it tells others about itself (pure)."""

from __future__ import annotations

import hashlib
import platform
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

import base58
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .clock import Randomness
from .errors import AuthenticationFailedError, SerializationError
from .wire import Bytes16, Bytes32, Message

__all__ = [
    "DeviceInfo",
    "DeviceName",
    "Fingerprint",
    "HostIdentity",
    "NetworkIdentity",
    "is_small_order",
    "peer_id_from_public_key",
    "public_key_from_peer_id",
    "verify",
]

# libp2p peer-ids specification: an Ed25519 key is inlined as an identity multihash (0x00, 36 bytes) of the protobuf
# PublicKey{Type: Ed25519 (1), Data: 32 bytes}.
_PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])

_FIELD_PRIME = 2**255 - 19
# RFC 8032: the y coordinates of the points whose order divides the cofactor 8. Under such a public key anybody can
# make signatures that verify.
_ORDER_8_Y = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8_Y, _FIELD_PRIME - _ORDER_8_Y})

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aiou"


def is_small_order(public_key: bytes) -> bool:
    """Whether an Ed25519 public key (32 bytes) has small order or is not canonically encoded."""
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    return y >= _FIELD_PRIME or y in _SMALL_ORDER_Y


@lru_cache(maxsize=4096)  # asked for with every message
def peer_id_from_public_key(public_key: bytes) -> str:
    """The libp2p peer id of an Ed25519 public key (32 bytes), base58."""
    return base58.b58encode(_PEER_ID_PREFIX + public_key).decode()


def public_key_from_peer_id(peer_id: str) -> bytes:
    """The Ed25519 public key (32 bytes) that a peer id carries.

    :raises SerializationError: it is not the peer id of an Ed25519 key.
    """
    try:
        raw = base58.b58decode(peer_id)
    except ValueError as error:
        raise SerializationError("That is not a libp2p peer id.") from error
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):
        raise SerializationError("That is not the libp2p peer id of an Ed25519 key.")
    return raw[6:]


def verify(public_key: bytes, purpose: str, message: bytes, signature: bytes) -> None:
    """Check a signature made by :meth:`NetworkIdentity.sign` for the same purpose.

    :raises AuthenticationFailedError: the signature is not that key's over that message, or the key has small order.
    """
    if is_small_order(public_key):
        raise AuthenticationFailedError("The device key of the other side is not acceptable.")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed(purpose, message))
    except (InvalidSignature, ValueError) as error:
        raise AuthenticationFailedError("The signature of the other side is not valid.") from error


def _signed(purpose: str, message: bytes) -> bytes:
    return f"sdnet/{purpose}/v1\0".encode() + message


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """An identity that a host application keeps, given to the node at each start; the node does not store the key.

    :param seed: of the Ed25519 key, 32 bytes: the host guards it.
    :param device_id: the device's UUID in the host's own records.
    :param name: what other devices call this one; the configuration's when None.
    """

    seed: bytes = field(repr=False)
    device_id: uuid.UUID
    name: str | None = None


class Fingerprint(msgspec.Struct, frozen=True):
    """80 bits of a hash of a device key, for people to compare.

    :param hex: 20 hexadecimal digits in groups of four.
    :param words: five pronounceable words (proquints, arXiv:0901.4016), the same bits.
    """

    hex: str
    words: str

    @classmethod
    def of(cls, public_key: bytes) -> Fingerprint:
        """The fingerprint of an Ed25519 public key."""
        bits = hashlib.sha256(b"sdnet/fingerprint/v1\0" + public_key).digest()[:10]
        quints = [_proquint(int.from_bytes(bits[i : i + 2], "big")) for i in range(0, 10, 2)]
        return cls(hex=bits.hex(" ", -2), words="-".join(quints))

    def __str__(self) -> str:
        return self.words


def _proquint(value: int) -> str:
    return (
        _CONSONANTS[value >> 12 & 15]
        + _VOWELS[value >> 10 & 3]
        + _CONSONANTS[value >> 6 & 15]
        + _VOWELS[value >> 4 & 3]
        + _CONSONANTS[value & 15]
    )


DeviceName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class DeviceInfo(Message, frozen=True, kw_only=True, tag=1):
    """What devices tell each other about themselves at pairing.

    :param device_id: UUID, 16 bytes, bound to the key at first start.
    :param name: what its person calls it; not unique, printable text.
    :param os: operating system, such as ``Linux``.
    :param version: sdnet version it runs.
    :param public_key: Ed25519, 32 bytes.
    """

    device_id: Bytes16
    name: DeviceName
    os: Annotated[str, msgspec.Meta(max_length=32)] = ""
    version: Annotated[str, msgspec.Meta(max_length=32)] = ""
    public_key: Bytes32

    def __post_init__(self) -> None:
        # Shown on terminals and in prompts of the other side: no controls, no bidirectional overrides.
        for text in (self.name, self.os, self.version):
            if not text.isprintable():
                raise ValueError("a device's name, OS and version are printable text")

    @property
    def id(self) -> uuid.UUID:
        """The device id as a UUID."""
        return uuid.UUID(bytes=self.device_id)

    @property
    def peer_id(self) -> str:
        """The libp2p peer id that follows from the key."""
        return peer_id_from_public_key(self.public_key)

    @property
    def fingerprint(self) -> Fingerprint:
        """What people compare."""
        return Fingerprint.of(self.public_key)


class NetworkIdentity:
    """This device's key pair.

    :param seed: the Ed25519 private key, 32 bytes (RFC 8032).
    """

    __slots__ = ("_key", "_seed", "fingerprint", "peer_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.peer_id = peer_id_from_public_key(self.public_key)
        self.fingerprint = Fingerprint.of(self.public_key)

    def __repr__(self) -> str:
        return f"NetworkIdentity({self.peer_id})"

    @classmethod
    def generate(cls, randomness: Randomness) -> NetworkIdentity:
        """Make a new key pair."""
        return cls(randomness.bytes(32))

    @property
    def seed(self) -> bytes:
        """The private key, for the vault and the libp2p host only."""
        return self._seed

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign for one purpose: the signature is over ``"sdnet/<purpose>/v1\\0" ‖ message``.

        :returns: 64 bytes.
        """
        return self._key.sign(_signed(purpose, message))

    def device_info(self, device_id: uuid.UUID, name: str, version: str) -> DeviceInfo:
        """What this device tells others about itself."""
        return DeviceInfo(
            device_id=device_id.bytes,
            name=name,
            os=platform.system()[:32],
            version=version,
            public_key=self.public_key,
        )
