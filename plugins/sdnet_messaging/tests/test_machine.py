"""Sequence numbers and the window of what was seen, as conversations and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from sdnet_messaging.machine import RESERVE, WINDOW, ReceiveWindow, SendSequence, Verdict, WindowFullError


def token(number: int) -> bytes:
    return number.to_bytes(16, "big")


def started(reserved: int = 1) -> SendSequence:
    sequences = SendSequence(reserved)
    sequences.reserved_up_to(sequences.reservation_needed or 0)
    return sequences


class TestSendSequence:
    def test_numbers_ascend_and_the_limit_follows_the_oldest_that_is_unsettled(self) -> None:
        sequences = started()
        assert [sequences.take() for _ in range(3)] == [1, 2, 3]
        assert sequences.below == 1
        sequences.settle(2)
        assert sequences.below == 1
        sequences.settle(1)
        assert sequences.below == 3
        sequences.settle(3)
        assert sequences.below == 4

    def test_numbers_are_reserved_before_they_are_taken_and_never_used_again_after_a_restart(self) -> None:
        sequences = SendSequence()
        assert sequences.reservation_needed == 1 + RESERVE
        with pytest.raises(RuntimeError):
            sequences.take()
        sequences.reserved_up_to(1 + RESERVE)
        used = []
        while sequences.reservation_needed is None:
            used.append(sequences.take())
            sequences.settle(used[-1])
        assert used[-1] == RESERVE
        assert SendSequence(1 + RESERVE).reservation_needed == 1 + 2 * RESERVE
        assert started(1 + RESERVE).take() == 1 + RESERVE

    def test_the_window_bounds_what_is_unsettled(self) -> None:
        sequences = started()
        sequences.reserved_up_to(10 * WINDOW)
        for _ in range(WINDOW):
            sequences.take()
        with pytest.raises(WindowFullError):
            sequences.take()
        sequences.settle(1)
        assert sequences.take() == WINDOW + 1

    def test_skipping_needs_a_new_reservation(self) -> None:
        sequences = started()
        sequences.skip_to(50_000)
        assert sequences.reservation_needed == 50_000 + RESERVE
        sequences.skip_to(3)
        sequences.reserved_up_to(50_000 + RESERVE)
        assert sequences.take() == 50_000


class TestReceiveWindow:
    def test_a_message_is_new_once(self) -> None:
        window = ReceiveWindow()
        assert window.offer(1, token(1), 1) is Verdict.NEW
        assert window.offer(1, token(1), 1) is Verdict.PENDING
        window.confirm(1)
        assert window.offer(1, token(1), 1) is Verdict.DUPLICATE

    def test_what_was_not_stored_is_new_again(self) -> None:
        window = ReceiveWindow()
        assert window.offer(1, token(1), 1) is Verdict.NEW
        window.withdraw(1)
        assert window.offer(1, token(1), 1) is Verdict.NEW

    def test_a_sender_whose_count_was_set_back_is_told_where_to_go_on(self) -> None:
        window = ReceiveWindow(below=10, seen={10: token(10), 12: token(12)})
        assert window.offer(4, token(99), 4) is Verdict.STALE
        assert window.offer(12, token(99), 4) is Verdict.STALE
        assert window.next_free == 13
        assert window.offer(13, token(99), 4) is Verdict.NEW

    def test_too_far_ahead_is_refused_and_forgets_nothing(self) -> None:
        window = ReceiveWindow(seen={1: token(1)})
        assert window.offer(1 + WINDOW, token(2), 1) is Verdict.AHEAD
        assert window.offer(1, token(1), 1) is Verdict.DUPLICATE

    def test_what_is_below_the_limit_is_forgotten(self) -> None:
        window = ReceiveWindow(seen={number: token(number) for number in range(1, 1001)})
        assert window.offer(1001, token(1001), 1001) is Verdict.NEW
        assert len(window) == 1


class Conversation(RuleBasedStateMachine):
    """A sender and a receiver with loss, repetition, reordering, failing disks and restarts of both."""

    copies = Bundle("copies")

    def __init__(self) -> None:
        super().__init__()
        self.durable_reserved = 1
        self.sequences = started()
        self.durable_reserved = 1 + RESERVE
        self.window = ReceiveWindow()
        self.durable: tuple[int, dict[int, bytes]] = (1, {})
        self.inbox: list[bytes] = []
        self.used: set[int] = set()
        self.unsettled: dict[int, bytes] = {}
        self.count = 0

    @rule(target=copies)
    def send(self) -> tuple[int, bytes, int]:
        if (reserved := self.sequences.reservation_needed) is not None:
            self.durable_reserved = reserved
            self.sequences.reserved_up_to(reserved)
        sequence = self.sequences.take()
        assert sequence not in self.used, "a number was used twice"
        self.used.add(sequence)
        self.count += 1
        self.unsettled[sequence] = token(self.count)
        return sequence, token(self.count), self.sequences.below

    @rule(copy=copies, disk_works=st.booleans())
    def arrive(self, copy: tuple[int, bytes, int], disk_works: bool) -> None:
        sequence, text, below = copy
        verdict = self.window.offer(sequence, text, below)
        if verdict is Verdict.NEW:
            if not disk_works:
                self.window.withdraw(sequence)
                return
            assert text not in self.inbox, "delivered twice"
            self.inbox.append(text)
            seen = {**self.durable[1], sequence: text}
            limit = max(self.durable[0], below)
            self.durable = (limit, {number: t for number, t in seen.items() if number >= limit})
            self.window.confirm(sequence)
        elif self.unsettled.get(sequence) == text:
            # The sender still cares for it: it must not be told that another message has its number.
            assert verdict is Verdict.DUPLICATE
        if self.unsettled.get(sequence) == text:
            assert text in self.inbox, "acknowledged and lost"
            del self.unsettled[sequence]
            self.sequences.settle(sequence)

    @rule(copy=copies)
    def give_up(self, copy: tuple[int, bytes, int]) -> None:
        if self.unsettled.get(copy[0]) == copy[1]:
            del self.unsettled[copy[0]]
            self.sequences.settle(copy[0])

    @rule()
    def restart_sender(self) -> None:
        self.sequences = SendSequence(self.durable_reserved)
        self.unsettled.clear()

    @rule()
    def restart_receiver(self) -> None:
        self.window = ReceiveWindow(*self.durable)

    @invariant()
    def stays_bounded(self) -> None:
        assert len(self.window) <= WINDOW


TestConversation = Conversation.TestCase


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3), st.integers(1, 200)), max_size=200))
def test_whatever_a_peer_sends_the_window_stays_bounded_and_nothing_is_new_twice(
    offers: list[tuple[int, int, int]],
) -> None:
    window = ReceiveWindow()
    delivered: set[int] = set()
    for sequence, which, below in offers:
        if window.offer(sequence, token(which), min(below, sequence)) is Verdict.NEW:
            assert sequence not in delivered
            delivered.add(sequence)
            window.confirm(sequence)
        assert len(window) <= WINDOW
        assert window.next_free > max(delivered, default=0)
