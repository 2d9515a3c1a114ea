from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import ConflictError, ProtocolError
from sdnet_spacedrop import messages as m
from sdnet_spacedrop.machine import DropState, OfferMachine, ReceiverMachine, SenderMachine
from sdnet_spacedrop.text import printable

REQUEST = m.SpacedropRequest(
    transfer_id=bytes(16),
    sender_name="Anna",
    message="",
    items=(m.SpacedropItem("a", False, 1, 1),),
    more_items=0,
    item_count=1,
    total_bytes=1,
    answer_timeout_ms=60_000,
)
ENDS = {state for state in DropState if state.ended}


@pytest.fixture
def sender() -> SenderMachine:
    return SenderMachine(REQUEST)


@pytest.fixture
def receiver() -> ReceiverMachine:
    return ReceiverMachine(REQUEST)


def test_accepted_and_sent(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    sender.receive(receiver.asked(59.9))
    assert sender.asked
    receiver.accept()
    sender.receive(receiver.answer())
    for machine in (sender, receiver):
        states = [machine.state]
        for step in (machine.transferring, machine.transferring, machine.complete):
            step()
            states.append(machine.state)
        assert states == ["accepted", "transferring", "transferring", "completed"]
        assert (machine.code, machine.reason) == ("", "")


def test_rejected_with_a_reason(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    receiver.reject("Not\x1b[31m now.")
    sender.receive(receiver.answer())
    assert (sender.state, sender.code, sender.by_peer) == (DropState.REJECTED, m.Refusal.REJECTED, True)
    assert sender.reason == "Not\N{REPLACEMENT CHARACTER}[31m now."


def test_a_time_out_is_one_on_both_sides(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    receiver.time_out("Nobody answered in time.")
    sender.receive(receiver.answer())
    assert (sender.state, receiver.state) == (DropState.TIMED_OUT, DropState.TIMED_OUT)


def test_the_sender_cancels_while_a_person_is_asked(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    receiver.withdraw(sender.cancel("Wrong file."))
    assert (receiver.state, receiver.reason, receiver.by_peer) == (DropState.CANCELLED, "Wrong file.", True)
    receiver.withdraw(sender.cancellation())
    with pytest.raises(ConflictError):
        receiver.accept()


@pytest.mark.parametrize("code", ["busy", "policy", "something-new"])
def test_every_other_refusal_is_a_rejection(sender: SenderMachine, code: str) -> None:
    sender.receive(m.SpacedropResponse(transfer_id=bytes(16), accepted=False, code=code, reason=""))
    assert (sender.state, sender.code) == (DropState.REJECTED, code)


def test_the_same_offer_again_is_answered_the_same(receiver: ReceiverMachine) -> None:
    receiver.interrupt("The connection was lost.")
    receiver.repeated(REQUEST)
    receiver.resume()
    assert (receiver.state, receiver.reason) == (DropState.ASKING, "")
    receiver.accept()
    receiver.repeated(REQUEST)
    assert receiver.answer().accepted
    with pytest.raises(ConflictError):
        receiver.resume()


def test_another_offer_under_the_same_id_is_refused(receiver: ReceiverMachine) -> None:
    with pytest.raises(ProtocolError, match="changed"):
        receiver.repeated(msgspec.structs.replace(REQUEST, message="other"))


def test_what_is_about_another_drop_is_refused(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    with pytest.raises(ProtocolError, match="another"):
        sender.receive(m.SpacedropResponse(transfer_id=b"x" * 16, accepted=True, code="", reason=""))
    with pytest.raises(ProtocolError, match="another"):
        receiver.withdraw(m.SpacedropCancel(transfer_id=b"x" * 16, reason=""))
    assert (sender.state, receiver.state) == (DropState.ASKING, DropState.ASKING)


def test_a_second_answer_is_refused(sender: SenderMachine, receiver: ReceiverMachine) -> None:
    receiver.accept()
    sender.receive(receiver.answer())
    with pytest.raises(ProtocolError):
        sender.receive(receiver.answer())
    with pytest.raises(ProtocolError):
        sender.receive(receiver.asked(1))


def test_there_is_no_answer_before_there_is_one(receiver: ReceiverMachine) -> None:
    with pytest.raises(ConflictError):
        receiver.answer()


ACTIONS: dict[str, Callable[[OfferMachine], object]] = {
    "transferring": lambda machine: machine.transferring(),
    "complete": lambda machine: machine.complete(),
    "fail": lambda machine: machine.fail("It failed."),
    "give up": lambda machine: machine.give_up("It failed."),
    "cancel": lambda machine: machine.cancel("Cancelled."),
    "peer cancels": lambda machine: machine.peer_cancelled("Cancelled."),
    "accept": lambda machine: machine.accept() if isinstance(machine, ReceiverMachine) else None,
    "reject": lambda machine: machine.reject("No.") if isinstance(machine, ReceiverMachine) else None,
    "time out": lambda machine: machine.time_out("Late.") if isinstance(machine, ReceiverMachine) else None,
}


@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=8))
def test_whatever_happens_an_end_is_the_end(actions: list[str]) -> None:
    machine = ReceiverMachine(REQUEST)
    accepted = False
    for action in actions:
        before = machine.state
        try:
            ACTIONS[action](machine)
        except ConflictError:
            assert machine.state is before
        if before in ENDS:
            assert machine.state is before
        accepted = accepted or machine.state is DropState.ACCEPTED
        assert accepted or machine.state not in (DropState.TRANSFERRING, DropState.COMPLETED)
        if machine.state is not DropState.ASKING:
            answer = machine.answer()
            assert answer.accepted == (not answer.code)


@given(st.text())
def test_nothing_shown_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert not set(shown) & set("\u202e\u2066\u200f\u2028")
    assert printable(shown) == shown
