"""Records in the DHT: sealed, signed with a key that only those who share a secret can have, and numbered (pure).

From the secret come an Ed25519 key and an AEAD key. The record lies at the hash of the public key, so a node can check
that it belongs there, and nobody without the secret can make, replace or read one. The higher sequence number wins.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.errors import AuthenticationFailedError, SerializationError
from sdnet_core.identity import is_small_order
from sdnet_core.wire import Bytes32, Message, decode, encode

__all__ = [
    "CLOCK_TOLERANCE_S",
    "DAY_S",
    "MAX_LIFETIME_S",
    "MAX_RECORD_BYTES",
    "Card",
    "Record",
    "RecordKeys",
    "check_record",
    "daily_secret",
    "record_key",
]

MAX_LIFETIME_S = 24 * 3600.0
"""The longest a record may live."""
CLOCK_TOLERANCE_S = 3600.0
"""The clocks of a device and of a node may differ so much."""
MAX_VALUE_BYTES = 2048
MAX_RECORD_BYTES = MAX_VALUE_BYTES + 256
DAY_S = 24 * 3600

_PAD_BYTES = 512
"""A sealed card is padded to a multiple of this, so that its length says little."""
_NONCE_BYTES = 12
_LABEL = b"sdnet/dht/v1 "


class Record(Message, frozen=True, kw_only=True, tag=30):
    """What a node stores.

    :param public_key: whose hash is the key it lies at.
    :param sequence: the higher one replaces the lower one.
    :param expires_at: seconds since the epoch.
    :param value: a sealed `Card`; empty when the publisher has taken it back.
    :param signature: over all the others.
    """

    public_key: Bytes32
    sequence: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    expires_at: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

    @property
    def key(self) -> bytes:
        """Where it lies, 32 bytes."""
        return record_key(self.public_key)


class Card(Message, frozen=True, kw_only=True, tag=31):
    """What is inside: who published it and where it is found.

    :param addresses: multiaddrs without a trailing ``/p2p``.
    :param tags: as announced on the local network.
    :param host: tells the same machine from others; loopback addresses are of use there only.
    :param seen_as: IP addresses that meeting points saw it come from.
    """

    peer_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=24)]
    tags: Annotated[tuple[Annotated[bytes, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=16)] = ()
    host: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    seen_as: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=4)] = ()


def record_key(public_key: bytes) -> bytes:
    """Where the record of a public key lies, 32 bytes."""
    return hashlib.sha256(b"sdnet/dht/record/v1\0" + public_key).digest()


def daily_secret(secret: bytes, at: float) -> bytes:
    """The secret of one day, so that a long-lived one does not leave the same key in the DHT for ever.

    :param at: seconds since the epoch.
    """
    return _expand(secret, b"day " + str(int(at // DAY_S)).encode())


class RecordKeys:
    """The keys that a secret gives.

    :param secret: 32 bytes.
    """

    __slots__ = ("_box", "_signer", "key", "public_key")

    def __init__(self, secret: bytes) -> None:
        self._signer = Ed25519PrivateKey.from_private_bytes(_expand(secret, b"signer"))
        self._box = ChaCha20Poly1305(_expand(secret, b"box"))
        self.public_key = self._signer.public_key().public_bytes_raw()
        self.key = record_key(self.public_key)

    def make(self, card: Card | None, *, sequence: int, expires_at: int, nonce: bytes) -> Record:
        """Make a record.

        :param card: None takes back what was published before.
        :param nonce: 12 random bytes.
        """
        value = b""
        if card is not None:
            plain = encode(card)
            padded = len(plain).to_bytes(2, "big") + plain
            padded += bytes(-len(padded) % _PAD_BYTES)
            value = nonce + self._box.encrypt(nonce, padded, _bound(self.public_key, sequence, expires_at))
        signature = self._signer.sign(_signed(self.public_key, sequence, expires_at, value))
        return Record(
            public_key=self.public_key, sequence=sequence, expires_at=expires_at, value=value, signature=signature
        )

    def open(self, record: Record) -> Card | None:
        """What a record says; None if it was taken back. Check it first.

        :raises AuthenticationFailedError: it was not made with this secret.
        :raises SerializationError: what is inside is not a card.
        """
        if record.public_key != self.public_key:
            raise AuthenticationFailedError("The record belongs to another key.")
        if not record.value:
            return None
        nonce, sealed = record.value[:_NONCE_BYTES], record.value[_NONCE_BYTES:]
        try:
            padded = self._box.decrypt(nonce, sealed, _bound(record.public_key, record.sequence, record.expires_at))
        except (InvalidTag, ValueError) as error:
            raise AuthenticationFailedError("The record does not open.") from error
        length = int.from_bytes(padded[:2], "big")
        if length > len(padded) - 2:
            raise SerializationError("The record is cut off.")
        return decode(padded[2 : 2 + length], Card)


def check_record(record: Record, *, now: float) -> None:
    """Check that a record is one that a node may keep and that a device may believe.

    :param now: seconds since the epoch.
    :raises AuthenticationFailedError: its signature is not that of its key.
    :raises SerializationError: it has expired, or would live for too long.
    """
    if is_small_order(record.public_key):
        raise AuthenticationFailedError("The record's key is not acceptable.")
    if not now - CLOCK_TOLERANCE_S < record.expires_at <= now + MAX_LIFETIME_S + CLOCK_TOLERANCE_S:
        raise SerializationError("The record has expired, or would live for too long.")
    try:
        Ed25519PublicKey.from_public_bytes(record.public_key).verify(
            record.signature, _signed(record.public_key, record.sequence, record.expires_at, record.value)
        )
    except (InvalidSignature, ValueError) as error:
        raise AuthenticationFailedError("The record's signature is not valid.") from error


def _bound(public_key: bytes, sequence: int, expires_at: int) -> bytes:
    return public_key + sequence.to_bytes(8, "big") + expires_at.to_bytes(8, "big")


def _signed(public_key: bytes, sequence: int, expires_at: int, value: bytes) -> bytes:
    return b"sdnet/dht-record/v1\0" + _bound(public_key, sequence, expires_at) + value


def _expand(secret: bytes, label: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, _LABEL + label).derive(secret)
