"""QUIC over lines that lose, repeat and reorder packets, and over a NAT that forgets."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio

from sdnet_core.swarm.abc import AddressesChanged, Connected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm

QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
MIB = 1024 * 1024


pytestmark = pytest.mark.anyio


class Line:
    """Carries datagrams between one client and a server.

    :param bad: share of the packets that are lost, the share that is sent twice, and the share that comes late.
    """

    def __init__(self, server_port: int, bad: float, nursery: trio.Nursery) -> None:
        self._server = ("127.0.0.1", server_port)
        self._bad = bad
        self._random = random.Random(7)
        self._nursery = nursery
        self._client: object = None
        self.dropped = 0
        self.front = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._back = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)

    async def start(self) -> str:
        """Begin; returns the address to dial."""
        await self.front.bind(("127.0.0.1", 0))
        await self._back.bind(("127.0.0.1", 0))
        self._nursery.start_soon(self._forth)
        self._nursery.start_soon(self._back_again, self._back)
        return f"/ip4/127.0.0.1/udp/{self.front.getsockname()[1]}/quic-v1"

    def close(self) -> None:
        """End it."""
        self.front.close()
        self._back.close()

    async def rebind(self) -> None:
        """What a NAT does that has forgotten: the client comes from another port from now on, the old one is dead."""
        new = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await new.bind(("127.0.0.1", 0))
        old, self._back = self._back, new
        self._nursery.start_soon(self._back_again, self._back)
        old.close()

    async def _forth(self) -> None:
        while True:
            try:
                data, self._client = await self.front.recvfrom(65536)
            except (trio.ClosedResourceError, OSError):
                return
            for delay_s in self._fate():
                self._nursery.start_soon(self._later, delay_s, data, True)

    async def _back_again(self, sock: trio.socket.SocketType) -> None:
        while True:
            try:
                data = await sock.recv(65536)
            except (trio.ClosedResourceError, OSError):
                return
            for delay_s in self._fate():
                self._nursery.start_soon(self._later, delay_s, data, False)

    def _fate(self) -> list[float]:
        chance = self._random.random()
        if chance < self._bad:
            self.dropped += 1
            return []
        if chance < 2 * self._bad:
            return [0, 0]
        return [0.02 if chance < 3 * self._bad else 0]

    async def _later(self, delay_s: float, data: bytes, forth: bool) -> None:
        if delay_s:
            await trio.sleep(delay_s)
        try:
            if forth:
                await self._back.sendto(data, self._server)
            else:
                await self.front.sendto(data, self._client)
        except (trio.ClosedResourceError, OSError):
            pass


@asynccontextmanager
async def two_and_a_line(bad: float = 0.0) -> AsyncIterator[tuple[Libp2pSwarm, Libp2pSwarm, Line]]:
    a, b = (Libp2pSwarm(os.urandom(32), transports=("quic",)) for _ in range(2))
    async with a.run(), b.run(), trio.open_nursery() as nursery:
        await b.listen([QUIC])
        assert isinstance(await b.events.receive(), AddressesChanged)
        line = Line(int(b.addresses[0].split("/")[4]), bad, nursery)
        address = await line.start()
        with anyio.fail_after(60):
            await a.dial(b.peer_id, [address], timeout_s=60)
            assert isinstance(await a.events.receive(), Connected)
            seen = await b.events.receive()
            assert isinstance(seen, Connected)
        try:
            yield a, b, line
        finally:
            line.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bad", [0.0, 0.02, 0.08])
async def test_everything_arrives_in_order_over_a_bad_line(bad: float) -> None:
    digests: dict[bytes, str] = {}

    async def take(stream: SwarmStream) -> None:
        name = await stream.receive(1)
        digest = hashlib.sha256()
        async for data in stream:
            digest.update(data)
            # What goes back is lost, too.
            await stream.send(data[: len(data) // 8])
        digests[name] = digest.hexdigest()
        await stream.send_eof()

    async with two_and_a_line(bad) as (a, b, line):
        b.set_stream_handler("/take/1", take)
        expected = {}

        async def send(number: int) -> None:
            name = bytes([number])
            data = random.Random(number).randbytes(MIB // 2)
            expected[name] = hashlib.sha256(data).hexdigest()
            stream = await a.open_stream(b.peer_id, ["/take/1"], timeout_s=60)

            async def write() -> None:
                await stream.send(name + data)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                async for _ in stream:
                    pass
            await stream.aclose()

        with anyio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(send, number)
        assert digests == expected
        assert bool(line.dropped) == bool(bad)


async def test_a_nat_that_forgets_does_not_end_the_connection() -> None:
    async def echo(stream: SwarmStream) -> None:
        async for data in stream:
            await stream.send(data)

    async with two_and_a_line() as (a, b, line):
        b.set_stream_handler("/echo/1", echo)
        before = b.remote_address(a.peer_id)
        stream = await a.open_stream(b.peer_id, ["/echo/1"])
        for number in range(3):
            with anyio.fail_after(60):
                await stream.send(bytes([number]) * 1000)
                received = b""
                while len(received) < 1000:
                    received += await stream.receive()
            assert received == bytes([number]) * 1000
            await line.rebind()
        assert before is not None
        assert stream.generation == 1
        assert a.is_connected(b.peer_id)
        assert b.is_connected(a.peer_id)
