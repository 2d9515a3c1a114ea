"""The swarms that the contract is tried on, and what its tests share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import anyio
import pytest

from sdnet_core.swarm.abc import AddressesChanged, Connected, Swarm, SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm


@dataclass(frozen=True)
class Setting:
    """Which swarm on which event loop."""

    kind: str
    backend: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.backend}"


SETTINGS = [
    Setting("memory", "asyncio"),
    Setting("memory", "trio"),
    Setting("libp2p", "trio"),
    Setting("quic", "trio"),
    Setting("websocket", "trio"),
]


@pytest.fixture(params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.param
    return chosen


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of the setting; trio for tests without one, which are about real sockets."""
    if "setting" not in request.fixturenames:
        return "trio"
    setting: Setting = request.getfixturevalue("setting")
    return setting.backend


class World:
    """Makes swarms that can reach each other."""

    def __init__(self, setting: Setting) -> None:
        self.kind = setting.kind
        self._network = MemoryNetwork()
        self._numbers = count(1)

    def swarm(self) -> Swarm:
        if self.kind == "memory":
            return MemorySwarm(self._network, f"peer-{next(self._numbers)}")
        from sdnet_core.swarm.libp2p import Libp2pSwarm

        transports = {"libp2p": "tcp", "quic": "quic", "websocket": "ws"}
        return Libp2pSwarm(os.urandom(32), transports=(transports[self.kind],))

    @property
    def listen(self) -> str:
        return self._address(0)

    @property
    def dead_address(self) -> str:
        return self._address(1)

    def _address(self, port: int) -> str:
        return {
            "memory": f"/memory/{port and 999999}",
            "libp2p": f"/ip4/127.0.0.1/tcp/{port}",
            "quic": f"/ip4/127.0.0.1/udp/{port}/quic-v1",
            "websocket": f"/ip4/127.0.0.1/tcp/{port}/ws",
        }[self.kind]

    @asynccontextmanager
    async def running(self, number: int) -> AsyncIterator[list[Swarm]]:
        swarms = [self.swarm() for _ in range(number)]
        async with running(*swarms):
            for swarm in swarms:
                await swarm.listen([self.listen])
                assert isinstance(await swarm.events.receive(), AddressesChanged)
            yield swarms

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Swarm, Swarm]]:
        """Two swarms; the first has dialled the second."""
        async with self.running(2) as (a, b):
            await a.dial(b.peer_id, b.addresses)
            assert isinstance(await a.events.receive(), Connected)
            assert isinstance(await b.events.receive(), Connected)
            yield a, b

    @staticmethod
    async def echo(stream: SwarmStream) -> None:
        async for data in stream:
            await stream.send(data)
        await stream.send_eof()

    @staticmethod
    async def read_all(stream: SwarmStream) -> bytes:
        data = bytearray()
        async for piece in stream:
            data += piece
        return bytes(data)

    @staticmethod
    async def read_exactly(stream: SwarmStream, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += await stream.receive(size - len(data))
        return bytes(data)

    @staticmethod
    async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        with anyio.fail_after(timeout_s):
            while not condition():  # noqa: ASYNC110 - the condition is the library's, it sets no event
                await anyio.sleep(0.005)

    @staticmethod
    async def works(a: Swarm, b: Swarm) -> bool:
        """Whether a fresh stream from one peer to the other carries data."""
        b.set_stream_handler("/works/1", World.echo)
        stream = await a.open_stream(b.peer_id, ["/works/1"])
        await stream.send(b"still here")
        await stream.send_eof()
        answer = await World.read_all(stream)
        await stream.aclose()
        return answer == b"still here"


@asynccontextmanager
async def running(*swarms: Swarm) -> AsyncIterator[None]:
    if not swarms:
        yield
        return
    async with swarms[0].run(), running(*swarms[1:]):
        yield


@pytest.fixture
def world(setting: Setting) -> World:
    return World(setting)
