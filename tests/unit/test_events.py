import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.events import EventBus, EventsDropped, NetworkEvent, NodeStarted, PeerDisconnected, PluginFailed

pytestmark = pytest.mark.anyio


def disconnected(peer_id: str) -> PeerDisconnected:
    return PeerDisconnected(peer_id=peer_id)


async def test_every_subscriber_hears_everything_in_order() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe() as first, bus.subscribe() as second:
        for name in "abc":
            bus.publish(disconnected(name))
        bus.close()
        assert [e.peer_id async for e in first] == ["a", "b", "c"]  # type: ignore[attr-defined]
        assert [e.peer_id async for e in second] == ["a", "b", "c"]  # type: ignore[attr-defined]


async def test_kinds_choose() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe(["node-started"]) as events:
        bus.publish(disconnected("a"))
        bus.publish(NodeStarted(peer_id="p", addresses=()))
        assert (await events.receive()).kind == "node-started"


async def test_a_slow_subscriber_loses_the_oldest_and_is_told() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe(buffer=2) as events:
        for name in "abcde":
            bus.publish(disconnected(name))
        dropped = await events.receive()
        assert isinstance(dropped, EventsDropped)
        assert dropped.count == 3
        assert [(await events.receive()).peer_id for _ in range(2)] == ["d", "e"]  # type: ignore[attr-defined]


async def test_a_waiting_subscriber_wakes_on_an_event_and_on_the_end() -> None:
    bus = EventBus(SystemClock())
    heard = []

    async def listen() -> None:
        async with bus.subscribe() as events:
            heard.extend([e.kind async for e in events])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        bus.publish(disconnected("a"))
        await anyio.wait_all_tasks_blocked()
        assert bus._subscriptions
        bus.close()
    assert heard == ["peer-disconnected"]


async def test_nobody_listens_after_leaving_the_block() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe():
        pass
    bus.publish(disconnected("a"))
    assert not bus._subscriptions


async def test_events_are_dated_and_turn_into_plain_values() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe() as events:
        bus.publish(NodeStarted(peer_id="p", addresses=("/x",)))
        values = (await events.receive()).to_dict()
    assert values["kind"] == "node-started"
    assert values["addresses"] in (["/x"], ("/x",))
    assert values["at"] > 1_700_000_000


@pytest.mark.parametrize("buffer", [0, -1])
async def test_a_subscription_needs_room(buffer: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        EventBus(SystemClock()).subscribe(buffer=buffer)


class Clock(SystemClock):
    time = 1000.0

    def now(self) -> float:
        return self.time


def told(events: list[NetworkEvent]) -> list[str]:
    """Events in short: a peer's id, or how many are missing and why."""
    return [f"{e.count}: {e.reason}" if isinstance(e, EventsDropped) else getattr(e, "peer_id", e.kind) for e in events]


async def test_events_are_numbered_and_kept() -> None:
    bus = EventBus(SystemClock())
    for name in "abc":
        bus.publish(disconnected(name))
    assert [(e.seq, e.kind) for e in bus.history()] == [(n, "peer-disconnected") for n in (1, 2, 3)]
    assert told(bus.history(after=2)) == ["c"]
    assert told(bus.history(after=3)) == []
    assert told(bus.history(["plugin-failed"])) == []


async def test_what_happens_often_does_not_push_out_what_happens_rarely() -> None:
    bus = EventBus(SystemClock(), keep=2)
    bus.publish(PluginFailed(plugin="p", reason=""))
    for name in "abcde":
        bus.publish(disconnected(name))
    assert told(bus.history(["plugin-failed"])) == ["plugin-failed"]
    assert told(bus.history()) == ["3: they are not kept any more", "plugin-failed", "d", "e"]
    assert told(bus.history(after=3)) == ["1: they are not kept any more", "d", "e"]
    assert told(bus.history(after=4)) == ["d", "e"]
    assert told(bus.history(["plugin-failed"], after=1)) == []


async def test_events_since_a_time() -> None:
    clock = Clock()
    bus = EventBus(clock, keep=3)
    for name in "abcde":
        clock.time += 1
        bus.publish(disconnected(name))
    assert told(bus.history(since=1004.5)) == ["e"]
    assert told(bus.history(since=1003)) == ["c", "d", "e"]
    assert told(bus.history(since=1001.5)) == ["2: they are not kept any more", "c", "d", "e"]
    assert told(bus.history(since=0)) == ["2: they are not kept any more", "c", "d", "e"]


async def test_a_number_of_another_run_is_told_apart() -> None:
    bus = EventBus(SystemClock())
    bus.publish(disconnected("a"))
    assert told(bus.history(after=1, run=bus.run)) == []
    assert told(bus.history(after=1, run="0")) == ["0: the node was restarted since", "a"]
    assert told(bus.history(after=2)) == ["0: the node was restarted since", "a"]


async def test_a_subscriber_begins_with_the_past_and_misses_nothing() -> None:
    bus = EventBus(SystemClock())
    for number in range(300):
        bus.publish(disconnected(str(number)))
    async with bus.subscribe(buffer=2, past=bus.history()) as events:
        bus.publish(disconnected("300"))
        bus.close()
        heard = [event.seq async for event in events]
    assert heard == list(range(1, 302))


async def test_an_event_that_is_published_again_is_another_one() -> None:
    bus, event = EventBus(SystemClock()), disconnected("a")
    bus.publish(event)
    bus.publish(event)
    assert event.seq == 1
    assert [e.seq for e in bus.history()] == [1, 2]


async def test_the_losses_of_slow_subscribers_are_counted() -> None:
    bus = EventBus(SystemClock())
    async with bus.subscribe(buffer=1), bus.subscribe(buffer=2):
        for name in "abc":
            bus.publish(disconnected(name))
    assert bus.dropped == 3
