"""Server-sent events (WHATWG HTML, section 9.2) from an async iterator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import ObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .problems import encode_json, problem_of

__all__ = ["KEEPALIVE_INTERVAL_S", "EventStreamResponse", "StreamItem"]

KEEPALIVE_INTERVAL_S = 15.0
"""A comment is sent after so much silence, which shows each side that the other is there."""
CLOSE_TIMEOUT_S = 1.0
"""How long an iterator may take to close."""


@dataclass(frozen=True, slots=True)
class StreamItem:
    """A value with the id that a client sends back as ``Last-Event-ID`` when it comes again; empty for none."""

    value: Any
    id: str


class EventStreamResponse(Response):
    """Sends what an async iterator gives, each value as one event with its JSON as data.

    The iterator is closed, in the task that iterated it, when it ends or fails, when the client leaves, and when the
    node stops. An error is sent as an event named ``problem``, the last one.

    :param stopping: set when the node stops.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self, events: AsyncIterator[Any], stopping: anyio.Event, *, keepalive_interval_s: float = KEEPALIVE_INTERVAL_S
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._events = events
        self._stopping = stopping
        self._keepalive_interval_s = keepalive_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A chunk is produced in one task and written in another: waiting for the next event must not be cancelled
        # for a keepalive, since that would end the iterator.
        chunks, queue = anyio.create_memory_object_stream[bytes](0)
        connected = True

        async def wait_for_client_to_leave() -> None:
            nonlocal connected
            while (await receive())["type"] != "http.disconnect":
                pass
            connected = False
            group.cancel_scope.cancel()

        async def wait_for_stop() -> None:
            await self._stopping.wait()
            group.cancel_scope.cancel()

        async with queue, anyio.create_task_group() as group:
            group.start_soon(self._produce, chunks)  # first, since it is what closes the iterator
            group.start_soon(wait_for_client_to_leave)
            group.start_soon(wait_for_stop)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # The first bytes: a server may hold back the headers until there are some.
            await _send_chunk(send, b": open\n\n")
            try:
                while True:
                    chunk = b": keepalive\n\n"
                    with anyio.move_on_after(self._keepalive_interval_s):
                        chunk = await queue.receive()
                    await _send_chunk(send, chunk)
            except anyio.EndOfStream:
                group.cancel_scope.cancel()
        if connected:
            await _send_chunk(send, b"", more=False)

    async def _produce(self, chunks: ObjectSendStream[bytes]) -> None:
        async with chunks:
            try:
                async for value in self._events:
                    head = b""
                    if isinstance(value, StreamItem):
                        head, value = (f"id: {value.id}\n".encode() if value.id else b""), value.value
                    await chunks.send(head + b"data: " + encode_json(value) + b"\n\n")
            except Exception as error:  # from a plugin's iterator: anything
                await chunks.send(b"event: problem\ndata: " + encode_json(problem_of(error)) + b"\n\n")
            finally:
                with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await close_iterator(self._events)


async def close_iterator(events: AsyncIterator[Any]) -> None:
    """Close what an iterator holds, if it has a way to."""
    if (aclose := getattr(events, "aclose", None)) is not None:
        await aclose()
    elif (close := getattr(events, "close", None)) is not None:
        close()


async def _send_chunk(send: Send, chunk: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more})
