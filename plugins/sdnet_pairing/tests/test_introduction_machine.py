"""Introductions as conversations of machines: what goes well, what an introducer can and cannot do, and bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_pairing.introduction import messages
from sdnet_pairing.introduction.machine import IntroducerMachine, read_message
from sdnet_pairing.introduction.messages import (
    Accept,
    Confirm,
    Decline,
    EndReason,
    IntroductionMessage,
    Offer,
    Party,
    Withdraw,
)
from sdnet_pairing.introduction.steps import Cancel, Fail, Finish, Offered, Received, Send, Side, TimeUp
from sdnet_pairing.keys import Ephemeral

from .conversation import TABLET
from .introduction_trio import DEVICES, FIRST, INTRODUCER, MALLORY, NOW, SECOND, One, offer, party, talk, voucher

GOLDEN = Path(__file__).parent / "golden_introduction"


def both() -> tuple[One, One]:
    return One(FIRST), One(SECOND)


def assert_never_split(first: One, second: One) -> None:
    """Whoever holds a pairing as final: the other one holds the same."""
    for one, other in itertools.permutations((first, second)):
        if one.finish is not None and one.finish.final:
            assert one.stored is not None
            assert other.stored is not None
            assert (one.stored.root, one.stored.pairing_id) == (other.stored.root, other.stored.pairing_id)


def test_both_hold_the_same_pairing_and_the_introducer_has_seen_neither_root_nor_key() -> None:
    first, second = both()
    seen: list[bytes] = []

    def carry(to: Side, count: int, data: bytes) -> list[bytes]:
        seen.append(data)
        return [data]

    done = talk(first, second, carry=carry)
    assert any(isinstance(command, Finish) for command in done)
    assert first.finish == Finish(first.stored, True)
    assert second.finish == Finish(second.stored, True)
    assert first.stored is not None
    assert second.stored is not None
    assert (first.stored.root, first.stored.pairing_id) == (second.stored.root, second.stored.pairing_id)
    assert first.stored.device == SECOND.info
    assert second.stored.device == FIRST.info
    assert not any(first.stored.root in data for data in seen)
    assert repr(first.stored.root) not in repr(first.commands)


def test_two_introductions_of_the_same_devices_share_no_root() -> None:
    roots = set()
    for name in ("one", "two"):
        first, second = One(FIRST, name), One(SECOND, name)
        talk(first, second)
        assert first.stored is not None
        roots.add(first.stored.root)
    assert len(roots) == 2


@pytest.mark.parametrize("who", Side)
def test_a_no_ends_it_for_everybody(who: Side) -> None:
    first, second = both()
    (first if who is Side.FIRST else second).answer = False
    done = talk(first, second)
    assert Fail(EndReason.REJECTED, who) in done
    assert first.stored is None
    assert second.stored is None
    assert first.failure == second.failure == Fail(EndReason.REJECTED)


@pytest.mark.parametrize("who", Side)
def test_a_full_disk_leaves_nothing_final(who: Side) -> None:
    first, second = both()
    (first if who is Side.FIRST else second).disk_works = False
    talk(first, second)
    for one in (first, second):
        one.give(TimeUp())
        assert one.finish is None or not one.finish.final


# What a lying introducer can do

_others = sorted((party(SECOND), party(TABLET)), key=lambda one: one.public_key)
OF_TWO_OTHERS = {"first": _others[0], "second": _others[1]}


def test_an_introducer_that_puts_its_own_ephemeral_in_between_is_noticed() -> None:
    for to in Side:
        first, second = both()

        def swap(side: Side, count: int, data: bytes, to: Side = to) -> list[bytes]:
            message = read_message(data)
            if side is to and isinstance(message, Accept):
                own = Ephemeral(bytes(32)).public
                return [encode(msgspec.structs.replace(message, ephemeral=own))]
            return [data]

        talk(first, second, carry=swap)
        victim = first if to is Side.FIRST else second
        assert victim.stored is None
        assert victim.failure == Fail(EndReason.FAILED)


def test_an_introducer_that_signs_in_the_name_of_the_other_is_noticed() -> None:
    # It can make a whole Accept, but not sign it with the key that it has vouched for.
    first, second = both()
    liar = One(MALLORY)
    liar.machine._offer = offer()

    def swap(side: Side, count: int, data: bytes) -> list[bytes]:
        message = read_message(data)
        if side is Side.FIRST and isinstance(message, Accept):
            forged = msgspec.structs.replace(message, ephemeral=Ephemeral(bytes(31) + b"\1").public)
            from sdnet_pairing.introduction.machine import _accept_signed

            signature = INTRODUCER.side().sign(_accept_signed(offer(), forged))
            return [encode(msgspec.structs.replace(forged, signature=signature))]
        return [data]

    talk(first, second, carry=swap)
    assert first.failure == Fail(EndReason.FAILED)


def test_a_wrong_key_can_be_vouched_for_only_if_somebody_has_it() -> None:
    # The introducer tells the first device that Mallory is the second one. The first device's person sees Mallory's
    # fingerprint; what comes about is a pairing with Mallory, never one with the second device that Mallory can read.
    fake, real = One(MALLORY), One(SECOND)
    first = One(FIRST)
    keys = sorted((FIRST, MALLORY), key=lambda device: device.info.public_key)
    lie = offer(first=party(keys[0]), second=party(keys[1]))
    ones = (first, fake) if keys[0] is FIRST else (fake, first)
    talk(*ones, signed=lie)
    assert first.stored is not None
    assert first.stored.device.public_key == MALLORY.info.public_key
    real.receive(lie)
    assert real.failure == Fail(EndReason.FAILED)
    assert real.stored is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"introducer": MALLORY.info.public_key}, EndReason.FAILED),
        ({"first": party(SECOND), "second": party(FIRST)}, EndReason.FAILED),
        ({"second": party(FIRST)}, EndReason.FAILED),
        (OF_TWO_OTHERS, EndReason.FAILED),
        ({"second": party(SECOND, public_key=bytes(32))}, EndReason.FAILED),
        ({"second": party(SECOND, device_id=FIRST.info.device_id)}, EndReason.FAILED),
        ({"second": party(INTRODUCER)}, EndReason.FAILED),
        ({"first": party(FIRST, device_id=bytes(16))}, EndReason.FAILED),
        ({"expires_at": NOW + 3601}, EndReason.FAILED),
        ({"expires_at": NOW - 1}, EndReason.FAILED),
        ({"created_at": NOW - 1000, "expires_at": NOW - 400}, EndReason.EXPIRED),
        ({"created_at": NOW + 400, "expires_at": NOW + 500}, EndReason.EXPIRED),
    ],
)
def test_an_offer_that_is_not_right_is_declined(changed: dict[str, object], reason: EndReason) -> None:
    one = One(FIRST)
    one.receive(offer(**changed))
    assert one.failure == Fail(reason)
    assert [type(read_message(data)) for data in one.outbox] == [Decline]


def test_an_offer_that_another_device_signed_is_declined() -> None:
    one = One(FIRST)
    one.receive(offer(by=MALLORY))
    assert one.failure == Fail(EndReason.FAILED)


def test_an_accept_of_another_introduction_does_not_fit() -> None:
    old: dict[Side, bytes] = {}

    def remember(side: Side, count: int, data: bytes) -> list[bytes]:
        if isinstance(read_message(data), Accept):
            old[side] = data
        return [data]

    talk(*both(), signed=offer(), carry=remember)

    def replay(side: Side, count: int, data: bytes) -> list[bytes]:
        return [old[side]] if isinstance(read_message(data), Accept) else [data]

    first, second = One(FIRST, "again"), One(SECOND, "again")
    # The same id, so that nothing but the signature over the voucher tells them apart.
    talk(first, second, signed=offer(created_at=NOW + 1, expires_at=NOW + 601), carry=replay)
    assert first.stored is None
    assert second.stored is None


def test_an_accept_sent_back_to_its_sender_is_noticed() -> None:
    one = One(FIRST)
    one.receive(offer())
    (own,) = one.outbox
    one.receive(own)
    assert one.failure == Fail(EndReason.FAILED)


def test_a_wrong_confirmation_leaves_the_pairing_pending() -> None:
    first, second = both()

    def garble(side: Side, count: int, data: bytes) -> list[bytes]:
        message = read_message(data)
        if isinstance(message, Confirm):
            return [encode(msgspec.structs.replace(message, mac=bytes(32)))]
        return [data]

    talk(first, second, carry=garble)
    for one in (first, second):
        assert one.finish == Finish(one.stored, False)


def test_the_two_confirmations_are_not_the_same() -> None:
    macs: set[bytes] = set()

    def listen(side: Side, count: int, data: bytes) -> list[bytes]:
        message = read_message(data)
        if isinstance(message, Confirm):
            macs.add(message.mac)
        return [data]

    talk(*both(), carry=listen)
    assert len(macs) == 2


def test_withdrawing_after_the_pairing_is_stored_does_not_undo_it() -> None:
    first, second = both()

    def hold(side: Side, count: int, data: bytes) -> list[bytes]:
        message = read_message(data)
        if isinstance(message, Confirm):
            return [encode(Withdraw(introduction_id=message.introduction_id, reason=EndReason.CANCELLED))]
        return [data]

    talk(first, second, carry=hold)
    for one in (first, second):
        assert one.failure is None
        one.give(TimeUp())
        assert one.finish == Finish(one.stored, False)


def test_the_introducer_tells_the_other_when_time_is_up_or_it_gives_up() -> None:
    for event, reason in ((TimeUp(), EndReason.EXPIRED), (Cancel(), EndReason.CANCELLED)):
        machine = IntroducerMachine(offer(), bytes(range(16)))
        commands = machine.handle(event)
        assert [c.side for c in commands if isinstance(c, Send)] == list(Side)
        assert commands[-1] == Fail(reason)
        assert machine.handle(event) == []


@pytest.mark.parametrize("message", [offer(), Withdraw(introduction_id=bytes(16), reason=EndReason.EXPIRED)])
def test_what_only_an_introducer_says_ends_it_when_one_of_the_two_does(message: IntroductionMessage) -> None:
    machine = IntroducerMachine(offer(), bytes(range(16)))
    assert Fail(EndReason.FAILED, Side.SECOND) in machine.handle(Received(message, Side.SECOND))


# Any network, any order

_plans = st.lists(
    st.tuples(st.sampled_from(list(Side)), st.integers(0, 3), st.sampled_from(["drop", "twice", "flip", "other"])),
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(_plans, st.integers(0, 10_000), st.booleans(), st.booleans())
def test_whatever_the_introducer_does_to_the_messages_the_two_are_never_split(
    plan: list[tuple[Side, int, str]], at: int, first_disk: bool, second_disk: bool
) -> None:
    first, second = One(FIRST, disk_works=first_disk), One(SECOND, disk_works=second_disk)
    spoken: list[bytes] = []

    def carry(side: Side, count: int, data: bytes) -> list[bytes]:
        arriving = [data]
        for where, number, what in plan:
            if (where, number) == (side, count):
                match what:
                    case "drop":
                        arriving = []
                    case "twice":
                        arriving = [*arriving, *arriving]
                    case "flip":
                        place = at % len(data)
                        arriving = [data[:place] + bytes([data[place] ^ 1 << at % 8]) + data[place + 1 :]]
                    case "other" if spoken:
                        arriving = [spoken[at % len(spoken)]]
        spoken.append(data)
        return [d for d in arriving if readable(d)]

    talk(first, second, carry=carry)
    for one in (first, second):
        if one.machine._state.name != "START":
            one.give(TimeUp())
    assert_never_split(first, second)
    if not plan and first_disk and second_disk:
        assert first.finish is not None
        assert first.finish.final


def readable(data: bytes) -> bool:
    try:
        read_message(data)
    except SerializationError:
        return False
    return True


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(Side)), st.integers(0, 2), st.integers(0, 100_000))
def test_one_changed_bit_never_makes_a_final_pairing_on_one_side_only(side: Side, number: int, at: int) -> None:
    first, second = both()

    def flip(to: Side, count: int, data: bytes) -> list[bytes]:
        if (to, count) != (side, number):
            return [data]
        place = at // 8 % len(data)
        changed = data[:place] + bytes([data[place] ^ 1 << at % 8]) + data[place + 1 :]
        return [changed] if readable(changed) else []

    talk(first, second, carry=flip)
    assert_never_split(first, second)
    # Nothing that was changed counts: no final pairing on the side that got it, unless it was its last message.
    victim = first if side is Side.FIRST else second
    assert victim.finish is None or not victim.finish.final


@given(st.binary(max_size=400))
def test_garbage_is_refused(garbage: bytes) -> None:
    if readable(garbage):
        return
    with pytest.raises(SerializationError):
        read_message(garbage)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_signed_voucher_of_garbage_is_declined(garbage: bytes) -> None:
    from sdnet_pairing.introduction.machine import _voucher_signed

    one = One(FIRST)
    one.give(Offered(Offer(voucher=garbage, signature=INTRODUCER.side().sign(_voucher_signed(garbage))), NOW))
    assert one.failure is not None


# Bytes

EXAMPLES: dict[str, Message] = {
    "party": Party(device_id=bytes(range(16)), name="Ada's laptop", public_key=bytes(range(32))),
    "voucher": voucher(),
    "offer": Offer(voucher=bytes(range(100)), signature=bytes([1] * 64)),
    "accept": Accept(
        introduction_id=bytes(range(16)),
        device=FIRST.info,
        addresses=("/ip4/192.0.2.1/tcp/4001",),
        ephemeral=bytes([2] * 32),
        nonce=bytes([3] * 32),
        signature=bytes([4] * 64),
    ),
    "decline": Decline(introduction_id=bytes(range(16)), reason=EndReason.REJECTED),
    "confirm": Confirm(introduction_id=bytes(range(16)), mac=bytes([5] * 32)),
    "withdraw": Withdraw(introduction_id=bytes(range(16)), reason=EndReason.EXPIRED),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    pinned = (GOLDEN / f"{name}.cbor").read_bytes()
    assert encode(EXAMPLES[name]) == pinned
    assert decode(pinned, type(EXAMPLES[name])) == EXAMPLES[name]


def test_every_message_is_pinned() -> None:
    types = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, Message) and value.__module__ == messages.__name__
    }
    assert types == {type(example) for example in EXAMPLES.values()}
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(EXAMPLES) | {"introduction"}


def test_a_whole_introduction_has_the_bytes_it_always_had() -> None:
    # Same keys, same randomness: voucher, signatures and key schedule of this version must stay what they are.
    first, second = both()
    spoken: list[bytes] = []

    def listen(to: Side, count: int, data: bytes) -> list[bytes]:
        spoken.append(data)
        return [data]

    talk(first, second, carry=listen)
    assert first.stored is not None
    assert b"".join([*spoken, first.stored.root]) == (GOLDEN / "introduction.cbor").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_with_a_field_too_many_or_too_few_or_another_tag_is_refused(name: str) -> None:
    plain = msgspec.to_builtins(EXAMPLES[name], builtin_types=(bytes,))
    for wrong in ({**plain, "more": 1}, {"t": plain["t"]}, {**plain, "t": 99}):
        with pytest.raises(SerializationError):
            decode(encode(wrong), type(EXAMPLES[name]))


def test_the_devices_of_these_tests_are_in_order() -> None:
    assert DEVICES[Side.FIRST].info.public_key < DEVICES[Side.SECOND].info.public_key
