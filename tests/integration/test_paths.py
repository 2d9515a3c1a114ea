"""Two nodes that know each other's place at a relay only: they connect, and then find the direct way by themselves."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.config import load_config
from sdnet_core.core import NetworkingCore
from sdnet_core.hookspecs import hookimpl
from sdnet_core.protocols.handler import ProtocolHandler, ProtocolSpec
from sdnet_core.public_node import PublicNode, config_of_public_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]
CLOCK = SystemClock()


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Echo(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: object, data: bytes) -> bytes:
        return data


class EchoPlugin:
    @hookimpl
    def sdnet_protocols(self, ctx: object) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="echo", version=1, handler=Echo())]


class World:
    """A public node and devices on loopback."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stack = AsyncExitStack()

    async def point(self, **settings: object) -> PublicNode:
        overrides = {"public_node": {"listen": ["/ip4/127.0.0.1/tcp/0"], **settings}}
        config = load_config("point", environ={"SDNET_HOME": str(self.home)}, overrides=overrides)
        return await self.stack.enter_async_context(PublicNode.run(config_of_public_node(config)))

    async def device(self, name: str, point: PublicNode) -> NetworkingCore:
        overrides = {
            "node": {"name": name, "listen": ["/ip4/127.0.0.1/tcp/0"]},
            "discovery": {"mdns": False, "bootstrap": list(point.addresses), "upnp": False},
        }
        config = load_config(name, environ={"SDNET_HOME": str(self.home)}, overrides=overrides)
        return await self.stack.enter_async_context(NetworkingCore(config, plugins=[EchoPlugin]))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    with anyio.fail_after(90):
        async with made.stack:
            yield made


async def pair(a: NetworkingCore, b: NetworkingCore, *addresses: str) -> None:
    """Pair two nodes of which the second one is dialled, at these addresses."""
    pairing_id, root = uuid.uuid4(), os.urandom(32)
    await a.add_paired_device(b.device_info, pairing_id=pairing_id, pairing_root=root, pending=True)
    await b.add_paired_device(a.device_info, pairing_id=pairing_id, pairing_root=root, addresses=addresses)


def path(node: NetworkingCore) -> str | None:
    (device,) = node.describe_devices()
    found: str | None = device["path"]
    return found


async def until_direct(*nodes: NetworkingCore) -> None:
    while any(path(node) != "direct" for node in nodes):  # noqa: ASYNC110 - the swarm tells the nodes only
        await anyio.sleep(0.02)


async def test_paired_devices_find_each_other_through_the_meeting_point(world: World) -> None:
    point = await world.point()
    a, b = await world.device("a", point), await world.device("b", point)
    await pair(a, b)
    await a.connect(b.device_info.id, timeout_s=60)
    await b.connect(a.device_info.id, timeout_s=60)
    assert await a.request(b.device_info.id, "echo", b"hello") == b"hello"


async def test_a_relayed_session_moves_to_the_direct_path_and_requests_go_on(world: World) -> None:
    point = await world.point()
    a, b = await world.device("a", point), await world.device("b", point)
    while point.relay.reservations < 2:  # noqa: ASYNC110 - the relay tells nobody
        await anyio.sleep(0.02)
    circuit = f"{point.addresses[0]}/p2p-circuit"
    async with b.subscribe_events(["connection-established"]) as events:
        await pair(a, b, circuit)
        event = await events.receive()
    assert event.to_dict()["peer_id"] == a.identity.peer_id
    asked = 0
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            nonlocal asked
            while True:
                assert await b.request(a.device_info.id, "echo", b"hello", timeout_s=30) == b"hello"
                asked += 1

        tasks.start_soon(ask)
        await until_direct(a, b)
        seen = asked
        while asked < seen + 20:  # noqa: ASYNC110 - counted by the other task
            await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    while point.relay.circuits:  # noqa: ASYNC110 - the old path closes by itself
        await anyio.sleep(0.05)
    assert path(a) == path(b) == "direct"
