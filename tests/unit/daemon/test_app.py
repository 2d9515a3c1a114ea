"""The local API: the core's routes, plugins' routes, errors, event streams."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from sdnet_core.daemon.app import MAX_BODY_BYTES, require_token
from sdnet_core.errors import ConflictError, RefusedError
from sdnet_core.events import NetworkEvent, PeerDisconnected
from sdnet_core.hookspecs import ApiRequest, Route, hookimpl
from sdnet_core.testing import linked_nodes

pytestmark = pytest.mark.anyio
ApiOf = Callable[..., Any]


class Greeting(msgspec.Struct):
    """A body that is checked."""

    text: str


@dataclass
class Thing:
    """A value that is answered."""

    id: uuid.UUID
    where: Path
    count: int = 1


THING = Thing(uuid.UUID(int=5), Path("/a/b"))


class Ticker:
    """An iterator that says when it was closed."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.closed = anyio.Event()
        self.limit = limit

    async def events(self) -> AsyncIterator[Any]:
        try:
            for number in range(self.limit):
                yield {"number": number}
                await anyio.lowlevel.checkpoint()
            raise RefusedError("Enough now.")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                self.closed.set()


class SampleRoutesPlugin:
    """Routes of every kind."""

    name = "sample_routes"
    ticker: Ticker

    @hookimpl
    def sdnet_routes(self) -> list[Route]:
        SampleRoutesPlugin.ticker = Ticker()

        async def echo(request: ApiRequest) -> Any:
            return {"path": dict(request.path), "query": dict(request.query), "body": request.body}

        async def greet(request: ApiRequest) -> Any:
            return {"text": request.body_as(Greeting).text}

        async def thing(request: ApiRequest) -> Any:
            return [THING]

        async def nothing(request: ApiRequest) -> Any:
            return None

        async def refuse(request: ApiRequest) -> Any:
            raise RefusedError("Bob said no.")

        async def grouped(request: ApiRequest) -> Any:
            async with anyio.create_task_group():
                raise ConflictError("Not twice.")

        async def fail(request: ApiRequest) -> Any:
            raise RuntimeError("the secret is 4711")

        async def unspeakable(request: ApiRequest) -> Any:
            return object()

        async def endless(request: ApiRequest) -> Any:
            return SampleRoutesPlugin.ticker.events()

        async def ending(request: ApiRequest) -> Any:
            return Ticker(2).events()

        async def breaking(request: ApiRequest) -> AsyncIterator[Any]:
            yield THING
            raise RuntimeError("the secret is 4711")

        paths = {
            "/echo/{name}/{rest}": echo,
            "/thing": thing,
            "/nothing": nothing,
            "/refuse": refuse,
            "/grouped": grouped,
            "/fail": fail,
            "/unspeakable": unspeakable,
            "/endless": endless,
            "/ending": ending,
            "/breaking": breaking,
        }
        return [
            *(Route(method="GET", path=path, endpoint=endpoint) for path, endpoint in paths.items()),
            Route(method="POST", path="/echo", endpoint=echo),
            Route(method="POST", path="/greet", endpoint=greet),
        ]


class ClashingPlugin:
    """One whose name is taken by the core."""

    name = "devices"

    @hookimpl
    def sdnet_routes(self) -> list[Route]:
        async def take_over(request: ApiRequest) -> Any:
            return "mine"

        return [Route(method="GET", path="", endpoint=take_over), Route(method="GET", path="/x/y", endpoint=take_over)]


class BadPathPlugin:
    """One whose route makes no sense."""

    @hookimpl
    def sdnet_routes(self) -> list[Route]:
        async def answer(request: ApiRequest) -> Any:
            return "fine"

        return [
            Route(method="GET", path="/{x:nope}", endpoint=answer),
            Route(method="GET", path="/{x}/{x}", endpoint=answer),
            Route(method="GET", path="/fine", endpoint=answer),
        ]


async def test_status_and_versions(api_of: ApiOf) -> None:
    async with linked_nodes(2) as (node, _):
        api = api_of(node)
        status = (await api.call("GET", "/v1/status")).json
        assert status["peer_id"] == node.identity.peer_id
        assert status["fingerprint"]["words"] == node.identity.fingerprint.words
        assert status["devices"] == {"paired": 1, "connected": 1, "away": []}
        assert status["storage"]["protection"] == "unprotected"
        assert status["pid"] > 1
        assert status["log_file"] == str(node.config.paths.log_file)
        version = (await api.call("GET", "/v1/version")).json
        assert version["version"] == node.device_info.version


