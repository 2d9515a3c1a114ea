"""Our swarm and js-libp2p: whichever side dials, everything works in both directions."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from sdnet_core.errors import ConnectionFailedError
from sdnet_core.identity import NetworkIdentity, public_key_from_peer_id
from sdnet_core.swarm.abc import AddressesChanged, Connected, Direction, Disconnected, SwarmEvent, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm
from tests.interop.js_peer import DIGEST, ECHO, HOLD, JsPeer, js_peer

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
AGENT = "sdnet-interop/1"
IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"
BULK_BYTES = 16 * 1024 * 1024

Dialler = Literal["we dial", "js dials"]
DIALLERS: list[Dialler] = ["we dial", "js dials"]
both_ways = pytest.mark.parametrize("dialler", DIALLERS)


@asynccontextmanager
async def running(seed: bytes | None = None) -> AsyncIterator[Libp2pSwarm]:
    """Our swarm, which serves the protocols of the peer."""
    swarm = Libp2pSwarm(seed or os.urandom(32), agent_version=AGENT)
    swarm.set_stream_handler(ECHO, echo)
    swarm.set_stream_handler(DIGEST, answer_with_digest)
    async with swarm.run():
        await swarm.listen([LOOPBACK])
        assert isinstance(await swarm.events.receive(), AddressesChanged)
        yield swarm


@asynccontextmanager
async def connected(node_command: tuple[str, ...], dialler: Dialler) -> AsyncIterator[tuple[Libp2pSwarm, JsPeer]]:
    """Our swarm and a js-libp2p node with one connection between them, both of which know of it."""
    async with js_peer(node_command) as js, running() as swarm:
        if dialler == "we dial":
            await swarm.dial(js.peer_id, js.addresses)
        else:
            await js.ask("dial", peer=swarm.peer_id, addresses=swarm.addresses)
        event = await next_event(swarm)
        assert isinstance(event, Connected)
        assert event.peer_id == js.peer_id
        assert event.direction is (Direction.OUTBOUND if dialler == "we dial" else Direction.INBOUND)
        if dialler == "we dial":
            await js.event("connected", peer=swarm.peer_id)
        yield swarm, js


async def next_event(swarm: Libp2pSwarm) -> SwarmEvent:
    with anyio.fail_after(15):
        return await swarm.events.receive()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - the library tells nobody
            await anyio.sleep(0.01)


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)


async def answer_with_digest(stream: SwarmStream) -> None:
    digest = hashlib.sha256()
    async for data in stream:
        digest.update(data)
    await stream.send(digest.digest())


async def read_all(stream: SwarmStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def send_and_receive(swarm: Libp2pSwarm, peer_id: str, protocol: str, data: bytes) -> bytes:
    """Send everything and end our direction, while receiving until the other side ends its own."""
    stream = await swarm.open_stream(peer_id, [protocol])
    received = b""
    async with anyio.create_task_group() as group:

        async def send() -> None:
            await stream.send(data)
            await stream.send_eof()

        group.start_soon(send)
        with anyio.fail_after(30):
            received = await read_all(stream)
    await stream.aclose()
    return received


def assert_echoed(result: dict[str, Any], size: int) -> None:
    assert result["received"] == {"bytes": size, "digest": result["sent"]}


@both_ways
async def test_noise_and_yamux_are_agreed_on(node_command: tuple[str, ...], dialler: Dialler) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        (connection,) = await js.ask("connections", peer=swarm.peer_id)
        assert connection["encryption"] == "/noise"
        assert connection["multiplexer"] == "/yamux/1.0.0"
        if dialler == "we dial":
            assert connection["direction"] == "inbound"
            assert swarm.remote_address(js.peer_id) == js.addresses[0]
        else:
            assert connection["direction"] == "outbound"
            assert connection["address"] == f"{swarm.addresses[0]}/p2p/{swarm.peer_id}"


@both_ways
async def test_both_sides_identify_each_other(node_command: tuple[str, ...], dialler: Dialler) -> None:
    from libp2p.identity.identify.identify import parse_identify_response
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    async with connected(node_command, dialler) as (swarm, js):
        (connection,) = await js.ask("connections", peer=swarm.peer_id)
        seen = await js.event("identified", peer=swarm.peer_id)
        assert seen["agent"] == AGENT
        assert {ECHO, DIGEST, IDENTIFY, PING} <= set(seen["protocols"])
        assert seen["listen"] == list(swarm.addresses)
        # js-libp2p keeps quiet about its own port when it dials, so what we tell it is where it dialled from.
        assert seen["observed"].startswith("/ip4/127.0.0.1/tcp/")
        if dialler == "we dial":
            assert seen["observed"] == js.addresses[0]

        # Ours does it in the background; js-libp2p answers one such question at a time.
        peerstore, js_id = swarm.host.get_peerstore(), ID.from_base58(js.peer_id)
        await until(lambda: ECHO in peerstore.supports_protocols(js_id, [ECHO]))
        stream = await swarm.open_stream(js.peer_id, [IDENTIFY])
        message = parse_identify_response(await read_all(stream))
        assert message.agent_version.startswith("js-libp2p/")
        assert {ECHO, DIGEST, HOLD, IDENTIFY, PING} <= set(message.protocols)
        assert [str(Multiaddr(address)) for address in message.listen_addrs] == list(js.addresses)
        observed = str(Multiaddr(message.observed_addr)).partition("/p2p/")[0]
        assert observed == connection["address"].partition("/p2p/")[0]


@both_ways
async def test_pings(node_command: tuple[str, ...], dialler: Dialler) -> None:
    from libp2p.host.ping import PingService
    from libp2p.peer.id import ID

    async with connected(node_command, dialler) as (swarm, js):
        for _ in range(3):
            assert await js.ask("ping", peer=swarm.peer_id) < 5000
            assert await js.ask("muxer-ping", peer=swarm.peer_id) < 5000
        with anyio.fail_after(15):
            times = await PingService(swarm.host).ping(ID.from_base58(js.peer_id), ping_amt=3)
        assert len(times) == 3


@both_ways
async def test_16_mib_come_back_after_we_ended_our_direction(node_command: tuple[str, ...], dialler: Dialler) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        data = random.Random(1).randbytes(BULK_BYTES)
        assert await send_and_receive(swarm, js.peer_id, ECHO, data) == data


@both_ways
async def test_16_mib_go_back_after_js_ended_its_direction(node_command: tuple[str, ...], dialler: Dialler) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        assert_echoed(await js.ask("echo", peer=swarm.peer_id, bytes=BULK_BYTES), BULK_BYTES)


@both_ways
async def test_an_answer_that_waits_for_the_end(node_command: tuple[str, ...], dialler: Dialler) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        for size in (0, 1, 1_000_000):
            data = random.Random(size).randbytes(size)
            answer = await send_and_receive(swarm, js.peer_id, DIGEST, data)
            assert answer == hashlib.sha256(data).digest()
            result = await js.ask("digest", peer=swarm.peer_id, bytes=size)
            assert result["answer"] == result["sent"]


@both_ways
async def test_100_streams_at_once_in_each_direction(node_command: tuple[str, ...], dialler: Dialler) -> None:
    async with connected(node_command, dialler) as (swarm, js):

        async def one(number: int) -> None:
            data = random.Random(number).randbytes(number * 20)
            assert await send_and_receive(swarm, js.peer_id, ECHO, data) == data
            done.append(number)

        done: list[int] = []
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
            results = await js.ask("echoes", peer=swarm.peer_id, streams=100, bytes=1000)
        assert sorted(done) == list(range(100))
        assert len(results) == 100
        for result in results:
            assert_echoed(result, 1000)


@both_ways
@pytest.mark.parametrize("resetter", ["we reset", "js resets"])
async def test_a_reset_of_a_stream_that_we_opened(
    node_command: tuple[str, ...], dialler: Dialler, resetter: str
) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        stream = await swarm.open_stream(js.peer_id, [HOLD])
        key = (await js.event("held"))["key"]
        with anyio.fail_after(15):
            assert await stream.receive() == b"\x01"
            if resetter == "we reset":
                await stream.reset()
                assert (await js.event("held-end", key=key))["how"] == "StreamResetError"
            else:
                await js.ask("reset", key=key)
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
        assert await send_and_receive(swarm, js.peer_id, ECHO, b"still there") == b"still there"


@both_ways
@pytest.mark.parametrize("resetter", ["we reset", "js resets"])
async def test_a_reset_of_a_stream_that_js_opened(
    node_command: tuple[str, ...], dialler: Dialler, resetter: str
) -> None:
    opened, streams = anyio.create_memory_object_stream[SwarmStream](1)
    done = anyio.Event()

    async def handle(stream: SwarmStream) -> None:
        await opened.send(stream)
        await done.wait()

    async with connected(node_command, dialler) as (swarm, js), opened, streams:
        swarm.set_stream_handler(HOLD, handle)
        key = await js.ask("hold", peer=swarm.peer_id)
        with anyio.fail_after(15):
            stream = await streams.receive()
            assert await stream.receive() == b"\x01"
            if resetter == "we reset":
                await stream.reset()
                assert (await js.event("held-end", key=key))["how"] == "StreamResetError"
            else:
                await js.ask("reset", key=key)
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
        done.set()
        assert_echoed(await js.ask("echo", peer=swarm.peer_id, bytes=10), 10)


@both_ways
@pytest.mark.parametrize("closer", ["we hang up", "js hangs up"])
async def test_a_closed_connection_is_noticed(node_command: tuple[str, ...], dialler: Dialler, closer: str) -> None:
    async with connected(node_command, dialler) as (swarm, js):
        if closer == "we hang up":
            await swarm.hang_up(js.peer_id)
            await js.event("disconnected", peer=swarm.peer_id)
        else:
            await js.ask("hang-up", peer=swarm.peer_id)
        assert isinstance(await next_event(swarm), Disconnected)
        assert not swarm.is_connected(js.peer_id)
        assert await js.ask("connections", peer=swarm.peer_id) == []
        # Nothing that lasts is left of it.
        await swarm.dial(js.peer_id, js.addresses)
        assert await send_and_receive(swarm, js.peer_id, ECHO, b"again") == b"again"


@pytest.mark.parametrize("lower", ["we are lower", "js is lower"])
async def test_both_dial_at_once(node_command: tuple[str, ...], lower: str) -> None:
    async with js_peer(node_command) as js:
        js_key = public_key_from_peer_id(js.peer_id)
        seed = os.urandom(32)
        while (NetworkIdentity(seed).public_key < js_key) is not (lower == "we are lower"):
            seed = os.urandom(32)
        async with running(seed) as swarm:
            async with anyio.create_task_group() as group:
                group.start_soon(swarm.dial, js.peer_id, js.addresses)
                await js.ask("dial", peer=swarm.peer_id, addresses=swarm.addresses, force=True)
            for _ in range(10):
                assert await send_and_receive(swarm, js.peer_id, ECHO, b"from us") == b"from us"
                assert_echoed(await js.ask("echo", peer=swarm.peer_id, bytes=7), 7)
            # On a busy machine one side may have heard of the other's dial before its own: then there is only one.
            if len(await js.ask("connections", peer=swarm.peer_id)) > 1:
                # One of the two is given up when it is idle, and above the swarm nobody hears of that.
                await js.event("disconnected", peer=swarm.peer_id)
                (connection,) = await js.ask("connections", peer=swarm.peer_id)
                assert connection["direction"] == ("inbound" if lower == "we are lower" else "outbound")
            assert isinstance(await next_event(swarm), Connected)
            with pytest.raises(TimeoutError), anyio.fail_after(0.1):
                await swarm.events.receive()
            assert await send_and_receive(swarm, js.peer_id, ECHO, b"from us") == b"from us"
            assert_echoed(await js.ask("echo", peer=swarm.peer_id, bytes=7), 7)


async def test_another_peer_than_expected_is_refused(node_command: tuple[str, ...]) -> None:
    """The other way round js-libp2p 2.10 itself does not look, whoever it dials."""
    other = NetworkIdentity(os.urandom(32)).peer_id
    async with js_peer(node_command) as js, running() as swarm:
        with pytest.raises(ConnectionFailedError):
            await swarm.dial(other, js.addresses)
        assert not swarm.is_connected(other)
        assert not swarm.is_connected(js.peer_id)
