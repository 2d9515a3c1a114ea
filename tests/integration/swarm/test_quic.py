"""QUIC beside TCP: order and fall back over real sockets, who is let in, one connection whatever happens at once."""

from __future__ import annotations

import socket
import subprocess
import sys

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError, TransportError
from sdnet_core.swarm.abc import Connected, Direction, Disconnected, SwarmStream
from sdnet_core.swarm.libp2p import SwarmLimits
from tests.real_swarms import QUIC, TCP, address_of, both_dial, by, port_of, running, silent, works

QUIC6 = "/ip6/::1/udp/0/quic-v1"


pytestmark = pytest.mark.anyio


async def test_both_sides_are_told_the_right_addresses() -> None:
    async with running(QUIC) as b, running() as a:
        (address,) = b.addresses
        assert address.endswith("/quic-v1")
        await a.dial(b.peer_id, [address])
        assert await a.events.receive() == Connected(b.peer_id, address, Direction.OUTBOUND, 1)
        seen = await b.events.receive()
        assert isinstance(seen, Connected)
        assert seen.address.startswith("/ip4/127.0.0.1/udp/")
        assert seen.address.endswith("/quic-v1")
        await works(a, b)
        await works(b, a)
        await a.hang_up(b.peer_id)
        for swarm in (a, b):
            assert isinstance(await swarm.events.receive(), Disconnected)


@pytest.mark.parametrize(("order", "kind"), [(("tcp", "quic"), "tcp"), (("quic", "tcp"), "udp")])
async def test_the_preferred_transport_is_used(order: tuple[str, ...], kind: str) -> None:
    # A machine that is too busy for a quarter of a second would be given the other one.
    limits = SwarmLimits(transport_head_start_s=20)
    async with running(QUIC, TCP) as b, running(transports=order, limits=limits) as a:
        for _ in range(5):
            await a.dial(b.peer_id, b.addresses)
            address = a.remote_address(b.peer_id)
            assert address is not None
            assert f"/{kind}/" in address
            await a.hang_up(b.peer_id)


@pytest.mark.parametrize("transports", [("tcp", "quic"), ("quic", "tcp")], ids="-".join)
@pytest.mark.parametrize(("blocked", "used"), [("udp", "tcp"), ("tcp", "udp")])
@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_when_one_is_blocked_the_other_is_used(
    transports: tuple[str, ...], blocked: str, used: str, how: str
) -> None:
    kind = socket.SOCK_DGRAM if blocked == "udp" else socket.SOCK_STREAM
    with silent(kind) as hole:
        dead = address_of(hole)
        if how == "refused":
            hole.close()
        # What is refused falls back at once, not only after the head start.
        limits = SwarmLimits(transport_head_start_s=60 if how == "refused" else 0.25)
        async with running(QUIC, TCP) as b, running(transports=transports, limits=limits) as a:
            with anyio.fail_after(20):
                await a.dial(b.peer_id, [dead, *by(b.addresses, used)])
            assert a.remote_address(b.peer_id) == by(b.addresses, used)[0]
            await works(a, b)


async def test_a_tcp_node_neither_dials_nor_listens_on_quic() -> None:
    async with running(QUIC) as b, running(transports=("tcp",)) as a:
        with pytest.raises(ConnectionFailedError, match="no transport"):
            await a.dial(b.peer_id, b.addresses)
        with pytest.raises(TransportError, match="no transport"):
            await a.listen([QUIC])


async def test_a_port_in_use_is_named() -> None:
    async with running(QUIC) as b, running() as a:
        with pytest.raises(TransportError, match="in use"):
            await a.listen(b.addresses)


async def test_ports_of_tcp_and_udp_are_not_the_same_ports() -> None:
    for last in (False, False, False, True):
        async with running(QUIC) as b, running() as a:
            try:
                await a.listen([b.addresses[0].replace("/udp/", "/tcp/").removesuffix("/quic-v1")])
                return
            except TransportError:  # another program happens to use that port of TCP
                if last:
                    raise


@pytest.mark.parametrize("side", ["theirs", "ours"])
async def test_who_is_not_let_in_gets_no_stream(side: str) -> None:
    async with running(QUIC) as b, running() as a:
        served = 0

        async def count(stream: SwarmStream) -> None:
            nonlocal served
            served += 1

        b.set_stream_handler("/count/1", count)
        if side == "theirs":
            b.gate = lambda peer_id: peer_id != a.peer_id
        else:
            a.gate = lambda peer_id: peer_id != b.peer_id
        with pytest.raises(ConnectionFailedError):
            await a.dial(b.peer_id, b.addresses)
        with pytest.raises(ConnectionFailedError):
            await a.open_stream(b.peer_id, ["/count/1"])
        assert not a.is_connected(b.peer_id)
        assert not b.is_connected(a.peer_id)
        assert not served
        assert b.host.get_connected_peers() == []


