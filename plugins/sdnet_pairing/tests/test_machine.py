"""The pairing conversation, told as one."""

from __future__ import annotations

import msgspec
import pytest

from sdnet_core.wire import decode, encode
from sdnet_pairing.keys import Ephemeral, KeySchedule, Transcript
from sdnet_pairing.machine import InitiatorMachine
from sdnet_pairing.messages import (
    Challenge,
    Complete,
    Confirm,
    PairingRequest,
    Refusal,
    RefusalReason,
    Response,
)
from sdnet_pairing.steps import (
    AskPerson,
    CodeConsumed,
    CodeProven,
    ConsumeCode,
    Fail,
    Failure,
    Finished,
    PersonAccepted,
    Received,
    Send,
    Start,
    Stored,
    StorePairing,
)

from .conversation import (
    CODE,
    LAPTOP,
    OTHER_CODE,
    PHONE,
    TABLET,
    CodeBook,
    Party,
    initiator,
    joiner,
    talk,
)


def message(commands: list[object], type_: type) -> bytes:
    """The one message of a type among the commands, encoded."""
    (found,) = (c.message for c in commands if isinstance(c, Send) and isinstance(c.message, type_))
    return encode(found)


def refused_uniformly(party: Party) -> bool:
    """Whether all that a party said was the empty refusal."""
    return party.outbox[-1] == encode(Refusal()) and party.failure == Fail(Failure.UNPROVEN)


def test_a_conversation_that_goes_well_step_by_step() -> None:
    left, right = initiator(PHONE).machine, joiner().machine

    (asked,) = right.handle(Start())
    request = message([asked], PairingRequest)

    proven, challenged = left.handle(Received(request))
    assert proven == CodeProven(CODE.session_id)

    proven, responded = right.handle(Received(message([challenged], Challenge)))
    assert proven == CodeProven(CODE.session_id, LAPTOP.info)

    assert left.handle(Received(message([responded], Response))) == [ConsumeCode(PHONE.info)]
    assert left.handle(CodeConsumed()) == [AskPerson(PHONE.info)]
    (held,) = left.handle(PersonAccepted())
    assert isinstance(held, StorePairing)
    assert held.pairing.device == PHONE.info
    completed = left.handle(Stored())
    assert not left.ended

    (kept,) = right.handle(Received(message(completed, Complete)))
    assert isinstance(kept, StorePairing)
    assert not right.ended
    confirmed, finished = right.handle(Stored())
    assert finished == Finished(kept.pairing)
    assert right.ended

    assert left.handle(Received(message([confirmed], Confirm))) == [Finished(held.pairing)]
    assert left.ended
    assert kept.pairing.device == LAPTOP.info
    assert kept.pairing.addresses == ("/ip4/192.0.2.1/tcp/4001",)
    assert (kept.pairing.root, kept.pairing.pairing_id) == (held.pairing.root, held.pairing.pairing_id)


def test_two_pairings_with_one_code_and_the_same_devices_share_no_root() -> None:
    roots = set()
    for attempt in ("first", "second"):
        left, right = initiator(PHONE, conversation=attempt), joiner(conversation=attempt)
        talk(left, right)
        assert left.stored is not None
        roots.add(left.stored.root)
    assert len(roots) == 2


def test_a_wrong_code_gets_the_uniform_refusal() -> None:
    left, right = initiator(PHONE), joiner(code=OTHER_CODE)
    right.give(Start())
    left.receive(right.outbox.pop())
    assert refused_uniformly(left)
    right.receive(left.outbox.pop())
    assert right.failure == Fail(Failure.REFUSED)


def test_a_right_session_id_without_the_code_gets_the_uniform_refusal() -> None:
    left, right = initiator(PHONE), joiner(code=OTHER_CODE)
    right.give(Start())
    request = decode(right.outbox.pop(), PairingRequest)
    claimed = PairingRequest(
        versions=request.versions,
        suites=request.suites,
        session_id=CODE.session_id.bytes,
        nonce=request.nonce,
        ephemeral=request.ephemeral,
        mac=request.mac,
    )
    left.receive(claimed)
    assert refused_uniformly(left)


def test_a_used_or_expired_code_gets_the_uniform_refusal() -> None:
    book = CodeBook.of(CODE)
    talk(initiator(PHONE, book=book), joiner())
    left, right = initiator(TABLET, book=book), joiner(me=TABLET)
    right.give(Start())
    left.receive(right.outbox.pop())
    assert refused_uniformly(left)


