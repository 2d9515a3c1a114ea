"""When mDNS asks and tells."""

from __future__ import annotations

import itertools

import pytest

from sdnet_core.discovery.mdns_link import MAX_QUERY_INTERVAL_S, Due, LinkSchedule


class Lowest:
    """Randomness that always draws the lowest."""

    def bytes(self, length: int) -> bytes:
        return bytes(length)

    def uniform(self, low: float, high: float) -> float:
        return low


def steps(schedule: LinkSchedule, until: float) -> list[tuple[float, Due]]:
    done = []
    while (at := schedule.next_at()) < until:
        done.append((at, schedule.take_due(at)))
    return done


@pytest.fixture
def schedule() -> LinkSchedule:
    return LinkSchedule(Lowest(), 0.0)


def test_it_asks_often_at_first_and_then_once_a_minute(schedule: LinkSchedule) -> None:
    asked = [at for at, due in steps(schedule, 400) if due.query]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert asked[0] == pytest.approx(0.02)
    assert gaps[:4] == pytest.approx([0.9, 1.8, 3.6, 7.2])
    assert gaps[-1] == pytest.approx(0.9 * MAX_QUERY_INTERVAL_S)


def test_it_tells_nothing_unasked_until_there_is_something(schedule: LinkSchedule) -> None:
    assert not any(due.tell for _, due in steps(schedule, 100))


def test_a_change_is_told_at_once_and_again_after_a_second(schedule: LinkSchedule) -> None:
    steps(schedule, 5.0)
    schedule.changed(5.0)
    assert [at for at, due in steps(schedule, 50.0) if due.tell] == pytest.approx([5.0, 6.0])


def test_changes_in_quick_succession_are_spaced(schedule: LinkSchedule) -> None:
    schedule.changed(0.0)
    assert schedule.take_due(0.0).tell
    schedule.changed(0.1)
    assert not schedule.take_due(0.1).tell
    assert schedule.take_due(0.25).tell
    assert schedule.take_due(1.25).tell


def test_many_questions_get_one_answer_and_at_most_one_a_second(schedule: LinkSchedule) -> None:
    steps(schedule, 10.0)
    for _ in range(100):
        schedule.asked(10.0)
    assert [at for at, due in steps(schedule, 10.1) if due.tell] == pytest.approx([10.02])
    schedule.asked(10.1)
    schedule.asked(10.9)
    assert [at for at, due in steps(schedule, 20.0) if due.tell] == pytest.approx([11.02])


def test_it_asks_often_again_after_a_restart(schedule: LinkSchedule) -> None:
    steps(schedule, 400.0)
    schedule.restart(400.0)
    assert [at for at, due in steps(schedule, 403.0) if due.query] == pytest.approx([400.02, 400.92, 402.72])
