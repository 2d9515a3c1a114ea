"""The plugin between two nodes in memory, against hostile peers, and between two daemons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sdnet_core.errors import InvalidRequestError
from sdnet_core.testing import Daemon, LinkedNodes, call_route, check_protocol

from sdnet_echo import EchoService
from sdnet_echo.plugin import EchoPlugin


@pytest.fixture
def sdnet_plugins() -> list[type]:
    """The plugins of the nodes that `sdnet_nodes` makes."""
    return [EchoPlugin]


@pytest.mark.anyio
async def test_the_other_device_answers(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    assert await a.get_service(EchoService).ask(b.device_info.id, "hello") == "hello"


@pytest.mark.anyio
async def test_a_text_that_is_too_long_is_not_sent(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    with pytest.raises(InvalidRequestError):
        await a.get_service(EchoService).ask(b.device_info.id, "x" * 4097)


@pytest.mark.anyio
async def test_the_local_api_asks_a_device(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    answer = await call_route(a, "POST", "/v1/echo/requests", {"device": "node1", "text": "hello"})
    assert answer == {"device_id": str(b.device_info.id), "device_name": "node1", "text": "hello"}


@pytest.mark.anyio
async def test_hostile_peers_get_nowhere() -> None:
    await check_protocol(EchoPlugin)


def test_two_daemons_talk(sdnet_daemons: Callable[..., tuple[Daemon, ...]]) -> None:
    alice, bob = sdnet_daemons()
    assert alice.run("echo", "bob", "hello").stdout == "hello\n"
    assert bob.json("echo", "alice", "good day")["text"] == "good day"
