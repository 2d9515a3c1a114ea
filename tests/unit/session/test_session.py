"""Sessions: streams and their numbers, epochs, and which of two sessions stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import AuthenticationFailedError, EncryptionError, ProtocolError
from sdnet_core.session.epoch import ReplayWindow
from sdnet_core.session.keys import Role, derive_session_keys
from sdnet_core.session.preamble import PREAMBLE_BYTES, Preamble
from sdnet_core.session.session import MAX_EPOCHS, SessionTable, keep_ours

MakePair = Callable[..., Any]


@given(st.lists(st.integers(0, 60), max_size=80))
def test_the_window_takes_each_number_once(numbers: list[int]) -> None:
    window, seen, highest = ReplayWindow(16), {0}, 0
    for number in numbers:
        fresh = number not in seen and number > highest - 16
        if fresh:
            window.add(number)
            seen.add(number)
            highest = max(highest, number)
        else:
            with pytest.raises(ProtocolError):
                window.add(number)


def test_the_window_goes_up_to_the_last_number() -> None:
    window = ReplayWindow()
    for number in (2**64 - 1, 2**64 - 2, 2**64 - 4096):
        window.add(number)
        with pytest.raises(ProtocolError):
            window.add(number)
    with pytest.raises(ProtocolError):
        window.add(2**64 - 4097)


@pytest.mark.parametrize(("local", "remote"), [("12D3KooWA", "12D3KooWB"), ("12D3KooWB", "12D3KooWA")])
def test_both_sides_keep_the_same_one_of_two_sessions(local: str, remote: str) -> None:
    # In either session one side is the initiator; both sides say the same of it.
    for role in Role:
        assert keep_ours(local, remote, role) == keep_ours(remote, local, role.other)
    assert keep_ours(local, remote, Role.INITIATOR) != keep_ours(local, remote, Role.RESPONDER)
    assert keep_ours("12D3KooWB", "12D3KooWA", Role.INITIATOR)


def preamble_of(session: Any, tape: Any) -> Preamble:
    """Open a stream, and give what it begins with."""
    stream = session.open_stream(tape)

    async def send() -> None:
        await stream.send(b"x")

    anyio.run(send)
    return Preamble.decode(tape.written[-PREAMBLE_BYTES - 21 :][:PREAMBLE_BYTES])


def test_numbers_count_up_and_both_sides_may_use_the_same(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    ours = [pair.initiator.open_stream(pair.initiator_tape).number for _ in range(3)]
    theirs = [pair.responder.open_stream(pair.responder_tape).number for _ in range(3)]
    assert ours == theirs == [1, 2, 3]
    assert pair.initiator.traffic.streams_opened == 3


def test_a_recorded_stream_is_refused(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    preamble = preamble_of(pair.initiator, pair.initiator_tape)
    pair.responder.accept(pair.responder_tape, preamble)
    with pytest.raises(ProtocolError, match="twice"):
        pair.responder.accept(tape(pair.responder.peer_id), preamble)
    assert pair.responder.traffic.streams_accepted == 1


def test_streams_may_arrive_out_of_order(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    preambles = [preamble_of(pair.initiator, tape(pair.initiator.peer_id)) for _ in range(3)]
    for preamble in (preambles[2], preambles[0], preambles[1]):
        pair.responder.accept(tape(pair.responder.peer_id), preamble)


def test_our_own_opening_is_not_taken_as_the_other_side_s(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    preamble = preamble_of(pair.initiator, pair.initiator_tape)
    with pytest.raises(AuthenticationFailedError):
        pair.initiator.accept(tape(pair.initiator.peer_id), preamble)


def test_a_forged_opening_uses_up_no_number(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    genuine = preamble_of(pair.initiator, pair.initiator_tape)
    for forged in (
        Preamble(genuine.epoch_id, genuine.number, b"t" * 16),
        Preamble(genuine.epoch_id, 2**64 - 1, genuine.tag),
        Preamble(genuine.epoch_id, 0, genuine.tag),
    ):
        with pytest.raises(AuthenticationFailedError):
            pair.responder.accept(tape(pair.responder.peer_id), forged)
    pair.responder.accept(tape(pair.responder.peer_id), genuine)


def test_an_unknown_epoch_is_refused(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    genuine = preamble_of(pair.initiator, pair.initiator_tape)
    with pytest.raises(ProtocolError):
        pair.responder.accept(tape(pair.responder.peer_id), Preamble(b"unknown!", genuine.number, genuine.tag))


def test_streams_of_other_devices_are_refused(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    with pytest.raises(ProtocolError):
        pair.initiator.open_stream(tape("12D3KooWStranger"))
    with pytest.raises(ProtocolError):
        pair.responder.accept(tape("12D3KooWStranger"), preamble_of(pair.initiator, pair.initiator_tape))


def test_a_closed_session_does_nothing(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    preamble = preamble_of(pair.initiator, pair.initiator_tape)
    pair.responder.close()
    assert not pair.responder.has_epoch(preamble.epoch_id)
    with pytest.raises(EncryptionError):
        pair.responder.accept(pair.responder_tape, preamble)
    with pytest.raises(EncryptionError):
        pair.responder.open_stream(pair.responder_tape)


def next_keys(session: Any, number: int) -> Any:
    return derive_session_keys(
        bytes([number]) * 32,
        b"h" * 32,
        role=session.role,
        suite=session.keys.suite,
        created_at=session.clock.now(),
        lifetime_s=session.limits.lifetime_s,
    )


def test_the_old_epoch_goes_on_for_a_while(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    old = preamble_of(pair.initiator, tape(pair.initiator.peer_id))
    late = preamble_of(pair.initiator, tape(pair.initiator.peer_id))
    stream = pair.initiator.open_stream(pair.initiator_tape)
    for session in (pair.initiator, pair.responder):
        session.use_epoch(session.add_epoch(next_keys(session, 1)))
    assert stream.draining
    new = preamble_of(pair.initiator, tape(pair.initiator.peer_id))
    assert new.epoch_id != old.epoch_id
    assert new.number == 1
    pair.responder.accept(tape(pair.responder.peer_id), new)
    pair.clock.time += 119
    pair.responder.accept(tape(pair.responder.peer_id), old)
    pair.clock.time += 1
    assert not pair.responder.has_epoch(old.epoch_id)
    with pytest.raises(ProtocolError):
        pair.responder.accept(tape(pair.responder.peer_id), late)
    anyio.run(pair.initiator.end_old_streams)
    assert pair.initiator_tape.was_reset
    assert pair.initiator.streams == () or all(not item.draining for item in pair.initiator.streams)


def test_a_new_epoch_is_taken_before_it_is_used(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    pair.responder.add_epoch(next_keys(pair.responder, 1))
    pair.initiator.use_epoch(pair.initiator.add_epoch(next_keys(pair.initiator, 1)))
    assert pair.responder.keys.epoch_id != pair.initiator.keys.epoch_id
    pair.responder.accept(tape(pair.responder.peer_id), preamble_of(pair.initiator, tape(pair.initiator.peer_id)))


def test_epochs_do_not_pile_up(make_pair: MakePair) -> None:
    session = make_pair().initiator
    for number in range(MAX_EPOCHS - 1):
        session.use_epoch(session.add_epoch(next_keys(session, number)))
    assert not session.can_rotate
    # For the other side one may be over already, and it begins another.
    session.use_epoch(session.add_epoch(next_keys(session, 98)))
    assert not session.can_rotate
    with pytest.raises(ProtocolError, match="too often"):
        session.add_epoch(next_keys(session, 99))
    session.clock.time += 120
    assert session.can_rotate
    session.use_epoch(session.add_epoch(next_keys(session, 99)))


def test_a_session_is_found_by_its_epoch(make_pair: MakePair) -> None:
    one, two = make_pair().responder, make_pair(key=b"K" * 32).responder
    table = SessionTable()
    table.add(one)
    table.add(two)
    assert table.find(one.peer_id, two.keys.epoch_id) is two
    assert table.find("12D3KooWStranger", two.keys.epoch_id) is None
    assert table.find(one.peer_id, b"unknown!") is None
    assert table.of_peer(one.peer_id) == (one, two)
    assert list(table) == [one, two]
    table.remove(two)
    table.remove(two)
    assert table.find(one.peer_id, two.keys.epoch_id) is None
    table.remove(one)
    assert list(table) == []
