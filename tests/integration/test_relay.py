"""A relay between swarms over real connections: reservations, circuits, limits, better paths."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.discovery.dht_server import owner_of
from sdnet_core.errors import ConnectionFailedError
from sdnet_core.swarm.abc import Connected, Direction, PathChanged, Swarm, SwarmStream
from sdnet_core.swarm.relay import Relay, RelayLimits
from sdnet_core.swarm.relay_client import call_through, reserve
from sdnet_core.swarm.relay_messages import HOP, MAX_MESSAGE_BYTES, HopMessage, HopType, RelayStatus
from sdnet_core.wire import MessageStream

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]
CLOCK = SystemClock()


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)
    await stream.send_eof()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await anyio.sleep(0.01)


class World:
    """Swarms on loopback, and a relay that they can all reach."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()

    async def swarm(self) -> Swarm:
        from sdnet_core.swarm.libp2p import Libp2pSwarm

        swarm = Libp2pSwarm(os.urandom(32))
        await self.stack.enter_async_context(swarm.run())
        await swarm.listen(["/ip4/127.0.0.1/tcp/0"])
        await swarm.events.receive()
        swarm.set_stream_handler("/echo/1", echo)
        return swarm

    async def relay(self, limits: RelayLimits | None = None) -> tuple[Swarm, Relay]:
        swarm = await self.swarm()
        relay = Relay(swarm, CLOCK, limits=limits, owner_of=owner_of)
        group = anyio.create_task_group()
        await self.stack.enter_async_context(group)
        self.stack.callback(group.cancel_scope.cancel)
        group.start_soon(relay.run)
        return swarm, relay

    async def reserved(self, relay: Swarm) -> Swarm:
        """A swarm with a place at the relay."""
        swarm = await self.swarm()
        await swarm.dial(relay.peer_id, relay.addresses)
        await reserve(swarm, relay.peer_id, now=CLOCK.now())
        swarm.relays = frozenset({relay.peer_id})
        return swarm


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    with anyio.fail_after(60):
        async with made.stack:
            yield made


def through(relay: Swarm) -> list[str]:
    return [f"{address}/p2p/{relay.peer_id}/p2p-circuit" for address in relay.addresses]


async def works(a: Swarm, b: Swarm) -> bool:
    stream = await a.open_stream(b.peer_id, ["/echo/1"])
    await stream.send(b"still here")
    await stream.send_eof()
    answer = b"".join([data async for data in stream])
    await stream.aclose()
    return answer == b"still here"


async def test_a_peer_is_called_through_a_relay(world: World) -> None:
    node, relay = await world.relay()
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(node))
    assert await works(caller, called)
    path, theirs = caller.path(called.peer_id), called.path(caller.peer_id)
    assert path is not None
    assert theirs is not None
    assert path.relayed
    assert theirs.relayed
    assert (path.direction, theirs.direction) == (Direction.OUTBOUND, Direction.INBOUND)
    assert path.address in through(node)
    assert (relay.reservations, relay.circuits) == (1, 1)
    await caller.hang_up(called.peer_id)
    await until(lambda: relay.circuits == 0)


async def test_who_has_no_place_cannot_be_called(world: World) -> None:
    node, _ = await world.relay()
    called, caller = await world.swarm(), await world.swarm()
    await called.dial(node.peer_id, node.addresses)
    with pytest.raises(ConnectionFailedError, match="no place at the relay"):
        await caller.dial(called.peer_id, through(node))


async def test_calls_are_taken_only_from_relays_we_have_a_place_at(world: World) -> None:
    node, _ = await world.relay()
    called = await world.reserved(node)
    called.relays = frozenset()
    caller = await world.swarm()
    with pytest.raises(ConnectionFailedError, match="does not reach the device"):
        await caller.dial(called.peer_id, through(node))


