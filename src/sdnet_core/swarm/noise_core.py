"""Noise_XX_25519_ChaChaPoly_SHA256 without I/O: bytes in, bytes out; and AES-256-GCM for what comes after it.

Specification: http://www.noiseprotocol.org/noise.html, revision 34; the section numbers below are its. What libp2p adds
to it, who signs what in the payloads, is in ``noise_handshake.py``.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Protocol, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

__all__ = [
    "KEY_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_PLAINTEXT_BYTES",
    "PREFIX_BYTES",
    "TAG_BYTES",
    "AesCipherState",
    "CipherState",
    "Framer",
    "NoiseError",
    "Opener",
    "Sealer",
    "Sink",
    "XXHandshake",
]

PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"

KEY_BYTES = 32
TAG_BYTES = 16
PREFIX_BYTES = 2
"""libp2p puts the length of every Noise message in front of it: 16 bits, big-endian."""
MAX_MESSAGE_BYTES = 65_535
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES

_RESERVED_NONCE = 2**64 - 1
"""Section 5.1: the one nonce that no message may use."""
_NONCE = struct.Struct("<4xQ")
_AES_NONCE = struct.Struct(">4xQ")
_AES_LABEL = b"sdnet/noise/aes-256-gcm"
_AES_REKEY_MESSAGES = 1 << 22
"""So many messages, 2^34 blocks at most, are under one AES key: nobody's chance to tell them from noise is above 2^-60
(draft-irtf-cfrg-aead-limits, section 5.1)."""
_PREFIX = struct.Struct("!H")
_FORGED = "A message is not authentic."


class NoiseError(Exception):
    """The other side's bytes are not a Noise message for us, or the channel is used up. There is no going on."""


class CipherState:
    """One key and the number of the next message under it (section 5.1).

    :param key: 32 bytes.
    :param nonce: the number of the first message.
    """

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        self._aead: ChaCha20Poly1305 | AESGCM = ChaCha20Poly1305(key)
        self._nonce = nonce

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= _RESERVED_NONCE:
            raise NoiseError("The key has been used for as many messages as it may.")
        self._nonce = nonce + 1
        return _NONCE.pack(nonce)

    def encrypt(self, plaintext: bytes | memoryview, associated_data: bytes | None = None) -> bytes:
        """Seal one message.

        :raises NoiseError: the key is used up.
        """
        nonce = self._next_nonce()  # first: it may change the key
        return self._aead.encrypt(nonce, plaintext, associated_data)

    def encrypt_into(self, plaintext: bytes | bytearray | memoryview, out: memoryview) -> None:
        """Seal one message into ``out``, which is 16 bytes longer than it.

        :raises NoiseError: the key is used up.
        """
        nonce = self._next_nonce()
        self._aead.encrypt_into(nonce, plaintext, None, out)

    def decrypt_into(self, ciphertext: bytes | bytearray | memoryview, out: memoryview) -> None:
        """Open one message into ``out``, which is 16 bytes shorter than it and undefined if this fails.

        :raises NoiseError: as :meth:`decrypt`.
        """
        nonce = self._next_nonce()
        try:
            self._aead.decrypt_into(nonce, cast(bytes, ciphertext), None, out)
        except InvalidTag:
            raise NoiseError(_FORGED) from None

    def decrypt(self, ciphertext: bytes | bytearray | memoryview, associated_data: bytes | None = None) -> bytes:
        """Open one message.

        :raises NoiseError: it is not the next message of the other side, or the key is used up.
        """
        nonce = self._next_nonce()
        try:
            return self._aead.decrypt(nonce, ciphertext, associated_data)
        except InvalidTag:
            raise NoiseError(_FORGED) from None


class AesCipherState(CipherState):
    """The same with AES-256-GCM (section 12.4), for both sides' messages after the handshake.

    The key is replaced as section 11.3 says, every 2^22 messages.
    """

    __slots__ = ()

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        self._aead = AESGCM(key)
        self._nonce = nonce

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= _RESERVED_NONCE:
            raise NoiseError("The key has been used for as many messages as it may.")
        if nonce and nonce % _AES_REKEY_MESSAGES == 0:
            key = self._aead.encrypt(_AES_NONCE.pack(_RESERVED_NONCE), bytes(KEY_BYTES), None)
            self._aead = AESGCM(key[:KEY_BYTES])
        self._nonce = nonce + 1
        return _AES_NONCE.pack(nonce)


