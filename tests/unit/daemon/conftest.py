"""The local API of a real node on the memory network, called in-process as a server would call it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp

from sdnet_core.config import Config, load_config
from sdnet_core.core import NetworkingCore
from sdnet_core.daemon.app import create_app


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, code: str, status: int, exit_code: int = 1) -> str:
        """Check that it is a problem document of this kind, and give its detail."""
        assert self.headers["content-type"] == "application/problem+json"
        found = self.json
        assert (found["type"], found["status"], found["exit_code"]) == (f"urn:sdnet:error:{code}", status, exit_code)
        assert self.status == status
        assert found["title"]
        detail: str = found["detail"]
        return detail


class Events:
    """An open event stream."""

    def __init__(self, receive: Callable[[], Any], leave: anyio.Event) -> None:
        self._receive = receive
        self._leave = leave
        self._rest = b""
        self.last_id = ""
        """The id of the latest event that had one."""

    async def next(self) -> tuple[str, Any]:
        """The next event: its name and data; ``("comment", text)`` for a comment, ``("end", None)`` at the end."""
        while b"\n\n" not in self._rest:
            message = await self._receive()
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                continue
            self._rest += message["body"]
            if not message["more_body"]:
                return "end", None
        block, self._rest = self._rest.split(b"\n\n", 1)
        text = block.decode()
        if text.startswith(":"):
            return "comment", text[1:].strip()
        fields = dict(line.split(": ", 1) for line in text.split("\n"))
        self.last_id = fields.get("id", self.last_id)
        return fields.get("event", "message"), json.loads(fields["data"])

    def leave(self) -> None:
        """Go away, as a client that closes its connection."""
        self._leave.set()


@dataclass
class Api:
    """An ASGI application and the ways to call it."""

    app: ASGIApp
    stopping: anyio.Event = field(default_factory=anyio.Event)

    async def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        chunks: list[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Make a request; ``body`` is sent as JSON, ``chunks`` as they are."""
        content = chunks if chunks is not None else [] if body is None else [json.dumps(body).encode()]
        incoming: list[Any] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in content]
        incoming.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[Any] = []

        async def receive() -> Any:
            await anyio.lowlevel.checkpoint()
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await anyio.lowlevel.checkpoint()
            sent.append(message)

        with anyio.fail_after(10):
            await self.app(scope(method, target, headers), receive, send)
        answered = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        assert not sent[-1].get("more_body", False)
        return Answer(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))

    @asynccontextmanager
    async def follow(self, target: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
        """Open an event stream; the client leaves at the end of the block."""
        leave = anyio.Event()
        first = [{"type": "http.request", "body": b"", "more_body": False}]
        send_stream, receive_stream = anyio.create_memory_object_stream[Any](0)

        async def receive() -> Any:
            if first:
                return first.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            async with send_stream:
                await self.app(scope("GET", target, headers), receive, send_stream.send)

        with anyio.fail_after(10):
            async with receive_stream, anyio.create_task_group() as group:
                group.start_soon(run)
                events = Events(receive_stream.receive, leave)
                assert await events.next() == ("comment", "open")
                yield events
                leave.set()
                async for _ in receive_stream:
                    pass


def scope(method: str, target: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A request as a server hands it over."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(key.lower().encode(), value.encode()) for key, value in (headers or {}).items()],
        "client": None,
        "server": None,
    }


@pytest.fixture
def api_of() -> Callable[[NetworkingCore], Api]:
    """Makes the local API of a running node; the event `stopping` is set when a client asks it to stop."""

    def make(core: NetworkingCore) -> Api:
        stopping = anyio.Event()
        return Api(create_app(core, stop=stopping.set, stopping=stopping), stopping)

    return make


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """Paths of the instance "work" below temporary folders; the runtime directory does not exist yet."""
    # pytest's own temporary folders may be too deep for a socket's path.
    with tempfile.TemporaryDirectory(prefix="sdnet-", dir="/tmp") as short:
        environ = {"SDNET_HOME": str(tmp_path), "XDG_RUNTIME_DIR": short}
        found = load_config("work", environ=environ)
        assert found.paths.runtime.parent == Path(short)
        yield found
