"""This project's swarm."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import trio

from benchmarks.stacks import Handler, Stack, Stream, Where
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm

__all__ = ["make"]


def _bind(stream: SwarmStream) -> Stream:
    return Stream(stream.send, stream.receive, stream.aclose)


class SdnetStack(Stack):
    """:class:`Libp2pSwarm` with the settings that a node has by default.

    :param address: what to listen on and to dial, with a place for the port.
    """

    ends = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)

    def __init__(self, transport: str, address: str) -> None:
        self._swarm = Libp2pSwarm(os.urandom(32), transports=(transport,))
        self._address = address
        self._remote = ""

    @asynccontextmanager
    async def run(self, *, listening: bool) -> AsyncIterator[None]:
        async with self._swarm.run(), trio.open_nursery() as nursery:
            if listening:
                await self._swarm.listen([self._address.format(0)])
            nursery.start_soon(self._read_events)
            yield
            nursery.cancel_scope.cancel()

    async def _read_events(self) -> None:
        """A node reads its events at once; a swarm takes no more connections while many are unread."""
        async for _ in self._swarm.events:
            pass

    def where(self) -> Where:
        return Where(port=int(self._swarm.addresses[0].split("/")[4]), peer_id=self._swarm.peer_id)

    def serve(self, protocol: str, handler: Handler) -> None:
        async def handle(stream: SwarmStream) -> None:
            await handler(_bind(stream))

        self._swarm.set_stream_handler(protocol, handle)

    async def connect(self, where: Where) -> None:
        await self._swarm.dial(where.peer_id, [self._address.format(where.port)])
        self._remote = where.peer_id

    async def disconnect(self) -> None:
        await self._swarm.hang_up(self._remote)

    async def open(self, protocol: str) -> Stream:
        return _bind(await self._swarm.open_stream(self._remote, [protocol]))

    def connection_count(self) -> int:
        return len(self._swarm.host.get_network().connections)


def make(variant: str) -> Stack:
    """Make a node, on QUIC if the variant is ``quic``."""
    if variant == "quic":
        return SdnetStack("quic", "/ip4/127.0.0.1/udp/{}/quic-v1")
    return SdnetStack("tcp", "/ip4/127.0.0.1/tcp/{}")
