"""Seals what lies in a library's database: rows, under keys that only the node's sealed store holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sdnet_core.errors import StorageError

__all__ = ["NONCE_BYTES", "RowSealer", "entry_key", "tag_of"]

NONCE_BYTES = 12
_NONCES_AT_ONCE = 256


class RowSealer:
    """AES-256-GCM under one library's row key, each row bound to its place.

    Nonces are random: one key is good for 2**32 rows written.

    :param key: 32 bytes.
    :param random_bytes: the node's random source.
    """

    __slots__ = ("_aead", "_nonces", "_random_bytes")

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._aead = AESGCM(key)
        self._random_bytes = random_bytes
        self._nonces: list[bytes] = []

    def seal(self, data: bytes, place: bytes) -> bytes:
        """Seal a row's contents.

        :param place: table and key; the same is needed to open it.
        """
        try:
            nonce = self._nonces.pop()
        except IndexError:
            # Many at once: asking for each by itself costs more than the sealing.
            drawn = self._random_bytes(NONCE_BYTES * _NONCES_AT_ONCE)
            self._nonces = [drawn[at : at + NONCE_BYTES] for at in range(0, len(drawn), NONCE_BYTES)]
            nonce = self._nonces.pop()
        return nonce + self._aead.encrypt(nonce, data, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Open a row's contents.

        :raises StorageError: damaged, or it belongs elsewhere.
        """
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError) as error:
            raise StorageError("A row of a library's database is damaged.") from error


def entry_key(secret: bytes, kind: str, entry_id: str) -> bytes:
    """The key of an entry, the same on all replicas: it says nothing about kind and id without the library's secret.

    :param secret: the library's, 32 bytes.
    """
    data = kind.encode() + b"\x00" + entry_id.encode()
    return hashlib.blake2b(data, digest_size=16, key=secret, person=b"sdnet/entry/v1").digest()


def tag_of(secret: bytes, label: bytes, *parts: bytes) -> bytes:
    """A keyed hash to find a row by, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16, key=secret, person=b"sdnet/tag/v1")
    for part in (label, *parts):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
