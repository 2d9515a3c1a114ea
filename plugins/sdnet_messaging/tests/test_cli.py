"""The commands, run against the routes of real nodes; only HTTP is left out in between."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import click
import msgspec
import pytest

from sdnet_core import ApiRequest, NetworkingCore
from sdnet_core.cli.kit import Cli
from sdnet_core.errors import ConnectionFailedError, DeviceNotFoundError, InvalidRequestError, NotFoundError
from sdnet_messaging.cli import msg, notify

from .nodes import eventually, service, two_nodes

pytestmark = pytest.mark.anyio


class RouteClient:
    """Calls a node's routes from a worker thread, with JSON in between as over HTTP."""

    def __init__(self, core: NetworkingCore) -> None:
        self._routes = {(route.method, f"/{name}{route.path}"): route for name, route in core.routes()}

    def get(self, path: str, /, **query: Any) -> Any:
        return self._call("GET", path, {key: str(value) for key, value in query.items() if value is not None}, {})

    def post(self, path: str, body: Any = None, /) -> Any:
        return self._call("POST", path, {}, body)

    def delete(self, path: str, /) -> Any:
        return self._call("DELETE", path, {}, {})

    @contextmanager
    def stream(self, path: str, /) -> Iterator[Iterator[Any]]:
        events = anyio.from_thread.run(self._routes["GET", path].endpoint, ApiRequest())

        def receive() -> Iterator[Any]:
            while True:
                yield _plain(anyio.from_thread.run(anext, events))

        try:
            yield receive()
        finally:
            anyio.from_thread.run(events.aclose)

    def _call(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        for (known, template), route in self._routes.items():
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template))
            if known == method and (found := re.fullmatch(pattern, path)):
                request = ApiRequest(path=found.groupdict(), query=query, body=json.loads(json.dumps(body)))
                return _plain(anyio.from_thread.run(route.endpoint, request))
        raise AssertionError(f"no route for {method} {path}")


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


class LinkedCli(Cli):
    def __init__(self, core: NetworkingCore) -> None:
        super().__init__()
        self.__dict__["client"] = RouteClient(core)


Run = Callable[..., Any]


async def run(core: NetworkingCore, *words: str) -> None:
    """Run ``sdnet msg …`` or ``sdnet notify …``."""
    command, arguments = (notify, words[1:]) if words[0] == "notify" else (msg, words)
    await anyio.to_thread.run_sync(partial(command.main, list(arguments), obj=LinkedCli(core), standalone_mode=False))


async def test_send_and_inbox(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as (a, b):
        await run(a, "send", "node1", "dinner", "is", "ready")
        assert capsys.readouterr().out.startswith("Delivered to node1 in ")
        await run(b, "inbox")
        shown = capsys.readouterr().out
        assert shown.startswith("* ")
        assert shown.endswith("  node0: dinner is ready\n")
        await run(b, "inbox")
        assert capsys.readouterr().out.startswith("  ")
        await run(b, "inbox", "--unread")
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "No unread messages.\n")