def _hkdf2(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs (section 4.3)."""
    temporary = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


class _SymmetricState:
    """Chaining key, transcript hash and, from the first Diffie-Hellman on, a key (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "hash")

    def __init__(self, prologue: bytes) -> None:
        # The name is exactly as long as a hash, so it is the hash (section 5.2).
        self.hash = self._chaining_key = PROTOCOL_NAME
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = _hkdf2(self._chaining_key, material)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext if self._cipher is None else self._cipher.decrypt(ciphertext, self.hash)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self, *, aes: bool) -> tuple[CipherState, CipherState]:
        if aes:
            # Other keys than those for the cipher in the protocol's name: no key ever serves two algorithms.
            first, second = _hkdf2(self._chaining_key, _AES_LABEL)
            return AesCipherState(first), AesCipherState(second)
        first, second = _hkdf2(self._chaining_key, b"")
        return CipherState(first), CipherState(second)


# Section 7.5, pattern XX. The initiator writes the first and the third message.
_MESSAGES = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class XXHandshake:
    """The three messages of the pattern XX, for either role.

    :param initiator: whether this side writes the first message.
    :param static: this side's static key.
    :param ephemeral: this side's ephemeral key; a new one for every handshake.
    :param prologue: what both sides must know alike.
    """

    def __init__(
        self, *, initiator: bool, static: X25519PrivateKey, ephemeral: X25519PrivateKey, prologue: bytes = b""
    ) -> None:
        self._initiator = initiator
        self._keys = {"e": ephemeral, "s": static}
        self._remote: dict[str, X25519PublicKey] = {}
        self._state = _SymmetricState(prologue)
        self._step = 0

    @property
    def finished(self) -> bool:
        """Whether all three messages have gone by."""
        return self._step == len(_MESSAGES)

    @property
    def our_turn(self) -> bool:
        """Whether this side writes the next message."""
        return not self.finished and (self._step % 2 == 0) == self._initiator

    @property
    def hash(self) -> bytes:
        """The hash of everything so far (section 11.2), 32 bytes."""
        return self._state.hash

    @property
    def remote_static(self) -> bytes:
        """The other side's static public key, once it has come in; 32 bytes."""
        return self._remote["s"].public_bytes_raw()

    def write(self, payload: bytes = b"") -> bytes:
        """Make the next message.

        :raises NoiseError: the other side's keys cannot be used.
        """
        assert self.our_turn
        parts: list[bytes] = []
        for token in _MESSAGES[self._step]:
            if token == "e":
                parts.append(self._keys["e"].public_key().public_bytes_raw())
                self._state.mix_hash(parts[-1])
            elif token == "s":
                parts.append(self._state.encrypt_and_hash(self._keys["s"].public_key().public_bytes_raw()))
            else:
                self._mix_shared_secret(token)
        parts.append(self._state.encrypt_and_hash(payload))
        self._step += 1
        return b"".join(parts)

    def read(self, message: bytes) -> bytes:
        """Take the next message and return its payload.

        :raises NoiseError: it is not one that belongs here.
        """
        assert not self.our_turn
        assert not self.finished
        at = 0
        for token in _MESSAGES[self._step]:
            if len(token) == 2:
                self._mix_shared_secret(token)
                continue
            size = KEY_BYTES if token == "e" else KEY_BYTES + TAG_BYTES
            field = message[at : at + size]
            at += size
            if len(field) < size:
                raise NoiseError("A handshake message is too short.")
            if token == "e":
                self._state.mix_hash(field)
            else:
                field = self._state.decrypt_and_hash(field)
            self._remote[token] = X25519PublicKey.from_public_bytes(field)
        payload = self._state.decrypt_and_hash(message[at:])
        self._step += 1
        return payload

    def _mix_shared_secret(self, token: str) -> None:
        """Mix in a Diffie-Hellman result; a token names the initiator's key first."""
        initiators, responders = token[0], token[1]
        ours, theirs = (initiators, responders) if self._initiator else (responders, initiators)
        try:
            secret = self._keys[ours].exchange(self._remote[theirs])
        except ValueError:
            # The result is all zeros: every public key of low order does that, with whatever private key.
            raise NoiseError("The other side sent a key of low order.") from None
        self._state.mix_key(secret)

    def split(self, *, aes: bool = False) -> tuple[CipherState, CipherState]:
        """The ciphers to send and to receive with.

        :param aes: AES-256-GCM, which both sides have said in their payloads that they want.
        """
        assert self.finished
        first, second = self._state.split(aes=aes)
        return (first, second) if self._initiator else (second, first)


class Sealer:
    """Seals what is sent after the handshake."""

    __slots__ = ("_cipher",)

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher

    @staticmethod
    def sealed_bytes(plaintexts: Sequence[bytes | bytearray | memoryview]) -> int:
        """How long the messages made of some plaintexts are together, with their lengths in front."""
        return sum(map(len, plaintexts)) + len(plaintexts) * (PREFIX_BYTES + TAG_BYTES)

    def seal_into(self, plaintexts: Sequence[bytes | bytearray | memoryview], out: memoryview) -> int:
        """Make one message of each plaintext, one after the other in ``out``.

        :param plaintexts: at most 65,519 bytes each.
        :returns: how many bytes of ``out`` are used.
        :raises NoiseError: the key is used up.
        """
        at = 0
        encrypt_into = self._cipher.encrypt_into
        for plaintext in plaintexts:
            size = len(plaintext) + TAG_BYTES
            _PREFIX.pack_into(out, at, size)
            at += PREFIX_BYTES
            encrypt_into(plaintext, out[at : at + size])
            at += size
        return at


