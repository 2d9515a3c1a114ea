"""Swarms on real sockets, for the tests that are about these."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import trio

from sdnet_core.swarm.abc import AddressesChanged, Connected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits

# isort: split
from libp2p.peer.id import ID

TCP = "/ip4/127.0.0.1/tcp/0"
QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
WS = "/ip4/127.0.0.1/tcp/0/ws"
MIB = 1024 * 1024


async def echo(stream: SwarmStream) -> None:
    """Send back what comes."""
    async for data in stream:
        await stream.send(data)


@asynccontextmanager
async def running(
    *listen: str,
    transports: tuple[str, ...] = ("tcp", "quic", "ws"),
    limits: SwarmLimits | None = None,
    seed: bytes | None = None,
) -> AsyncIterator[Libp2pSwarm]:
    """A swarm that echoes ``/echo/1``.

    :param listen: where; nowhere if there are none.
    """
    swarm = Libp2pSwarm(seed or os.urandom(32), transports=transports, limits=limits)
    async with swarm.run():
        if listen:
            await swarm.listen(listen)
            assert isinstance(await swarm.events.receive(), AddressesChanged)
        swarm.set_stream_handler("/echo/1", echo)
        yield swarm


def by(addresses: Iterable[str], kind: str) -> list[str]:
    """Those of the addresses that have a part of this name, such as ``udp``."""
    return [address for address in addresses if f"/{kind}/" in address]


def port_of(swarm: Libp2pSwarm) -> int:
    """The port of its first address."""
    return int(swarm.addresses[0].split("/")[4])


def silent(kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A port that takes everything and never answers, as a blocking middlebox does."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a bare socket listens, as an address for TCP or QUIC."""
    port = sock.getsockname()[1]
    if sock.type == socket.SOCK_DGRAM:
        return f"/ip4/127.0.0.1/udp/{port}/quic-v1"
    return f"/ip4/127.0.0.1/tcp/{port}"


async def raw_socket(swarm: Libp2pSwarm) -> trio.SocketStream:
    """A bare TCP connection to a swarm."""
    return await trio.open_tcp_stream("127.0.0.1", port_of(swarm))


async def works(a: Libp2pSwarm, b: Libp2pSwarm) -> None:
    """See that a fresh stream carries data."""
    with anyio.fail_after(30):
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"
        await stream.aclose()


def connections(swarm: Libp2pSwarm, peer: Libp2pSwarm) -> int:
    """How many connections a swarm has to another one."""
    return len(swarm.host.get_network().connections.get(ID.from_base58(peer.peer_id), []))


async def one_connection(a: Libp2pSwarm, b: Libp2pSwarm) -> None:
    """See that exactly one connection is left, the same on both sides, and carries streams both ways."""
    with anyio.fail_after(60):
        while (connections(a, b), connections(b, a)) != (1, 1):  # noqa: ASYNC110 - the library has no event for it
            await anyio.sleep(0.01)
    for one, other in ((a, b), (b, a)):
        await works(one, other)
        first = await one.events.receive()
        assert isinstance(first, Connected)
        assert first.peer_id == other.peer_id
    await anyio.sleep(0.05)
    assert (connections(a, b), connections(b, a)) == (1, 1)


async def both_dial(
    a: Libp2pSwarm, b: Libp2pSwarm, *, kinds: tuple[str, str] = ("tcp", "tcp"), delay_s: float = 0.0
) -> bool:
    """Let both dial each other at once: one connection is left, and no stream is lost.

    :param kinds: by which of the other's addresses ``a`` and ``b`` dial.
    :param delay_s: so much later ``b`` begins.
    :returns: whether there were two connections at first.
    """
    streams: list[SwarmStream] = []

    async def dial(one: Libp2pSwarm, other: Libp2pSwarm, kind: str, delay_s: float) -> None:
        await trio.sleep(delay_s)
        await one.dial(other.peer_id, by(other.addresses, kind), timeout_s=60)
        streams.append(await one.open_stream(other.peer_id, ["/echo/1"], timeout_s=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial, a, b, kinds[0], 0.0)
        nursery.start_soon(dial, b, a, kinds[1], delay_s)
    twice = connections(a, b) > 1
    # The surplus connection stays for as long as somebody uses it.
    for stream in streams:
        await stream.send(b"kept")
        assert await stream.receive() == b"kept"
        await stream.aclose()
    await one_connection(a, b)
    return twice


def resident_bytes() -> int:
    """How much memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
