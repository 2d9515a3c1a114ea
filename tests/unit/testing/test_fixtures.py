"""The pytest fixtures that come with sdnet."""

from __future__ import annotations

from typing import Any

import pytest

from sdnet_core import ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.testing import LinkedNodes


class EchoHandler(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: object, data: bytes) -> bytes:
        return data


class EchoPlugin:
    @hookimpl
    def sdnet_protocols(self, ctx: object) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler())]


@pytest.fixture
def sdnet_plugins() -> list[Any]:
    return [EchoPlugin]


@pytest.fixture
def sdnet_settings() -> dict[str, dict[str, Any]]:
    return {"connections": {"max_connections": 7}}


@pytest.mark.anyio
async def test_linked_nodes_come_as_a_fixture(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    assert await a.request(b.device_info.id, "echo", b"hi") == b"hi"
    assert a.config.connections.max_connections == 7


@pytest.mark.anyio
async def test_strangers_come_as_a_fixture(sdnet_strangers: LinkedNodes) -> None:
    a, b = sdnet_strangers
    assert a.remote_devices() == b.remote_devices() == ()
