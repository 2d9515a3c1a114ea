"""What was found in py-libp2p 0.8.1 and is held by no other test; and that the table of findings names real tests."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core.swarm.abc import AddressesChanged, Connected, Disconnected
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits
from sdnet_core.swarm.yamux import Yamux

# isort: split
from libp2p.peer.id import ID
from multiaddr import Multiaddr

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "protocol" / "swarm.md"
TCP = "/ip4/127.0.0.1/tcp/0"


def named_tests() -> list[tuple[str, str]]:
    """File and name of every test that the table names."""
    text = TABLE.read_text(encoding="utf-8")
    return re.findall(r"`((?:tests|plugins)/[\w/]+\.py)::(\w+)`", text)


def test_every_test_in_the_table_of_findings_is_there() -> None:
    named = named_tests()
    assert len(named) >= 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in found, f"{path} has no {name}"


@pytest.mark.anyio
async def test_our_multiplexer_is_used_and_nothing_dials_or_prunes_by_itself() -> None:
    """The library takes its own Yamux whatever it is given, and dials peers it knows while it has few connections."""
    a, b = Libp2pSwarm(os.urandom(32)), Libp2pSwarm(os.urandom(32))
    async with a.run(), b.run():
        await b.listen([TCP])
        assert isinstance(await b.events.receive(), AddressesChanged)
        await a.dial(b.peer_id, b.addresses)
        network: Any = a.host.get_network()
        (connection,) = network.connections[ID.from_base58(b.peer_id)]
        assert isinstance(connection.muxed_conn, Yamux)
        a.host.get_peerstore().add_addrs(ID.from_base58(b.peer_id), [Multiaddr(b.addresses[0])], 3600)
        await a.hang_up(b.peer_id)
        for swarm in (a, b):
            assert [type(await swarm.events.receive()) for _ in range(2)] == [Connected, Disconnected]
        with anyio.move_on_after(1.5):
            pytest.fail(f"somebody has dialled: {await a.events.receive()}")


@pytest.mark.anyio
async def test_more_than_256_connections_of_one_node() -> None:
    """The library has three limits of about 250 in different places."""
    number = 260
    b = Libp2pSwarm(os.urandom(32), limits=SwarmLimits(max_connections=number + 1))
    async with b.run():
        await b.listen([TCP])
        assert isinstance(await b.events.receive(), AddressesChanged)
        started = 0

        async def hold() -> None:
            nonlocal started
            a = Libp2pSwarm(os.urandom(32))
            async with a.run():
                await a.dial(b.peer_id, b.addresses, timeout_s=120)
                started += 1
                await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            for wanted in range(20, number + 1, 20):
                for _ in range(20):
                    group.start_soon(hold)
                with anyio.fail_after(120):
                    while started < wanted:  # noqa: ASYNC110
                        await anyio.sleep(0.02)
            assert len(b.host.get_connected_peers()) == number
            group.cancel_scope.cancel()
