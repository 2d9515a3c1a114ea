"""Two nodes that are told by their settings to use WebSocket."""

from pathlib import Path

import pytest

from sdnet_core.clock import SystemRandomness
from sdnet_core.testing import pair
from tests.integration.nodes import SamplePlugin, real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


async def test_nodes_pair_and_talk_over_websocket(tmp_path: Path) -> None:
    settings = {"SDNET_NODE_TRANSPORTS": "ws,tcp", "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0/ws"}
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
            await pair(a, b, SystemRandomness())
            b_id = b.device_info.id
            assert await a.request(b_id, "echo", b"hello") == b"hello"
            addresses = b.addresses
            assert all(address.endswith("/ws") for address in addresses)
        async with real_node(tmp_path, "b", [SamplePlugin()], **settings) as b:
            assert b.addresses == addresses  # the port is kept
            await a.connect(b_id, timeout_s=10)
            assert await a.request(b_id, "echo", b"again") == b"again"


async def test_tcp_and_websocket_keep_ports_of_their_own(tmp_path: Path) -> None:
    listen = "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/tcp/0/ws"
    settings = {"SDNET_NODE_TRANSPORTS": "tcp,ws", "SDNET_NODE_LISTEN": listen}
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        addresses = a.addresses
    tcp, websocket = (address.split("/")[4] for address in addresses)
    assert tcp != websocket
    async with real_node(tmp_path, "a", [SamplePlugin()], **settings) as a:
        assert a.addresses == addresses
