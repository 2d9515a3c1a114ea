"""Events over the local API: from any time as far back as they are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sdnet_core import PluginContext
from sdnet_core.core import NetworkingCore
from sdnet_core.event_bus import KEPT_OF_EACH_KIND
from sdnet_core.events import ConnectionLost, NetworkEvent, PeerDisconnected, PluginFailed
from sdnet_core.hookspecs import hookimpl
from sdnet_core.protocols.handler import ProtocolHandler, ProtocolSpec
from sdnet_core.testing import linked_nodes, record_events

pytestmark = pytest.mark.anyio
ApiOf = Callable[..., Any]


def disconnect(node: NetworkingCore, *names: str) -> None:
    for name in names:
        node.events.publish(PeerDisconnected(peer_id=name))


class EchoHandler(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: Any, data: bytes) -> bytes:
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherEvent(NetworkEvent):
    """A base of a plugin's events."""

    kind = "weather"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherChanged(WeatherEvent):
    """The sky is another.

    More of it.
    """

    kind = "weather-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherStorm(WeatherEvent):
    """It storms."""

    kind = "weather-storm"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherStormNear(WeatherStorm):
    """It storms here; listeners to storms hear of it."""


class CountingPlugin:
    """A plugin that counts, and one of whose numbers cannot be read."""

    name = "counting"

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> list[ProtocolSpec]:
        ctx.metrics.counter("greetings", "Greetings sent.", labels=("how",)).inc(how="politely")
        ctx.metrics.gauge("mood", "How it is.", function=lambda: 7)
        ctx.metrics.gauge("broken", "Cannot be read.", function=lambda: 1 / 0)
        return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler())]


def numbers(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    }


async def test_metrics(api_of: ApiOf) -> None:
    async with linked_nodes(2, plugins=[CountingPlugin]) as nodes:
        a, b = nodes
        api = api_of(a)
        assert await b.request(a.device_info.id, "echo", b"x" * 100) == b"x" * 100
        await a.ping(b.device_info.id)
        answer = await api.call("GET", "/v1/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = numbers(answer.body.decode())
        assert found['sdnet_devices{state="connected"}'] == 1
        assert found['sdnet_devices{state="revoked"}'] == 0
        assert found["sdnet_connections"] == 1
        assert found['sdnet_handshakes_total{result="established"}'] == 1
        assert found['sdnet_messages_received_total{protocol="echo"}'] == 1
        assert found['sdnet_message_bytes_received_total{protocol="echo"}'] == 100
        assert found['sdnet_bytes_total{direction="received"}'] > 100
        assert found['sdnet_streams_total{by="them"}'] == 1
        assert found['sdnet_counting_greetings_total{how="politely"}'] == 1
        assert found["sdnet_counting_mood"] == 7
        assert "sdnet_counting_broken" not in found
        device = f'device_id="{b.device_info.id}",device_name="node1"'
        assert found[f"sdnet_device_connected{{{device}}}"] == 1
        assert found[f"sdnet_device_latency_seconds{{{device}}}"] >= 0
        assert found["process_open_fds"] > 3
        moved = found['sdnet_bytes_total{direction="received"}']
        async with record_events(a) as events:
            nodes.cut(a, b)
            await events.wait_for(ConnectionLost)
        found = numbers((await api.call("GET", "/v1/metrics")).body.decode())
        assert found['sdnet_devices{state="disconnected"}'] == 1
        assert found["sdnet_connections_lost_total"] == 1
        assert found['sdnet_bytes_total{direction="received"}'] >= moved


async def test_status_says_who_is_away_and_what_went_wrong(api_of: ApiOf) -> None:
    async with linked_nodes(2, plugins=[CountingPlugin]) as nodes:
        a, b = nodes
        api = api_of(a)
        well = (await api.call("GET", "/v1/status")).json
        assert (well["devices"]["away"], well["outbox"]["messages"], well["errors"]) == ([], 0, [])
        assert well["plugins"]["loaded"] == ["counting"]
        async with record_events(a) as events:
            nodes.cut(a, b)
            await events.wait_for(ConnectionLost)
        await a.send_message(b.device_info.id, "echo", b"later")
        for _ in range(3):
            a.events.publish(PluginFailed(plugin="counting", reason="out of order"))
        found = (await api.call("GET", "/v1/status")).json
        (away,) = found["devices"]["away"]
        assert (away["name"], away["state"]) == ("node1", "disconnected")
        assert away["reason"]
        assert (found["outbox"]["messages"], found["outbox"]["bytes"]) == (1, 5)
        assert found["errors"][-1]["text"] == "plugin counting: out of order"
        assert found["errors"][-1]["count"] == 3
        assert all(warning["what"] and warning["do"] for warning in found["warnings"])
        assert any("passphrase" in warning["do"] for warning in found["warnings"])


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


async def test_the_kinds_of_events_are_listed(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        found = (await api_of(node).call("GET", "/v1/events/kinds")).json
        audited = {entry["kind"]: entry["audited"] for entry in found}
        assert (audited["device-revoked"], audited["connection-lost"]) == (True, False)
        assert "event" not in audited
        assert set(audited) >= {event.kind for event in node.events.history()}
        assert "weather-changed" in audited
        # Bases are not what happens; what inherits the kind of another event still happens.
        assert not {"event", "weather"} & audited.keys()
        assert "weather-storm" in audited


@pytest.mark.parametrize("since", ["yesterday", "-5", "5x", "1-2-3", "9" * 30])
async def test_a_wrong_since_is_a_problem(api_of: ApiOf, since: str) -> None:
    async with linked_nodes(1, plugins=[]) as (node,):
        for path in ("/v1/events/recent", "/v1/events"):
            answer = await api_of(node).call("GET", f"{path}?since={since}")
            assert since in answer.problem("invalid-request", 400)