async def test_a_full_node_refuses_at_once() -> None:
    async with running(QUIC, limits=SwarmLimits(max_connections=1)) as b, running() as a, running() as c:
        await a.dial(b.peer_id, b.addresses)
        with anyio.fail_after(5), pytest.raises(ConnectionFailedError):
            await c.dial(b.peer_id, b.addresses)
        await works(a, b)
        await a.hang_up(b.peer_id)
        assert [type(await b.events.receive()) for _ in range(2)] == [Connected, Disconnected]
        await c.dial(b.peer_id, b.addresses)
        await works(c, b)


@pytest.mark.skipif(not socket.has_ipv6, reason="This machine has no IPv6.")
async def test_over_ipv6() -> None:
    async with running(QUIC6) as b, running() as a:
        await a.dial(b.peer_id, b.addresses)
        assert a.remote_address(b.peer_id) == b.addresses[0]
        seen = await b.events.receive()
        assert isinstance(seen, Connected)
        assert seen.address.startswith("/ip6/::1/udp/")
        await works(a, b)


async def test_a_wildcard_answers_from_the_address_that_was_asked() -> None:
    """127.0.0.2 is this machine, too; the kernel would answer from 127.0.0.1."""
    async with running("/ip4/0.0.0.0/udp/0/quic-v1") as b, running() as a:
        address = f"/ip4/127.0.0.2/udp/{port_of(b)}/quic-v1"
        with anyio.fail_after(10):
            await a.dial(b.peer_id, [address])
        assert a.remote_address(b.peer_id) == address
        await works(a, b)


async def test_a_connection_lives_on_without_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdnet_core.swarm.quic import connection, core

    monkeypatch.setattr(core, "IDLE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(connection, "_PING_S", 0.2)
    async with running(QUIC) as b, running() as a:
        await a.dial(b.peer_id, b.addresses)
        await anyio.sleep(2.5)
        await works(a, b)
        assert isinstance(await a.events.receive(), Connected)


@pytest.mark.parametrize("other_kind", ["tcp", "udp"])
async def test_both_dial_at_once(other_kind: str) -> None:
    """One side dials by QUIC, the other by TCP or QUIC: one connection is left, and no stream is lost."""
    twice = 0

    async def one_round(delay_s: float) -> None:
        nonlocal twice
        async with running(TCP, QUIC) as a, running(TCP, QUIC) as b:
            twice += await both_dial(a, b, kinds=(other_kind, "udp"), delay_s=delay_s)

    if other_kind == "udp":
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(one_round, 0)
    else:
        # QUIC's handshake is the shorter one: it begins later, by what makes both end at about the same time.
        for number in range(200):
            await one_round(number % 50 / 5000)
            if twice >= 3 and number >= 40:
                break
    assert twice, "Nowhere were there two connections at first: that is not the race that this test is about."


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


async def test_a_peer_that_was_killed_is_noticed() -> None:
    """Its machine says that nobody listens there any more, so nobody waits for the idle time-out."""
    program = (
        "import os, trio\n"
        "from sdnet_core.swarm.libp2p import Libp2pSwarm\n"
        "async def main():\n"
        "    swarm = Libp2pSwarm(os.urandom(32), transports=('quic',))\n"
        "    async with swarm.run():\n"
        "        await swarm.listen(['/ip4/127.0.0.1/udp/0/quic-v1'])\n"
        "        print(swarm.peer_id, swarm.addresses[0], flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    child = start(program)
    try:
        assert child.stdout is not None
        peer_id, address = (await trio.to_thread.run_sync(child.stdout.readline)).split()
        async with running() as a:
            await a.dial(peer_id, [address])
            assert isinstance(await a.events.receive(), Connected)
            child.kill()
            child.wait()
            with pytest.raises(ConnectionFailedError):
                await a.open_stream(peer_id, ["/echo/1"], timeout_s=60)
            # The idle time-out would be 30 s.
            with anyio.fail_after(25):
                assert isinstance(await a.events.receive(), Disconnected)
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
