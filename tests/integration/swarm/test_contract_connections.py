"""What every swarm promises of connections, tried in memory (asyncio and trio) and on libp2p over real sockets."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sdnet_core.errors import ConnectionFailedError, TransportError
from sdnet_core.swarm.abc import AddressesChanged, Connected, Direction, Disconnected, SwarmStream

pytestmark = pytest.mark.anyio


async def test_events_tell_of_both_sides(world: Any) -> None:
    async with world.running(2) as (a, b):
        await a.dial(b.peer_id, [*b.addresses])
        ours, theirs = await a.events.receive(), await b.events.receive()
        assert ours == Connected(b.peer_id, b.addresses[0], Direction.OUTBOUND, 1)
        assert isinstance(theirs, Connected)
        assert (theirs.peer_id, theirs.direction, theirs.generation) == (a.peer_id, Direction.INBOUND, 1)
        assert a.is_connected(b.peer_id)
        assert b.is_connected(a.peer_id)
        assert a.remote_address(b.peer_id) == b.addresses[0]
        await a.hang_up(b.peer_id)
        gone, seen = await a.events.receive(), await b.events.receive()
        assert isinstance(gone, Disconnected)
        assert isinstance(seen, Disconnected)
        assert (gone.peer_id, gone.generation) == (b.peer_id, 1)
        assert (seen.peer_id, seen.generation) == (a.peer_id, 1)
        assert not a.is_connected(b.peer_id)
        assert not b.is_connected(a.peer_id)
        assert a.remote_address(b.peer_id) is None
        await a.dial(b.peer_id, b.addresses)
        again = await a.events.receive()
        assert isinstance(again, Connected)
        assert again.generation == 2
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        assert stream.generation == 2


async def test_a_second_dial_uses_the_connection_there_is(world: Any) -> None:
    async with world.pair() as (a, b):
        await a.dial(b.peer_id, [world.dead_address], timeout_s=1)
        await b.dial(a.peer_id, [], timeout_s=1)
        await a.hang_up(b.peer_id)
        assert isinstance(await a.events.receive(), Disconnected)
        assert isinstance(await b.events.receive(), Disconnected)


async def test_many_tasks_dialling_at_once_make_one_connection(world: Any) -> None:
    async with world.running(2) as (a, b):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(a.dial, b.peer_id, b.addresses)
        await a.hang_up(b.peer_id)
        assert isinstance(await a.events.receive(), Connected)
        assert isinstance(await a.events.receive(), Disconnected)
        assert isinstance(await b.events.receive(), Connected)
        assert isinstance(await b.events.receive(), Disconnected)


async def test_streams_need_a_connection(world: Any) -> None:
    async with world.running(2) as (a, b):
        with pytest.raises(ConnectionFailedError):
            await a.open_stream(b.peer_id, ["/echo/1"])


async def test_a_wrong_peer_id_is_not_connected_to(world: Any) -> None:
    async with world.running(3) as (a, b, c):
        with pytest.raises(ConnectionFailedError, match="another peer answered"):
            await a.dial(c.peer_id, b.addresses)
        assert not a.is_connected(b.peer_id)
        assert not a.is_connected(c.peer_id)
        await world.until(lambda: not b.is_connected(a.peer_id))
        await a.dial(b.peer_id, b.addresses)
        assert await world.works(a, b)


async def test_a_dead_address_does_not_stand_in_the_way(world: Any) -> None:
    async with world.running(2) as (a, b):
        with anyio.fail_after(3):
            await a.dial(b.peer_id, [world.dead_address, *b.addresses])
        assert await world.works(a, b)


async def test_addresses_of_another_peer_do_not_stand_in_the_way(world: Any) -> None:
    async with world.running(3) as (a, b, c):
        await a.dial(b.peer_id, [*c.addresses, *b.addresses])
        assert a.is_connected(b.peer_id)
        assert not a.is_connected(c.peer_id)
        assert await world.works(a, b)


async def test_nothing_answers(world: Any) -> None:
    async with world.running(2) as (a, b):
        with pytest.raises(ConnectionFailedError, match="refused"):
            await a.dial(b.peer_id, [world.dead_address])
        with pytest.raises(ConnectionFailedError, match="no address"):
            await a.dial(b.peer_id, [])
        # A failure is not held against the peer.
        await a.dial(b.peer_id, b.addresses)


async def test_a_cancelled_dial_leaves_nothing(world: Any) -> None:
    async with world.running(2) as (a, b):
        for pause_s in (0.0, 0.001, 0.002, 0.004):
            with anyio.move_on_after(pause_s):
                await a.dial(b.peer_id, b.addresses)
            if not a.is_connected(b.peer_id):
                await world.until(lambda: not b.is_connected(a.peer_id))
        await a.dial(b.peer_id, b.addresses)
        assert await world.works(a, b)


async def test_hang_up_ends_handlers_on_both_sides_at_once(world: Any) -> None:
    running_handlers = 0
    cancelled = 0

    async def endless(stream: SwarmStream) -> None:
        nonlocal running_handlers, cancelled
        running_handlers += 1
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled += 1
            raise

    async with world.pair() as (a, b):
        a.set_stream_handler("/endless/1", endless)
        b.set_stream_handler("/endless/1", endless)
        streams = [await a.open_stream(b.peer_id, ["/endless/1"]), await b.open_stream(a.peer_id, ["/endless/1"])]
        await world.until(lambda: running_handlers == 2)
        with anyio.fail_after(0.5):
            await a.hang_up(b.peer_id)
            await world.until(lambda: cancelled == 2)
            for stream in streams:
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send(b"x")
        await a.hang_up(b.peer_id)


async def test_what_was_sent_before_hanging_up_arrives(world: Any) -> None:
    said = anyio.Event()

    async def say_goodbye(stream: SwarmStream) -> None:
        await stream.send(b"good-bye")
        said.set()
        await anyio.sleep_forever()

    async with world.pair() as (a, b):
        a.set_stream_handler("/bye/1", say_goodbye)
        stream = await b.open_stream(a.peer_id, ["/bye/1"])
        await said.wait()
        await a.hang_up(b.peer_id)
        assert await world.read_exactly(stream, 8) == b"good-bye"
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


async def test_stopping_with_open_streams_is_quick_and_complete(world: Any) -> None:
    started, cancelled = anyio.Event(), anyio.Event()

    async def endless(stream: SwarmStream) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with world.running(1) as (a,):
        b = world.swarm()
        with anyio.fail_after(10):
            async with b.run():
                await b.listen([world.listen])
                await a.dial(b.peer_id, b.addresses)
                b.set_stream_handler("/endless/1", endless)
                stream = await a.open_stream(b.peer_id, ["/endless/1"])
                await started.wait()
                addresses = b.addresses
                stopping = anyio.current_time()
        assert anyio.current_time() - stopping < 1
        assert cancelled.is_set()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        assert isinstance(await a.events.receive(), Connected)
        assert isinstance(await a.events.receive(), Disconnected)
        with pytest.raises(ConnectionFailedError):
            await a.dial(b.peer_id, addresses, timeout_s=2)
        # What the stopped swarm had to say can still be read, then its events end.
        kinds = [type(event) async for event in b.events]
        assert kinds == [AddressesChanged, Connected, Disconnected]


async def test_an_exception_in_the_body_comes_out_as_it_is(world: Any) -> None:
    swarm = world.swarm()
    with pytest.raises(LookupError, match="mine"):
        async with swarm.run():
            raise LookupError("mine")


async def test_a_port_in_use_is_named(world: Any) -> None:
    async with world.running(2) as (a, b):
        address = a.addresses[0]
        with pytest.raises(TransportError, match=address.rsplit("/", 1)[-1]):
            await b.listen([address])
        with pytest.raises(TransportError, match="not a"):
            await b.listen(["nonsense"])
        assert len(b.addresses) == 1


async def test_both_sides_dialling_at_once_end_with_one_connection(world: Any) -> None:
    async with world.running(2) as (a, b):
        for swarm in (a, b):
            swarm.set_stream_handler("/echo/1", world.echo)
        for _ in range(20):
            async with anyio.create_task_group() as group:
                group.start_soon(a.dial, b.peer_id, b.addresses)
                group.start_soon(b.dial, a.peer_id, a.addresses)
            assert a.is_connected(b.peer_id)
            assert b.is_connected(a.peer_id)
            # Streams that were opened right away are not lost, whichever connection they are on.
            streams = [await a.open_stream(b.peer_id, ["/echo/1"]), await b.open_stream(a.peer_id, ["/echo/1"])]
            for stream in streams:
                await stream.send(b"kept")
                assert await world.read_exactly(stream, 4) == b"kept"
                await stream.aclose()
            await a.hang_up(b.peer_id)
            with anyio.fail_after(5):
                assert isinstance(await a.events.receive(), Connected)
                assert isinstance(await a.events.receive(), Disconnected)
                assert isinstance(await b.events.receive(), Connected)
                assert isinstance(await b.events.receive(), Disconnected)
