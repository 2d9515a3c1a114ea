"""How two devices that are not paired agree upon a secret, and people make sure that nobody sits in between (pure).

The sender commits to its key before the receiver shows its own, so whoever sits in between has to choose what it tells
either side before it can know what the check number will be: it has one guess in 10⁸, and no use for trying keys.
The specification is ``docs/protocol/spacedrop.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.errors import AuthenticationFailedError, ProtocolError
from sdnet_core.wire import encode

from . import nearby_messages as n

__all__ = ["CHECK_DIGITS", "Invitee", "Inviter", "Met", "check_number", "commitment"]

CHECK_DIGITS = 8
"""Digits of the check number: 26.6 bits."""
_LABEL = b"sdnet/spacedrop-nearby/1 "


@dataclass(frozen=True, slots=True)
class Met:
    """What both ends have after the exchange.

    :param drop_id: of the one drop that may follow.
    :param check: the number that both screens show, in groups of four digits.
    :param secret: seals the rest of the stream, 32 bytes.
    :param peer_name: as the other side says.
    """

    drop_id: uuid.UUID
    check: str
    secret: bytes = field(repr=False)
    peer_name: str


def commitment(sender_peer: str, receiver_peer: str, reveal: n.NearbyReveal) -> bytes:
    """What the sender commits with: SHA-256 over label, both peer ids, key and nonce, each behind its length."""
    return _hash("commitment", sender_peer.encode(), receiver_peer.encode(), reveal.ephemeral, reveal.nonce)


def check_number(key: bytes, digits: int = CHECK_DIGITS) -> str:
    """The number for people, made from the exchange's key; 128 bits are reduced, so no digit is likelier."""
    number = int.from_bytes(_expand(key, "check number", 16), "big") % 10**digits
    text = f"{number:0{digits}}"
    return " ".join(text[i : i + 4] for i in range(0, digits, 4))


class _Side:
    """What both sides share.

    :param seed: of the X25519 key, 32 random bytes.
    :param nonce: 32 random bytes.
    """

    def __init__(self, sender_peer: str, receiver_peer: str, name: str, *, seed: bytes, nonce: bytes) -> None:
        self._sender_peer = sender_peer
        self._receiver_peer = receiver_peer
        self._name = name
        self._private = X25519PrivateKey.from_private_bytes(seed)
        self._nonce = nonce
        self._commit: n.NearbyCommit | None = None
        self._key: n.NearbyKey | None = None
        self.met: Met | None = None
        """The result, once there is one."""

    @property
    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def _conclude(self, reveal: n.NearbyReveal, other: bytes, peer_name: str) -> None:
        assert self._commit is not None
        assert self._key is not None
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:  # of small order: everybody would know the secret
            raise AuthenticationFailedError("The key of the other side is not acceptable.") from error
        messages = (self._commit, self._key, reveal)
        transcript = _hash(
            "transcript", self._sender_peer.encode(), self._receiver_peer.encode(), *map(encode, messages)
        )
        key = hmac.digest(transcript, shared, "sha256")
        self.met = Met(
            drop_id=uuid.UUID(bytes=_expand(key, "drop id", 16), version=4),
            check=check_number(key),
            secret=_expand(key, "stream", 32),
            peer_name=peer_name,
        )


class Inviter(_Side):
    """The sender of the files, which opens the stream."""

    def commit(self) -> n.NearbyCommit:
        """The first message.

        :raises ProtocolError: it was made before: one attempt each.
        """
        if self._commit is not None:
            raise ProtocolError("A meeting has one attempt.")
        self._commit = n.NearbyCommit(
            commitment=commitment(self._sender_peer, self._receiver_peer, self._reveal), name=self._name
        )
        return self._commit

    @property
    def _reveal(self) -> n.NearbyReveal:
        return n.NearbyReveal(ephemeral=self._public, nonce=self._nonce)

    def receive(self, key: n.NearbyKey) -> n.NearbyReveal:
        """Take the receiver's key; `met` is there then.

        :returns: the last message.
        :raises ProtocolError: it has no place here.
        :raises AuthenticationFailedError: the key is not acceptable.
        """
        if self._commit is None or self._key is not None:
            raise ProtocolError("The key has no place here.")
        self._key = key
        self._conclude(self._reveal, key.ephemeral, key.name)
        return self._reveal


class Invitee(_Side):
    """The receiver."""

    def receive_commit(self, commit: n.NearbyCommit) -> n.NearbyKey:
        """Take the sender's commitment.

        :returns: the answer.
        :raises ProtocolError: it has no place here.
        """
        if self._commit is not None:
            raise ProtocolError("A meeting has one attempt.")
        self._commit = commit
        self._key = n.NearbyKey(ephemeral=self._public, nonce=self._nonce, name=self._name)
        return self._key

    def receive_reveal(self, reveal: n.NearbyReveal) -> None:
        """Take what the sender had committed to; `met` is there then.

        :raises ProtocolError: it has no place here.
        :raises AuthenticationFailedError: it is not what was committed to, or the key is not acceptable.
        """
        if self._commit is None or self._key is None or self.met is not None:
            raise ProtocolError("The key has no place here.")
        expected, self._key = self._key, None  # whatever comes of it, there is no second time
        wanted = commitment(self._sender_peer, self._receiver_peer, reveal)
        if not hmac.compare_digest(wanted, self._commit.commitment):
            raise AuthenticationFailedError("The sender shows another key than it had committed to.")
        self._key = expected
        self._conclude(reveal, reveal.ephemeral, self._commit.name)


def _hash(label: str, *fields: bytes) -> bytes:
    digest = hashlib.sha256()
    for value in (_LABEL + label.encode(), *fields):
        digest.update(len(value).to_bytes(4, "big") + value)
    return digest.digest()


def _expand(key: bytes, label: str, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, _LABEL + label.encode()).derive(key)
