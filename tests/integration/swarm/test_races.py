"""Many ways to one peer at once: one connection comes out, on both sides, every time."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError
from sdnet_core.swarm.abc import AddressesChanged, Connected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm

# isort: split
from libp2p.peer.id import ID

ROUNDS = 200
AT_ONCE = 50
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


pytestmark = pytest.mark.anyio


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)


@asynccontextmanager
async def running(*listen: str) -> AsyncIterator[Libp2pSwarm]:
    swarm = Libp2pSwarm(os.urandom(32))
    async with swarm.run():
        if listen:
            await swarm.listen(listen)
            assert isinstance(await swarm.events.receive(), AddressesChanged)
        swarm.set_stream_handler("/echo/1", echo)
        yield swarm


def connections(swarm: Libp2pSwarm, peer: Libp2pSwarm) -> int:
    return len(swarm.host.get_network().connections.get(ID.from_base58(peer.peer_id), []))


async def one_connection(a: Libp2pSwarm, b: Libp2pSwarm, timeout_s: float) -> None:
    """Exactly one connection, the same on both sides, that carries streams both ways."""
    with anyio.fail_after(timeout_s):
        while (connections(a, b), connections(b, a)) != (1, 1):  # noqa: ASYNC110 - the library has no event for it
            await anyio.sleep(0.01)
    for one, other in ((a, b), (b, a)):
        stream = await one.open_stream(other.peer_id, ["/echo/1"])
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        await stream.aclose()
        first = await one.events.receive()
        assert isinstance(first, Connected)
        assert first.peer_id == other.peer_id
    await anyio.sleep(0.05)
    assert (connections(a, b), connections(b, a)) == (1, 1)


async def in_rounds(one_round: object) -> None:
    assert callable(one_round)
    for _ in range(ROUNDS // AT_ONCE):
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(one_round)


@pytest.mark.skipif(not socket.has_ipv6, reason="This machine has no IPv6.")
async def test_ipv4_and_ipv6_raced() -> None:
    async def one_round() -> None:
        async with running(LOOPBACK, "/ip6/::1/tcp/0", LOOPBACK) as b, running() as a:
            await a.dial(b.peer_id, b.addresses)
            await one_connection(a, b, 10)

    await in_rounds(one_round)


async def test_both_dial_at_once_and_a_stream_of_each_goes_on() -> None:
    twice = 0

    async def one_round() -> None:
        nonlocal twice
        async with running(LOOPBACK) as a, running(LOOPBACK) as b:
            streams: list[SwarmStream] = []

            async def dial(one: Libp2pSwarm, other: Libp2pSwarm) -> None:
                await one.dial(other.peer_id, other.addresses)
                streams.append(await one.open_stream(other.peer_id, ["/echo/1"]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, a, b)
                nursery.start_soon(dial, b, a)
            twice += connections(a, b) > 1
            # The surplus connection stays for as long as somebody uses it: no stream is lost.
            for stream in streams:
                await stream.send(b"kept")
                assert await stream.receive() == b"kept"
                await stream.aclose()
            await one_connection(a, b, 15)

    await in_rounds(one_round)
    assert twice, "Nowhere were there two connections at first: that is not the race that this test is about."


async def test_silent_addresses_cost_a_quarter_of_a_second_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        silent = [f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}" for listener in (one, two)]
        async with running() as a, running(LOOPBACK) as b:
            began = anyio.current_time()
            await a.dial(b.peer_id, [*silent, *b.addresses])
            assert anyio.current_time() - began < 1.5
            await one_connection(a, b, 5)


async def test_a_refused_address_works_as_soon_as_somebody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}"
    async with running() as a, running() as b:
        for _ in range(3):
            with pytest.raises(ConnectionFailedError, match="refused"):
                await a.dial(b.peer_id, [address])
        await b.listen([address])
        assert isinstance(await b.events.receive(), AddressesChanged)
        await a.dial(b.peer_id, [address])
        await one_connection(a, b, 5)
