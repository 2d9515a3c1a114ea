"""The hybrid logical clock never goes back, whatever the wall clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_sync.clock import COUNTER_BITS, FutureStampError, HybridClock, stamp_time_s

HOUR_MS = 3_600_000


class Wall:
    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


# Seconds the wall clock moves, stamps taken, then whether the device restarts from what it persisted.
STEPS = st.lists(st.tuples(st.floats(-7200, 7200), st.integers(1, 70_000), st.booleans()), max_size=40)


@given(STEPS)
def test_stamps_ascend_over_clock_steps_and_restarts(steps: list[tuple[float, int, bool]]) -> None:
    wall = Wall()
    clock = HybridClock(wall)
    last = 0
    for moved_s, count, restarts in steps:
        wall.now_s += moved_s
        first = clock.take(count)
        assert first > last
        last = first + count - 1
        assert clock.last == last
        if restarts:
            clock = HybridClock(wall, clock.last)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(-3600, 3600)), max_size=60))
def test_an_effect_has_a_later_stamp_than_its_cause(events: list[tuple[int, int, float]]) -> None:
    walls = [Wall(), Wall(), Wall()]
    clocks = [HybridClock(wall) for wall in walls]
    for sender, receiver, moved_s in events:
        walls[sender].now_s = 1_700_000_000 + moved_s
        stamp = clocks[sender].take()
        clocks[receiver].observe(stamp)
        assert clocks[receiver].take() > stamp


@given(st.integers(-48 * HOUR_MS, 400 * 24 * HOUR_MS))
def test_drift_is_bounded(ahead_ms: int) -> None:
    wall = Wall()
    clock = HybridClock(wall, max_drift_ms=24 * HOUR_MS)
    now_ms = int(wall.now_s * 1000)
    stamp = (now_ms + ahead_ms) << COUNTER_BITS
    if ahead_ms > 24 * HOUR_MS:
        with pytest.raises(FutureStampError, match="hours in the future"):
            clock.observe(stamp)
        assert clock.last == 0
    else:
        clock.observe(stamp)
        assert clock.last == stamp
    assert (clock.take() >> COUNTER_BITS) - now_ms <= 24 * HOUR_MS


def test_a_stamp_tells_its_time() -> None:
    wall = Wall(1_700_000_000.25)
    assert stamp_time_s(HybridClock(wall).take()) == 1_700_000_000.25


def test_a_clock_before_the_epoch_still_counts() -> None:
    clock = HybridClock(Wall(-5.0))
    assert [clock.take(), clock.take(3), clock.take()] == [1, 2, 5]
