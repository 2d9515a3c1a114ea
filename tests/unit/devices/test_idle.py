"""A node whose connections have nothing to do wakes up seldom: what can be done together is done in one wake-up."""

from __future__ import annotations

import anyio
import trio

from sdnet_core.clock import last_beat, next_beat
from sdnet_core.config import ConnectionSettings
from sdnet_core.events import ConnectionLost
from sdnet_core.testing import VirtualClock, linked_nodes, record_events, run_in_virtual_time, run_inline

KEEPALIVE_S = ConnectionSettings().keepalive_interval_s


class Wakes(trio.abc.Instrument):
    """Counts how often the event loop slept and something had to be done then."""

    def __init__(self) -> None:
        self.moments: set[float] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.moments.add(anyio.current_time())


def test_an_idle_node_wakes_up_on_beats_only() -> None:
    async def test() -> None:
        connections = {"keepalive_interval_s": KEEPALIVE_S}
        async with linked_nodes(
            5, clock=VirtualClock(), runner=run_inline, settings={"connections": connections}
        ) as nodes:
            await anyio.sleep(300)
            minutes, wakes = 60, Wakes()
            async with record_events(nodes[0]) as events:
                trio.lowlevel.add_instrument(wakes)
                await anyio.sleep(60 * minutes)
                trio.lowlevel.remove_instrument(wakes)
                assert events.of(ConnectionLost) == ()
            # Every 5 s somebody looks whether the machine has slept or has moved; nothing else has a time of its own
            # but pauses of a minute and more.
            assert len(wakes.moments) / minutes <= 60 / (KEEPALIVE_S / 6) + 5 * 2

    run_in_virtual_time(test)


def test_both_sides_of_a_connection_give_their_signs_at_the_same_moment() -> None:
    async def test() -> None:
        connections = {"keepalive_interval_s": KEEPALIVE_S}
        async with linked_nodes(2, clock=VirtualClock(), runner=run_inline, settings={"connections": connections}) as (
            a,
            b,
        ):
            sent: dict[int, list[float]] = {0: [], 1: []}
            (ours,), (theirs,) = a._connections.pool, b._connections.pool
            end = anyio.current_time() + 3600
            while anyio.current_time() < end:
                await anyio.sleep(1)
                for number, live in enumerate((ours, theirs)):
                    last = live.session.traffic.last_sent
                    if not sent[number] or sent[number][-1] != last:
                        sent[number].append(last)
            assert sent[0] == sent[1]
            gaps = [after - before for before, after in zip(sent[0], sent[0][1:], strict=False)]
            assert max(gaps) <= 1.1 * KEEPALIVE_S
            assert sum(gaps) / len(gaps) >= 0.7 * KEEPALIVE_S

    run_in_virtual_time(test)


async def _beats() -> None:
    for period_s in (0.1, 1 / 3, 5.0, 0.02 / 6):
        for _ in range(2000):
            now = anyio.current_time()
            assert last_beat(now, period_s) <= now < next_beat(period_s) <= now + period_s * (1 + 1e-6)
            await anyio.sleep_until(next_beat(period_s))


def test_a_beat_is_never_now() -> None:
    run_in_virtual_time(_beats)