async def test_a_direct_address_is_preferred(world: World) -> None:
    node, _ = await world.relay()
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, [*through(node), *called.addresses])
    path = caller.path(called.peer_id)
    assert path is not None
    assert not path.relayed


async def test_a_stranger_cannot_reserve_for_somebody_else(world: World) -> None:
    """The library's own relay believes the peer id in the message; one stranger took all its places."""
    node, relay = await world.relay(RelayLimits(max_reservations_per_address=4))
    victim = (await world.swarm()).peer_id
    stranger = await world.swarm()
    await stranger.dial(node.peer_id, node.addresses)
    for _ in range(20):
        stream = await stranger.open_stream(node.peer_id, [HOP])
        messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        await messages.send_bytes(HopMessage(type=HopType.RESERVE, peer=victim).encode())
        answer = HopMessage.decode(await messages.receive_bytes())
        assert answer.status is RelayStatus.OK
        await stream.aclose()
    assert relay.reservations == 1
    honest = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(honest.peer_id, through(node))
    with pytest.raises(ConnectionFailedError):
        await caller.dial(victim, through(node))


async def test_one_address_takes_only_its_share_of_places(world: World) -> None:
    node, relay = await world.relay(RelayLimits(max_reservations_per_address=3))
    for _ in range(3):
        await world.reserved(node)
    with pytest.raises(ConnectionFailedError, match="no place left"):
        await world.reserved(node)
    assert relay.counts["status-reservation-refused"] == 1


async def test_places_of_peers_that_are_gone_are_free_again(world: World) -> None:
    node, relay = await world.relay(RelayLimits(max_reservations=1))
    first = await world.reserved(node)
    await first.hang_up(node.peer_id)
    await until(lambda: not node.is_connected(first.peer_id))
    await world.reserved(node)
    assert relay.reservations == 1


async def test_a_circuit_ends_when_it_has_carried_what_it_may(world: World) -> None:
    node, relay = await world.relay(RelayLimits(circuit_bytes=200_000))
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(node))
    stream = await caller.open_stream(called.peer_id, ["/echo/1"])

    async def go_on() -> None:
        while True:
            await stream.send(bytes(10_000))
            await stream.receive()

    with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
        await go_on()
    assert relay.counts["ended-by-bytes"] == 1
    await until(lambda: not caller.is_connected(called.peer_id) and not called.is_connected(caller.peer_id))


async def test_a_circuit_ends_when_its_time_is_up(world: World) -> None:
    node, relay = await world.relay(RelayLimits(circuit_s=1))
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(node))
    await until(lambda: not caller.is_connected(called.peer_id))
    assert relay.counts["ended-by-time"] == 1


async def next_path(swarm: Swarm) -> PathChanged:
    with anyio.fail_after(30):
        while True:
            event = await swarm.events.receive()
            if isinstance(event, PathChanged):
                return event


async def test_a_better_path_is_used_and_the_old_one_ends_when_nothing_runs_on_it(world: World) -> None:
    node, relay = await world.relay()
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(node))
    old = await caller.open_stream(called.peer_id, ["/echo/1"])
    await caller.improve(called.peer_id, called.addresses)
    for swarm, other in ((caller, called), (called, caller)):
        changed = await next_path(swarm)
        path = swarm.path(other.peer_id)
        assert path is not None
        assert not path.relayed
        assert changed.generation == path.generation
    await old.send(b"on the old one")
    assert await old.receive() == b"on the old one"
    new = await caller.open_stream(called.peer_id, ["/echo/1"])
    assert new.generation > old.generation
    assert relay.circuits == 1
    await old.aclose()
    await until(lambda: relay.circuits == 0)
    assert await works(caller, called)


