"""Changing the keys of a session by a fresh key exchange, without I/O.

`RekeyRequest` → `RekeyAnswer` → `RekeyConfirm` → `RekeyDone`, all on the sealed control stream, which authenticates
them. The new keys come from a fresh X25519 exchange *and* a secret of the old epoch.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sdnet_core.clock import Randomness
from sdnet_core.errors import AuthenticationFailedError, ProtocolError
from sdnet_core.session.keys import (
    Role,
    SessionKeys,
    Transcript,
    confirmation,
    derive_session_keys,
    exchange,
    extract,
)
from sdnet_core.wire import Bytes32, Message

__all__ = ["Rekey", "RekeyAnswer", "RekeyConfirm", "RekeyDone", "RekeyRequest"]


class RekeyRequest(Message, frozen=True, kw_only=True, tag=20):
    """One side asks for new keys.

    :param ephemeral: a fresh X25519 public key.
    """

    nonce: Bytes32
    ephemeral: Bytes32


class RekeyAnswer(Message, frozen=True, kw_only=True, tag=21):
    """The other side has the new keys, and takes streams under them."""

    nonce: Bytes32
    ephemeral: Bytes32
    confirmation: Bytes32


class RekeyConfirm(Message, frozen=True, kw_only=True, tag=22):
    """The asking side has them too: the last record it sends under the old keys of the control stream."""

    confirmation: Bytes32


class RekeyDone(Message, frozen=True, kw_only=True, tag=23):
    """The last record that the answering side sends under the old keys of the control stream."""


class Rekey:
    """One change of keys, seen from one side. A side calls `request` and `accept`, or `answer` and `confirm`.

    :param keys: of the old epoch.
    """

    def __init__(self, keys: SessionKeys, randomness: Randomness) -> None:
        self._old = keys
        self._private_key = X25519PrivateKey.from_private_bytes(randomness.bytes(32))
        self._ephemeral = self._private_key.public_key().public_bytes_raw()
        self._nonce = randomness.bytes(32)
        self._key = b""
        self._hash = b""

    def request(self) -> RekeyRequest:
        """The first message."""
        return RekeyRequest(nonce=self._nonce, ephemeral=self._ephemeral)

    def answer(self, request: RekeyRequest) -> RekeyAnswer:
        """Take the other side's request; the new keys are there then.

        :raises AuthenticationFailedError: its key is not acceptable.
        """
        self._agree(self._old.role.other, request, (self._nonce, self._ephemeral), request.ephemeral)
        mac = confirmation(self._key, "rekey answer", self._hash)
        return RekeyAnswer(nonce=self._nonce, ephemeral=self._ephemeral, confirmation=mac)

    def accept(self, answer: RekeyAnswer) -> RekeyConfirm:
        """Take the other side's answer; the new keys are there then.

        :raises AuthenticationFailedError: its key is not acceptable, or it has other keys than we.
        """
        self._agree(self._old.role, self.request(), (answer.nonce, answer.ephemeral), answer.ephemeral)
        self._check("rekey answer", answer.confirmation)
        return RekeyConfirm(confirmation=confirmation(self._key, "rekey confirm", self._hash))

    def confirm(self, message: RekeyConfirm) -> None:
        """Check that the asking side has the same keys.

        :raises AuthenticationFailedError: it has not.
        """
        self._check("rekey confirm", message.confirmation)

    def new_keys(self, created_at: float, lifetime_s: float) -> SessionKeys:
        """The keys of the new epoch.

        :param created_at: seconds since the Unix epoch.
        """
        return derive_session_keys(
            self._key,
            self._hash,
            role=self._old.role,
            suite=self._old.suite,
            created_at=created_at,
            lifetime_s=lifetime_s,
        )

    def _agree(self, asking: Role, request: RekeyRequest, answer: tuple[bytes, bytes], remote_ephemeral: bytes) -> None:
        if self._key:
            raise ProtocolError("The new keys were agreed on already.")
        transcript = Transcript("rekey")
        transcript.add(self._old.epoch_id, bytes([asking]), request.nonce, request.ephemeral, *answer)
        self._hash = transcript.digest()
        self._key = extract(self._old.rekey_secret, exchange(self._private_key, remote_ephemeral) + self._hash)

    def _check(self, label: str, mac: bytes) -> None:
        if not hmac.compare_digest(confirmation(self._key, label, self._hash), mac):
            raise AuthenticationFailedError("The other side has other keys.")
