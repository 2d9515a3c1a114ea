"""Events over the local API: from any time as far back as they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sdnet_core.core import NetworkingCore
from sdnet_core.event_bus import KEPT_OF_EACH_KIND
from sdnet_core.events import PeerDisconnected
from sdnet_core.testing import linked_nodes

pytestmark = pytest.mark.anyio
ApiOf = Callable[..., Any]


def disconnect(node: NetworkingCore, *names: str) -> None:
    for name in names:
        node.events.publish(PeerDisconnected(peer_id=name))


async def test_a_client_that_lost_the_stream_goes_on_where_it_was(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        api = api_of(node)
        target = "/v1/events?kinds=peer-disconnected"
        async with api.follow(target) as events:
            disconnect(node, "a", "b", "c")
            assert (await events.next())[1]["peer_id"] == "a"
            last_id = events.last_id
        assert last_id.startswith(f"{node.events.run}-")
        async with api.follow(f"{target}&since=5d", headers={"Last-Event-ID": last_id}) as events:
            assert [(await events.next())[1]["peer_id"] for _ in range(2)] == ["b", "c"]
            disconnect(node, "d")
            assert (await events.next())[1]["peer_id"] == "d"


async def test_a_gap_is_told(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        api = api_of(node)
        first = node.events.last
        disconnect(node, *map(str, range(KEPT_OF_EACH_KIND + 2)))
        async with api.follow(f"/v1/events?kinds=peer-disconnected&since={first}") as events:
            _, gap = await events.next()
            assert (gap["kind"], gap["count"], gap["seq"]) == ("events-dropped", 2, 0)
            assert events.last_id == ""
            assert (await events.next())[1]["peer_id"] == "2"
        async with api.follow("/v1/events", headers={"Last-Event-ID": "1234-7"}) as events:
            assert "restarted" in (await events.next())[1]["reason"]


async def test_what_has_happened_is_listed(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        api = api_of(node)
        disconnect(node, "a", "b")
        found = (await api.call("GET", "/v1/events/recent")).json
        assert [event["seq"] for event in found] == list(range(1, node.events.last + 1))
        assert "node-started" in [event["kind"] for event in found]
        after = (await api.call("GET", f"/v1/events/recent?since={node.events.last - 1}")).json
        assert [event["peer_id"] for event in after] == ["b"]
        lately = (await api.call("GET", "/v1/events/recent?since=1h&kinds=peer-disconnected")).json
        assert [event["peer_id"] for event in lately] == ["a", "b"]
        assert (await api.call("GET", "/v1/events/recent?since=2999-01-01")).json == []


@pytest.mark.parametrize("since", ["yesterday", "-5", "5x", "1-2-3", "9" * 30])
async def test_a_wrong_since_is_a_problem(api_of: ApiOf, since: str) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        for path in ("/v1/events/recent", "/v1/events"):
            answer = await api_of(node).call("GET", f"{path}?since={since}")
            assert since in answer.problem("invalid-request", 400)
