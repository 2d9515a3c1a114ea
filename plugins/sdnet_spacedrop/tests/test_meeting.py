"""The exchange between devices that are not paired, below any stream."""

from __future__ import annotations

import hmac
import os
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import AuthenticationFailedError, ProtocolError, SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_spacedrop import meeting
from sdnet_spacedrop import nearby_messages as n
from sdnet_spacedrop.meeting import Invitee, Inviter, check_number

from .conftest import GOLDEN

ANNA, BEN, MALLORY = "12D3KooWAnna", "12D3KooWBen", "12D3KooWMallory"
TRIES = 1_000_000 if os.environ.get("SDNET_LONG_TESTS") else 20_000
"""How many keys or nonces whoever sits in between tries; the long form is ``nox -s spacedrop_long``."""

SAMPLES: dict[str, Message] = {
    "nearby-query": n.NearbyQuery(),
    "nearby-presence": n.NearbyPresence(name="Ben's phone"),
    "nearby-commit": n.NearbyCommit(commitment=bytes(range(32)), name="Anna"),
    "nearby-key": n.NearbyKey(ephemeral=bytes(range(32)), nonce=bytes(range(32, 64)), name="Ben's phone"),
    "nearby-reveal": n.NearbyReveal(ephemeral=bytes(range(32)), nonce=bytes(range(64, 96))),
    "nearby-refusal": n.NearbyRefusal(code="busy", reason="Too many strangers wait there already."),
    "nearby-ready": n.NearbyReady(),
}
AnyMessage = n.NearbyFirst | n.PresenceAnswer | n.KeyAnswer | n.NearbyReveal | n.NearbyReady


def sides(seeds: Iterator[int] | None = None, sender: str = ANNA, receiver: str = BEN) -> tuple[Inviter, Invitee]:
    numbers = seeds if seeds is not None else iter(random.SystemRandom().sample(range(1 << 62), 4))
    secrets = [next(numbers).to_bytes(32, "big") for _ in range(4)]
    return (
        Inviter(sender, receiver, "Anna", seed=secrets[0], nonce=secrets[1]),
        Invitee(sender, receiver, "Ben", seed=secrets[2], nonce=secrets[3]),
    )


def run(inviter: Inviter, invitee: Invitee) -> None:
    reveal = inviter.receive(invitee.receive_commit(inviter.commit()))
    invitee.receive_reveal(reveal)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_on_the_wire_stay_what_they_are(name: str) -> None:
    path = GOLDEN / f"{name}.cbor"
    if os.environ.get("SDNET_WRITE_GOLDEN"):
        path.write_bytes(encode(SAMPLES[name]))
    assert encode(SAMPLES[name]) == path.read_bytes()
    assert decode(path.read_bytes(), AnyMessage) == SAMPLES[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nearby-query", {"more": 1}),
        ("nearby-presence", {"name": "x" * 65}),
        ("nearby-commit", {"commitment": bytes(31)}),
        ("nearby-commit", {"name": 7}),
        ("nearby-key", {"ephemeral": bytes(33)}),
        ("nearby-reveal", {"nonce": b""}),
        ("nearby-refusal", {"code": ""}),
        ("nearby-refusal", {"reason": "x" * 301}),
        ("nearby-ready", {"t": 8}),
    ],
)
def test_a_message_outside_its_bounds_is_refused(name: str, change: dict[str, Any]) -> None:
    values = msgspec.to_builtins(SAMPLES[name], builtin_types=(bytes,)) | change
    with pytest.raises(SerializationError):
        decode(encode(values), AnyMessage)


def test_what_two_sides_come_to_stays_what_it_is() -> None:
    # Fixed keys: an interoperable implementation must come to the same (docs/protocol/spacedrop.md).
    inviter, invitee = sides(count(1))
    run(inviter, invitee)
    assert inviter.met is not None
    assert invitee.met is not None
    assert (inviter.met.peer_name, invitee.met.peer_name) == ("Ben", "Anna")
    known = [(met.check, str(met.drop_id), met.secret.hex()) for met in (inviter.met, invitee.met)]
    assert known[0] == known[1]
    assert known[0] == VECTOR


