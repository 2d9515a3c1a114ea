"""Our swarm and js-libp2p over WebSocket and over QUIC: whichever side dials, everything works in both directions."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sdnet_core.errors import ConnectionFailedError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.swarm.abc import AddressesChanged, Connected, Direction, Disconnected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm
from tests.interop.js_peer import DIGEST, ECHO, HOLD, JsPeer, js_peer
from tests.interop.js_setup import DIRECTORY
from tests.interop.test_js_libp2p import (
    AGENT,
    BULK_BYTES,
    Dialler,
    answer_with_digest,
    assert_echoed,
    both_ways,
    echo,
    next_event,
    send_and_receive,
)

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

LISTEN = {"ws": "/ip4/127.0.0.1/tcp/0/ws", "quic": "/ip4/127.0.0.1/udp/0/quic-v1"}
QUIC_BINARIES = DIRECTORY / "node_modules" / "@chainsafe"


@pytest.fixture(params=["ws", "quic"])
def transport(request: pytest.FixtureRequest, node_command: tuple[str, ...]) -> str:
    """The only transport that both sides have."""
    name: str = request.param
    if name == "quic" and not list(QUIC_BINARIES.glob("libp2p-quic-*/*.node")):
        pytest.skip("js-libp2p's QUIC has no binary for this platform here")
    return name


@asynccontextmanager
async def running(transport: str) -> AsyncIterator[Libp2pSwarm]:
    swarm = Libp2pSwarm(os.urandom(32), agent_version=AGENT, transports=(transport,))
    swarm.set_stream_handler(ECHO, echo)
    swarm.set_stream_handler(DIGEST, answer_with_digest)
    async with swarm.run():
        await swarm.listen([LISTEN[transport]])
        assert isinstance(await swarm.events.receive(), AddressesChanged)
        yield swarm


@asynccontextmanager
async def connected(
    node_command: tuple[str, ...], transport: str, dialler: Dialler
) -> AsyncIterator[tuple[Libp2pSwarm, JsPeer]]:
    async with js_peer(node_command, transport=transport) as js, running(transport) as swarm:
        if dialler == "we dial":
            await swarm.dial(js.peer_id, js.addresses)
        else:
            await js.ask("dial", peer=swarm.peer_id, addresses=swarm.addresses)
        event = await next_event(swarm)
        assert isinstance(event, Connected)
        assert event.peer_id == js.peer_id
        assert event.direction is (Direction.OUTBOUND if dialler == "we dial" else Direction.INBOUND)
        assert event.address.endswith(LISTEN[transport].rpartition("/0")[2])
        await js.event("identified", peer=swarm.peer_id, agent=AGENT)
        yield swarm, js


@both_ways
async def test_bulk_with_half_close_and_ping(node_command: tuple[str, ...], transport: str, dialler: Dialler) -> None:
    async with connected(node_command, transport, dialler) as (swarm, js):
        assert await js.ask("ping", peer=swarm.peer_id) < 5000
        size = BULK_BYTES // 4
        data = random.Random(1).randbytes(size)
        assert await send_and_receive(swarm, js.peer_id, ECHO, data) == data
        assert_echoed(await js.ask("echo", peer=swarm.peer_id, bytes=size), size)
        for size in (0, 1, 1_000_000):
            data = random.Random(size).randbytes(size)
            assert await send_and_receive(swarm, js.peer_id, DIGEST, data) == hashlib.sha256(data).digest()
            result = await js.ask("digest", peer=swarm.peer_id, bytes=size)
            assert result["answer"] == result["sent"]


@both_ways
async def test_many_streams_at_once(node_command: tuple[str, ...], transport: str, dialler: Dialler) -> None:
    async with connected(node_command, transport, dialler) as (swarm, js):

        async def one(number: int) -> None:
            data = random.Random(number).randbytes(number * 20)
            assert await send_and_receive(swarm, js.peer_id, ECHO, data) == data

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(one, number)
            for result in await js.ask("echoes", peer=swarm.peer_id, streams=50, bytes=1000):
                assert_echoed(result, 1000)


@both_ways
async def test_resets_and_hanging_up(node_command: tuple[str, ...], transport: str, dialler: Dialler) -> None:
    async with connected(node_command, transport, dialler) as (swarm, js):
        for resetter in ("we", "js"):
            stream: SwarmStream = await swarm.open_stream(js.peer_id, [HOLD])
            with anyio.fail_after(30):
                key = (await js.event("held"))["key"]
                assert await stream.receive() == b"\x01"
                if resetter == "we":
                    await stream.reset()
                    # js-libp2p's QUIC 1.1 takes a reset for an orderly end.
                    expected = "eof" if transport == "quic" else "StreamResetError"
                    assert (await js.event("held-end", key=key))["how"] == expected
                else:
                    await js.ask("reset", key=key)
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()
        assert await send_and_receive(swarm, js.peer_id, ECHO, b"still there") == b"still there"
        if dialler == "we dial":
            await js.ask("hang-up", peer=swarm.peer_id)
        else:
            await swarm.hang_up(js.peer_id)
            await js.event("disconnected", peer=swarm.peer_id)
        assert isinstance(await next_event(swarm), Disconnected)
        await swarm.dial(js.peer_id, js.addresses)
        assert await send_and_receive(swarm, js.peer_id, ECHO, b"again") == b"again"


async def test_another_peer_than_expected_is_refused(node_command: tuple[str, ...], transport: str) -> None:
    other = NetworkIdentity(os.urandom(32)).peer_id
    async with js_peer(node_command, transport=transport) as js, running(transport) as swarm:
        with pytest.raises(ConnectionFailedError):
            await swarm.dial(other, js.addresses)
        assert not swarm.is_connected(js.peer_id)
