"""Somebody in the middle of a Noise session: whatever is changed, cut off, repeated or left out is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.swarm.noise_core import AesCipherState, CipherState, NoiseError, Opener, Sealer
from sdnet_core.swarm.noise_handshake import NoiseHandshake, make_payload
from tests.sinks import Kept

# isort: split
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.security.noise.exceptions import NoiseFailure

ALICE = create_new_key_pair(b"a" * 32)
BOB = create_new_key_pair(b"b" * 32)
ALICES_STATIC = X25519PrivateKey.from_private_bytes(b"A" * 32)
BOBS_STATIC = X25519PrivateKey.from_private_bytes(b"B" * 32)
ALICES_PAYLOAD = make_payload(ALICE.private_key, ALICES_STATIC)
BOBS_PAYLOAD = make_payload(BOB.private_key, BOBS_STATIC)
MESSAGE_BYTES = (34, 202, 170)


def run(tamper: Callable[[int, bytes], bytes]) -> tuple[NoiseHandshake, NoiseHandshake, list[NoiseFailure]]:
    """A handshake whose messages pass through ``tamper``, which is told the number of each."""
    initiator = NoiseHandshake(
        initiator=True,
        static=ALICES_STATIC,
        ephemeral=X25519PrivateKey.from_private_bytes(b"1" * 32),
        payload=ALICES_PAYLOAD,
    )
    responder = NoiseHandshake(
        initiator=False,
        static=BOBS_STATIC,
        ephemeral=X25519PrivateKey.from_private_bytes(b"2" * 32),
        payload=BOBS_PAYLOAD,
    )
    refusals: list[NoiseFailure] = []
    message = initiator.start()
    for number, receiver in enumerate((responder, initiator, responder)):
        if message:
            assert len(message) == MESSAGE_BYTES[number]
            try:
                message = receiver.receive(tamper(number, message))
            except NoiseFailure as exc:
                refusals.append(exc)
                message = b""
    return initiator, responder, refusals


def check_refused(number: int, tamper: Callable[[bytes], bytes]) -> list[NoiseFailure]:
    """Change one message: neither the one that gets it nor, later, the other believes in the session."""
    initiator, responder, refusals = run(lambda n, message: tamper(message) if n == number else message)
    assert responder.established is None
    if number < 2:
        assert initiator.established is None
    return refusals


def test_an_honest_carrier_changes_nothing() -> None:
    initiator, responder, refusals = run(lambda _, message: message)
    assert initiator.established is not None
    assert responder.established is not None
    assert refusals == []


@pytest.mark.parametrize("number", range(3))
def test_every_flipped_bit_in_the_handshake_is_refused(number: int) -> None:
    undecided = []
    for bit in range(MESSAGE_BYTES[number] * 8):

        def flip(message: bytes, bit: int = bit) -> bytes:
            changed = bytearray(message)
            changed[bit // 8] ^= 1 << bit % 8
            return bytes(changed)

        if not check_refused(number, flip):
            undecided.append(bit)
    # Only a length that has become longer leaves the receiver waiting, until the connection ends or time is up.
    assert all(bit < 16 for bit in undecided)


@pytest.mark.parametrize("number", range(3))
def test_every_truncated_handshake_message_is_refused(number: int) -> None:
    for size in range(MESSAGE_BYTES[number]):
        # The rest never comes.
        assert check_refused(number, lambda message, size=size: message[:size]) == []  # type: ignore[misc]
    for size in range(MESSAGE_BYTES[number] - 2):
        # The length says that this is all.
        refusals = check_refused(
            number,
            lambda message, size=size: size.to_bytes(2, "big") + message[2 : 2 + size],  # type: ignore[misc]
        )
        assert len(refusals) == 1


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("extra", [1, 16, 4000])
def test_handshake_messages_with_something_added_are_refused(number: int, extra: int) -> None:
    def lengthen(message: bytes) -> bytes:
        return (len(message) - 2 + extra).to_bytes(2, "big") + message[2:] + os.urandom(extra)

    assert len(check_refused(number, lengthen)) == 1


def test_a_handshake_cannot_be_replayed() -> None:
    record: list[bytes] = []

    def keep(_number: int, message: bytes) -> bytes:
        record.append(message)
        return message

    run(keep)
    fresh = NoiseHandshake(
        initiator=False, static=BOBS_STATIC, ephemeral=X25519PrivateKey.generate(), payload=BOBS_PAYLOAD
    )
    fresh.receive(record[0])
    with pytest.raises(NoiseFailure):
        fresh.receive(record[2])
    assert fresh.established is None


def test_a_message_reflected_to_its_sender_is_refused() -> None:
    initiator = NoiseHandshake(
        initiator=True, static=ALICES_STATIC, ephemeral=X25519PrivateKey.generate(), payload=ALICES_PAYLOAD
    )
    with pytest.raises(NoiseFailure):
        initiator.receive(initiator.start())


def sealed_messages(plaintexts: list[bytes], kind: type[CipherState]) -> list[bytes]:
    sealer = Sealer(kind(b"k" * 32))
    messages = []
    for plaintext in plaintexts:
        out = memoryview(bytearray(Sealer.sealed_bytes([plaintext])))
        sealer.seal_into([plaintext], out)
        messages.append(bytes(out))
    return messages


def receive(data: bytes, kind: type[CipherState]) -> tuple[list[bytes], bool]:
    """What a receiver gives out of some bytes before the end, and whether it thinks all is well then."""
    opener = Opener(kind(b"k" * 32))
    kept = Kept()
    try:
        opener.deliver(kept, data)
    except NoiseError:
        return kept, False
    return kept, opener.whole


ciphers = pytest.mark.parametrize("kind", [CipherState, AesCipherState])
plaintext_lists = st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=6)


@ciphers
@given(plaintext_lists, st.data())
def test_a_flipped_bit_in_the_session_is_refused(
    kind: type[CipherState], plaintexts: list[bytes], data: st.DataObject
) -> None:
    messages = sealed_messages(plaintexts, kind)
    number = data.draw(st.integers(0, len(messages) - 1))
    bit = data.draw(st.integers(0, len(messages[number]) * 8 - 1))
    changed = bytearray(messages[number])
    changed[bit // 8] ^= 1 << bit % 8
    messages[number] = bytes(changed)
    assert receive(b"".join(messages), kind) == (plaintexts[:number], False)


@ciphers
@given(plaintext_lists, st.data())
def test_a_cut_session_gives_whole_messages_only(
    kind: type[CipherState], plaintexts: list[bytes], data: st.DataObject
) -> None:
    messages = sealed_messages(plaintexts, kind)
    stream = b"".join(messages)
    end = data.draw(st.integers(0, len(stream)))
    borders = [len(b"".join(messages[:count])) for count in range(len(messages) + 1)]
    count = max(number for number, border in enumerate(borders) if border <= end)
    # An end between two messages is one that the layers above notice: the multiplexer says when a stream is at its end.
    assert receive(stream[:end], kind) == (plaintexts[:count], end in borders)


@ciphers
@given(st.lists(st.binary(min_size=1, max_size=50), min_size=2, max_size=6), st.data())
def test_messages_left_out_repeated_or_exchanged_are_refused(
    kind: type[CipherState], plaintexts: list[bytes], data: st.DataObject
) -> None:
    messages = sealed_messages(plaintexts, kind)
    one = data.draw(st.integers(0, len(messages) - 2))
    how = data.draw(st.sampled_from(["left out", "repeated", "exchanged"]))
    if how == "left out":
        del messages[one]
    elif how == "repeated":
        messages.insert(one + 1, messages[one])
    else:
        messages[one], messages[one + 1] = messages[one + 1], messages[one]
    kept = one + 1 if how == "repeated" else one
    assert receive(b"".join(messages), kind) == (plaintexts[:kept], False)


@given(st.binary(max_size=600), st.booleans())
def test_junk_never_does_anything_else_than_fail(junk: bytes, initiator: bool) -> None:
    handshake = NoiseHandshake(initiator=initiator, static=ALICES_STATIC, ephemeral=BOBS_STATIC, payload=ALICES_PAYLOAD)
    handshake.start()
    try:
        handshake.receive(junk)
    except NoiseFailure:
        pass
    assert handshake.established is None
