"""The key schedule of `/sdnet/session/1` (pure): transcripts, suites, and every key that a session uses.

The byte-exact specification is ``docs/protocol/session.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.ciphers import aes_is_faster
from sdnet_core.errors import AuthenticationFailedError

__all__ = [
    "EPOCH_ID_BYTES",
    "KEY_BYTES",
    "PROTOCOL_ID",
    "TAG_BYTES",
    "Aead",
    "PeerSecret",
    "Role",
    "SessionKeys",
    "Suite",
    "Transcript",
    "confirmation",
    "derive_session_keys",
    "exchange",
    "expand",
    "extract",
    "suites_by_speed",
]

PROTOCOL_ID = "/sdnet/session/1"
KEY_BYTES = 32
TAG_BYTES = 16
"""Length of the authentication tag of both suites."""
EPOCH_ID_BYTES = 8

_LABEL = b"sdnet/session/1\0"
_MAX_PROTOCOL_BYTES = 255


class Role(IntEnum):
    """A side of a session; it stays the same for all epochs of the session."""

    INITIATOR = 1
    """The device that dialled."""
    RESPONDER = 2

    @property
    def other(self) -> Role:
        """The side at the other end."""
        return Role.RESPONDER if self is Role.INITIATOR else Role.INITIATOR


class Aead(Protocol):
    """What a suite gives for one key: the interface of the ``cryptography`` package."""

    def encrypt_into(self, nonce: bytes, data: bytes, associated_data: bytes, buf: memoryview, /) -> int:
        """Seal ``data`` into ``buf``, which is exactly 16 bytes longer."""

    def decrypt(self, nonce: bytes, data: memoryview, associated_data: bytes, /) -> bytes:
        """Open sealed data.

        :raises cryptography.exceptions.InvalidTag: it does not open.
        """

    def decrypt_into(self, nonce: bytes, data: bytes, associated_data: bytes, buf: memoryview, /) -> int:
        """Open sealed data into ``buf``, which is exactly 16 bytes shorter; raises as `decrypt`."""


class Suite(IntEnum):
    """An AEAD with 256-bit keys, 96-bit nonces and 128-bit tags; the number stands on the wire."""

    AES_256_GCM = 1
    """NIST SP 800-38D."""
    CHACHA20_POLY1305 = 2
    """RFC 8439."""

    def cipher(self, key: bytes) -> Aead:
        """The AEAD under one key of 32 bytes."""
        return AESGCM(key) if self is Suite.AES_256_GCM else ChaCha20Poly1305(key)


def suites_by_speed(timer: Callable[[], float] = time.perf_counter, *, rounds: int = 8) -> tuple[Suite, ...]:
    """Measure the suites on this machine: the faster first.

    :param timer: as for :func:`~sdnet_core.ciphers.aes_is_faster`.
    :param rounds: the same.
    """
    suites = (Suite.AES_256_GCM, Suite.CHACHA20_POLY1305)
    return suites if aes_is_faster(timer, rounds=rounds) else suites[::-1]


@dataclass(frozen=True, slots=True)
class PeerSecret:
    """What is kept of a pairing, as much as a session needs.

    :param pairing_id: names the pairing on both devices, 16 bytes.
    :param root: the pairing root, 32 bytes.
    :param peer_id: the libp2p peer id of the paired device; its Ed25519 key follows from it.
    """

    pairing_id: bytes
    root: bytes = field(repr=False)
    peer_id: str

    def __post_init__(self) -> None:
        if len(self.pairing_id) != 16 or len(self.root) != KEY_BYTES:
            raise ValueError("a pairing id has 16 bytes, a pairing root 32")


class Transcript:
    """A running SHA-256 over length-prefixed fields: u32 length, then the bytes of each.

    :param purpose: makes transcripts for different purposes differ.
    """

    __slots__ = ("_hash",)

    def __init__(self, purpose: str) -> None:
        self._hash = hashlib.sha256()
        self.add(_LABEL + purpose.encode())

    def add(self, *fields: bytes) -> None:
        """Append fields, in order."""
        for value in fields:
            self._hash.update(len(value).to_bytes(4, "big"))
            self._hash.update(value)

    def digest(self) -> bytes:
        """The hash over everything so far, 32 bytes; the transcript may go on."""
        return self._hash.copy().digest()


def extract(salt: bytes, key_material: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869 section 2.2)."""
    return hmac.digest(salt, key_material, "sha256")


def expand(key: bytes, label: str, context: bytes = b"", length: int = KEY_BYTES) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3); info is ``"sdnet/session/1\\0" ‖ label ‖ 0x00 ‖ context``."""
    return HKDFExpand(SHA256(), length, _LABEL + label.encode() + b"\0" + context).derive(key)


def confirmation(key: bytes, label: str, transcript_hash: bytes) -> bytes:
    """A key confirmation: HMAC-SHA256 under a key that has this label only, 32 bytes."""
    return hmac.digest(expand(key, label), transcript_hash, "sha256")


def exchange(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """X25519 (RFC 7748), 32 bytes.

    :raises AuthenticationFailedError: the other side's point has small order, so that the result would not be secret.
    """
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise AuthenticationFailedError("The key of the other side is not acceptable.") from error


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one epoch of a session. They live in memory only.

    :param epoch_id: names the epoch in the first record of every stream, 8 bytes; not secret.
    :param role: which side of the session we are.
    :param send_key: what the keys of everything we send are made from, 32 bytes.
    :param receive_key: the same for everything we receive; never equal to ``send_key``.
    :param rekey_secret: what the next epoch is made from, together with a fresh key exchange, 32 bytes.
    :param created_at: seconds since the Unix epoch.
    :param expires_at: seconds since the Unix epoch, for people; the deadline itself runs on the monotonic clock.
    """

    epoch_id: bytes
    role: Role
    suite: Suite
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    rekey_secret: bytes = field(repr=False)
    created_at: float
    expires_at: float

    def stream_key(self, opener: Role, sender: Role, protocol: str, number: int) -> bytes:
        """The key of one direction of one stream, 32 bytes.

        :param opener: who opened the stream.
        :param sender: who sends in this direction.
        :param protocol: the libp2p protocol id agreed for the stream, at most 255 bytes.
        :param number: the stream's number, which its opener uses once in an epoch.
        """
        name = protocol.encode()
        if len(name) > _MAX_PROTOCOL_BYTES:
            raise ValueError(f"a protocol id has at most {_MAX_PROTOCOL_BYTES} bytes")
        context = struct.pack("!BBH", opener, sender, len(name)) + name + number.to_bytes(8, "big")
        return expand(self.send_key if sender is self.role else self.receive_key, "stream", context)


def derive_session_keys(
    key: bytes, transcript_hash: bytes, *, role: Role, suite: Suite, created_at: float, lifetime_s: float
) -> SessionKeys:
    """Make the keys of an epoch.

    :param key: the result of the key exchange, extracted.
    :param transcript_hash: over the whole exchange, 32 bytes.
    :param created_at: seconds since the Unix epoch.
    """
    epoch_key = expand(key, "epoch", transcript_hash)
    traffic = {sender: expand(epoch_key, f"{sender.name.lower()} traffic") for sender in Role}
    return SessionKeys(
        epoch_id=expand(epoch_key, "epoch id", length=EPOCH_ID_BYTES),
        role=role,
        suite=suite,
        send_key=traffic[role],
        receive_key=traffic[role.other],
        rekey_secret=expand(epoch_key, "rekey"),
        created_at=created_at,
        expires_at=created_at + lifetime_s,
    )
