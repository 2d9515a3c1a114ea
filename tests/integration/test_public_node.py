"""A public node in this process: what it says of itself, and how much one address gets of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.config import Config, load_config
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.dht_records import RecordKeys
from sdnet_core.discovery.kademlia import Contact
from sdnet_core.discovery.points import parse_point
from sdnet_core.errors import AlreadyRunningError, ConnectionFailedError
from sdnet_core.public_node import PublicNode, config_of_public_node
from sdnet_core.swarm.abc import Swarm

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def settings(home: Path, **values: Any) -> Config:
    overrides = {"public_node": {"listen": ["/ip4/127.0.0.1/tcp/0"], **values}}
    return config_of_public_node(load_config("point", environ={"SDNET_HOME": str(home)}, overrides=overrides))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await anyio.sleep(0.01)


async def connect(stack: AsyncExitStack, node: PublicNode) -> Swarm:
    from sdnet_core.swarm.libp2p import Libp2pSwarm

    swarm = Libp2pSwarm(os.urandom(32))
    await stack.enter_async_context(swarm.run())
    point = parse_point(node.addresses[0])
    with contextlib.suppress(ConnectionFailedError):  # it may be hung up at once
        await swarm.dial(point.peer_id, point.addresses)
    return swarm


async def test_it_keeps_its_name_and_tells_what_it_does(tmp_path: Path) -> None:
    async with PublicNode.run(settings(tmp_path)) as node, AsyncExitStack() as stack:
        first = node.status()["peer_id"]
        await connect(stack, node)
        await until(lambda: node.status()["connections"]["of_strangers"] == 1)
        assert b"sdnet_public_node_connections 1.0" in node.metrics()
        with pytest.raises(AlreadyRunningError):
            async with PublicNode.run(settings(tmp_path)):
                pass
    async with PublicNode.run(settings(tmp_path)) as node:
        assert node.status()["peer_id"] == first


async def test_one_address_gets_its_share_of_the_connections(tmp_path: Path) -> None:
    config = settings(tmp_path, max_connections_per_address=3)
    async with PublicNode.run(config) as node, AsyncExitStack() as stack:
        swarms = [await connect(stack, node) for _ in range(8)]
        peer_id = node.status()["peer_id"]
        await until(lambda: sum(swarm.is_connected(peer_id) for swarm in swarms) == 3)
        assert node.refused == 5


async def test_one_address_gets_its_share_of_the_records(tmp_path: Path) -> None:
    config = settings(tmp_path, max_records_per_address=3)
    async with PublicNode.run(config) as node, AsyncExitStack() as stack:
        swarm, clock, point = await connect(stack, node), SystemClock(), parse_point(node.addresses[0])
        client, contact = DhtClient(swarm, clock), Contact(point.peer_id, point.addresses)
        for number in range(6):
            keys = RecordKeys(bytes([number]) * 32)
            record = keys.make(None, sequence=1, expires_at=int(clock.now()) + 60, nonce=bytes(12))
            assert (await client.store(record, [contact])).stored == 1
        assert node.status()["dht"]["records"] == 3
