"""The handshake of `/sdnet/session/1`, without I/O: encoded messages in, encoded messages out.

The conversation is `Hello` → `Welcome` or `Refusal`, then `Proof` → `Ready`. Afterwards each side has shown that it
holds its device key and the pairing root, and both have keys that come from a fresh exchange. The byte-exact
specification is ``docs/protocol/session.md``.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sdnet_core.clock import Randomness
from sdnet_core.errors import AuthenticationFailedError, ProtocolError, RefusedError
from sdnet_core.identity import NetworkIdentity, public_key_from_peer_id, verify
from sdnet_core.session.keys import PeerSecret, Role, Suite, Transcript, confirmation, exchange, extract
from sdnet_core.wire import Bytes16, Bytes32, Message, decode, encode

__all__ = [
    "MAX_HANDSHAKE_MESSAGE_BYTES",
    "VERSION",
    "Established",
    "Hello",
    "InitiatorHandshake",
    "Proof",
    "Ready",
    "Refusal",
    "RefusalReason",
    "ResponderHandshake",
    "SessionRefusedError",
    "Welcome",
]

VERSION = 1
"""The only version so far."""
MAX_HANDSHAKE_MESSAGE_BYTES = 1024

_PURPOSE = "session"

_Offer = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Offers = Annotated[tuple[_Offer, ...], msgspec.Meta(min_length=1, max_length=8)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class RefusalReason(StrEnum):
    """Why a device takes no session. A revoked device is told what a stranger is told."""

    NOT_PAIRED = "not-paired"
    """The responder holds no such pairing with the dialler."""
    BUSY = "busy"
    """A session between the two is being made, or there is one already, that the responder keeps instead."""
    UNSUPPORTED = "unsupported"
    """No version or no suite in common."""


class Hello(Message, frozen=True, kw_only=True, tag=1):
    """The initiator begins.

    :param versions: of the session protocol that it speaks.
    :param suites: that it takes, preferred first.
    :param ephemeral: a fresh X25519 public key.
    """

    versions: _Offers
    suites: _Offers
    pairing_id: Bytes16
    nonce: Bytes32
    ephemeral: Bytes32


class Welcome(Message, frozen=True, kw_only=True, tag=2):
    """The responder chooses and proves itself.

    :param version: one of those offered.
    :param suite: one of those offered.
    :param signature: with the device key, over the transcript.
    :param confirmation: shows knowledge of the pairing root.
    """

    version: _Offer
    suite: _Offer
    nonce: Bytes32
    ephemeral: Bytes32
    signature: _Signature
    confirmation: Bytes32


class Proof(Message, frozen=True, kw_only=True, tag=3):
    """The initiator proves itself."""

    signature: _Signature
    confirmation: Bytes32


class Ready(Message, frozen=True, kw_only=True, tag=4):
    """The responder has accepted the proof: it takes streams of this session."""

    confirmation: Bytes32


class Refusal(Message, frozen=True, kw_only=True, tag=5):
    """The responder takes no session.

    :param signature: with the device key, over the `Hello` and the reason, so that the initiator can believe it.
    """

    reason: RefusalReason
    signature: _Signature


class SessionRefusedError(RefusedError):
    """The other device, proven to be that device, takes no session.

    :ivar reason: why.
    """

    code = "session-refused"

    def __init__(self, reason: RefusalReason) -> None:
        self.reason = reason
        super().__init__(_REFUSALS[reason])


_REFUSALS = {
    RefusalReason.NOT_PAIRED: "The other device is not, or no longer, paired with this one; pair them again.",
    RefusalReason.BUSY: "The other device is connecting to this one at the same time.",
    RefusalReason.UNSUPPORTED: "The other device speaks no version of the session protocol that this one does.",
}


@dataclass(frozen=True, slots=True)
class Established:
    """What a finished key exchange gives.

    :param key: what the keys of the first epoch are made from, 32 bytes.
    :param transcript_hash: over the whole conversation, 32 bytes.
    """

    version: int
    suite: Suite
    key: bytes = field(repr=False)
    transcript_hash: bytes


class _Conversation:
    """What both sides share: who speaks, the transcript, and that nothing follows a failure."""

    def __init__(
        self,
        identity: NetworkIdentity,
        role: Role,
        remote_peer_id: str,
        suites: Sequence[Suite],
        randomness: Randomness,
    ) -> None:
        if remote_peer_id == identity.peer_id:
            raise ProtocolError("A device makes no session with itself.")
        self._identity = identity
        self._remote_key = public_key_from_peer_id(remote_peer_id)
        peer_ids = (identity.peer_id, remote_peer_id)
        self._peer_ids = [peer_id.encode() for peer_id in (peer_ids if role is Role.INITIATOR else peer_ids[::-1])]
        self._suites = tuple(suites)
        self._nonce = randomness.bytes(32)
        self._private_key: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(randomness.bytes(32))
        self._ephemeral = self._private_key.public_key().public_bytes_raw()
        self._transcript = Transcript("handshake")
        self._transcript.add(*self._peer_ids)
        self._key = b""
        self._expecting: Callable[[bytes], bytes | None] | None = None

    def receive(self, payload: bytes) -> bytes | None:
        """Take the next message of the other side.

        :returns: the answer to send, or None if there is none.
        :raises AuthenticationFailedError: the other side did not prove who it is. Nothing more is to be sent.
        :raises ProtocolError: the message does not decode or is not allowed here. Nothing more is to be sent.
        """
        step, self._expecting = self._expecting, None
        if step is None:
            raise ProtocolError("The handshake takes no message now.")
        return step(payload)

    def _agree(self, welcome_fields: tuple[int, int, bytes, bytes], remote_ephemeral: bytes, root: bytes) -> bytes:
        """Add the responder's choices to the transcript, compute the key, and forget the private key."""
        version, suite, nonce, ephemeral = welcome_fields
        self._transcript.add(version.to_bytes(2, "big"), suite.to_bytes(2, "big"), nonce, ephemeral)
        transcript_hash = self._transcript.digest()
        private_key, self._private_key = self._private_key, None
        if private_key is None:
            raise ProtocolError("The handshake has its keys already.")
        self._key = extract(root, exchange(private_key, remote_ephemeral) + transcript_hash)
        return transcript_hash

    def _prove(self, side: Role) -> tuple[bytes, bytes]:
        """Sign and confirm the transcript as one side of it."""
        signature = self._identity.sign(_PURPOSE, _signed(side.name.lower(), self._transcript.digest()))
        self._transcript.add(signature)
        mac = confirmation(self._key, side.name.lower(), self._transcript.digest())
        self._transcript.add(mac)
        return signature, mac

    def _check(self, side: Role, signature: bytes, mac: bytes) -> None:
        """Check what the other side made with `_prove`."""
        verify(self._remote_key, _PURPOSE, _signed(side.name.lower(), self._transcript.digest()), signature)
        self._transcript.add(signature)
        self._check_confirmation(side.name.lower(), mac)
        self._transcript.add(mac)

    def _check_confirmation(self, label: str, mac: bytes) -> None:
        if not hmac.compare_digest(confirmation(self._key, label, self._transcript.digest()), mac):
            raise AuthenticationFailedError("The other side does not hold the secret of this pairing.")

    def _established(self, version: int, suite: Suite) -> Established:
        return Established(version, suite, self._key, self._transcript.digest())

    def _refusal_hash(self, hello: bytes, reason: RefusalReason) -> bytes:
        transcript = Transcript("refusal")
        transcript.add(*self._peer_ids, hello, reason.value.encode())
        return transcript.digest()