def test_of_two_joiners_with_the_same_code_the_first_response_wins() -> None:
    book = CodeBook.of(CODE)
    slow, fast = joiner(), joiner(me=TABLET)
    with_slow, with_fast = initiator(PHONE, book=book), initiator(TABLET, book=book, conversation="2")
    for right, left in ((slow, with_slow), (fast, with_fast)):
        right.give(Start())
        left.receive(right.outbox.pop())
        right.receive(left.outbox.pop())
    with_fast.receive(fast.outbox.pop())
    with_slow.receive(slow.outbox.pop())
    fast.receive(with_fast.outbox.pop())
    slow.receive(with_slow.outbox.pop())
    assert fast.finished
    assert with_slow.failure == slow.failure == Fail(Failure.DENIED, RefusalReason.USED)
    assert slow.stored is with_slow.stored is None


def test_a_rejection_is_told_to_the_joiner() -> None:
    left, right = initiator(PHONE), joiner()
    left.answer = False
    talk(left, right)
    assert left.failure == right.failure == Fail(Failure.DENIED, RefusalReason.REJECTED)
    assert left.stored is right.stored is None


def test_a_full_disk_on_the_initiator_fails_both() -> None:
    left, right = initiator(PHONE), joiner()
    left.disk_works = False
    talk(left, right)
    assert left.failure == Fail(Failure.STORAGE, RefusalReason.FAILED)
    assert right.failure == Fail(Failure.DENIED, RefusalReason.FAILED)
    assert right.stored is None


def test_a_full_disk_on_the_joiner_is_never_confirmed() -> None:
    left, right = initiator(PHONE), joiner()
    right.disk_works = False
    talk(left, right)
    assert right.failure == Fail(Failure.STORAGE)
    assert not left.finished
    assert right.stored is None


@pytest.mark.parametrize("at", ["initiator", "joiner"])
def test_a_peer_that_is_not_the_one_of_the_connection_is_refused(at: str) -> None:
    # The joiner talks as PHONE, but the initiator's connection says TABLET; and the other way round.
    left = initiator(TABLET if at == "initiator" else PHONE)
    right = joiner(TABLET if at == "joiner" else LAPTOP)
    talk(left, right)
    assert left.failure == Fail(Failure.UNPROVEN)
    assert left.stored is right.stored is None


def test_a_device_that_introduces_itself_with_another_key_is_refused() -> None:
    for liar_joins in (True, False):
        liar, victim = (PHONE, LAPTOP) if liar_joins else (LAPTOP, PHONE)
        left, right = initiator(PHONE), joiner()
        side = (right if liar_joins else left).machine._local
        forged = type(side)(device=TABLET.info, sign=side.sign, random_bytes=side.random_bytes)
        # Everything else about the liar is right: its peer id, its signature, the code.
        machine = (right if liar_joins else left).machine
        original = machine._local_peer()
        machine._local_peer = lambda original=original: original  # type: ignore[method-assign]
        machine._local = forged
        talk(left, right)
        honest = left if liar_joins else right
        assert honest.failure == Fail(Failure.AUTHENTICATION), (liar, victim)
        assert left.stored is right.stored is None


def test_a_device_that_claims_our_own_device_id_is_refused() -> None:
    left, right = initiator(PHONE), joiner()
    side = right.machine._local
    twin = type(PHONE.info)(
        device_id=LAPTOP.info.device_id, name="twin", os="", version="", public_key=PHONE.info.public_key
    )
    right.machine._local = type(side)(device=twin, sign=side.sign, random_bytes=side.random_bytes)
    talk(left, right)
    assert right.failure == Fail(Failure.AUTHENTICATION)
    assert left.stored is None


