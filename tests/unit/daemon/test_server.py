"""The server on a real Unix socket, and the client against it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread

from sdnet_core.config import Config
from sdnet_core.core import NetworkingCore
from sdnet_core.daemon.app import create_app, require_token
from sdnet_core.daemon.client import ApiClient, ApiError
from sdnet_core.daemon.listener import open_listener
from sdnet_core.daemon.sse import EventStreamResponse
from sdnet_core.errors import NotRunningError
from sdnet_core.events import PeerDisconnected
from sdnet_core.hookspecs import ApiRequest, Route, hookimpl
from sdnet_core.testing import linked_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


class SlowPlugin:
    """A route that takes for ever, and a stream that fills every buffer."""

    entered: anyio.Event

    @hookimpl
    def sdnet_routes(self) -> list[Route]:
        SlowPlugin.entered = anyio.Event()

        async def wait(request: ApiRequest) -> Any:
            SlowPlugin.entered.set()
            await anyio.sleep_forever()

        async def flood(request: ApiRequest) -> AsyncIterator[Any]:
            SlowPlugin.entered.set()
            while True:
                yield "x" * 65536

        return [
            Route(method="GET", path="/wait", endpoint=wait),
            Route(method="GET", path="/flood", endpoint=flood),
        ]


@asynccontextmanager
async def served(core: NetworkingCore, config: Config, *, tcp: bool = False) -> AsyncIterator[anyio.Event]:
    """Serve a node's local API at the configuration's place until the event is set, or the block is left."""
    from sdnet_core.daemon.server import serve

    stopping = anyio.Event()
    with open_listener(config, tcp=tcp) as listener:
        guard = None
        if listener.endpoint is not None:
            guard = partial(require_token, token=listener.endpoint.token, hosts=[f"127.0.0.1:{listener.endpoint.port}"])
        app = create_app(core, stop=stopping.set, stopping=stopping, guard=guard)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                await group.start(partial(serve, app, listener.socket, stopping=stopping))
                yield stopping
                stopping.set()


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks; it is left behind if the test fails."""
    return await to_thread.run_sync(partial(function, *args), abandon_on_cancel=True)


@pytest.mark.parametrize("tcp", [False, True])
async def test_client_and_server(config: Config, tcp: bool) -> None:
    client = ApiClient(config, timeout_s=5)
    with pytest.raises(NotRunningError):
        client.get("/status")
    async with linked_nodes(2) as (node, _):
        async with served(node, config, tcp=tcp):
            assert (await in_thread(client.get, "/status"))["peer_id"] == node.identity.peer_id
            assert (await in_thread(client.post, "/devices/node1/ping"))["name"] == "node1"
            with pytest.raises(ApiError) as raised:
                await in_thread(client.get, "/devices/nobody")
            assert (raised.value.code, raised.value.http_status, raised.value.exit_code) == ("device-not-found", 404, 1)
            assert "nobody" in raised.value.detail
            events = await in_thread(partial(client.stream, "/events", kinds=["peer-disconnected"]))
            node.events.publish(PeerDisconnected(peer_id="p"))
            assert (await in_thread(next, events))["peer_id"] == "p"
            assert await in_thread(client.post, "/stop") == {"stopping": True, "pid": pytest.approx(0, abs=1 << 30)}
            assert await in_thread(list, events) == []
        with pytest.raises(NotRunningError):
            client.get("/status")
    assert list(config.paths.runtime.iterdir()) == []


async def test_a_stop_waits_neither_for_requests_nor_for_deaf_clients(config: Config) -> None:
    async with linked_nodes(1, plugins=[SlowPlugin]) as (node,):
        with closing(socket.socket(socket.AF_UNIX)) as deaf, closing(socket.socket(socket.AF_UNIX)) as waiting:
            async with served(node, config) as stopping:
                for client, path in ((deaf, "flood"), (waiting, "wait")):
                    SlowPlugin.entered = anyio.Event()
                    client.connect(str(config.paths.socket))
                    client.sendall(f"GET /v1/slow/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    await SlowPlugin.entered.wait()
                # The flood is under way until a write blocks.
                deaf.setblocking(False)
                await anyio.wait_readable(deaf)
                begin = anyio.current_time()
                stopping.set()
            assert anyio.current_time() - begin < 1.0


async def test_bad_clients_do_not_disturb_others(config: Config) -> None:
    async with linked_nodes(1) as (node,), served(node, config):
        client = ApiClient(config, timeout_s=5)
        hostile = [
            b"",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"GET /v1/status HTTP/1.1\r\n" + b"X: " + b"a" * 100_000,
            b"GET /v1/status HTTP/9.9\r\n\r\n",
            b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
            b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /v1/events HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        ]

        def attack(data: bytes) -> None:
            with closing(socket.socket(socket.AF_UNIX)) as raw, suppress(ConnectionError, TimeoutError):
                raw.settimeout(0.2)
                raw.connect(str(config.paths.socket))
                raw.sendall(data)
                raw.recv(4096)

        for data in hostile:
            await in_thread(attack, data)
            assert (await in_thread(client.get, "/status"))["peer_id"] == node.identity.peer_id


async def test_connections_are_bounded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdnet_core.daemon.server.MAX_CONNECTIONS", 4)
    async with linked_nodes(1) as (node,), served(node, config):
        client = ApiClient(config, timeout_s=5)
        streams = [await in_thread(client.stream, "/events") for _ in range(4)]
        with closing(socket.socket(socket.AF_UNIX)) as raw:
            raw.connect(str(config.paths.socket))
            raw.settimeout(5)
            assert await in_thread(raw.recv, 1) == b""  # turned away
        for stream in streams:
            stream.close()
        with anyio.fail_after(5):
            while True:
                with suppress(Exception):
                    await in_thread(client.get, "/version")
                    break
                await anyio.sleep(0.01)


async def test_a_client_that_has_left_takes_no_place(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdnet_core.daemon.server.MAX_CONNECTIONS", 4)
    async with linked_nodes(1) as (node,), served(node, config):
        client = ApiClient(config, timeout_s=30)
        for _ in range(40):  # each over a connection of its own, one after the other
            assert (await in_thread(client.get, "/status"))["peer_id"] == node.identity.peer_id


async def test_silence_is_broken_by_keepalives() -> None:
    sent: list[bytes] = []
    enough = anyio.Event()

    async def nothing() -> AsyncIterator[Any]:
        await anyio.sleep_forever()
        yield

    async def receive() -> Any:
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": keepalive\n\n") == 3:
            enough.set()

    with anyio.fail_after(10):
        response = EventStreamResponse(nothing(), anyio.Event(), keepalive_interval_s=0.01)
        await response({"type": "http"}, receive, send)
    assert sent[1] == b": open\n\n"
