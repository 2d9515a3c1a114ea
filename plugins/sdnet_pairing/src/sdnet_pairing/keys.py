"""Transcript, key schedule and sealed boxes of the pairing conversation, the same code for both roles (pure)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.errors import AuthenticationFailedError

__all__ = ["SUITES", "VERSIONS", "Ephemeral", "KeySchedule", "Transcript", "mac"]

VERSIONS = (1,)
"""Minor versions of the conversation that this code speaks, preferred first."""
AES_256_GCM = 1
CHACHA20_POLY1305 = 2
SUITES = (AES_256_GCM, CHACHA20_POLY1305)
"""AEAD suites this code speaks, preferred first."""

# Every box has a key of its own, so that the nonce may be a constant.
_NONCE = bytes(12)
_AEADS: dict[int, type[AESGCM] | type[ChaCha20Poly1305]] = {
    AES_256_GCM: AESGCM,
    CHACHA20_POLY1305: ChaCha20Poly1305,
}


class Transcript:
    """SHA-256 over everything said so far, each field behind its label and its length."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, label: str, *values: bytes) -> Transcript:
        """Add a labelled list of values; gives itself back."""
        name = label.encode()
        self._hash.update(len(name).to_bytes(2, "big") + name + len(values).to_bytes(2, "big"))
        for value in values:
            self._hash.update(len(value).to_bytes(4, "big") + value)
        return self

    def fork(self) -> Transcript:
        """A copy to which more can be added without changing this one."""
        copy = Transcript()
        copy._hash = self._hash.copy()
        return copy

    def digest(self) -> bytes:
        """The hash at this point, 32 bytes."""
        return self._hash.digest()


class Ephemeral:
    """An X25519 key for one conversation.

    :param seed: 32 random bytes.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def exchange(self, other: bytes) -> bytes:
        """The shared secret with the other side's public key.

        :raises AuthenticationFailedError: that key has small order: the secret would be known to everybody.
        """
        try:
            secret = self._key.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:
            raise AuthenticationFailedError("The other side's key is not acceptable.") from error
        if not any(secret):
            raise AuthenticationFailedError("The other side's key is not acceptable.")
        return secret


class KeySchedule:
    """Keys from the code and the two ephemerals, each bound to a label and to a point of the transcript.

    :param shared: X25519 secret.
    :param psk: from the code.
    """

    __slots__ = ("_secret",)

    def __init__(self, shared: bytes, psk: bytes) -> None:
        self._secret = shared + psk

    def key(self, label: str, point: bytes) -> bytes:
        """``Expand(Extract(point, ECDH ‖ psk), label)``, 32 bytes.

        :param point: digest of the transcript.
        """
        return _expand(hmac.digest(point, self._secret, "sha256"), label)

    def seal(self, suite: int, label: str, point: bytes, plaintext: bytes) -> bytes:
        """Encrypt the one box of this label at this point."""
        return _AEADS[suite](self.key(label, point)).encrypt(_NONCE, plaintext, point)

    def open(self, suite: int, label: str, point: bytes, box: bytes) -> bytes:
        """Decrypt the one box of this label at this point.

        :raises AuthenticationFailedError: it was made with other keys, at another point, or was changed.
        """
        try:
            return _AEADS[suite](self.key(label, point)).decrypt(_NONCE, box, point)
        except InvalidTag as error:
            raise AuthenticationFailedError("The other side did not prove that it knows the code.") from error


def mac(key: bytes, label: str, point: bytes) -> bytes:
    """HMAC-SHA256 over a point of the transcript under a key made from ``key`` for this label, 32 bytes."""
    return hmac.digest(_expand(key, label), point, "sha256")


def _expand(key: bytes, label: str) -> bytes:
    return HKDFExpand(SHA256(), 32, b"sdnet/pair/v1 " + label.encode()).derive(key)