SMALL_ORDER_X25519 = [
    # RFC 7748, section 6.1 and the list at https://cr.yp.to/ecdh.html#validate
    bytes(32),
    bytes([1, *bytes(31)]),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", SMALL_ORDER_X25519, ids=bytes.hex)
def test_small_order_ephemerals_are_refused_even_from_one_who_knows_the_code(point: bytes) -> None:
    left, right = initiator(PHONE), joiner()

    class Degenerate(Ephemeral):
        def __init__(self) -> None:
            super().__init__(bytes(32))
            self.public = point

    import sdnet_pairing.machine as module

    original = module.Ephemeral
    module.Ephemeral = lambda seed: Degenerate()  # type: ignore[assignment,misc]
    try:
        right.give(Start())
    finally:
        module.Ephemeral = original  # type: ignore[misc]
    left.receive(right.outbox.pop())
    assert refused_uniformly(left)

    left, right = initiator(PHONE), joiner()
    right.give(Start())
    left.receive(right.outbox.pop())
    challenge = decode(left.outbox.pop(), Challenge)
    right.receive(
        Challenge(
            version=challenge.version,
            suite=challenge.suite,
            challenge=challenge.challenge,
            ephemeral=point,
            box=challenge.box,
        )
    )
    assert right.failure == Fail(Failure.AUTHENTICATION)


@pytest.mark.parametrize("key", [bytes(32), bytes([1, *bytes(31)]), bytes([0xEC, *[0xFF] * 30, 0x7F])])
def test_peers_with_small_order_device_keys_are_refused(key: bytes) -> None:
    weak = msgspec.structs.replace(PHONE.info, public_key=key).peer_id
    right = joiner()
    right.give(Start())
    machine = InitiatorMachine(LAPTOP.side(), weak, CodeBook.of(CODE).find)
    left = Party(machine)
    left.receive(right.outbox.pop())
    assert refused_uniformly(left)


@pytest.mark.parametrize("field", ["versions", "suites"])
def test_an_offer_changed_on_the_way_is_noticed(field: str) -> None:
    def weaken(sender: str, count: int, data: bytes) -> list[bytes]:
        if sender != "joiner" or count != 0:
            return [data]
        request = decode(data, PairingRequest)
        offers = {"versions": request.versions, "suites": request.suites}
        offers[field] = (*offers[field], 9) if field == "versions" else offers[field][1:]
        return [
            encode(
                PairingRequest(
                    **offers,
                    session_id=request.session_id,
                    nonce=request.nonce,
                    ephemeral=request.ephemeral,
                    mac=request.mac,
                )
            )
        ]

    left, right = initiator(PHONE), joiner()
    talk(left, right, weaken)
    assert left.failure == Fail(Failure.UNPROVEN)
    assert right.failure == Fail(Failure.REFUSED)


@pytest.mark.parametrize(("version", "suite"), [(1, 2), (2, 1), (1, 3)])
def test_a_choice_changed_on_the_way_is_noticed(version: int, suite: int) -> None:
    def change(sender: str, count: int, data: bytes) -> list[bytes]:
        if sender != "initiator" or count != 0:
            return [data]
        challenge = decode(data, Challenge)
        return [
            encode(
                Challenge(
                    version=version,
                    suite=suite,
                    challenge=challenge.challenge,
                    ephemeral=challenge.ephemeral,
                    box=challenge.box,
                )
            )
        ]

    left, right = initiator(PHONE), joiner()
    talk(left, right, change)
    assert right.failure is not None
    assert left.stored is right.stored is None


@pytest.mark.parametrize("suites", [(1, 2), (2, 1), (2,), (77, 2)])
def test_every_suite_that_both_speak_works(suites: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = initiator(PHONE), joiner()
    monkeypatch.setattr("sdnet_pairing.machine.SUITES", suites)
    right.give(Start())
    monkeypatch.undo()
    left.receive(right.outbox.pop())
    while left.outbox:
        right.receive(left.outbox.pop(0))
        while right.outbox:
            left.receive(right.outbox.pop(0))
    assert left.finished
    assert right.finished


@pytest.mark.parametrize("what", ["versions", "suites"])
def test_nothing_in_common_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = initiator(PHONE), joiner()
    monkeypatch.setattr(f"sdnet_pairing.machine.{what.upper()}", (4242,))
    right.give(Start())
    monkeypatch.undo()
    left.receive(right.outbox.pop())
    assert refused_uniformly(left)


def test_a_message_out_of_place_ends_the_conversation() -> None:
    left, right = initiator(PHONE), joiner()
    right.give(Start())
    request = right.outbox.pop()
    left.receive(request)
    left.receive(request)
    assert left.failure == Fail(Failure.PROTOCOL)


def test_a_message_while_the_person_is_asked_ends_the_conversation() -> None:
    left, right = initiator(PHONE), joiner()
    machine = left.machine
    right.give(Start())
    left.receive(right.outbox.pop())
    right.receive(left.outbox.pop())
    response = right.outbox.pop()
    machine.handle(Received(response))
    machine.handle(CodeConsumed())
    assert machine.handle(Received(response))[-1] == Fail(Failure.PROTOCOL)
    assert machine.handle(PersonAccepted()) == []


def test_neither_commands_nor_machines_show_secrets() -> None:
    left, right = initiator(PHONE), joiner()
    talk(left, right)
    assert left.stored is not None
    shown = repr([left.machine, right.machine, left.commands, right.commands, left.machine._local])
    for secret in (left.stored.root, CODE.psk, CODE.discovery):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_no_two_boxes_share_a_key() -> None:
    schedule = KeySchedule(bytes(32), bytes(32))
    points = [Transcript().add("a", b"bc").digest(), Transcript().add("a", b"b", b"c").digest()]
    labels = ["challenge box", "response box", "complete box", "confirm box", "root", "joiner confirmation"]
    keys = {schedule.key(label, point) for label in labels for point in points}
    assert len(keys) == len(labels) * len(points)


def test_the_transcript_tells_fields_and_lengths_apart() -> None:
    texts = [("a", b"bc"), ("ab", b"c"), ("a", b"b", b"c"), ("a", b"bc", b""), ("a",)]
    assert len({Transcript().add(label, *values).digest() for label, *values in texts}) == len(texts)
