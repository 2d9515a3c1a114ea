"""Two nodes that are told by their settings to use WebSocket or QUIC."""

import socket
from pathlib import Path

import pytest

from sdnet_core.clock import SystemRandomness
from sdnet_core.testing import pair
from tests.integration.nodes import SamplePlugin, real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


@pytest.mark.parametrize(
    ("transports", "listen", "end", "name"),
    [
        ("ws,tcp", "/ip4/127.0.0.1/tcp/0/ws", "/ws", "ws"),
        ("tcp,quic", "/ip4/127.0.0.1/udp/0/quic-v1", "/quic-v1", "quic"),
    ],
)
async def test_nodes_pair_and_talk(tmp_path: Path, transports: str, listen: str, end: str, name: str) -> None:
    settings = {"SDNET_NODE_TRANSPORTS": transports, "SDNET_NODE_LISTEN": listen}
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
            await pair(a, b, SystemRandomness())
            b_id = b.device_info.id
            assert await a.request(b_id, "echo", b"hello") == b"hello"
            addresses = b.addresses
            assert all(address.endswith(end) for address in addresses)
            # What `sdnet devices info` shows.
            shown = a.describe_device(b_id)
            assert shown["connection"]["transport"] == name
        async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
            assert b.addresses == addresses  # the port is kept
            await a.connect(b_id, timeout_s=30)
            assert await a.request(b_id, "echo", b"again") == b"again"


async def test_transports_keep_ports_of_their_own(tmp_path: Path) -> None:
    listen = "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1,/ip4/127.0.0.1/tcp/0/ws"
    settings = {"SDNET_NODE_TRANSPORTS": "tcp,quic,ws", "SDNET_NODE_LISTEN": listen}
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        addresses = a.addresses
    tcp, _, websocket = (address.split("/")[4] for address in addresses)
    assert tcp != websocket
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        assert a.addresses == addresses


async def test_nodes_find_each_other_by_mdns_and_connect_by_quic(tmp_path: Path) -> None:
    """The port of the last run is taken, so the remembered address leads nowhere."""
    settings = {"SDNET_NODE_TRANSPORTS": "tcp,quic", "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/udp/0/quic-v1"}
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
            await pair(a, b, SystemRandomness())
            port = int(b.addresses[0].split("/")[4])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
            async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
                assert f"/udp/{port}/" not in b.addresses[0]
                await a.connect(b.device_info.id, timeout_s=60)
                assert await a.request(b.device_info.id, "echo", b"found") == b"found"