async def test_json_and_keeping_unread(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as (a, b):
        await run(a, "send", str(b.device_info.id), "one", "--priority", "high", "--json")
        receipt = json.loads(capsys.readouterr().out)
        for _ in range(2):
            await run(b, "inbox", "--unread", "--keep-unread", "--json")
            [message] = json.loads(capsys.readouterr().out)
            assert (message["id"], message["text"], message["priority"]) == (receipt["id"], "one", "high")
            assert message["read"] is False
            assert message["device_id"] == str(a.device_info.id)


async def test_what_controls_a_terminal_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as (a, b):
        evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\x08 ok\n* 2030-01-01 00:00:00  bank: send money"
        await service(a).send_text(b.device_info.id, evil)
        await service(a).send_notification(b.device_info.id, "\x1b[31mtitle\nmore", "\x1bbody")
        await run(b, "inbox")
        out = capsys.readouterr().out
        assert not any(character in out for character in "\x1b\x07\x9b\u202e\r\x08")
        # A second line is set in: it cannot be taken for a message of its own.
        assert [line[:4] for line in out.splitlines() if "bank" in line or "more" in line] == ["    ", "    "]
        await run(b, "inbox", "--json")
        captured = capsys.readouterr().out
        assert captured.isascii()
        assert captured.replace("\n", "").isprintable()
        assert json.loads(captured)[0]["text"] == evil


async def test_a_text_from_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_nodes() as (a, b):
        for data in ("zwei\nZeilen ü\n".encode(), b"\xff\xfe"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            if data.startswith(b"\xff"):
                with pytest.raises(click.UsageError, match="UTF-8"):
                    await run(a, "send", "node1", "-")
            else:
                await run(a, "send", "node1", "-")
        assert [message.text for message in await service(b).inbox()] == ["zwei\nZeilen ü"]


async def test_failures_are_errors_for_the_command_line() -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        with pytest.raises(DeviceNotFoundError):
            await run(a, "send", "nobody", "hello")
        with pytest.raises(InvalidRequestError, match="at most"):
            await run(a, "send", "node1", "x" * 70000)
        with pytest.raises(click.UsageError):
            await run(a, "send", "node1")
        nodes.cut(a, b)
        with pytest.raises(ConnectionFailedError, match="the message was not sent"):
            await run(a, "send", "node1", "hello", "--now")
        for wrong in ("soon", "-5", "0s", "5y"):
            with pytest.raises(click.BadParameter, match="duration"):
                await run(a, "send", "node1", "hello", "--ttl", wrong)
        for arguments in (("--action", "open"), ("--action", "=Open"), ("--wait", "5")):
            with pytest.raises(click.UsageError):
                await run(a, "notify", "node1", "title", *arguments)
        with pytest.raises(NotFoundError):
            await run(a, "cancel", "00")


async def test_queued_listed_and_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        await run(a, "outbox")
        assert capsys.readouterr().err == "Nothing waits.\n"
        nodes.cut(a, b)
        await run(a, "send", "node1", "dinner", "--ttl", "2h")
        assert capsys.readouterr().out == "Queued for node1; it will be delivered when it is back.\n"
        await run(a, "notify", "node1", "Doorbell", "--priority", "high", "--json")
        receipt = json.loads(capsys.readouterr().out)
        assert (receipt["state"], receipt["delivered_at"]) == ("queued", None)
        await run(a, "outbox")
        table = capsys.readouterr().out
        assert "dinner" in table
        assert "TIME LEFT" in table
        await run(a, "outbox", "--device", "node1", "--json")
        waiting = json.loads(capsys.readouterr().out)
        assert [(m["kind"], m["text"], m["priority"]) for m in waiting] == [
            ("notification", "Doorbell", "high"),
            ("text", "dinner", "normal"),
        ]
        with pytest.raises(NotFoundError):
            await run(a, "cancel", "")
        await run(a, "cancel", waiting[1]["id"][:13])
        assert "Cancelled; node1 does not get it." in capsys.readouterr().out
        await run(a, "cancel", receipt["id"], "--json")
        assert json.loads(capsys.readouterr().out) == {"id": receipt["id"], "never_sent": True}
        await run(a, "outbox", "--json")
        assert json.loads(capsys.readouterr().out) == []


async def test_notify_waits_for_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as (a, b):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                run, a, "notify", "node1", "Doorbell", "--action", "open=Open it", "--action", "no=No", "--wait", "30s"
            )

            async def it_came() -> bool:
                return len(await service(b).inbox()) == 1

            await eventually(it_came)
            await run(b, "inbox")
            await run(b, "choose", "1", "open")
        out = capsys.readouterr().out
        assert "[Doorbell] (#1: Open it = open / No = no)" in out
        assert "open" in out.splitlines()
        await run(a, "inbox")
        assert "node1: [Doorbell] chosen: Open it = open" in capsys.readouterr().out
        with pytest.raises(NotFoundError, match="Nothing was chosen at node1"):
            await run(a, "notify", "node1", "Again", "--action", "a=A", "--wait", "0.2")


async def test_listen_shows_each_text_as_it_comes_and_marks_it_read(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_nodes() as (a, b):
        out = ""
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                # Ends as the real one does when the stream behind it ends: here with the node's event bus.
                with pytest.raises(StopAsyncIteration):
                    await run(b, "listen", "--json")

            tasks.start_soon(listen)

            async def probe_is_shown() -> bool:
                nonlocal out
                await service(a).send_text(b.device_info.id, "probe")
                out += capsys.readouterr().out
                return "probe" in out

            await eventually(probe_is_shown)
            await service(a).send_text(b.device_info.id, "the last")

            async def last_is_read() -> bool:
                return (await service(b).inbox())[-1].read

            await eventually(last_is_read)
            b.events.close()
        out += capsys.readouterr().out
        assert json.loads(out.splitlines()[-1])["text"] == "the last"


async def test_routes_refuse_what_does_not_fit() -> None:
    async with two_nodes() as (a, _):
        routes = {(route.method, route.path): route.endpoint for _, route in a.routes()}
        for method, path, request in [
            ("POST", "/messages", ApiRequest(body={"device": "node1"})),
            ("POST", "/messages", ApiRequest(body={"device": "node1", "text": 5})),
            ("POST", "/messages", ApiRequest(body={"device": "node1", "text": "x", "priority": "urgent"})),
            ("POST", "/messages", ApiRequest(body={"device": "node1", "text": "x", "more": 1})),
            ("POST", "/messages", ApiRequest(body=[])),
            ("POST", "/notifications", ApiRequest(body={"device": "node1", "title": "x", "actions": [{"id": ""}]})),
            ("GET", "/inbox", ApiRequest(query={"since": "-1"})),
            ("GET", "/inbox", ApiRequest(query={"since": "٣"})),
            ("GET", "/inbox", ApiRequest(query={"limit": "1001"})),
            ("GET", "/inbox", ApiRequest(query={"unread": "maybe"})),
            ("GET", "/inbox/watch", ApiRequest(query={"since": "1e3"})),
            ("POST", "/inbox/read", ApiRequest(body={})),
            ("POST", "/inbox/read", ApiRequest(body={"ids": ["x"]})),
            ("POST", "/inbox/read", ApiRequest(body={"ids": [], "up_to": 3})),
            ("DELETE", "/inbox/{id}", ApiRequest(path={"id": "../inbox"})),
        ]:
            with pytest.raises(InvalidRequestError):
                await routes[method, path](request)
        with pytest.raises(NotFoundError):
            await routes["DELETE", "/inbox/{id}"](ApiRequest(path={"id": "00000000-0000-0000-0000-000000000001"}))
        assert await routes["POST", "/inbox/read"](ApiRequest(body={"up_to": 10**6})) == {"marked": 0}