VECTOR = (
    "6938 6860",
    "df1ca466-5408-4112-99d7-17f1bb7c4816",
    "1341976009f71816496216c127a5df2c7edf0ceef279e4981278632fb4927c5a",
)


@given(st.lists(st.integers(0, 1 << 64), min_size=4, max_size=4, unique=True))
def test_both_sides_always_come_to_the_same(seeds: list[int]) -> None:
    inviter, invitee = sides(iter(seeds))
    run(inviter, invitee)
    assert inviter.met is not None
    assert invitee.met is not None
    assert less_name(inviter.met) == less_name(invitee.met)
    assert len(inviter.met.check) == 9
    assert inviter.met.check.replace(" ", "").isdecimal()


def less_name(met: meeting.Met) -> tuple[object, ...]:
    return met.drop_id, met.check, met.secret


@given(
    st.sampled_from(["commitment", "name", "ephemeral", "nonce", "key name", "reveal ephemeral", "reveal nonce"]),
    st.integers(0, 255),
)
def test_whatever_is_changed_on_the_way_shows(field: str, bit: int) -> None:
    inviter, invitee = sides(count(1))

    def flipped(data: bytes) -> bytes:
        return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(32, "big")

    commit = inviter.commit()
    if field == "commitment":
        commit = msgspec.structs.replace(commit, commitment=flipped(commit.commitment))
    elif field == "name":
        commit = msgspec.structs.replace(commit, name="Anne")
    key = invitee.receive_commit(commit)
    if field == "ephemeral":
        key = msgspec.structs.replace(key, ephemeral=flipped(key.ephemeral))
    elif field == "nonce":
        key = msgspec.structs.replace(key, nonce=flipped(key.nonce))
    elif field == "key name":
        key = msgspec.structs.replace(key, name="Bert")
    reveal = inviter.receive(key)
    if field == "reveal ephemeral":
        reveal = msgspec.structs.replace(reveal, ephemeral=flipped(reveal.ephemeral))
    elif field == "reveal nonce":
        reveal = msgspec.structs.replace(reveal, nonce=flipped(reveal.nonce))
    if field in ("commitment", "reveal ephemeral", "reveal nonce"):
        with pytest.raises(AuthenticationFailedError):
            invitee.receive_reveal(reveal)
        assert invitee.met is None
        return
    invitee.receive_reveal(reveal)
    assert inviter.met is not None
    assert invitee.met is not None
    assert inviter.met.secret != invitee.met.secret
    assert inviter.met.drop_id != invitee.met.drop_id


def test_a_commitment_is_worth_nothing_between_other_peers() -> None:
    inviter, _ = sides()
    _, invitee = sides(sender=MALLORY)
    key = invitee.receive_commit(inviter.commit())
    with pytest.raises(AuthenticationFailedError, match="committed"):
        invitee.receive_reveal(inviter.receive(key))


def test_each_meeting_has_one_attempt() -> None:
    inviter, invitee = sides()
    commit = inviter.commit()
    with pytest.raises(ProtocolError):
        inviter.commit()
    key = invitee.receive_commit(commit)
    with pytest.raises(ProtocolError):
        invitee.receive_commit(commit)
    reveal = inviter.receive(key)
    with pytest.raises(ProtocolError):
        inviter.receive(key)
    wrong = msgspec.structs.replace(reveal, nonce=bytes(32))
    with pytest.raises(AuthenticationFailedError):
        invitee.receive_reveal(wrong)
    with pytest.raises(ProtocolError):
        invitee.receive_reveal(reveal)


