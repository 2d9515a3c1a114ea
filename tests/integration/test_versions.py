"""Versions of a protocol: the highest that both sides speak, or an error that names what each of them speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sdnet_core import NetworkingCore, ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import ProtocolError
from sdnet_core.swarm.memory import MemoryNetwork
from sdnet_core.testing import pair
from sdnet_core.testing.nodes import MemoryDiscovery, memory_node
from tests.integration.nodes import real_node

pytestmark = pytest.mark.anyio


class WeatherHandler(ProtocolHandler):
    protocol_name = "weather"

    def __init__(self, version: int) -> None:
        self._version = version

    async def handle_request(self, device: Any, data: bytes) -> bytes:
        return b"v%d:%s" % (self._version, data)


def weather(*versions: int) -> type:
    class WeatherPlugin:
        @hookimpl
        def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
            return [ProtocolSpec(protocol_name="weather", version=v, handler=WeatherHandler(v)) for v in versions]

    return WeatherPlugin


@asynccontextmanager
async def two(home: Path, mine: type, theirs: type) -> AsyncIterator[tuple[NetworkingCore, NetworkingCore]]:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with (
        memory_node(home, "a", network=network, discovery=discovery, plugins=[mine]) as a,
        memory_node(home, "b", network=network, discovery=discovery, plugins=[theirs]) as b,
    ):
        await pair(a, b, SystemRandomness())
        yield a, b


async def test_the_highest_common_version_wins(tmp_path: Path) -> None:
    async with two(tmp_path, weather(1, 2, 3), weather(2, 1)) as (a, b):
        async with await a.open_stream(b.device_info.id, "weather") as stream:
            assert stream.protocol == "/sdnet/weather/2"
            messages = stream.messages()
            await messages.send_bytes(b"sun")
            assert await messages.receive_bytes() == b"v2:sun"
        async with await b.open_stream(a.device_info.id, "weather") as stream:
            assert stream.protocol == "/sdnet/weather/2"
        assert await a.request(b.device_info.id, "weather", b"sun", version=1) == b"v1:sun"


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [
        ((1, 2), (3, 4), "b speaks version 3, 4 of weather, this device 1, 2: update the plugin on this device."),
        ((3,), (1,), "b speaks version 1 of weather, this device 3: update the plugin on b."),
    ],
)
async def test_no_common_version_names_both_sides(
    tmp_path: Path, mine: tuple[int, ...], theirs: tuple[int, ...], says: str
) -> None:
    async with two(tmp_path, weather(*mine), weather(*theirs)) as (a, b):
        with pytest.raises(ProtocolError) as caught:
            await a.open_stream(b.device_info.id, "weather")
        assert caught.value.detail == says


async def test_one_without_the_protocol_is_said_so(tmp_path: Path) -> None:
    async with two(tmp_path, weather(1), weather()) as (a, b):
        with pytest.raises(ProtocolError, match=r"^b has no plugin for weather\.$"):
            await a.request(b.device_info.id, "weather", b"?")


@pytest.mark.libp2p
async def test_versions_are_negotiated_over_real_sockets_too(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [weather(1, 2)]) as a, real_node(tmp_path, "b", [weather(2, 3)]) as b:
        await pair(a, b, SystemRandomness())
        assert await a.request(b.device_info.id, "weather", b"rain") == b"v2:rain"
        with pytest.raises(ProtocolError, match="speaks version 1, 2 of weather, this device 3"):
            await b.request(a.device_info.id, "weather", b"rain")
