"""Changing keys, without I/O: fresh keys that nobody gets who lacks the old ones or either private key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import AuthenticationFailedError, ProtocolError
from sdnet_core.session.keys import Role, SessionKeys, Suite, Transcript, derive_session_keys, exchange
from sdnet_core.session.rekey import Rekey, RekeyAnswer, RekeyConfirm, RekeyRequest

MakeRandomness = Callable[[str], Any]


def old_keys(role: Role, key: bytes = b"k" * 32) -> SessionKeys:
    return derive_session_keys(
        key, b"h" * 32, role=role, suite=Suite.CHACHA20_POLY1305, created_at=1000.0, lifetime_s=60.0
    )


def start(role: Role, **more: Any) -> Rekey:
    return Rekey(old_keys(role, **more), SystemRandomness())


@pytest.mark.parametrize("asking", list(Role))
def test_both_sides_get_the_same_new_keys(asking: Role) -> None:
    a, b = start(asking), start(asking.other)
    b.confirm(a.accept(b.answer(a.request())))
    ours, theirs = a.new_keys(2000.0, 60.0), b.new_keys(2001.0, 60.0)
    assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
    assert ours.epoch_id == theirs.epoch_id
    assert ours.rekey_secret == theirs.rekey_secret
    assert (ours.role, ours.suite, ours.created_at, ours.expires_at) == (asking, Suite.CHACHA20_POLY1305, 2000, 2060)
    old = old_keys(asking)
    assert not {ours.send_key, ours.receive_key, ours.rekey_secret} & {old.send_key, old.receive_key, old.rekey_secret}


def test_new_keys_as_specified(randomness: MakeRandomness) -> None:
    a, b = Rekey(old_keys(Role.INITIATOR), randomness("a")), Rekey(old_keys(Role.RESPONDER), randomness("b"))
    request = a.request()
    answer = b.answer(request)
    a.accept(answer)
    old = old_keys(Role.INITIATOR)
    transcript = Transcript("rekey")
    transcript.add(old.epoch_id, b"\1", request.nonce, request.ephemeral, answer.nonce, answer.ephemeral)
    shared = exchange(X25519PrivateKey.from_private_bytes(randomness("a").bytes(32)), answer.ephemeral)
    key = hmac.new(old.rekey_secret, shared + transcript.digest(), hashlib.sha256).digest()
    expected = derive_session_keys(
        key, transcript.digest(), role=old.role, suite=old.suite, created_at=5.0, lifetime_s=60.0
    )
    assert a.new_keys(5.0, 60.0) == expected


def test_the_old_secret_is_needed() -> None:
    # Somebody has taken over the connection, but not the keys of the old epoch.
    a, b = start(Role.INITIATOR), start(Role.RESPONDER, key=b"K" * 32)
    with pytest.raises(AuthenticationFailedError):
        a.accept(b.answer(a.request()))
    same_epoch_other_secret = replace(old_keys(Role.RESPONDER), rekey_secret=b"x" * 32)
    with pytest.raises(AuthenticationFailedError):
        start(Role.INITIATOR).accept(Rekey(same_epoch_other_secret, SystemRandomness()).answer(a.request()))


def test_an_answer_to_another_request_is_refused() -> None:
    a, b = start(Role.INITIATOR), start(Role.RESPONDER)
    other = start(Role.INITIATOR)
    with pytest.raises(AuthenticationFailedError):
        a.accept(b.answer(other.request()))


def test_a_changed_answer_is_refused() -> None:
    a, b = start(Role.INITIATOR), start(Role.RESPONDER)
    answer = b.answer(a.request())
    changed = RekeyAnswer(nonce=b"n" * 32, ephemeral=answer.ephemeral, confirmation=answer.confirmation)
    with pytest.raises(AuthenticationFailedError):
        a.accept(changed)


def test_the_answer_s_confirmation_is_not_taken_back() -> None:
    a, b = start(Role.INITIATOR), start(Role.RESPONDER)
    answer = b.answer(a.request())
    with pytest.raises(AuthenticationFailedError):
        b.confirm(RekeyConfirm(confirmation=answer.confirmation))


def test_a_request_is_not_taken_back_as_the_other_side_s() -> None:
    a = start(Role.INITIATOR)
    reflected = start(Role.INITIATOR).answer(a.request())
    with pytest.raises(AuthenticationFailedError):
        a.accept(reflected)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_small_order_points_are_refused(point: bytes) -> None:
    with pytest.raises(AuthenticationFailedError):
        start(Role.RESPONDER).answer(RekeyRequest(nonce=b"n" * 32, ephemeral=point))
    with pytest.raises(AuthenticationFailedError):
        start(Role.INITIATOR).accept(RekeyAnswer(nonce=b"n" * 32, ephemeral=point, confirmation=b"c" * 32))


def test_one_change_of_keys_is_one() -> None:
    a, b = start(Role.INITIATOR), start(Role.RESPONDER)
    b.answer(a.request())
    with pytest.raises(ProtocolError):
        b.answer(a.request())
