"""libp2p's handshake on Noise XX without I/O: who is at the other end, and proof of it.

Specification: https://github.com/libp2p/specs/blob/master/noise/README.md. Each side signs its static Noise key with
its identity key; the signature travels in the encrypted payload of the second and the third message.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.crypto.keys import KeyType, PrivateKey, PublicKey
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.crypto.serialization import deserialize_public_key, key_type_to_public_key_deserializer
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import InvalidSignature, NoiseFailure, NoiseStateError, PeerIDMismatchesPubkey
from libp2p.security.noise.pb import noise_pb2

from ..identity import is_small_order
from .noise_core import KEY_BYTES, TAG_BYTES, Framer, NoiseError, Opener, Sealer, XXHandshake

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Established",
    "NoiseHandshake",
    "Remote",
    "identity_key",
    "make_payload",
    "verify_payload",
]

_SIGNED_PREFIX = b"noise-libp2p-static-key:"

_AES_OFFER = b"\x22\x1c\xa2\x42\x19sdnet/noise/aes-256-gcm/1"
"""What we add to the payload where AES-256-GCM is the faster: the payload's extensions (field 4) with a field of ours
in them (1060, a string). Numbers from 1024 on are for experiments; others skip what they do not know. These exact bytes
are looked for: nobody else's payload has them by accident, and who puts them elsewhere harms itself alone."""

MAX_PAYLOAD_BYTES = 4096
"""Longest handshake payload taken. An Ed25519 identity needs 104 bytes, RSA with 4,096 bits about 1,100."""
_MAX_MESSAGE_BYTES = 2 * KEY_BYTES + 2 * TAG_BYTES + MAX_PAYLOAD_BYTES

_MIN_RSA_BITS = 2048  # what go-libp2p takes at least
_MAX_RSA_EXPONENT_BITS = 32  # a long one makes verifying slow


@dataclass(frozen=True, slots=True)
class Remote:
    """Who is at the other end.

    :param peer_id: follows from the key.
    :param public_key: the identity key, not the Noise key.
    :param stream_muxers: multiplexers that it would use without further negotiation, in its order of preference.
    :param aes: it would go on with AES-256-GCM after the handshake.
    """

    peer_id: ID
    public_key: PublicKey
    stream_muxers: tuple[str, ...] = ()
    aes: bool = False


@dataclass(frozen=True, slots=True)
class Established:
    """What a finished handshake leaves: who the other side is, and the two directions of the channel."""

    remote: Remote
    sealer: Sealer
    opener: Opener


def make_payload(
    identity: PrivateKey, static: X25519PrivateKey, stream_muxers: Sequence[str] = (), *, aes: bool = False
) -> bytes:
    """What tells others who we are; good for every handshake with the same two keys.

    :param stream_muxers: multiplexers that we use without further negotiation if the other side says so too.
    :param aes: go on with AES-256-GCM after the handshake if the other side says so too.
    """
    signature = identity.sign(_SIGNED_PREFIX + static.public_key().public_bytes_raw())
    payload = noise_pb2.NoiseHandshakePayload(
        identity_key=identity.get_public_key().serialize(), identity_sig=signature
    )
    if stream_muxers:
        payload.extensions.stream_muxers.extend(stream_muxers)
    # A field that comes twice is merged (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    return payload.SerializeToString() + (_AES_OFFER if aes else b"")


