"""libp2p's handshake as a conversation of bytes: who is believed to be who."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sdnet_core.identity import NetworkIdentity
from sdnet_core.swarm.noise_core import AesCipherState
from sdnet_core.swarm.noise_handshake import (
    MAX_PAYLOAD_BYTES,
    NoiseHandshake,
    Remote,
    make_payload,
    verify_payload,
)
from tests.key_pairs import KEY_KINDS, make_key_pair
from tests.sinks import opened

# isort: split
from libp2p.crypto import ed25519, rsa
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey
from libp2p.crypto.pb import crypto_pb2
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import InvalidSignature, NoiseFailure, NoiseStateError, PeerIDMismatchesPubkey
from libp2p.security.noise.messages import NoiseHandshakePayload
from libp2p.security.noise.pb import noise_pb2

ALICE = ed25519.create_new_key_pair(b"a" * 32)
BOB = ed25519.create_new_key_pair(b"b" * 32)
STATIC = X25519PrivateKey.from_private_bytes(b"s" * 32)
STATIC_PUBLIC = STATIC.public_key().public_bytes_raw()
SIGNED = b"noise-libp2p-static-key:" + STATIC_PUBLIC


def side(
    identity: KeyPair,
    number: int,
    *,
    initiator: bool,
    expected: ID | None = None,
    muxers: tuple[str, ...] = (),
    aes: bool = False,
) -> NoiseHandshake:
    static = X25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return NoiseHandshake(
        initiator=initiator,
        static=static,
        ephemeral=X25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32),
        payload=make_payload(identity.private_key, static, muxers, aes=aes),
        expected_peer=expected,
    )


def converse(initiator: NoiseHandshake, responder: NoiseHandshake, *, piece_bytes: int = 100_000) -> None:
    """Carry bytes to and fro until neither side has anything to say."""
    sender, receiver = initiator, responder
    outgoing = initiator.start()
    assert responder.start() == b""
    while outgoing:
        reply = b""
        for at in range(0, len(outgoing), piece_bytes):
            assert reply == b""
            reply += receiver.receive(outgoing[at : at + piece_bytes])
        sender, receiver, outgoing = receiver, sender, reply


def remote_of(handshake: NoiseHandshake) -> Remote:
    assert handshake.established is not None
    return handshake.established.remote


def payload_with(key: bytes, signature: bytes) -> bytes:
    return noise_pb2.NoiseHandshakePayload(identity_key=key, identity_sig=signature).SerializeToString()


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 33, 100_000])
def test_both_sides_learn_who_the_other_is(piece_bytes: int) -> None:
    initiator = side(ALICE, 1, initiator=True, expected=ID.from_pubkey(BOB.public_key))
    responder = side(BOB, 3, initiator=False)
    converse(initiator, responder, piece_bytes=piece_bytes)
    assert remote_of(initiator).public_key == BOB.public_key
    assert remote_of(responder).public_key == ALICE.public_key
    assert str(remote_of(responder).peer_id) == NetworkIdentity(b"a" * 32).peer_id
    for one, other in ((initiator, responder), (responder, initiator)):
        assert one.established is not None
        assert other.established is not None
        out = memoryview(bytearray(23))
        one.established.sealer.seal_into([b"hello"], out)
        assert opened(other.established.opener, out) == [b"hello"]


def test_the_same_keys_give_the_same_bytes() -> None:
    def bytes_sent() -> tuple[bytes, bytes, bytes]:
        initiator, responder = side(ALICE, 1, initiator=True), side(BOB, 3, initiator=False)
        first = initiator.start()
        second = responder.receive(first)
        return first, second, initiator.receive(second)

    first, second, third = bytes_sent()
    assert (first, second, third) == bytes_sent()
    assert [len(message) for message in (first, second, third)] == [34, 202, 170]


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_aes_is_used_if_both_want_it(ours: bool, theirs: bool) -> None:
    initiator, responder = side(ALICE, 1, initiator=True, aes=ours), side(BOB, 3, initiator=False, aes=theirs)
    converse(initiator, responder)
    assert (remote_of(responder).aes, remote_of(initiator).aes) == (ours, theirs)
    for one, other in ((initiator, responder), (responder, initiator)):
        assert one.established is not None
        assert other.established is not None
        assert isinstance(one.established.sealer._cipher, AesCipherState) == (ours and theirs)
        out = memoryview(bytearray(23))
        one.established.sealer.seal_into([b"hello"], out)
        assert opened(other.established.opener, out) == [b"hello"]


def test_what_we_add_to_the_payload_is_an_extension_that_others_skip() -> None:
    plain = noise_pb2.NoiseHandshakePayload.FromString(make_payload(ALICE.private_key, STATIC, ("/a",)))
    added = noise_pb2.NoiseHandshakePayload.FromString(make_payload(ALICE.private_key, STATIC, ("/a",), aes=True))
    assert list(added.extensions.stream_muxers) == ["/a"]
    # Unknown fields stay in a message and stand behind the known ones.
    added_bytes = added.extensions.SerializeToString()
    known = plain.extensions.SerializeToString()
    assert added_bytes.startswith(known)
    assert added_bytes[len(known) :] == b"\xa2\x42\x19sdnet/noise/aes-256-gcm/1"
    added.extensions.Clear()
    plain.extensions.Clear()
    assert added == plain


def test_data_right_behind_the_last_message_is_not_lost() -> None:
    initiator, responder = side(ALICE, 1, initiator=True), side(BOB, 3, initiator=False)
    last = initiator.receive(responder.receive(initiator.start()))
    assert initiator.established is not None
    out = memoryview(bytearray(23))
    initiator.established.sealer.seal_into([b"early"], out)
    assert responder.receive(last + bytes(out[:20])) == b""
    assert responder.established is not None
    assert opened(responder.established.opener) == []
    assert opened(responder.established.opener, out[20:]) == [b"early"]


def test_a_wrong_peer_is_refused_before_it_learns_who_we_are() -> None:
    initiator = side(ALICE, 1, initiator=True, expected=ID.from_pubkey(ALICE.public_key))
    responder = side(BOB, 3, initiator=False)
    answer = responder.receive(initiator.start())
    with pytest.raises(PeerIDMismatchesPubkey, match="answered instead of"):
        initiator.receive(answer)
    assert initiator.established is None
    with pytest.raises(NoiseStateError, match="has failed"):
        initiator.receive(answer)


def test_a_signature_of_another_static_key_is_refused() -> None:
    """Somebody who has recorded a payload cannot use it with a Noise key of its own."""
    static = X25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    thief = NoiseHandshake(
        initiator=False, static=static, ephemeral=static, payload=make_payload(BOB.private_key, STATIC)
    )
    initiator = side(ALICE, 1, initiator=True, expected=ID.from_pubkey(BOB.public_key))
    with pytest.raises(InvalidSignature):
        initiator.receive(thief.receive(initiator.start()))


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_identity_keys_of_every_kind_that_can_be_checked(kind: str) -> None:
    identity = make_key_pair(kind)
    remote = verify_payload(make_payload(identity.private_key, STATIC), STATIC_PUBLIC)
    assert remote.peer_id == ID.from_pubkey(identity.public_key)
    assert remote.public_key == identity.public_key
    # And with the payload as py-libp2p makes it.
    theirs = NoiseHandshakePayload(identity.public_key, identity.private_key.sign(SIGNED)).serialize()
    assert verify_payload(theirs, STATIC_PUBLIC) == remote


@pytest.mark.parametrize("kind", KEY_KINDS)
@pytest.mark.parametrize("forgery", ["nothing", "short", "long", "zeros", "of something else", "by somebody else"])
def test_bad_signatures_are_refused(kind: str, forgery: str) -> None:
    identity = make_key_pair(kind)
    good = identity.private_key.sign(SIGNED)
    bad = {
        "nothing": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "zeros": bytes(len(good)),
        "of something else": identity.private_key.sign(SIGNED + b"\0"),
        "by somebody else": BOB.private_key.sign(SIGNED),
    }[forgery]
    with pytest.raises(InvalidSignature):
        verify_payload(payload_with(identity.public_key.serialize(), bad), STATIC_PUBLIC)


@pytest.mark.parametrize("kind", [KeyType.ECDSA, KeyType.ECC_P256, KeyType.X25519])
def test_keys_that_cannot_be_checked_are_refused_by_name(kind: KeyType) -> None:
    key = crypto_pb2.PublicKey(key_type=kind.value, data=b"\x04" + bytes(64)).SerializeToString()
    with pytest.raises(NoiseStateError, match=f"of the type {kind.name}, which is not supported here"):
        verify_payload(payload_with(key, b"x"), STATIC_PUBLIC)


def small_order_keys() -> list[bytes]:
    order_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
    prime = 2**255 - 19
    ys = {0, 1, prime - 1, prime, prime + 1, int.from_bytes(bytes.fromhex(order_8), "little")}
    return [y.to_bytes(32, "little") for y in ys] + [(y + 2**255).to_bytes(32, "little") for y in ys]


@pytest.mark.parametrize("key", small_order_keys(), ids=bytes.hex)
def test_identity_keys_of_small_order_are_refused(key: bytes) -> None:
    """Under such a key anybody can make signatures: the neutral element and zero verify for many messages."""
    encoded = b"\x08\x01\x12\x20" + key
    for signature in (bytes(64), b"\x01" + bytes(63), key + bytes(32)):
        with pytest.raises(NoiseStateError, match="not acceptable"):
            verify_payload(payload_with(encoded, signature), STATIC_PUBLIC)


def encodings_of_alice() -> dict[str, bytes]:
    raw = ALICE.public_key.to_bytes()
    return {
        "other order": b"\x12\x20" + raw + b"\x08\x01",
        "field twice": b"\x08\x01\x08\x01\x12\x20" + raw,
        "unknown field": b"\x08\x01\x12\x20" + raw + b"\x18\x01",
        "long varint": b"\x08\x81\x00\x12\x20" + raw,
    }


@pytest.mark.parametrize("name", encodings_of_alice())
def test_a_key_has_one_encoding_only(name: str) -> None:
    payload = payload_with(encodings_of_alice()[name], ALICE.private_key.sign(SIGNED))
    with pytest.raises(NoiseStateError, match="not encoded"):
        verify_payload(payload, STATIC_PUBLIC)


@pytest.mark.parametrize(
    "key",
    [b"", b"\x08\x01", b"\x08\x63\x12\x00", b"\x08\x01\x12\x1f" + bytes(31), b"\x08\x00\x12\x02\x30\x00", b"\xff" * 40],
    ids=bytes.hex,
)
def test_keys_that_are_none_are_refused(key: bytes) -> None:
    with pytest.raises(NoiseStateError):
        verify_payload(payload_with(key, bytes(64)), STATIC_PUBLIC)


def test_weak_rsa_keys_are_refused() -> None:
    from Crypto.PublicKey import RSA

    with pytest.raises(NoiseStateError, match="too short"):
        verify_payload(make_payload(rsa.create_new_key_pair(1024).private_key, STATIC), STATIC_PUBLIC)
    modulus = 2**2047 + 1
    slow = rsa.RSAPublicKey(RSA.construct((modulus, 2**1000 + 1), consistency_check=False))
    with pytest.raises(NoiseStateError, match="too long an exponent"):
        verify_payload(payload_with(slow.serialize(), bytes(256)), STATIC_PUBLIC)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x0a\xff\xff\xff\xff\x07", os.urandom(64)], ids=len)
def test_payloads_that_are_none_are_refused(payload: bytes) -> None:
    with pytest.raises(NoiseFailure):
        verify_payload(payload, STATIC_PUBLIC)


def test_long_payloads_are_refused() -> None:
    good = make_payload(ALICE.private_key, STATIC)
    # An unknown field of any length may follow.
    filler = MAX_PAYLOAD_BYTES - len(good) - 3
    longest = good + b"\x7a" + bytes([filler & 0x7F | 0x80, filler >> 7]) + bytes(filler)
    assert len(longest) == MAX_PAYLOAD_BYTES
    assert verify_payload(longest, STATIC_PUBLIC).public_key == ALICE.public_key
    with pytest.raises(NoiseStateError, match="too long"):
        verify_payload(longest + b"\0", STATIC_PUBLIC)


@pytest.mark.parametrize("initiator", [True, False])
def test_a_long_message_is_refused_when_it_is_announced(initiator: bool) -> None:
    handshake = side(ALICE, 1, initiator=initiator)
    handshake.start()
    with pytest.raises(NoiseStateError, match="longer"):
        handshake.receive(b"\xff\xff")


def test_a_private_key_without_its_public_key_is_no_identity() -> None:
    class Impostor(ed25519.Ed25519PrivateKey):
        def get_public_key(self) -> PublicKey:
            return BOB.public_key

    own: PrivateKey = Impostor(ed25519.Ed25519PrivateKey.new(b"i" * 32).impl)
    with pytest.raises(InvalidSignature):
        verify_payload(make_payload(own, STATIC), STATIC_PUBLIC)


def test_multiplexers_are_told() -> None:
    initiator = side(ALICE, 1, initiator=True, muxers=("/yamux/1.0.0", "/mplex/6.7.0"))
    responder = side(BOB, 3, initiator=False)
    converse(initiator, responder)
    assert remote_of(responder).stream_muxers == ("/yamux/1.0.0", "/mplex/6.7.0")
    assert remote_of(initiator).stream_muxers == ()