def test_nothing_out_of_order_is_taken() -> None:
    inviter, invitee = sides()
    with pytest.raises(ProtocolError):
        inviter.receive(SAMPLES["nearby-key"])  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        invitee.receive_reveal(SAMPLES["nearby-reveal"])  # type: ignore[arg-type]


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_keys_of_small_order_are_refused(point: bytes) -> None:
    inviter, invitee = sides()
    key = msgspec.structs.replace(invitee.receive_commit(inviter.commit()), ephemeral=point)
    with pytest.raises(AuthenticationFailedError, match="not acceptable"):
        inviter.receive(key)
    _, invitee = sides()
    reveal = n.NearbyReveal(ephemeral=point, nonce=bytes(32))
    invitee.receive_commit(n.NearbyCommit(commitment=meeting.commitment(ANNA, BEN, reveal), name=""))
    with pytest.raises(AuthenticationFailedError, match="not acceptable"):
        invitee.receive_reveal(reveal)


def test_check_numbers_are_spread_evenly() -> None:
    found = [int(check_number(i.to_bytes(32, "big")).replace(" ", "")) for i in range(4000)]
    assert len(set(found)) > 3990
    tenths = [sum(number // 10**7 == digit for number in found) for digit in range(10)]
    assert min(tenths) > 300


# Somebody in the middle. To Anna it is the receiver, to Ben it is the sender; both screens have to show one number.


def attack(*, tries: int, digits: int, shown: bool) -> tuple[str, str]:
    """Sit between Anna and Ben, and do the best that can be done to make their numbers equal.

    Mallory has met Ben under a key of his own, so Ben's number is fixed. Anna has committed to her key and waits for
    his: he tries keys (by their nonces) and computes the number of each before he sends one. For that he needs Anna's
    key; unless it is shown to him too early, he can only assume one.

    :param digits: so many first digits of the number have to be equal.
    :param shown: Anna shows her key before she gets his, as a protocol without commitment would.
    :returns: the digits on Anna's and on Ben's screen.
    """
    anna, _ = sides(receiver=MALLORY)
    _, ben = sides(sender=MALLORY)
    mallory = Inviter(MALLORY, BEN, "Anna", seed=os.urandom(32), nonce=os.urandom(32))
    ben.receive_reveal(mallory.receive(ben.receive_commit(mallory.commit())))
    assert ben.met is not None
    wanted = ben.met.check.replace(" ", "")[:digits]
    commit = anna.commit()
    if shown:
        reveal = anna._reveal
    else:
        reveal = n.NearbyReveal(
            ephemeral=X25519PrivateKey.generate().public_key().public_bytes_raw(), nonce=os.urandom(32)
        )
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    shared = private.exchange(X25519PublicKey.from_public_bytes(reveal.ephemeral))
    for number in range(tries):
        key = n.NearbyKey(ephemeral=public, nonce=number.to_bytes(32, "big"), name="Ben")
        transcript = meeting._hash("transcript", ANNA.encode(), MALLORY.encode(), *map(encode, (commit, key, reveal)))
        check = check_number(hmac.digest(transcript, shared, "sha256")).replace(" ", "")
        if check.startswith(wanted):
            break
    anna.receive(key)
    assert anna.met is not None
    return anna.met.check.replace(" ", "")[:digits], wanted


def test_a_man_in_the_middle_who_tries_many_keys_never_gets_equal_numbers() -> None:
    on_annas_screen, on_bens_screen = attack(tries=TRIES, digits=meeting.CHECK_DIGITS, shown=False)
    assert on_annas_screen != on_bens_screen


def test_trying_is_of_no_use_against_the_commitment() -> None:
    # Two digits are equal by chance in one meeting of 100, however much is tried.
    equal = sum(len(set(attack(tries=300, digits=2, shown=False))) == 1 for _ in range(100))
    assert equal <= 12


def test_without_the_commitment_he_would() -> None:
    """The control: what he gains from Anna's key is all that his tries are good for."""
    assert all(len(set(attack(tries=5000, digits=2, shown=True))) == 1 for _ in range(20))
    digits = len(str(TRIES // 20)) - 1
    assert len(set(attack(tries=TRIES, digits=digits, shown=True))) == 1