def verify_payload(payload: bytes, remote_static: bytes) -> Remote:
    """Find out from the other side's payload who it is.

    :param remote_static: its static Noise key, which it must have signed; 32 bytes.
    :raises NoiseStateError: the payload or the key in it is not acceptable.
    :raises InvalidSignature: the signature is not of that key over the static key.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise NoiseStateError("The other side's handshake payload is too long.")
    try:
        message = noise_pb2.NoiseHandshakePayload.FromString(payload)
    except Exception as exc:  # protobuf's DecodeError: that package is py-libp2p's dependency, not ours
        raise NoiseStateError("The other side's handshake payload cannot be read.") from exc
    key = identity_key(message.identity_key)
    try:
        valid = key.verify(_SIGNED_PREFIX + remote_static, message.identity_sig)
    except Exception:
        # The libraries behind the key types raise whatever they like about malformed signatures.
        valid = False
    if not valid:
        raise InvalidSignature("The other side's signature of its Noise key is not valid.")
    return Remote(ID.from_pubkey(key), key, tuple(message.extensions.stream_muxers), _AES_OFFER in payload)


def identity_key(encoded: bytes) -> PublicKey:
    """Read the key that somebody says is its own, and that its peer id is made of.

    :raises NoiseStateError: the key is not acceptable.
    """
    try:
        raw = PublicKey.deserialize_from_protobuf(encoded)
        kind = KeyType(raw.key_type)
    except Exception as exc:  # protobuf's DecodeError, or a kind of key that nobody knows
        raise NoiseStateError("The other side's identity key cannot be read.") from exc
    if kind.value not in key_type_to_public_key_deserializer:
        raise NoiseStateError(f"The other side's identity key is of the type {kind.name}, which is not supported here.")
    if kind is KeyType.Ed25519 and (len(raw.data) != KEY_BYTES or is_small_order(raw.data)):
        raise NoiseStateError("The other side's identity key is not acceptable.")
    try:
        key = deserialize_public_key(encoded)
    except Exception as exc:
        # The libraries behind the key types raise whatever they like about malformed keys.
        raise NoiseStateError("The other side's identity key cannot be read.") from exc
    if isinstance(key, RSAPublicKey):
        modulus, exponent = key.impl.n, key.impl.e
        if modulus.bit_length() < _MIN_RSA_BITS or exponent.bit_length() > _MAX_RSA_EXPONENT_BITS:
            raise NoiseStateError("The other side's RSA key is too short or has too long an exponent.")
    # The peer id is a hash of this encoding: there must be one only.
    if key.serialize() != encoded:
        raise NoiseStateError("The other side's identity key is not encoded as it should be.")
    return key


class NoiseHandshake:
    """One side of a handshake: takes bytes in pieces of any size, says what to send, and ends established.

    :param initiator: whether this side opened the connection.
    :param static: the static Noise key.
    :param ephemeral: a new key for this handshake.
    :param payload: from :func:`make_payload` with the same static key.
    :param expected_peer: who must be at the other end; None for whoever it is.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: X25519PrivateKey,
        ephemeral: X25519PrivateKey,
        payload: bytes,
        expected_peer: ID | None = None,
    ) -> None:
        self._noise = XXHandshake(initiator=initiator, static=static, ephemeral=ephemeral)
        self._initiator = initiator
        self._payload = payload
        self._expected_peer = expected_peer
        self._framer = Framer()
        self._failed = False
        self._messages_read = 0
        self.established: Established | None = None

    def start(self) -> bytes:
        """What to send before anything has come in; nothing for the responder."""
        return _framed(self._noise.write()) if self._initiator else b""

    def receive(self, data: bytes) -> bytes:
        """Take in bytes and return what to send. After the last message, ``established`` is set.

        :raises PeerIDMismatchesPubkey: the other side is not whom we expected.
        :raises InvalidSignature: it has not the key that it says it has.
        :raises NoiseStateError: it said something else that is not acceptable. After any of these, all is over.
        """
        if self._failed:
            raise NoiseStateError("The handshake has failed.")
        reply = b""
        try:
            self._framer.feed(data)
            while self.established is None and (message := self._framer.next(_MAX_MESSAGE_BYTES)) is not None:
                reply += self._take(bytes(message))
        except NoiseError as exc:
            self._failed = True
            raise NoiseStateError(str(exc)) from exc
        except NoiseFailure:
            self._failed = True
            raise
        return reply

    def _take(self, message: bytes) -> bytes:
        payload = self._noise.read(message)
        self._messages_read += 1
        if not self._initiator and self._messages_read == 1:
            # The first message is not encrypted and authenticates nobody: whatever it carries is of no interest.
            return _framed(self._noise.write(self._payload))
        remote = verify_payload(payload, self._noise.remote_static)
        if self._expected_peer is not None and remote.peer_id != self._expected_peer:
            # Before the third message, so that a wrong peer does not learn who we are.
            raise PeerIDMismatchesPubkey(f"{remote.peer_id} answered instead of {self._expected_peer}.")
        reply = _framed(self._noise.write(self._payload)) if self._initiator else b""
        sending, receiving = self._noise.split(aes=remote.aes and _AES_OFFER in self._payload)
        self.established = Established(remote, Sealer(sending), Opener(receiving, self._framer))
        return reply


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message