async def test_a_circuit_is_renewed_before_it_ends(world: World) -> None:
    node, relay = await world.relay(RelayLimits(circuit_bytes=400_000))
    called = await world.reserved(node)
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(node))
    for _ in range(8):
        stream = await caller.open_stream(called.peer_id, ["/echo/1"])
        for _ in range(10):
            await stream.send(bytes(10_000))
            await stream.receive()
        await stream.aclose()
        path = caller.path(called.peer_id)
        assert path is not None
        if path.used > 0.5:
            await caller.renew(called.peer_id)
    assert relay.counts["ended-by-bytes"] == 0
    assert relay.counts["connected"] >= 2


async def test_a_peer_that_comes_through_a_relay_has_lost_its_direct_connection(world: World) -> None:
    """After a change of network the old connection lingers on the other side."""
    node, _ = await world.relay()
    called = await world.reserved(node)
    caller = await world.swarm()
    await called.dial(caller.peer_id, caller.addresses)
    assert isinstance(await called.events.receive(), Connected)
    await caller.dial(called.peer_id, through(node))  # there is a connection: nothing happens
    path = caller.path(called.peer_id)
    assert path is not None
    assert not path.relayed


async def test_a_relay_that_connects_to_somebody_else_is_noticed(world: World) -> None:
    """It says OK and carries the bytes, but to another peer: the handshake inside shows who is there."""
    honest, _ = await world.relay()
    victim, mallory = await world.reserved(honest), await world.reserved(honest)
    liar = await world.swarm()
    await liar.dial(honest.peer_id, honest.addresses)

    async def lie(stream: SwarmStream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        request = HopMessage.decode(await messages.receive_bytes())
        assert request.peer == victim.peer_id
        circuit = await call_through(liar, honest.peer_id, mallory.peer_id)
        answer = HopMessage(type=HopType.STATUS, status=RelayStatus.OK)
        await messages.send_bytes(answer.encode())
        await stream.send(circuit.pending)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carry, stream, circuit.stream)
            tasks.start_soon(carry, circuit.stream, stream)

    async def carry(source: SwarmStream, sink: SwarmStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):
            async for data in source:
                await sink.send(data)
        await sink.reset()

    liar.set_stream_handler(HOP, lie)
    caller = await world.swarm()
    with pytest.raises(ConnectionFailedError, match="another peer answered"):
        await caller.dial(victim.peer_id, through(liar))
    assert not mallory.is_connected(caller.peer_id)
    await caller.dial(victim.peer_id, [*through(liar), *through(honest)])
    assert await works(caller, victim)


async def test_a_relay_that_breaks_connections_is_tried_after_others(world: World) -> None:
    breaking, _ = await world.relay(RelayLimits(circuit_bytes=8_000))
    honest, _ = await world.relay()
    called = await world.reserved(breaking)
    await called.dial(honest.peer_id, honest.addresses)
    await reserve(called, honest.peer_id, now=CLOCK.now())
    called.relays |= {honest.peer_id}
    caller = await world.swarm()
    await caller.dial(called.peer_id, through(breaking))
    stream = await caller.open_stream(called.peer_id, ["/echo/1"])
    with contextlib.suppress(anyio.BrokenResourceError):
        await stream.send(bytes(10_000))
    await until(lambda: not caller.is_connected(called.peer_id) and not called.is_connected(caller.peer_id))
    for _ in range(5):
        await caller.dial(called.peer_id, [*through(breaking), *through(honest)])
        path = caller.path(called.peer_id)
        assert path is not None
        assert path.address in through(honest)
        await caller.hang_up(called.peer_id)
        await until(lambda: not called.is_connected(caller.peer_id))
    await caller.dial(called.peer_id, through(breaking))  # better than nothing


async def test_a_stranger_cannot_make_us_dial_what_it_wants(world: World) -> None:
    node, _ = await world.relay()
    called = await world.reserved(node)
    stranger = await world.reserved(node)
    stranger.knows = lambda peer_id: False
    await stranger.dial(called.peer_id, through(node))
    with pytest.raises(ConnectionFailedError):
        await called.punch(stranger.peer_id)
    path = called.path(stranger.peer_id)
    assert path is not None
    assert path.relayed
