"""Noise XX as a conversation of bytes: the published vectors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.swarm import noise_core
from sdnet_core.swarm.noise_core import (
    MAX_MESSAGE_BYTES,
    MAX_PLAINTEXT_BYTES,
    AesCipherState,
    CipherState,
    Framer,
    NoiseError,
    Opener,
    Sealer,
    XXHandshake,
)
from tests.sinks import Kept, opened

# What cacophony (Haskell) and snow (Rust) publish for this protocol; their other vectors are for other protocols.
VECTORS = json.loads(Path(__file__).with_name("noise_xx_vectors.json").read_text(encoding="utf-8"))

FIELD_PRIME = 2**255 - 19
# The u coordinates of low order on Curve25519 and its twist, and their other encodings: https://cr.yp.to/ecdh.html
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    FIELD_PRIME - 1,
    FIELD_PRIME,
    FIELD_PRIME + 1,
    2**255,
    2**255 + 1,
]


def key(number: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def handshakes(prologue: bytes = b"") -> tuple[XXHandshake, XXHandshake]:
    initiator = XXHandshake(initiator=True, static=key(1), ephemeral=key(2), prologue=prologue)
    responder = XXHandshake(initiator=False, static=key(3), ephemeral=key(4), prologue=prologue)
    return initiator, responder


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
@pytest.mark.parametrize("live", ["both", "initiator", "responder"])
def test_published_vectors(vector: dict[str, Any], live: str) -> None:
    """Either side alone against the recorded bytes of the other, and both together."""
    private = {
        name: X25519PrivateKey.from_private_bytes(bytes.fromhex(vector[name]))
        for name in ("init_static", "init_ephemeral", "resp_static", "resp_ephemeral")
    }
    sides = {
        "initiator": XXHandshake(
            initiator=True,
            static=private["init_static"],
            ephemeral=private["init_ephemeral"],
            prologue=bytes.fromhex(vector["init_prologue"]),
        ),
        "responder": XXHandshake(
            initiator=False,
            static=private["resp_static"],
            ephemeral=private["resp_ephemeral"],
            prologue=bytes.fromhex(vector["resp_prologue"]),
        ),
    }
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    for number, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = ("initiator", "responder") if number % 2 == 0 else ("responder", "initiator")
        if live in ("both", writer):
            assert sides[writer].our_turn
            assert sides[writer].write(payload) == ciphertext
        if live in ("both", reader):
            assert sides[reader].read(ciphertext) == payload
    for name, other in (("initiator", "resp_static"), ("responder", "init_static")):
        if live not in ("both", name):
            continue
        side = sides[name]
        assert side.finished
        assert side.remote_static == private[other].public_key().public_bytes_raw()
        assert side.hash.hex() == vector.get("handshake_hash", side.hash.hex())
        sending, receiving = side.split()
        for number, (payload, ciphertext) in enumerate(messages[3:]):
            # The responder's turn comes first after the third message.
            if (number % 2 == 1) == (name == "initiator"):
                assert sending.encrypt(payload) == ciphertext
            else:
                assert receiving.decrypt(ciphertext) == payload


def test_the_vectors_are_there() -> None:
    assert [vector["source"] for vector in VECTORS] == ["cacophony", "snow"]


def test_different_prologues_do_not_understand_each_other() -> None:
    initiator, _ = handshakes(b"one")
    _, responder = handshakes(b"other")
    responder.read(initiator.write())
    with pytest.raises(NoiseError, match="not authentic"):
        initiator.read(responder.write())


@pytest.mark.parametrize("u", LOW_ORDER)
def test_ephemeral_keys_of_low_order_are_refused(u: int) -> None:
    bad = u.to_bytes(32, "little")
    _, responder = handshakes()
    responder.read(bad)
    with pytest.raises(NoiseError, match="low order"):
        responder.write()
    initiator, _ = handshakes()
    initiator.write()
    with pytest.raises(NoiseError, match="low order"):
        initiator.read(bad + bytes(64))


class KeyOfLowOrder:
    """A static key pair that an attacker has made up: the public part has low order."""

    def __init__(self, u: int) -> None:
        self._public = u.to_bytes(32, "little")

    def public_key(self) -> KeyOfLowOrder:
        return self

    def public_bytes_raw(self) -> bytes:
        return self._public

    def exchange(self, _other: object) -> bytes:
        return bytes(32)


@pytest.mark.parametrize("u", LOW_ORDER)
def test_static_keys_of_low_order_are_refused(u: int) -> None:
    """The attacker knows what such a key gives with everybody else's: all zeros."""
    bad: Any = KeyOfLowOrder(u)
    initiator, _ = handshakes()
    responder = XXHandshake(initiator=False, static=bad, ephemeral=key(4))
    responder.read(initiator.write())
    with pytest.raises(NoiseError, match="low order"):
        initiator.read(responder.write())
    initiator = XXHandshake(initiator=True, static=bad, ephemeral=key(2))
    _, responder = handshakes()
    responder.read(initiator.write())
    initiator.read(responder.write())
    with pytest.raises(NoiseError, match="low order"):
        responder.read(initiator.write())


@pytest.mark.parametrize("kind", [CipherState, AesCipherState])
def test_the_last_nonce_is_never_used(kind: type[CipherState]) -> None:
    sending, receiving = kind(bytes(32), 2**64 - 3), kind(bytes(32), 2**64 - 3)
    for _ in range(2):
        assert receiving.decrypt(sending.encrypt(b"x")) == b"x"
    for _ in range(2):
        with pytest.raises(NoiseError, match="as many messages"):
            sending.encrypt(b"x")
        with pytest.raises(NoiseError, match="as many messages"):
            sending.encrypt_into(b"x", memoryview(bytearray(17)))
        with pytest.raises(NoiseError, match="as many messages"):
            receiving.decrypt(bytes(17))


