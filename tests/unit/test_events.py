import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.events import EventBus, EventsDropped, NodeStarted, PeerDisconnected

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
