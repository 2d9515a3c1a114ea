"""What every swarm promises, tried on the one in memory (asyncio and trio) and on libp2p's over real sockets."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import anyio
import pytest

from sdnet_core.errors import ConnectionFailedError, ProtocolError, TransportError
from sdnet_core.swarm.abc import AddressesChanged, Connected, Direction, Disconnected, Swarm, SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@dataclass(frozen=True)
class Setting:
    """Which swarm on which event loop."""

    kind: str
    backend: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.backend}"


@pytest.fixture(params=[Setting("memory", "asyncio"), Setting("memory", "trio"), Setting("libp2p", "trio")], ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.param
    return chosen


@pytest.fixture
def anyio_backend(setting: Setting) -> str:
    return setting.backend


class World:
    """Makes swarms that can reach each other."""

    def __init__(self, setting: Setting) -> None:
        self.kind = setting.kind
        self._network = MemoryNetwork()
        self._numbers = count(1)

    def swarm(self) -> Swarm:
        if self.kind == "memory":
            return MemorySwarm(self._network, f"peer-{next(self._numbers)}")
        from sdnet_core.swarm.libp2p import Libp2pSwarm

        return Libp2pSwarm(os.urandom(32))

    @property
    def listen(self) -> str:
        return "/memory/0" if self.kind == "memory" else "/ip4/127.0.0.1/tcp/0"

    @property
    def dead_address(self) -> str:
        return "/memory/999999" if self.kind == "memory" else "/ip4/127.0.0.1/tcp/1"

    @asynccontextmanager
    async def running(self, number: int) -> AsyncIterator[list[Swarm]]:
        swarms = [self.swarm() for _ in range(number)]
        async with running(*swarms):
            for swarm in swarms:
                await swarm.listen([self.listen])
                assert isinstance(await swarm.events.receive(), AddressesChanged)
            yield swarms

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Swarm, Swarm]]:
        """Two swarms; the first has dialled the second."""
        async with self.running(2) as (a, b):
            await a.dial(b.peer_id, b.addresses)
            assert isinstance(await a.events.receive(), Connected)
            assert isinstance(await b.events.receive(), Connected)
            yield a, b


@asynccontextmanager
async def running(*swarms: Swarm) -> AsyncIterator[None]:
    if not swarms:
        yield
        return
    async with swarms[0].run(), running(*swarms[1:]):
        yield


@pytest.fixture
def world(setting: Setting) -> World:
    return World(setting)


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)
    await stream.send_eof()


async def read_all(stream: SwarmStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def read_exactly(stream: SwarmStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return bytes(data)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is the library's, it sets no event
            await anyio.sleep(0.005)


async def works(a: Swarm, b: Swarm) -> bool:
    """Whether a fresh stream from one peer to the other carries data."""
    b.set_stream_handler("/works/1", echo)
    stream = await a.open_stream(b.peer_id, ["/works/1"])
    await stream.send(b"still here")
    await stream.send_eof()
    answer = await read_all(stream)
    await stream.aclose()
    return answer == b"still here"


async def test_echo_and_half_close(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/2", "/echo/1"])
        assert (stream.peer_id, stream.protocol, stream.generation) == (b.peer_id, "/echo/1", 1)
        await stream.send(b"one")
        assert await read_exactly(stream, 3) == b"one"
        await stream.send(b"two")
        await stream.send_eof()
        assert await read_all(stream) == b"two"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"after the end")
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"after closing")


async def test_receive_gives_no_more_than_asked_for(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(bytes(range(100)))
        received = b""
        while len(received) < 100:
            piece = await stream.receive(7)
            assert 1 <= len(piece) <= 7
            received += piece
        assert received == bytes(range(100))


async def test_either_side_can_open_streams(world: World) -> None:
    async with world.pair() as (a, b):
        assert await works(a, b)
        assert await works(b, a)


async def test_events_tell_of_both_sides(world: World) -> None:
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
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        assert stream.generation == 2


async def test_a_second_dial_uses_the_connection_there_is(world: World) -> None:
    async with world.pair() as (a, b):
        await a.dial(b.peer_id, [world.dead_address], timeout_s=1)
        await b.dial(a.peer_id, [], timeout_s=1)
        await a.hang_up(b.peer_id)
        assert isinstance(await a.events.receive(), Disconnected)
        assert isinstance(await b.events.receive(), Disconnected)


async def test_many_tasks_dialling_at_once_make_one_connection(world: World) -> None:
    async with world.running(2) as (a, b):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(a.dial, b.peer_id, b.addresses)
        await a.hang_up(b.peer_id)
        assert isinstance(await a.events.receive(), Connected)
        assert isinstance(await a.events.receive(), Disconnected)
        assert isinstance(await b.events.receive(), Connected)
        assert isinstance(await b.events.receive(), Disconnected)


async def test_reset_breaks_both_directions(world: World) -> None:
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
        assert await works(a, b)


async def test_reset_from_a_cancelled_scope(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.reset()
        assert await works(a, b)


async def test_closing_while_the_other_side_sends_tells_it(world: World) -> None:
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
        assert await works(a, b)


async def test_one_task_at_a_time_may_receive(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        async with anyio.create_task_group() as group:
            group.start_soon(stream.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            group.cancel_scope.cancel()


async def test_32_mib_through_a_reader_that_pauses(world: World) -> None:
    size = 32 * MIB
    block = os.urandom(MIB)
    sent = 0
    digest = anyio.Event()
    result: list[str] = []
    proceed = anyio.Event()

    async def slow_reader(stream: SwarmStream) -> None:
        hasher = hashlib.blake2b()
        hasher.update(await read_exactly(stream, 3 * MIB))
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
            while still != sent or sent == 0:
                still = sent
                await anyio.sleep(0.3)
            assert 2 * MIB <= sent < 24 * MIB
            assert await works(a, b)
            proceed.set()
            with anyio.fail_after(30):
                await digest.wait()
        expected = hashlib.blake2b()
        for _ in range(size // MIB):
            expected.update(block)
        assert result == [expected.hexdigest()]


async def test_cancelled_writers_leave_the_connection_usable(world: World) -> None:
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
        assert await works(a, b)
        assert await works(b, a)


async def test_what_a_cancelled_writer_sent_is_a_prefix(world: World) -> None:
    received = anyio.Event()
    got: list[bytes] = []

    async def slow(stream: SwarmStream) -> None:
        await anyio.sleep(0.05)
        got.append(await read_all(stream))
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


async def test_unknown_protocols_are_refused(world: World) -> None:
    async with world.pair() as (a, b):
        with pytest.raises(ProtocolError, match="/no/1, /no/2"):
            await a.open_stream(b.peer_id, ["/no/1", "/no/2"])
        assert await works(a, b)


async def test_streams_need_a_connection(world: World) -> None:
    async with world.running(2) as (a, b):
        with pytest.raises(ConnectionFailedError):
            await a.open_stream(b.peer_id, ["/echo/1"])


async def test_a_wrong_peer_id_is_not_connected_to(world: World) -> None:
    async with world.running(3) as (a, b, c):
        with pytest.raises(ConnectionFailedError, match="another peer answered"):
            await a.dial(c.peer_id, b.addresses)
        assert not a.is_connected(b.peer_id)
        assert not a.is_connected(c.peer_id)
        await until(lambda: not b.is_connected(a.peer_id))
        await a.dial(b.peer_id, b.addresses)
        assert await works(a, b)


async def test_a_dead_address_does_not_stand_in_the_way(world: World) -> None:
    async with world.running(2) as (a, b):
        with anyio.fail_after(3):
            await a.dial(b.peer_id, [world.dead_address, *b.addresses])
        assert await works(a, b)


async def test_addresses_of_another_peer_do_not_stand_in_the_way(world: World) -> None:
    async with world.running(3) as (a, b, c):
        await a.dial(b.peer_id, [*c.addresses, *b.addresses])
        assert a.is_connected(b.peer_id)
        assert not a.is_connected(c.peer_id)
        assert await works(a, b)


async def test_nothing_answers(world: World) -> None:
    async with world.running(2) as (a, b):
        with pytest.raises(ConnectionFailedError, match="refused"):
            await a.dial(b.peer_id, [world.dead_address])
        with pytest.raises(ConnectionFailedError, match="no address"):
            await a.dial(b.peer_id, [])
        # A failure is not held against the peer.
        await a.dial(b.peer_id, b.addresses)


async def test_a_cancelled_dial_leaves_nothing(world: World) -> None:
    async with world.running(2) as (a, b):
        for pause_s in (0.0, 0.001, 0.002, 0.004):
            with anyio.move_on_after(pause_s):
                await a.dial(b.peer_id, b.addresses)
            if not a.is_connected(b.peer_id):
                await until(lambda: not b.is_connected(a.peer_id))
        await a.dial(b.peer_id, b.addresses)
        assert await works(a, b)


async def test_hang_up_ends_handlers_on_both_sides_at_once(world: World) -> None:
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
        await until(lambda: running_handlers == 2)
        with anyio.fail_after(0.5):
            await a.hang_up(b.peer_id)
            await until(lambda: cancelled == 2)
            for stream in streams:
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send(b"x")
        await a.hang_up(b.peer_id)


async def test_what_was_sent_before_hanging_up_arrives(world: World) -> None:
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
        assert await read_exactly(stream, 8) == b"good-bye"
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


async def test_a_handler_that_raises_ends_its_stream_only(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: SwarmStream) -> None:
        raise RuntimeError("planted")

    caplog.set_level(logging.ERROR)
    async with world.pair() as (a, b):
        b.set_stream_handler("/fail/1", fail)
        b.set_stream_handler("/echo/1", echo)
        bystander = await a.open_stream(b.peer_id, ["/echo/1"])
        stream = await a.open_stream(b.peer_id, ["/fail/1"])
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        assert "/fail/1" in caplog.text
        await bystander.send(b"alive")
        assert await read_exactly(bystander, 5) == b"alive"
        assert await works(a, b)


async def test_the_stream_closes_when_the_handler_returns(world: World) -> None:
    async def short(stream: SwarmStream) -> None:
        await stream.send(b"done")

    async with world.pair() as (a, b):
        b.set_stream_handler("/short/1", short)
        stream = await a.open_stream(b.peer_id, ["/short/1"])
        assert await read_all(stream) == b"done"


async def test_removing_a_handler_leaves_running_streams(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        b.remove_stream_handler("/echo/1")
        b.remove_stream_handler("/echo/1")
        with pytest.raises(ProtocolError):
            await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(b"on")
        assert await read_exactly(stream, 2) == b"on"


async def test_many_streams_at_once(world: World) -> None:
    async with world.pair() as (a, b):
        b.set_stream_handler("/echo/1", echo)

        async def one(number: int) -> None:
            data = bytes([number]) * 50_000
            stream = await a.open_stream(b.peer_id, ["/echo/1"])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, data)
                assert await read_exactly(stream, len(data)) == data
            await stream.aclose()

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)


async def test_stopping_with_open_streams_is_quick_and_complete(world: World) -> None:
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


async def test_an_exception_in_the_body_comes_out_as_it_is(world: World) -> None:
    swarm = world.swarm()
    with pytest.raises(LookupError, match="mine"):
        async with swarm.run():
            raise LookupError("mine")


async def test_a_port_in_use_is_named(world: World) -> None:
    async with world.running(2) as (a, b):
        address = a.addresses[0]
        with pytest.raises(TransportError, match=address.rsplit("/", 1)[-1]):
            await b.listen([address])
        with pytest.raises(TransportError, match="not a"):
            await b.listen(["nonsense"])
        assert len(b.addresses) == 1


async def test_both_sides_dialling_at_once_end_with_one_connection(world: World) -> None:
    async with world.running(2) as (a, b):
        for swarm in (a, b):
            swarm.set_stream_handler("/echo/1", echo)
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
                assert await read_exactly(stream, 4) == b"kept"
                await stream.aclose()
            await a.hang_up(b.peer_id)
            with anyio.fail_after(5):
                assert isinstance(await a.events.receive(), Connected)
                assert isinstance(await a.events.receive(), Disconnected)
                assert isinstance(await b.events.receive(), Connected)
                assert isinstance(await b.events.receive(), Disconnected)
