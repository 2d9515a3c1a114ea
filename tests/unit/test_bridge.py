"""A node inside asyncio programs and plain scripts, and its events on a host's bus."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sdnet_core import Config, PluginContext, ProtocolHandler, ProtocolSpec, ServiceSpec, hookimpl, load_config
from sdnet_core.bridge import AsyncioCore, EventBridge, SyncCore
from sdnet_core.errors import AlreadyRunningError, DeviceNotFoundError, NetworkTimeoutError, NotRunningError
from sdnet_core.events import ConnectionLost, MessageReceived, NetworkEvent, NodeStarted
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from sdnet_core.testing import linked_nodes


class Counter:
    """A plugin's service."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.cancelled = threading.Event()
        self.threads: set[str] = set()

    async def add(self, a: int, b: int) -> int:
        self.threads.add(threading.current_thread().name)
        await anyio.lowlevel.checkpoint()
        return a + b

    def fail(self) -> None:
        raise DeviceNotFoundError("No such device.")

    async def wait(self) -> None:
        self.waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()


class CounterPlugin:
    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        return [ServiceSpec(name="counter", api=Counter())]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="counter", version=1, handler=ProtocolHandler())]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    overrides = {"node": {"name": "host", "listen": ("/memory/0",)}}
    return load_config("host", environ={"SDNET_HOME": str(tmp_path)}, overrides=overrides)


@pytest.fixture
def options() -> Iterator[dict[str, Any]]:
    """What makes a node without a network; no thread of ours may be left."""
    yield {
        "plugins": [CounterPlugin],
        "swarm": lambda identity: MemorySwarm(MemoryNetwork(), identity.peer_id),
        "sources": lambda identity: (),
    }
    assert [thread.name for thread in threading.enumerate() if thread.name == "sdnet"] == []


def publish(core: AsyncioCore, event: NetworkEvent) -> Awaitable[Any]:
    return core.call(core._running().events.publish, event)


def message() -> MessageReceived:
    import uuid

    return MessageReceived(device_id=uuid.uuid4(), protocol="counter", size_bytes=1)


def test_an_asyncio_program_calls_a_node(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncioCore(config, **options) as core:
            assert core.device_info.name == "host"
            assert (await core.status())["name"] == "host"
            assert await core.get_connected_devices() == ()
            with pytest.raises(DeviceNotFoundError):
                await core.find_device("nobody")
            counter: Any = core.get_service(Counter)
            assert await counter.add(2, 3) == 5
            assert counter.threads == {"sdnet"}
            with pytest.raises(DeviceNotFoundError, match="No such device"):
                await counter.fail()
        with pytest.raises(NotRunningError):
            await core.status()

    asyncio.run(main())


def test_a_cancelled_call_has_ended_in_the_node(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncioCore(config, **options) as core:
            counter: Any = core.get_service(Counter)
            task = asyncio.create_task(counter.wait())
            await asyncio.to_thread(counter.waiting.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert counter.cancelled.is_set()
            assert await counter.add(1, 1) == 2

    asyncio.run(main())


def test_leaving_ends_what_is_under_way(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncioCore(config, **options) as core:
            counter: Any = core.get_service(Counter)
            task = asyncio.create_task(counter.wait())
            await asyncio.to_thread(counter.waiting.wait, 5)
        with pytest.raises(NotRunningError):
            await task

    asyncio.run(main())


def test_a_node_that_cannot_start_says_why(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncioCore(config, **options):
            with pytest.raises(AlreadyRunningError):
                async with AsyncioCore(config, **options):
                    pass

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        core = AsyncioCore(config, **options)
        task = asyncio.create_task(core.__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with AsyncioCore(config, **options) as again:
            assert await again.remote_devices() == ()

    asyncio.run(main())


def test_events_come_to_asyncio_and_end_with_the_node(config: Config, options: dict[str, Any]) -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def follow(core: AsyncioCore, ready: asyncio.Event) -> None:
            async with core.subscribe_events(["message-received"]) as events:
                ready.set()
                async for event in events:
                    seen.append(event.kind)

        async with AsyncioCore(config, **options) as core:
            ready = asyncio.Event()
            task = asyncio.create_task(follow(core, ready))
            await ready.wait()
            await publish(core, message())
        await asyncio.wait_for(task, 5)
        return seen

    assert asyncio.run(main()) == ["message-received"]


def test_a_bridge_feeds_an_asyncio_queue(config: Config, options: dict[str, Any]) -> None:
    async def main() -> None:
        bus: asyncio.Queue[NetworkEvent] = asyncio.Queue()
        async with AsyncioCore(config, **options) as core, EventBridge(core, bus, kinds=["message-received"]):
            await publish(core, message())
            event = await asyncio.wait_for(bus.get(), 5)
            assert isinstance(event, MessageReceived)

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_bridge_survives_a_bus_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    taken = anyio.Event()
    bus: queue.Queue[NetworkEvent] = queue.Queue()

    async def take(event: NetworkEvent) -> None:
        if bus.empty():
            bus.put(event)
            raise RuntimeError("the bus is down")
        taken.set()

    async with linked_nodes(2) as nodes, EventBridge(nodes[0], take):
        nodes.cut(nodes[0], nodes[1])
        with anyio.fail_after(5):
            await taken.wait()
    assert isinstance(bus.get(), ConnectionLost | NetworkEvent)
    assert "did not take" in caplog.text


def test_a_script_calls_a_node(config: Config, options: dict[str, Any]) -> None:
    with SyncCore(config, **options) as core:
        assert core.device_info.name == "host"
        assert core.remote_devices() == ()
        counter: Any = core.get_service(Counter)
        assert counter.add(2, 3) == 5
        with pytest.raises(DeviceNotFoundError):
            core.find_device("nobody")
        with pytest.raises(NetworkTimeoutError):
            next(core.events(timeout_s=0.01))
        events = core.events([NodeStarted.kind], timeout_s=5)
        core.call(core._running().events.publish, NodeStarted(peer_id="x", addresses=()))
        assert next(events).kind == "node-started"
    with pytest.raises(NotRunningError):
        core.status()


def test_a_script_is_told_why_a_node_cannot_start(config: Config, options: dict[str, Any]) -> None:
    with SyncCore(config, **options), pytest.raises(AlreadyRunningError), SyncCore(config, **options):
        pass
