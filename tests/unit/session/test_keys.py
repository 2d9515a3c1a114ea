"""The key schedule: one key for one purpose, pinned by vectors that are computed here in another way."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import AuthenticationFailedError
from sdnet_core.session.keys import (
    PeerSecret,
    Role,
    SessionKeys,
    Suite,
    Transcript,
    confirmation,
    derive_session_keys,
    exchange,
    expand,
    extract,
    suites_by_speed,
)


def keys(role: Role = Role.INITIATOR, key: bytes = b"k" * 32, transcript_hash: bytes = b"h" * 32) -> SessionKeys:
    return derive_session_keys(
        key, transcript_hash, role=role, suite=Suite.AES_256_GCM, created_at=1000.0, lifetime_s=60.0
    )


def plain_expand(key: bytes, info: bytes, length: int = 32) -> bytes:
    """RFC 5869 section 2.3, for at most one block."""
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()[:length]


def test_key_schedule_as_specified() -> None:
    label = b"sdnet/session/1\0"
    epoch_key = plain_expand(b"k" * 32, label + b"epoch\0" + b"h" * 32)
    initiator = plain_expand(epoch_key, label + b"initiator traffic\0")
    responder = plain_expand(epoch_key, label + b"responder traffic\0")
    mine, theirs = keys(Role.INITIATOR), keys(Role.RESPONDER)
    assert (mine.send_key, mine.receive_key) == (initiator, responder)
    assert (theirs.send_key, theirs.receive_key) == (responder, initiator)
    assert mine.epoch_id == theirs.epoch_id == plain_expand(epoch_key, label + b"epoch id\0", 8)
    assert mine.rekey_secret == theirs.rekey_secret == plain_expand(epoch_key, label + b"rekey\0")
    context = bytes([1, 2]) + b"\x00\x0d" + b"/sdnet/test/1" + (7).to_bytes(8, "big")
    stream_key = mine.stream_key(Role.INITIATOR, Role.RESPONDER, "/sdnet/test/1", 7)
    assert stream_key == plain_expand(responder, label + b"stream\0" + context)


def test_known_answers() -> None:
    found = keys()
    assert found.epoch_id.hex() == "9bba74600e47b949"
    assert found.send_key.hex() == "7077994a9ade11260cec65213e83f21345ba31bb9d3e7bc27a09918c43c9eaab"
    assert (
        found.stream_key(Role.INITIATOR, Role.INITIATOR, "/sdnet/test/1", 1).hex()
        == "c5cad1f55e9487bc3865aaacf3b74c4ebf09e1ec4a60df1e08b0fec3d7c06453"
    )
    assert (
        confirmation(b"k" * 32, "ready", b"h" * 32).hex()
        == "89b3a61c22cd87e667601a78952007090b0d1a39f764f78b8892ef1cbd85aad2"
    )
    transcript = Transcript("handshake")
    transcript.add(b"a", b"")
    assert transcript.digest().hex() == "60da1ad32fae46271ba1ee87594c87f8cd031a9734cd57f7463ed598257292e2"


def test_extract_is_hkdf_of_rfc_5869() -> None:
    # Test case 1 of appendix A.
    found = extract(bytes(range(13)), b"\x0b" * 22)
    assert found.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"


def test_both_ends_have_the_same_stream_keys() -> None:
    mine, theirs = keys(Role.INITIATOR), keys(Role.RESPONDER)
    for opener, sender in itertools.product(Role, Role):
        arguments = (opener, sender, "/sdnet/test/1", 3)
        assert mine.stream_key(*arguments) == theirs.stream_key(*arguments)


def test_no_two_keys_of_an_epoch_are_equal() -> None:
    found = keys()
    protocols = ["", "/sdnet/a/1", "/sdnet/a/11", "/sdnet/a/1\0\0\0\0\0\0\0\1", "/sdnet/b/1"]
    numbers = [0, 1, 2, 255, 256, 2**32, 2**64 - 1]
    made = [
        found.stream_key(opener, sender, protocol, number)
        for opener, sender, protocol, number in itertools.product(Role, Role, protocols, numbers)
    ]
    made += [found.send_key, found.receive_key, found.rekey_secret]
    assert len(set(made)) == len(made) == 2 * 2 * 5 * 7 + 3


_stream = st.tuples(
    st.sampled_from(Role), st.sampled_from(Role), st.text("/a1\0é", max_size=12), st.integers(0, 2**64 - 1)
)


@given(_stream, _stream)
def test_different_streams_have_different_keys(a: tuple[Role, Role, str, int], b: tuple[Role, Role, str, int]) -> None:
    found = keys()
    assert (found.stream_key(*a) == found.stream_key(*b)) == (a == b)


def test_other_secrets_give_other_keys() -> None:
    all_keys = [keys(), keys(key=b"K" * 32), keys(transcript_hash=b"H" * 32)]
    assert len({item.send_key for item in all_keys} | {item.receive_key for item in all_keys}) == 6
    assert len({item.epoch_id for item in all_keys}) == 3


def test_labels_and_contexts_do_not_run_together() -> None:
    assert expand(b"k" * 32, "ab", b"c") != expand(b"k" * 32, "a", b"bc")


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_transcripts_of_different_fields_differ(a: list[bytes], b: list[bytes]) -> None:
    def digest(fields: list[bytes]) -> bytes:
        transcript = Transcript("x")
        transcript.add(*fields)
        return transcript.digest()

    assert (digest(a) == digest(b)) == (a == b)


@pytest.mark.parametrize(
    "point",
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_small_order_points_are_refused(point: str) -> None:
    with pytest.raises(AuthenticationFailedError):
        exchange(X25519PrivateKey.from_private_bytes(b"x" * 32), bytes.fromhex(point))


def test_the_faster_suite_comes_first() -> None:
    ticks = iter(range(1000))
    assert set(suites_by_speed(lambda: float(next(ticks)))) == set(Suite)
    # Two readings a round: the first suite's rounds take 5 s each, the second's 1 s.
    times = iter([0.0, 5.0] * 2 + [0.0, 1.0] * 2)
    assert suites_by_speed(lambda: next(times), rounds=2) == (Suite.CHACHA20_POLY1305, Suite.AES_256_GCM)


def test_secrets_are_not_shown() -> None:
    secret = PeerSecret(b"p" * 16, b"r" * 32, "12D3")
    assert "rrrr" not in repr(secret)
    shown = repr(keys())
    assert keys().send_key.hex() not in shown
    assert repr(keys().send_key) not in shown


def test_a_root_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="pairing root"):
        PeerSecret(b"p" * 16, b"r" * 31, "12D3")
