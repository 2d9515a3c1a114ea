"""What a network in memory can do to its links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, TransportError
from sdnet_core.swarm.abc import Connected, Disconnected, SwarmEvent, SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm

pytestmark = pytest.mark.anyio


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)


@asynccontextmanager
async def running(network: MemoryNetwork, *names: str) -> AsyncIterator[list[MemorySwarm]]:
    async with anyio.create_task_group() as group:
        swarms = [MemorySwarm(network, name) for name in names]
        stop = anyio.Event()

        async def run(swarm: MemorySwarm, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with swarm.run():
                await swarm.listen(["/memory/0"])
                swarm.set_stream_handler("/echo/1", echo)
                await swarm.events.receive()
                task_status.started()
                await stop.wait()

        for swarm in swarms:
            await group.start(run, swarm)
        yield swarms
        stop.set()


async def events(swarm: MemorySwarm, count: int) -> list[SwarmEvent]:
    with anyio.fail_after(2):
        return [await swarm.events.receive() for _ in range(count)]


async def exchange(stream: SwarmStream, data: bytes) -> bytes:
    await stream.send(data)
    return await stream.receive()


async def test_cutting_a_link_breaks_the_connection_until_it_is_healed() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b", "c") as (a, b, c):
        await a.dial("b", b.addresses)
        await a.dial("c", c.addresses)
        stream = await a.open_stream("b", ["/echo/1"])
        network.cut("a", "b")
        assert [type(e) for e in await events(a, 3)] == [Connected, Connected, Disconnected]
        assert [type(e) for e in await events(b, 2)] == [Connected, Disconnected]
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        with pytest.raises(ConnectionFailedError, match="cut"):
            await a.dial("b", b.addresses)
        assert a.is_connected("c")
        network.heal("a", "b")
        await a.dial("b", b.addresses)
        assert await exchange(await a.open_stream("b", ["/echo/1"]), b"back") == b"back"


async def test_a_silent_cut_is_noticed_by_nobody_and_delivers_later() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b") as (a, b):
        await a.dial("b", b.addresses)
        stream = await a.open_stream("b", ["/echo/1"])
        assert await exchange(stream, b"1") == b"1"
        network.cut("a", "b", silent=True)
        await stream.send(b"2")
        with anyio.move_on_after(0.05) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        assert a.is_connected("b")
        assert b.is_connected("a")
        with pytest.raises(NetworkTimeoutError):
            await a.open_stream("b", ["/echo/1"], timeout_s=0.05)
        network.heal("a", "b")
        assert await stream.receive() == b"2"


async def test_dialling_over_a_silent_link_times_out() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b") as (a, b):
        network.cut("a", "b", silent=True)
        with pytest.raises(ConnectionFailedError, match=r"0\.05 s"):
            await a.dial("b", b.addresses, timeout_s=0.05)


async def test_hanging_up_over_a_silent_link_reaches_the_other_side_when_it_heals() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b") as (a, b):
        await a.dial("b", b.addresses)
        stream = await a.open_stream("b", ["/echo/1"])
        network.cut("a", "b", silent=True)
        await a.hang_up("b")
        assert not a.is_connected("b")
        assert b.is_connected("a")
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        network.heal("a", "b")
        assert not b.is_connected("a")
        await a.dial("b", b.addresses)
        assert [getattr(e, "generation", 0) for e in await events(b, 3)] == [1, 1, 2]


async def test_a_restarted_peer_replaces_its_old_connection() -> None:
    network = MemoryNetwork()
    async with running(network, "b") as (b,):
        async with running(network, "a") as (a,):
            await a.dial("b", b.addresses)
            network.cut("a", "b", silent=True)
        # The old one stopped without b hearing of it.
        assert b.is_connected("a")
        network.heal_all()
        assert not b.is_connected("a")
        async with running(network, "a") as (a,):
            await a.dial("b", b.addresses)
            assert await exchange(await a.open_stream("b", ["/echo/1"]), b"new") == b"new"
        assert [type(e) for e in await events(b, 4)] == [Connected, Disconnected, Connected, Disconnected]


async def test_partitions() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b", "c", "d") as swarms:
        a, b, c, _ = swarms
        for other in swarms[1:]:
            await a.dial(other.peer_id, other.addresses)
        network.partition({"a", "b"}, {"c", "d"})
        assert [a.is_connected(name) for name in "bcd"] == [True, False, False]
        with pytest.raises(ConnectionFailedError):
            await b.dial("c", c.addresses)
        network.heal_all()
        await b.dial("c", c.addresses)


async def test_delay_and_rate_take_time() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b") as (a, b):
        await a.dial("b", b.addresses)
        stream = await a.open_stream("b", ["/echo/1"])
        network.link("a", "b").delay_s = 0.05
        start = anyio.current_time()
        assert await exchange(stream, b"x") == b"x"
        assert 0.1 <= anyio.current_time() - start < 1
        network.link("a", "b").delay_s = 0
        network.link("a", "b").bytes_per_s = 200_000
        start = anyio.current_time()
        got = 0
        await stream.send(bytes(10_000))
        while got < 10_000:
            got += len(await stream.receive())
        assert 0.1 <= anyio.current_time() - start < 1


async def test_buffers_are_bounded() -> None:
    network = MemoryNetwork(buffer_bytes=1000)
    async with running(network, "a", "b") as (a, b):

        async def deaf(stream: SwarmStream) -> None:
            await anyio.sleep_forever()

        b.set_stream_handler("/deaf/1", deaf)
        await a.dial("b", b.addresses)
        stream = await a.open_stream("b", ["/deaf/1"])
        await stream.send(bytes(1000))
        with anyio.move_on_after(0.02) as scope:
            await stream.send(b"x")
        assert scope.cancelled_caught


async def test_addresses() -> None:
    network = MemoryNetwork()
    async with running(network, "a") as (a,):
        await a.listen(["/memory/77"])
        assert a.addresses == ("/memory/1", "/memory/77")
        with pytest.raises(TransportError, match="/memory/77"):
            await a.listen(["/memory/77"])
        with pytest.raises(TransportError, match="not an address"):
            await a.listen(["/ip4/127.0.0.1/tcp/0"])
        with pytest.raises(RuntimeError):
            async with MemorySwarm(network, "a").run():
                pass
    with pytest.raises(TransportError, match="not running"):
        await a.listen(["/memory/0"])


async def test_no_connections_while_nobody_reads_events() -> None:
    network = MemoryNetwork()
    async with running(network, "a", "b") as (a, b):
        for _ in range(512):
            await a.dial("b", b.addresses)
            await a.hang_up("b")
        with pytest.raises(ConnectionFailedError, match="events"):
            await a.dial("b", b.addresses)
        for swarm in (a, b):
            await events(swarm, 1024)
        await a.dial("b", b.addresses)
