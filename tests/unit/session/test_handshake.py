"""The handshake as a conversation between two machines, with and without somebody in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import AuthenticationFailedError, ProtocolError, SerializationError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session.handshake import (
    Hello,
    InitiatorHandshake,
    Proof,
    Ready,
    Refusal,
    RefusalReason,
    ResponderHandshake,
    SessionRefusedError,
    Welcome,
)
from sdnet_core.session.keys import PeerSecret, Suite
from sdnet_core.wire import decode, encode

BOTH = (Suite.AES_256_GCM, Suite.CHACHA20_POLY1305)
ALICE = NetworkIdentity(b"a" * 32)
BOB = NetworkIdentity(b"b" * 32)
MALLORY = NetworkIdentity(b"m" * 32)
ROOT = b"r" * 32
PAIRING = b"p" * 16
WITH_BOB = PeerSecret(PAIRING, ROOT, BOB.peer_id)
WITH_ALICE = PeerSecret(PAIRING, ROOT, ALICE.peer_id)

REFUSED = (AuthenticationFailedError, ProtocolError)


def dialler(
    identity: NetworkIdentity = ALICE, secret: PeerSecret = WITH_BOB, suites: tuple[Suite, ...] = BOTH
) -> InitiatorHandshake:
    return InitiatorHandshake(identity, secret, suites, SystemRandomness())


def answerer(
    identity: NetworkIdentity = BOB,
    remote: str = ALICE.peer_id,
    secret: PeerSecret | None = WITH_ALICE,
    suites: tuple[Suite, ...] = BOTH,
    **more: Any,
) -> ResponderHandshake:
    def resolve(pairing_id: bytes) -> PeerSecret | None:
        return secret if secret is not None and pairing_id == secret.pairing_id else None

    return ResponderHandshake(identity, remote, resolve, suites, SystemRandomness(), **more)


def reply(machine: InitiatorHandshake | ResponderHandshake, payload: bytes) -> bytes:
    answer = machine.receive(payload)
    assert answer is not None
    return answer


def converse(
    a: InitiatorHandshake, b: ResponderHandshake, tamper: Callable[[int, bytes], bytes] = lambda _, payload: payload
) -> None:
    """Carry the four messages to and fro; ``tamper(number, payload)`` may change each on its way."""
    hello = tamper(0, a.start())
    welcome = tamper(1, reply(b, hello))
    proof = tamper(2, reply(a, welcome))
    ready = tamper(3, reply(b, proof))
    assert a.receive(ready) is None


def assert_not_joined(a: InitiatorHandshake, b: ResponderHandshake) -> None:
    """The two never both have keys that agree with each other."""
    if a.done and b.established is not None:
        assert a.established is not None
        assert a.established.key != b.established.key


def test_both_sides_end_with_the_same_keys() -> None:
    a, b = dialler(), answerer()
    converse(a, b)
    assert a.done
    assert a.established is not None
    assert a.established == b.established
    assert a.established.suite is Suite.AES_256_GCM
    assert b.secret == WITH_ALICE


def test_every_session_has_other_keys() -> None:
    keys = set()
    for _ in range(3):
        a, b = dialler(), answerer()
        converse(a, b)
        assert a.established is not None
        keys.add((a.established.key, a.established.transcript_hash))
    assert len({key for key, _ in keys}) == len({transcript for _, transcript in keys}) == 3


def test_a_handshake_is_small() -> None:
    sizes = []

    def measure(_: int, payload: bytes) -> bytes:
        sizes.append(len(payload))
        return payload

    converse(dialler(), answerer(), measure)
    assert sum(sizes) < 600


@pytest.mark.parametrize(
    ("offered", "taken", "chosen"),
    [
        (BOTH, BOTH, Suite.AES_256_GCM),
        (BOTH[::-1], BOTH, Suite.CHACHA20_POLY1305),
        (BOTH, BOTH[1:], Suite.CHACHA20_POLY1305),
        (BOTH[1:], BOTH, Suite.CHACHA20_POLY1305),
    ],
)
def test_the_dialler_s_first_common_suite_is_chosen(
    offered: tuple[Suite, ...], taken: tuple[Suite, ...], chosen: Suite
) -> None:
    a, b = dialler(suites=offered), answerer(suites=taken)
    converse(a, b)
    assert a.established is not None
    assert a.established.suite is chosen


def test_a_newer_dialler_s_offers_are_understood() -> None:
    # Versions and suites that this side does not know yet are passed over.
    hello = encode(Hello(versions=(9, 1), suites=(77, 2), pairing_id=PAIRING, nonce=b"n" * 32, ephemeral=b"\x09" * 32))
    welcome: Welcome = decode(reply(answerer(), hello), Welcome)
    assert (welcome.version, welcome.suite) == (1, 2)


@pytest.mark.parametrize(
    ("secret", "remote"),
    [
        (None, ALICE.peer_id),
        (PeerSecret(b"q" * 16, ROOT, ALICE.peer_id), ALICE.peer_id),
        (WITH_ALICE, MALLORY.peer_id),
    ],
    ids=["stranger", "other pairing", "other device"],
)
def test_not_paired_is_told_so_that_it_can_be_believed(secret: PeerSecret | None, remote: str) -> None:
    identity = ALICE if remote == ALICE.peer_id else MALLORY
    a, b = dialler(identity=identity), answerer(remote=remote, secret=secret)
    refusal = reply(b, a.start())
    assert b.refused is RefusalReason.NOT_PAIRED
    assert b.established is None
    with pytest.raises(SessionRefusedError) as caught:
        a.receive(refusal)
    assert caught.value.reason is RefusalReason.NOT_PAIRED
    with pytest.raises(ProtocolError):
        b.receive(b"")


def test_busy_is_told() -> None:
    a, b = dialler(), answerer(admit=lambda secret: secret != WITH_ALICE)
    with pytest.raises(SessionRefusedError) as caught:
        a.receive(reply(b, a.start()))
    assert caught.value.reason is RefusalReason.BUSY


def test_a_stranger_does_not_learn_that_we_are_busy() -> None:
    a, b = dialler(identity=MALLORY), answerer(remote=MALLORY.peer_id, admit=lambda _: False)
    with pytest.raises(SessionRefusedError) as caught:
        a.receive(reply(b, a.start()))
    assert caught.value.reason is RefusalReason.NOT_PAIRED


def test_nothing_in_common_is_told() -> None:
    a, b = dialler(suites=BOTH[:1]), answerer(suites=BOTH[1:])
    with pytest.raises(SessionRefusedError) as caught:
        a.receive(reply(b, a.start()))
    assert caught.value.reason is RefusalReason.UNSUPPORTED


def test_a_refusal_by_somebody_else_is_not_believed() -> None:
    a, mallory = dialler(), answerer(identity=MALLORY, secret=None)
    with pytest.raises(AuthenticationFailedError):
        a.receive(reply(mallory, a.start()))


def test_a_refusal_of_an_earlier_session_is_not_believed() -> None:
    old = reply(answerer(secret=None), dialler().start())
    a = dialler()
    a.start()
    with pytest.raises(AuthenticationFailedError):
        a.receive(old)


def test_a_refusal_s_reason_cannot_be_changed() -> None:
    a = dialler()
    refusal: Refusal = decode(reply(answerer(admit=lambda _: False), a.start()), Refusal)
    with pytest.raises(AuthenticationFailedError):
        a.receive(encode(Refusal(reason=RefusalReason.NOT_PAIRED, signature=refusal.signature)))


def test_a_wrong_root_is_noticed_by_the_dialler() -> None:
    a, b = dialler(), answerer(secret=PeerSecret(PAIRING, b"R" * 32, ALICE.peer_id))
    with pytest.raises(AuthenticationFailedError, match="secret"):
        converse(a, b)
    assert a.established is None
    assert b.established is None


def test_the_root_without_the_device_key_is_not_enough() -> None:
    # Mallory has stolen the pairing root, and sits where Bob is expected, or dials as Alice.
    with pytest.raises(AuthenticationFailedError, match="signature"):
        converse(dialler(), answerer(identity=MALLORY))
    a = dialler(identity=MALLORY)
    b = answerer()
    hello = a.start()
    welcome: Welcome = decode(reply(b, hello), Welcome)
    proof = encode(Proof(signature=MALLORY.sign("session", b"x"), confirmation=welcome.confirmation))
    with pytest.raises(AuthenticationFailedError, match="signature"):
        b.receive(proof)
    assert b.established is None


def test_the_device_key_without_the_root_is_not_enough() -> None:
    a, b = dialler(secret=PeerSecret(PAIRING, b"R" * 32, BOB.peer_id)), answerer()
    with pytest.raises(AuthenticationFailedError):
        converse(a, b)


def test_a_downgrade_is_noticed() -> None:
    def drop_the_first_suite(number: int, payload: bytes) -> bytes:
        if number != 0:
            return payload
        hello: Hello = decode(payload, Hello)
        return encode(
            Hello(
                versions=hello.versions,
                suites=hello.suites[1:],
                pairing_id=hello.pairing_id,
                nonce=hello.nonce,
                ephemeral=hello.ephemeral,
            )
        )

    with pytest.raises(AuthenticationFailedError):
        converse(dialler(), answerer(), drop_the_first_suite)


@pytest.mark.parametrize(("version", "suite"), [(2, 1), (0, 1), (1, 2), (1, 99)])
def test_a_choice_that_was_not_offered_is_refused(version: int, suite: int) -> None:
    a = dialler(suites=BOTH[:1])
    welcome: Welcome = decode(reply(answerer(), a.start()), Welcome)
    changed = Welcome(
        version=version,
        suite=suite,
        nonce=welcome.nonce,
        ephemeral=welcome.ephemeral,
        signature=welcome.signature,
        confirmation=welcome.confirmation,
    )
    with pytest.raises(ProtocolError):
        a.receive(encode(changed))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_small_order_points_are_refused(point: bytes) -> None:
    hello = encode(Hello(versions=(1,), suites=(1,), pairing_id=PAIRING, nonce=b"n" * 32, ephemeral=point))
    with pytest.raises(AuthenticationFailedError):
        answerer().receive(hello)
    a = dialler()
    a.start()
    welcome = Welcome(version=1, suite=1, nonce=b"n" * 32, ephemeral=point, signature=b"s" * 64, confirmation=b"c" * 32)
    with pytest.raises(AuthenticationFailedError):
        a.receive(encode(welcome))


def test_messages_of_an_earlier_session_are_refused() -> None:
    recorded: list[bytes] = []

    def record(_: int, payload: bytes) -> bytes:
        recorded.append(payload)
        return payload

    converse(dialler(), answerer(), record)
    for number in range(1, 4):
        a, b = dialler(), answerer()

        def replay(at: int, payload: bytes, number: int = number) -> bytes:
            return recorded[at] if at == number else payload

        with pytest.raises(AuthenticationFailedError):
            converse(a, b, replay)
    # A whole dialler's side played again gets an answer to its Hello, but no session.
    b = answerer()
    b.receive(recorded[0])
    with pytest.raises(AuthenticationFailedError):
        b.receive(recorded[2])
    assert b.established is None


def test_messages_are_not_taken_back_as_answers() -> None:
    a = dialler()
    hello = a.start()
    with pytest.raises(SerializationError):
        a.receive(hello)
    # Bob's own proof does not pass as the other side's.
    a, b = dialler(), answerer()
    welcome: Welcome = decode(reply(b, a.start()), Welcome)
    with pytest.raises(AuthenticationFailedError):
        b.receive(encode(Proof(signature=welcome.signature, confirmation=welcome.confirmation)))


def test_nothing_is_taken_out_of_turn() -> None:
    a, b = dialler(), answerer()
    with pytest.raises(ProtocolError):
        a.receive(b"")
    converse(a, b)
    for machine in (a, b):
        with pytest.raises(ProtocolError):
            machine.receive(encode(Ready(confirmation=b"c" * 32)))
    with pytest.raises(ProtocolError):
        a.start()


def test_a_failed_handshake_stays_failed() -> None:
    a, b = dialler(), answerer()
    welcome = reply(b, a.start())
    with pytest.raises(SerializationError):
        a.receive(b"\xff")
    with pytest.raises(ProtocolError):
        a.receive(welcome)
    assert a.established is None


def test_no_session_with_oneself() -> None:
    with pytest.raises(ProtocolError):
        dialler(secret=PeerSecret(PAIRING, ROOT, ALICE.peer_id))


@given(st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    a, b = dialler(), answerer()
    which = data.draw(st.integers(0, 3))

    def flip(number: int, payload: bytes) -> bytes:
        if number != which:
            return payload
        changed = bytearray(payload)
        changed[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(changed)

    # A changed pairing id gets an authenticated "not paired", to a Hello that was never sent.
    with pytest.raises(REFUSED):
        converse(a, b, flip)
    assert_not_joined(a, b)


@given(st.data())
def test_a_cut_or_lengthened_message_is_noticed(data: st.DataObject) -> None:
    which = data.draw(st.integers(0, 3))

    def cut(number: int, payload: bytes) -> bytes:
        if number != which:
            return payload
        length = data.draw(st.integers(0, len(payload) - 1))
        return payload[:length] if data.draw(st.booleans()) else payload + payload[: length + 1]

    with pytest.raises(SerializationError):
        converse(dialler(), answerer(), cut)


@given(st.binary(max_size=300))
def test_garbage_raises_what_is_documented(payload: bytes) -> None:
    with pytest.raises(SerializationError):
        answerer().receive(payload)
    a = dialler()
    a.start()
    with pytest.raises(SerializationError):
        a.receive(payload)


def test_wire_forms() -> None:
    hello = Hello(versions=(1,), suites=(1, 2), pairing_id=b"p" * 16, nonce=b"n" * 32, ephemeral=b"e" * 32)
    welcome = Welcome(
        version=1, suite=2, nonce=b"n" * 32, ephemeral=b"e" * 32, signature=b"s" * 64, confirmation=b"c" * 32
    )
    n, e, s, c = ("5820" + "6e" * 32, "5820" + "65" * 32, "5840" + "73" * 64, "5820" + "63" * 32)
    nonce, ephemeral = "656e6f6e6365" + n, "69657068656d6572616c" + e
    signature, mac = "697369676e6174757265" + s, "6c636f6e6669726d6174696f6e" + c
    suites, pairing = "66737569746573820102", "6a70616972696e675f696450" + "70" * 16
    versions = "6876657273696f6e738101"
    assert encode(hello).hex() == "a6617401" + nonce + suites + versions + ephemeral + pairing
    chosen = "657375697465026776657273696f6e01"
    assert encode(welcome).hex() == "a7617402" + nonce + chosen + ephemeral + signature + mac
    assert encode(Proof(signature=b"s" * 64, confirmation=b"c" * 32)).hex() == "a3617403" + signature + mac
    assert encode(Ready(confirmation=b"c" * 32)).hex() == "a2617404" + mac
    refusal = Refusal(reason=RefusalReason.BUSY, signature=b"s" * 64)
    assert encode(refusal).hex() == "a361740566726561736f6e6462757379" + signature