async def test_devices_and_ping(api_of: ApiOf) -> None:
    async with linked_nodes(2) as (node, other):
        api = api_of(node)
        (listed,) = (await api.call("GET", "/v1/devices")).json
        assert listed["name"] == "node1"
        assert listed["connected"] is True
        device_id = str(other.device_info.id)
        for reference in ("node1", device_id, device_id[:6]):
            assert (await api.call("GET", f"/v1/devices/{reference}")).json["peer_id"] == listed["peer_id"]
            answer = (await api.call("POST", f"/v1/devices/{reference}/ping")).json
            assert answer["device_id"] == device_id
            assert 0 < answer["rtt_s"] < 5
        missing = await api.call("POST", "/v1/devices/nobody/ping")
        assert "nobody" in missing.problem("device-not-found", 404)


@pytest.mark.parametrize("name", ["a/b", "50%", "..", "x?y#z", "naïve ☕"])
async def test_a_device_of_any_name_can_be_named_in_a_path(api_of: ApiOf, name: str) -> None:
    from sdnet_core.daemon.client import quote_segment

    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        answer = await api.call("GET", f"/v1/devices/{quote_segment(name)}")
        assert name in answer.problem("device-not-found", 404)
        echoed = await api.call("GET", f"/v1/sample-routes/echo/{quote_segment(name)}/end")
        assert echoed.json["path"] == {"name": name, "rest": "end"}


async def test_plugins_are_listed(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        (record,) = (await api_of(node).call("GET", "/v1/plugins")).json
        assert (record["name"], record["state"], record["reason"]) == ("sample_routes", "loaded", "")


async def test_a_plugins_routes(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        echoed = await api.call("POST", "/v1/sample-routes/echo?a=1&a=2&b=%C3%A9", {"x": [1, None]})
        assert echoed.json == {"path": {}, "query": {"a": "2", "b": "é"}, "body": {"x": [1, None]}}
        assert (await api.call("POST", "/v1/sample-routes/echo")).json["body"] == {}
        assert (await api.call("POST", "/v1/sample-routes/greet", {"text": "hi"})).json == {"text": "hi"}
        thing = await api.call("GET", "/v1/sample-routes/thing")
        assert thing.json == [{"id": str(THING.id), "where": "/a/b", "count": 1}]
        assert thing.headers["content-type"] == "application/json"
        empty = await api.call("GET", "/v1/sample-routes/nothing")
        assert (empty.status, empty.body) == (204, b"")


async def test_errors_become_problems(api_of: ApiOf, caplog: pytest.LogCaptureFixture) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        refused = await api.call("GET", "/v1/sample-routes/refuse")
        assert refused.problem("refused", 403, exit_code=4) == "Bob said no."
        assert (await api.call("GET", "/v1/sample-routes/grouped")).problem("conflict", 409) == "Not twice."
        wrong = await api.call("POST", "/v1/sample-routes/greet", {"text": 5})
        assert "text" in wrong.problem("invalid-request", 400)
        for path in ("fail", "unspeakable"):
            caplog.clear()
            failed = await api.call("GET", f"/v1/sample-routes/{path}")
            assert "4711" not in failed.problem("internal", 500)
            assert b"Traceback" not in failed.body
            assert "Traceback" in caplog.text
        assert (await api.call("GET", "/v1/status")).status == 200


async def test_what_is_not_there(api_of: ApiOf) -> None:
    async with linked_nodes(1) as (node,):
        api = api_of(node)
        for path in ("/", "/v1", "/v1/nothing", "/v1/status/", "/v2/status", "/v1/devices/a/b/c"):
            assert path in (await api.call("GET", path)).problem("not-found", 404)
        wrong = await api.call("POST", "/v1/status")
        assert "POST" in wrong.problem("method-not-allowed", 405)
        assert wrong.headers["allow"] == "GET"
        assert (await api.call("HEAD", "/v1/events")).status == 405


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"{} {}", b"[" * 100_000])
async def test_a_body_that_is_not_json(api_of: ApiOf, text: bytes) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        answer = await api_of(node).call("POST", "/v1/sample-routes/echo", chunks=[text])
        assert "not JSON" in answer.problem("invalid-request", 400)