def test_every_message_has_a_nonce_of_its_own() -> None:
    cipher = CipherState(bytes(32))
    sealed = [cipher.encrypt(b"same") for _ in range(3)]
    aead = ChaCha20Poly1305(bytes(32))
    nonces = [bytes(4) + number.to_bytes(8, "little") for number in range(3)]
    assert sealed == [aead.encrypt(nonce, b"same", None) for nonce in nonces]


def test_aes_has_big_endian_nonces_and_new_keys_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections 12.4 and 11.3 of the specification."""
    monkeypatch.setattr(noise_core, "_AES_REKEY_MESSAGES", 3)
    sending, receiving = AesCipherState(bytes(32)), AesCipherState(bytes(32))
    sealed = [sending.encrypt(b"same") for _ in range(7)]
    key = bytes(32)
    for number, message in enumerate(sealed):
        if number in (3, 6):
            key = AESGCM(key).encrypt(bytes(4) + b"\xff" * 8, bytes(32), None)[:32]
        assert message == AESGCM(key).encrypt(bytes(4) + number.to_bytes(8, "big"), b"same", None)
        assert receiving.decrypt(message) == b"same"


def test_the_ciphers_of_a_handshake_have_different_keys() -> None:
    initiator, responder = handshakes()
    responder.read(initiator.write())
    initiator.read(responder.write())
    responder.read(initiator.write())
    for aes in (False, True):
        sending, other_receiving = initiator.split(aes=aes)[0], responder.split(aes=aes)[1]
        sealed = sending.encrypt(b"x")
        assert other_receiving.decrypt(sealed) == b"x"
        with pytest.raises(NoiseError, match="not authentic"):
            responder.split(aes=not aes)[1].decrypt(sealed)


def channel() -> tuple[Sealer, Opener]:
    return Sealer(CipherState(bytes(32))), Opener(CipherState(bytes(32)))


def seal(sealer: Sealer, plaintexts: list[bytes]) -> bytes:
    out = memoryview(bytearray(Sealer.sealed_bytes(plaintexts)))
    assert sealer.seal_into(plaintexts, out) == len(out)
    return bytes(out)


def test_messages_of_every_size_that_matters() -> None:
    sealer, opener = channel()
    plaintexts = [bytes(size) for size in (1, 15, 16, 17, MAX_PLAINTEXT_BYTES - 1, MAX_PLAINTEXT_BYTES)]
    assert opened(opener, seal(sealer, plaintexts)) == plaintexts
    assert opener.whole


def test_empty_messages_count_but_are_not_given_out() -> None:
    sealer, opener = channel()
    assert opened(opener, seal(sealer, [b"", b"a", b"", b"b"])) == [b"a", b"b"]
    assert opened(opener, seal(sealer, [b""])) == []
    assert opener.whole


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(1, 400), min_size=1))
def test_pieces_of_any_size(plaintexts: list[bytes], sizes: list[int]) -> None:
    sealer, opener = channel()
    sealed = seal(sealer, plaintexts)
    ends = {Sealer.sealed_bytes(plaintexts[:count]) for count in range(len(plaintexts) + 1)}
    kept = Kept()
    at = turn = 0
    while at < len(sealed):
        assert opener.whole == (at in ends)
        size = sizes[turn % len(sizes)]
        opener.deliver(kept, sealed[at : at + size])
        at, turn = at + size, turn + 1
    assert kept == plaintexts
    assert opener.whole


def test_what_comes_before_a_refused_message_is_given_out() -> None:
    sealer, opener = channel()
    sealed = bytearray(seal(sealer, [b"one", b"two", b"three"]))
    sealed[2 + 19 + 2] ^= 1
    kept = Kept()
    for data in (sealed, b"", seal(sealer, [b"four"])):
        with pytest.raises(NoiseError):
            opener.deliver(kept, data)
    assert kept == [b"one"]


@pytest.mark.parametrize("size", range(16))
def test_messages_without_room_for_a_tag_are_refused(size: int) -> None:
    with pytest.raises(NoiseError):
        channel()[1].deliver(Kept(), bytes([0, size]) + bytes(size))


def test_an_announced_length_can_be_limited() -> None:
    framer = Framer()
    framer.feed(b"\x00\x05hello\x00\x06")
    assert bytes(framer.next(5) or b"") == b"hello"
    with pytest.raises(NoiseError, match="6 bytes"):
        framer.next(5)
    # However it comes in.
    framer = Framer()
    framer.feed(b"\x00")
    assert framer.next(5) is None
    framer.feed(b"\x06")
    with pytest.raises(NoiseError, match="6 bytes"):
        framer.next(5)


def test_an_unfinished_message_is_all_that_is_kept() -> None:
    framer = Framer()
    framer.feed(b"\xff\xff" + bytes(MAX_MESSAGE_BYTES - 1))
    assert framer.next() is None
    assert not framer.empty
    framer.feed(b"\x01" + b"\x00\x01!")
    message = framer.next()
    assert message is not None
    assert len(message) == MAX_MESSAGE_BYTES
    assert message[-1] == 1
    assert bytes(framer.next() or b"") == b"!"
    assert framer.next() is None
    assert framer.empty