class InitiatorHandshake(_Conversation):
    """The dialler's side. Send `start()`, then give each message that comes to `receive()` and send what it returns.

    :param secret: of the pairing; its peer id is whom we want to talk to.
    :param suites: what we take, preferred first.
    :ivar established: the keys, from the moment the responder has proven itself (before `Proof` is sent): a stream
        that the responder opens may overtake its `Ready`.
    :ivar done: whether the responder has accepted us too.
    """

    def __init__(
        self, identity: NetworkIdentity, secret: PeerSecret, suites: Sequence[Suite], randomness: Randomness
    ) -> None:
        super().__init__(identity, Role.INITIATOR, secret.peer_id, suites, randomness)
        self._secret = secret
        self._hello = b""
        self.established: Established | None = None
        self.done = False

    def start(self) -> bytes:
        """The first message."""
        if self._hello:
            raise ProtocolError("The handshake has begun already.")
        self._hello = encode(
            Hello(
                versions=(VERSION,),
                suites=tuple(int(suite) for suite in self._suites),
                pairing_id=self._secret.pairing_id,
                nonce=self._nonce,
                ephemeral=self._ephemeral,
            )
        )
        self._transcript.add(self._hello)
        self._expecting = self._receive_welcome
        return self._hello

    def _receive_welcome(self, payload: bytes) -> bytes:
        answer: Welcome | Refusal = decode(payload, Welcome | Refusal, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        if isinstance(answer, Refusal):
            refused = _signed("refusal", self._refusal_hash(self._hello, answer.reason))
            verify(self._remote_key, _PURPOSE, refused, answer.signature)
            raise SessionRefusedError(answer.reason)
        if answer.version != VERSION or answer.suite not in self._suites:
            raise ProtocolError("The other side chose a version or suite that was not offered.")
        chosen = (answer.version, answer.suite, answer.nonce, answer.ephemeral)
        self._agree(chosen, answer.ephemeral, self._secret.root)
        self._check(Role.RESPONDER, answer.signature, answer.confirmation)
        signature, mac = self._prove(Role.INITIATOR)
        self.established = self._established(answer.version, Suite(answer.suite))
        self._expecting = self._receive_ready
        return encode(Proof(signature=signature, confirmation=mac))

    def _receive_ready(self, payload: bytes) -> None:
        ready: Ready = decode(payload, Ready, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        self._check_confirmation("ready", ready.confirmation)
        self._key = b""
        self.done = True


class ResponderHandshake(_Conversation):
    """The side that was dialled. Give each message that comes to `receive()` and send what it returns.

    :param remote_peer_id: who dialled, as the connection below authenticated it.
    :param resolve: the secret of a pairing by its id, or None if there is none or it is not to be used any more.
    :param admit: whether to make a session with that device now; False refuses it as busy.
    :param suites: what we take.
    :ivar secret: the pairing that was named; proven only when ``established`` is set.
    :ivar established: the keys, once the initiator has proven itself. Take streams before the last message goes out.
    :ivar refused: set when the answer was a `Refusal`; the handshake is over then.
    """

    def __init__(
        self,
        identity: NetworkIdentity,
        remote_peer_id: str,
        resolve: Callable[[bytes], PeerSecret | None],
        suites: Sequence[Suite],
        randomness: Randomness,
        *,
        admit: Callable[[PeerSecret], bool] = lambda _: True,
    ) -> None:
        super().__init__(identity, Role.RESPONDER, remote_peer_id, suites, randomness)
        self._remote_peer_id = remote_peer_id
        self._resolve = resolve
        self._admit = admit
        self._suite = Suite.AES_256_GCM
        self.secret: PeerSecret | None = None
        self.established: Established | None = None
        self.refused: RefusalReason | None = None
        self._expecting = self._receive_hello

    def _receive_hello(self, payload: bytes) -> bytes:
        hello: Hello = decode(payload, Hello, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        secret = self._resolve(hello.pairing_id)
        if secret is None or secret.peer_id != self._remote_peer_id:
            return self._refuse(payload, RefusalReason.NOT_PAIRED)
        suite = next((Suite(offer) for offer in hello.suites if offer in self._suites), None)
        if VERSION not in hello.versions or suite is None:
            return self._refuse(payload, RefusalReason.UNSUPPORTED)
        if not self._admit(secret):
            return self._refuse(payload, RefusalReason.BUSY)
        self.secret = secret
        self._suite = suite
        self._transcript.add(payload)
        self._agree((VERSION, suite, self._nonce, self._ephemeral), hello.ephemeral, secret.root)
        signature, mac = self._prove(Role.RESPONDER)
        self._expecting = self._receive_proof
        return encode(
            Welcome(
                version=VERSION,
                suite=int(suite),
                nonce=self._nonce,
                ephemeral=self._ephemeral,
                signature=signature,
                confirmation=mac,
            )
        )

    def _refuse(self, hello: bytes, reason: RefusalReason) -> bytes:
        self.refused = reason
        signature = self._identity.sign(_PURPOSE, _signed("refusal", self._refusal_hash(hello, reason)))
        return encode(Refusal(reason=reason, signature=signature))

    def _receive_proof(self, payload: bytes) -> bytes:
        proof: Proof = decode(payload, Proof, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        self._check(Role.INITIATOR, proof.signature, proof.confirmation)
        self.established = self._established(VERSION, self._suite)
        ready = Ready(confirmation=confirmation(self._key, "ready", self._transcript.digest()))
        self._key = b""
        return encode(ready)


def _signed(label: str, transcript_hash: bytes) -> bytes:
    return label.encode() + b"\0" + transcript_hash