async def test_a_body_that_is_too_long_is_read_to_its_end_and_refused(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        just = b'"' + b"x" * (MAX_BODY_BYTES - 2) + b'"'
        taken = await api.call("POST", "/v1/sample-routes/echo", chunks=[just[:1000], just[1000:]])
        assert len(taken.json["body"]) == MAX_BODY_BYTES - 2
        for path in ("/v1/sample-routes/echo", "/v1/nothing"):
            answer = await api.call("POST", path, chunks=[b" " * 65536] * 40)
            answer.problem("too-large", 413)


async def test_clashing_and_broken_routes_are_left_out(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[ClashingPlugin, BadPathPlugin]) as (node,):
        async with node.events.subscribe({"plugin-failed"}) as failures:
            api = api_of(node)
            assert (await api.call("GET", "/v1/devices")).json == []
            (await api.call("GET", "/v1/devices/x/y")).problem("not-found", 404)
            assert (await api.call("GET", "/v1/bad-path/fine")).json == "fine"
            with anyio.fail_after(5):
                reasons = [(await failures.receive()).to_dict() for _ in range(4)]
        assert sorted(reason["plugin"] for reason in reasons) == ["bad_path", "bad_path", "devices", "devices"]


async def test_events_are_followed_from_the_answer_on(api_of: ApiOf) -> None:
    async with linked_nodes(1) as (node,):
        api = api_of(node)
        async with api.follow("/v1/events?kinds=peer-disconnected,other") as events:
            node.events.publish(NetworkEvent())
            node.events.publish(PeerDisconnected(peer_id="one"))
            name, event = await events.next()
            assert name == "message"
            assert event == {
                "kind": "peer-disconnected",
                "at": pytest.approx(node.clock.now(), abs=60),
                "seq": node.events.last,
                "peer_id": "one",
            }
        assert all("peer-disconnected" not in (s._kinds or ()) for s in node.events._subscriptions)


async def test_a_client_that_leaves_ends_the_iterator(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        async with api_of(node).follow("/v1/sample-routes/endless") as events:
            assert [await events.next() for _ in range(3)] == [("message", {"number": n}) for n in range(3)]
            assert not SampleRoutesPlugin.ticker.closed.is_set()
        with anyio.fail_after(5):
            await SampleRoutesPlugin.ticker.closed.wait()


async def test_a_stopping_node_ends_streams_in_order(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        async with api.follow("/v1/sample-routes/endless") as endless, api.follow("/v1/events") as quiet:
            answer = await api.call("POST", "/v1/stop")
            assert answer.status == 202
            assert answer.json["stopping"] is True
            assert api.stopping.is_set()
            while (found := await endless.next())[0] != "end":
                assert found[0] == "message"
            assert await quiet.next() == ("end", None)
        assert SampleRoutesPlugin.ticker.closed.is_set()


async def test_an_error_in_a_stream_is_its_last_event(api_of: ApiOf) -> None:
    async with linked_nodes(1, plugins=[SampleRoutesPlugin]) as (node,):
        api = api_of(node)
        async with api.follow("/v1/sample-routes/ending") as events:
            assert [await events.next() for _ in range(2)] == [("message", {"number": n}) for n in range(2)]
            name, problem = await events.next()
            assert (name, problem["type"], problem["exit_code"]) == ("problem", "urn:sdnet:error:refused", 4)
            assert problem["detail"] == "Enough now."
            assert await events.next() == ("end", None)
        async with api.follow("/v1/sample-routes/breaking") as events:
            assert (await events.next())[1]["id"] == str(THING.id)
            name, problem = await events.next()
            assert (name, problem["type"]) == ("problem", "urn:sdnet:error:internal")
            assert "4711" not in str(problem)


async def test_a_guarded_app_wants_host_and_token(api_of: ApiOf) -> None:
    async with linked_nodes(1) as (node,):
        api = api_of(node)
        api.app = require_token(api.app, "s3cret", ["127.0.0.1:80"])
        host, token = {"Host": "127.0.0.1:80"}, {"Authorization": "Bearer s3cret"}
        assert (await api.call("GET", "/v1/status", headers={**host, **token})).status == 200
        for headers in (host, {**host, "Authorization": "Bearer s3cret2"}, {**host, "Authorization": "s3cret"}):
            refused = await api.call("GET", "/v1/status", headers=headers)
            refused.problem("unauthorized", 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        for headers in (
            token,
            {**token, "Host": "evil.example:80"},
            {**host, **token, "Origin": "http://evil.example"},
        ):
            (await api.call("GET", "/v1/status", headers=headers)).problem("forbidden", 403)
