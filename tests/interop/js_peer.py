"""Drives ``js/peer.mjs``, a js-libp2p node in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.interop.js_setup import PEER

__all__ = ["DIGEST", "ECHO", "HOLD", "JsPeer", "JsPeerError", "js_peer"]

ECHO = "/sdnet-interop/echo/1.0.0"
"""Everything is sent back; the end follows the end."""
DIGEST = "/sdnet-interop/digest/1.0.0"
"""Nothing is sent back before the end, then the SHA-256 of everything."""
HOLD = "/sdnet-interop/hold/1.0.0"
"""The js-libp2p side sends one byte and keeps the stream open."""

ANSWER_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 1024 * 1024


class JsPeerError(Exception):
    """What was asked of the js-libp2p node failed there.

    :param name: name of its exception.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class JsPeer:
    """A running js-libp2p node."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._reading = anyio.Lock()
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._last_id = 0
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()

    async def ask(self, action: str, **parameters: Any) -> Any:
        """Have the node do something.

        :returns: its answer.
        :raises JsPeerError: it failed.
        """
        self._last_id += 1
        request_id = self._last_id
        request = {"id": request_id, "do": action, **parameters}
        await self._stdin.send(json.dumps(request).encode() + b"\n")
        answer = await self._wait(lambda: self._answers.pop(request_id, None))
        if "error" in answer:
            raise JsPeerError(answer["error"]["name"], answer["error"]["message"])
        return answer["ok"]

    async def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for something to happen on the node, and take it off the list of what has happened.

        :param fields: what else the event must say.
        """
        wanted = {"event": name, **fields}

        def take() -> dict[str, Any] | None:
            for index, event in enumerate(self._events):
                if wanted.items() <= event.items():
                    return self._events.pop(index)
            return None

        return await self._wait(take)

    async def _wait(self, take: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            while True:
                async with self._reading:  # whoever waits reads for all who wait
                    found = take()
                    if found is not None:
                        return found
                    message = json.loads(await self._lines.receive_until(b"\n", _MAX_LINE_BYTES))
                    if "event" in message:
                        self._events.append(message)
                    else:
                        self._answers[message["id"]] = message


@asynccontextmanager
async def js_peer(node_command: Sequence[str], *, mdns: bool = False, transport: str = "tcp") -> AsyncIterator[JsPeer]:
    """Run a js-libp2p node that listens on 127.0.0.1.

    :param node_command: runs ``node``.
    :param mdns: whether it announces itself and browses. It does so on every interface there is, so only where
        loopback is the only one.
    :param transport: its only one: ``tcp``, ``ws`` or ``quic``.
    """
    command = [*node_command, str(PEER), json.dumps({"mdns": mdns, "transport": transport})]
    # Its standard error goes to ours, where pytest shows it with a failing test.
    process = await anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
    try:
        peer = JsPeer(process)
        ready = await peer.event("ready")
        peer.peer_id, peer.addresses = ready["peer"], tuple(ready["addresses"])
        yield peer
    finally:
        with anyio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.move_on_after(_STOP_TIMEOUT_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
            await process.aclose()
