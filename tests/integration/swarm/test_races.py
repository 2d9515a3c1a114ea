"""Many ways to one peer at once: one connection comes out, on both sides, every time."""

from __future__ import annotations

import socket

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError
from sdnet_core.swarm.abc import AddressesChanged
from tests.real_swarms import TCP, address_of, both_dial, one_connection, running, silent

ROUNDS = 200
AT_ONCE = 50


pytestmark = pytest.mark.anyio


async def in_rounds(one_round: object) -> None:
    assert callable(one_round)
    for _ in range(ROUNDS // AT_ONCE):
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(one_round)


@pytest.mark.skipif(not socket.has_ipv6, reason="This machine has no IPv6.")
async def test_ipv4_and_ipv6_raced() -> None:
    async def one_round() -> None:
        async with running(TCP, "/ip6/::1/tcp/0", TCP) as b, running() as a:
            await a.dial(b.peer_id, b.addresses)
            await one_connection(a, b)

    await in_rounds(one_round)


async def test_both_dial_at_once_and_a_stream_of_each_goes_on() -> None:
    twice = 0

    async def one_round() -> None:
        nonlocal twice
        async with running(TCP) as a, running(TCP) as b:
            twice += await both_dial(a, b)

    await in_rounds(one_round)
    for _ in range(4):
        if not twice:  # a machine with much else to do lets them begin apart
            await in_rounds(one_round)
    assert twice, "Nowhere were there two connections at first: that is not the race that this test is about."


async def test_silent_addresses_cost_a_quarter_of_a_second_each() -> None:
    with silent() as one, silent() as two:
        blocked = [address_of(one), address_of(two)]
        async with running() as a, running(TCP) as b:
            began = anyio.current_time()
            await a.dial(b.peer_id, [*blocked, *b.addresses])
            assert anyio.current_time() - began < 1.5
            await one_connection(a, b)


async def test_a_refused_address_works_as_soon_as_somebody_listens_there() -> None:
    with silent() as held:
        address = address_of(held)
    async with running() as a, running() as b:
        for _ in range(3):
            with pytest.raises(ConnectionFailedError, match="refused"):
                await a.dial(b.peer_id, [address])
        await b.listen([address])
        assert isinstance(await b.events.receive(), AddressesChanged)
        await a.dial(b.peer_id, [address])
        await one_connection(a, b)
