"""What every swarm promises of streams, tried in memory (asyncio and trio) and on libp2p over real sockets."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

import anyio
import pytest

from sdnet_core.errors import ProtocolError
from sdnet_core.swarm.abc import SwarmStream

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


async def test_echo_and_half_close(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/2", "/echo/1"])
        assert (stream.peer_id, stream.protocol, stream.generation) == (b.peer_id, "/echo/1", 1)
        await stream.send(b"one")
        assert await world.read_exactly(stream, 3) == b"one"
        await stream.send(b"two")
        await stream.send_eof()
        assert await world.read_all(stream) == b"two"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"after the end")
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"after closing")


async def test_receive_gives_no_more_than_asked_for(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(bytes(range(100)))
        received = b""
        while len(received) < 100:
            piece = await stream.receive(7)
            assert 1 <= len(piece) <= 7
            received += piece
        assert received == bytes(range(100))


async def test_either_side_can_open_streams(world: Any) -> None:
    async with world.pair() as (a, b):
        assert await world.works(a, b)
        assert await world.works(b, a)


async def test_reset_breaks_both_directions(world: Any) -> None:
    seen: list[type[BaseException]] = []
    started, ended = anyio.Event(), anyio.Event()

    async def wait_for_data(stream: SwarmStream) -> None:
        started.set()
        try:
            await stream.receive()
        except Exception as exc:
            seen.append(type(exc))
        try:
            await stream.send(b"x")
        except Exception as exc:
            seen.append(type(exc))
        ended.set()

    async with world.pair() as (a, b):
        b.set_stream_handler("/wait/1", wait_for_data)
        stream = await a.open_stream(b.peer_id, ["/wait/1"])
        await started.wait()
        await stream.reset()
        await stream.reset()
        with anyio.fail_after(5):
            await ended.wait()
        assert seen == [anyio.BrokenResourceError, anyio.BrokenResourceError]
        assert await world.works(a, b)


async def test_reset_from_a_cancelled_scope(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.reset()
        assert await world.works(a, b)


async def test_closing_while_the_other_side_sends_tells_it(world: Any) -> None:
    broken = anyio.Event()

    async def pour(stream: SwarmStream) -> None:
        try:
            while True:
                await stream.send(bytes(100_000))
        except anyio.BrokenResourceError:
            broken.set()
            raise

    async with world.pair() as (a, b):
        b.set_stream_handler("/pour/1", pour)
        stream = await a.open_stream(b.peer_id, ["/pour/1"])
        await stream.receive()
        await stream.aclose()
        with anyio.fail_after(5):
            await broken.wait()
        assert await world.works(a, b)


async def test_one_task_at_a_time_may_receive(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        async with anyio.create_task_group() as group:
            group.start_soon(stream.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            group.cancel_scope.cancel()


async def test_32_mib_through_a_reader_that_pauses(world: Any) -> None:
    size = 32 * MIB
    block = os.urandom(MIB)
    sent = 0
    digest = anyio.Event()
    result: list[str] = []
    proceed = anyio.Event()

    async def slow_reader(stream: SwarmStream) -> None:
        hasher = hashlib.blake2b()
        hasher.update(await world.read_exactly(stream, 3 * MIB))
        await proceed.wait()
        async for piece in stream:
            hasher.update(piece)
        result.append(hasher.hexdigest())
        digest.set()

    async with world.pair() as (a, b):
        b.set_stream_handler("/sink/1", slow_reader)
        stream = await a.open_stream(b.peer_id, ["/sink/1"])

        async def write() -> None:
            nonlocal sent
            while sent < size:
                await stream.send(block)
                sent += len(block)
            await stream.send_eof()

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            # Back-pressure: the writer stands still while nobody reads, long before all is sent.
            still = -1
            with anyio.fail_after(30):
                while still != sent or sent < 2 * MIB:
                    still = sent
                    await anyio.sleep(0.3)
            assert sent < 24 * MIB
            assert await world.works(a, b)
            proceed.set()
            with anyio.fail_after(30):
                await digest.wait()
        expected = hashlib.blake2b()
        for _ in range(size // MIB):
            expected.update(block)
        assert result == [expected.hexdigest()]


async def test_cancelled_writers_leave_the_connection_usable(world: Any) -> None:
    async def nobody_reads(stream: SwarmStream) -> None:
        await anyio.sleep_forever()

    async with world.pair() as (a, b):
        b.set_stream_handler("/deaf/1", nobody_reads)
        for _ in range(20):
            stream = await a.open_stream(b.peer_id, ["/deaf/1"])
            with anyio.move_on_after(0.01) as scope:
                await stream.send(bytes(16 * MIB))
            assert scope.cancelled_caught
            await stream.reset()
        assert await world.works(a, b)
        assert await world.works(b, a)


async def test_what_a_cancelled_writer_sent_is_a_prefix(world: Any) -> None:
    received = anyio.Event()
    got: list[bytes] = []

    async def slow(stream: SwarmStream) -> None:
        await anyio.sleep(0.05)
        got.append(await world.read_all(stream))
        received.set()

    data = os.urandom(8 * MIB)
    async with world.pair() as (a, b):
        b.set_stream_handler("/slow/1", slow)
        stream = await a.open_stream(b.peer_id, ["/slow/1"])
        with anyio.move_on_after(0.02):
            await stream.send(data)
        await stream.send_eof()
        with anyio.fail_after(10):
            await received.wait()
        assert 0 < len(got[0]) < len(data)
        assert data.startswith(got[0])


async def test_unknown_protocols_are_refused(world: Any) -> None:
    async with world.pair() as (a, b):
        with pytest.raises(ProtocolError, match="/no/1, /no/2"):
            await a.open_stream(b.peer_id, ["/no/1", "/no/2"])
        assert await world.works(a, b)


async def test_a_handler_that_raises_ends_its_stream_only(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: SwarmStream) -> None:
        raise RuntimeError("planted")

    caplog.set_level(logging.ERROR)
    async with world.pair() as (a, b):
        b.set_stream_handler("/fail/1", fail)
        b.set_stream_handler("/echo/1", world.echo)
        bystander = await a.open_stream(b.peer_id, ["/echo/1"])
        stream = await a.open_stream(b.peer_id, ["/fail/1"])
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        assert "/fail/1" in caplog.text
        await bystander.send(b"alive")
        assert await world.read_exactly(bystander, 5) == b"alive"
        assert await world.works(a, b)


async def test_the_stream_closes_when_the_handler_returns(world: Any) -> None:
    async def short(stream: SwarmStream) -> None:
        await stream.send(b"done")

    async with world.pair() as (a, b):
        b.set_stream_handler("/short/1", short)
        stream = await a.open_stream(b.peer_id, ["/short/1"])
        assert await world.read_all(stream) == b"done"


async def test_removing_a_handler_leaves_running_streams(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        b.remove_stream_handler("/echo/1")
        b.remove_stream_handler("/echo/1")
        with pytest.raises(ProtocolError):
            await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(b"on")
        assert await world.read_exactly(stream, 2) == b"on"


async def test_many_streams_at_once(world: Any) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", world.echo)

        async def one(number: int) -> None:
            data = bytes([number]) * 50_000
            stream = await a.open_stream(b.peer_id, ["/echo/1"])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, data)
                assert await world.read_exactly(stream, len(data)) == data
            await stream.aclose()

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
