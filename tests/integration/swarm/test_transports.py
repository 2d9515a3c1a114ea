"""Transports in their order of preference: WebSocket beside TCP, and what happens when one of them fails."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError, TransportError
from sdnet_core.swarm.abc import AddressesChanged, Connected, Direction, Disconnected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits

TCP = "/ip4/127.0.0.1/tcp/0"
WS = "/ip4/127.0.0.1/tcp/0/ws"
WS6 = "/ip6/::1/tcp/0/ws"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


pytestmark = pytest.mark.anyio


async def echo(stream: SwarmStream) -> None:
    async for data in stream:
        await stream.send(data)


@asynccontextmanager
async def running(
    *listen: str, transports: tuple[str, ...] = ("tcp", "ws"), limits: SwarmLimits | None = None
) -> AsyncIterator[Libp2pSwarm]:
    swarm = Libp2pSwarm(os.urandom(32), transports=transports, limits=limits)
    async with swarm.run():
        if listen:
            await swarm.listen(listen)
            assert isinstance(await swarm.events.receive(), AddressesChanged)
        swarm.set_stream_handler("/echo/1", echo)
        yield swarm


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """A TCP port where connections are taken and nothing is ever said, as a blocking middlebox does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"


async def works(a: Libp2pSwarm, b: Libp2pSwarm) -> None:
    with anyio.fail_after(5):
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"
        await stream.aclose()


async def test_websocket_tells_the_right_addresses() -> None:
    async with running(WS) as b, running() as a:
        (address,) = b.addresses
        assert address.endswith("/ws")
        await a.dial(b.peer_id, [address])
        assert await a.events.receive() == Connected(b.peer_id, address, Direction.OUTBOUND, 1)
        seen = await b.events.receive()
        assert isinstance(seen, Connected)
        assert seen.address.startswith("/ip4/127.0.0.1/tcp/")
        assert seen.address.endswith("/ws")
        await works(a, b)
        await works(b, a)
        await a.hang_up(b.peer_id)
        for swarm in (a, b):
            assert isinstance(await swarm.events.receive(), Disconnected)


@pytest.mark.parametrize(("order", "kind"), [(("tcp", "ws"), "/tcp/"), (("ws", "tcp"), "/ws")])
async def test_the_preferred_transport_is_used(order: tuple[str, ...], kind: str) -> None:
    async with running(WS, TCP) as b, running(transports=order) as a:
        for _ in range(5):
            await a.dial(b.peer_id, b.addresses)
            address = a.remote_address(b.peer_id)
            assert address is not None
            assert kind in address
            assert address.endswith("/ws") == (kind == "/ws")
            await a.hang_up(b.peer_id)


async def test_tcp_refused_falls_back_at_once() -> None:
    # The head start would fail the test if a refusal had to wait for its end.
    limits = SwarmLimits(transport_head_start_s=60)
    async with running(WS) as b, running(limits=limits) as a:
        with anyio.fail_after(5):
            await a.dial(b.peer_id, ["/ip4/127.0.0.1/tcp/1", *b.addresses])
        assert a.remote_address(b.peer_id) == b.addresses[0]
        await works(a, b)


async def test_tcp_silent_falls_back_to_websocket() -> None:
    async with silent() as blocked, running(WS) as b, running() as a:
        with anyio.fail_after(3):
            await a.dial(b.peer_id, [blocked, *b.addresses])
        assert a.remote_address(b.peer_id) == b.addresses[0]
        await works(a, b)


async def test_websocket_blocked_falls_back_to_tcp() -> None:
    async with silent() as blocked, running(TCP) as b, running(transports=("ws", "tcp")) as a:
        with anyio.fail_after(3):
            await a.dial(b.peer_id, ["/ip4/127.0.0.1/tcp/1/ws", blocked + "/ws", *b.addresses])
        assert a.remote_address(b.peer_id) == b.addresses[0]
        await works(a, b)


async def test_a_plain_tcp_node_neither_dials_nor_listens_on_websocket() -> None:
    async with running(WS) as b, running(transports=("tcp",)) as a:
        with pytest.raises(ConnectionFailedError, match="no transport"):
            await a.dial(b.peer_id, b.addresses)
        with pytest.raises(TransportError, match="no transport"):
            await a.listen([WS])


async def test_another_peer_is_refused() -> None:
    async with running(WS) as b, running(WS) as c, running() as a:
        with pytest.raises(ConnectionFailedError, match="another peer answered"):
            await a.dial(c.peer_id, b.addresses)
        assert not a.is_connected(b.peer_id)
        await a.dial(b.peer_id, b.addresses)
        await works(a, b)


async def test_the_gate_holds_for_websocket() -> None:
    async with running(WS) as b, running() as a:
        b.gate = lambda peer_id: peer_id != a.peer_id
        with pytest.raises(ConnectionFailedError):
            await a.dial(b.peer_id, b.addresses, timeout_s=3)
        assert not b.is_connected(a.peer_id)


async def test_an_http_request_without_end_is_cut_off() -> None:
    limits = SwarmLimits(handshake_timeout_s=1.5)
    async with running(WS, limits=limits) as b, running() as a:
        port = int(b.addresses[0].split("/")[4])
        slow = await trio.open_tcp_stream("127.0.0.1", port)
        await slow.send_all(b"GET / HTTP/1.1\r\n")
        with anyio.fail_after(5):
            assert await slow.receive_some() == b""
        endless = await trio.open_tcp_stream("127.0.0.1", port)
        with anyio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await endless.send_all(b"GET / HTTP/1.1\r\nx-header: " + b"y" * 64 * 1024 * 1024)
        await slow.aclose()
        await endless.aclose()
        await a.dial(b.peer_id, b.addresses)
        await works(a, b)


@pytest.mark.skipif(not socket.has_ipv6, reason="This machine has no IPv6.")
async def test_websocket_over_ipv6() -> None:
    async with running(WS6) as b, running() as a:
        await a.dial(b.peer_id, b.addresses)
        assert a.remote_address(b.peer_id) == b.addresses[0]
        seen = await b.events.receive()
        assert isinstance(seen, Connected)
        assert seen.address.startswith("/ip6/::1/tcp/")
        await works(a, b)


async def test_a_missing_address_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    # TEST-NET-3 is on no machine; a family that is missing looks the same.
    with caplog.at_level(logging.WARNING):
        async with running("/ip4/203.0.113.7/tcp/0/ws", WS) as b:
            assert len(b.addresses) == 1
    assert "not listening on /ip4/203.0.113.7/tcp/0/ws" in caplog.text


async def test_tcp_and_websocket_cannot_share_a_port() -> None:
    async with running(WS) as b, running() as a:
        with pytest.raises(TransportError, match="in use"):
            await a.listen([b.addresses[0].removesuffix("/ws")])
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free = probe.getsockname()[1]
        with pytest.raises(TransportError, match="cannot share a port"):
            await a.listen([f"/ip4/127.0.0.1/tcp/{free}", f"/ip4/127.0.0.1/tcp/{free}/ws"])
        assert not a.addresses


@pytest.mark.parametrize("transports", [(), ("tcp", "tcp"), ("quick",)])
def test_unknown_transports_are_refused(transports: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="one or more of tcp, quic, ws"):
        Libp2pSwarm(os.urandom(32), transports=transports)
