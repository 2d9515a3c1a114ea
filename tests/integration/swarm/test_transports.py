"""Transports in their order of preference: WebSocket beside TCP, and what happens when one of them fails."""

from __future__ import annotations

import logging
import os
import socket

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError, TransportError
from sdnet_core.swarm.abc import Connected, Direction, Disconnected
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits
from tests.real_swarms import TCP, WS, address_of, raw_socket, running, silent, works

WS6 = "/ip6/::1/tcp/0/ws"


PATIENT = SwarmLimits(handshake_timeout_s=60)
"""With which who waited for the end of a silent handshake would wait too long."""

pytestmark = pytest.mark.anyio


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
    with silent() as blocked:
        async with running(WS) as b, running(limits=PATIENT) as a:
            with anyio.fail_after(30):
                await a.dial(b.peer_id, [address_of(blocked), *b.addresses], timeout_s=60)
            assert a.remote_address(b.peer_id) == b.addresses[0]
            await works(a, b)


async def test_websocket_blocked_falls_back_to_tcp() -> None:
    with silent() as blocked:
        async with running(TCP) as b, running(transports=("ws", "tcp"), limits=PATIENT) as a:
            blocked_too = f"{address_of(blocked)}/ws"
            with anyio.fail_after(30):
                await a.dial(b.peer_id, ["/ip4/127.0.0.1/tcp/1/ws", blocked_too, *b.addresses], timeout_s=60)
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
        slow = await raw_socket(b)
        await slow.send_all(b"GET / HTTP/1.1\r\n")
        with anyio.fail_after(5):
            assert await slow.receive_some() == b""
        endless = await raw_socket(b)
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