class Framer:
    """Cuts incoming bytes into messages with a length in front.

    Memory is bounded: it keeps what it was fed last and at most one message that is not complete.
    """

    __slots__ = ("_at", "_data", "_head", "_need")

    def __init__(self) -> None:
        self._head = bytearray()
        self._need = 0
        self._data = memoryview(b"")
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is left over, not even a part of a message."""
        return not self._head and self._at == len(self._data)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in bytes; every message that was complete before must have been taken."""
        assert self._at == len(self._data)
        self._data = memoryview(data)
        self._at = 0

    def next(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> memoryview | bytearray | None:
        """The next complete message; it is valid until the next call.

        :returns: None if there is none; what there is of it is kept.
        :raises NoiseError: the message is announced to be longer than ``max_message_bytes``.
        """
        if self._head:
            return self._next_begun(max_message_bytes)
        left = len(self._data) - self._at
        if left >= PREFIX_BYTES:
            (size,) = _PREFIX.unpack_from(self._data, self._at)
            if size > max_message_bytes:
                raise NoiseError(f"A message of {size} bytes is longer than it may be here.")
            end = self._at + PREFIX_BYTES + size
            if end <= len(self._data):
                message = self._data[self._at + PREFIX_BYTES : end]
                self._at = end
                return message
        if left:
            self._head = bytearray(self._data[self._at :])
        self._drop_data()
        return None

    def _next_begun(self, max_message_bytes: int) -> memoryview | bytearray | None:
        """The message of which an earlier piece had the beginning."""
        if not self._fill(PREFIX_BYTES):
            return None
        (size,) = _PREFIX.unpack_from(self._head)
        if size > max_message_bytes:
            raise NoiseError(f"A message of {size} bytes is longer than it may be here.")
        if not self._fill(PREFIX_BYTES + size):
            return None
        message, self._head = memoryview(self._head)[PREFIX_BYTES:], bytearray()
        return message

    def _fill(self, size: int) -> bool:
        """Bring the begun message to ``size`` bytes, as far as there are any."""
        missing = size - len(self._head)
        if missing > 0:
            piece = self._data[self._at : self._at + missing]
            self._head += piece
            self._at += len(piece)
            if len(piece) < missing:
                self._drop_data()
                return False
        return True

    def _drop_data(self) -> None:
        # An idle connection keeps no buffer.
        self._data = memoryview(b"")
        self._at = 0


class Sink(Protocol):
    """What takes plaintexts."""

    def receive(self, data: bytes) -> None:
        """Take the next plaintext."""
        ...

    def place(self, size: int) -> memoryview | None:
        """The place, exactly so long, where the next ``size`` bytes of plaintext are wanted; None if it is not known.

        If there is one, ``placed`` follows when they are there.
        """
        ...

    def placed(self, size: int) -> None:
        """What `place` was asked for is in its place."""
        ...


class Opener:
    """Opens what comes in after the handshake.

    :param framer: what the handshake has read, for the bytes that it has read too many.
    """

    __slots__ = ("_cipher", "_framer", "_refused")

    def __init__(self, cipher: CipherState, framer: Framer | None = None) -> None:
        self._cipher = cipher
        self._framer = framer or Framer()
        self._refused: NoiseError | None = None

    @property
    def whole(self) -> bool:
        """Whether everything that came in was whole messages."""
        return self._framer.empty

    def deliver(self, sink: Sink, data: bytes | bytearray | memoryview = b"") -> bool:
        """Take in bytes and hand over the plaintexts of the messages that are complete, without the empty ones.

        :returns: whether there was any.
        :raises NoiseError: a message is not the next one of the other side; those before it were handed over, and
            nothing is opened any more.
        """
        if self._refused is not None:
            raise NoiseError(str(self._refused))
        if data:
            self._framer.feed(data)
        any_yet = False
        try:
            while (message := self._framer.next()) is not None:
                size = len(message) - TAG_BYTES
                place = sink.place(size) if size > 0 else None
                if place is not None:
                    self._cipher.decrypt_into(message, place)
                    sink.placed(size)
                elif plaintext := self._cipher.decrypt(message):
                    sink.receive(plaintext)
                else:
                    continue
                any_yet = True
        except NoiseError as exc:
            self._refused = exc
            raise
        return any_yet
