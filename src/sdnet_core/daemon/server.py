"""Serves the local API with Hypercorn's trio worker.

Hypercorn's own `serve` cannot be stopped while a client does not read: it writes under a shield. So the connections
are accepted here, where a socket can be closed under such a write.
"""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import Any, cast

import anyio
import hypercorn
import trio
from anyio.abc import TaskStatus
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

__all__ = ["MAX_CONNECTIONS", "serve"]

MAX_CONNECTIONS = 256
"""Connections open at once; a client beyond them is turned away."""
GRACE_S = 0.25
"""How long a stop waits for answers that are under way."""
IDLE_TIMEOUT_S = 30.0
"""How long a connection may wait for its next request."""

_logger = logging.getLogger(__name__)


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    stopping: anyio.Event,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until the node stops; returns less than a second after that.

    :param listener: a bound and listening socket; it is closed at the end.
    :param stopping: set when the node stops.
    """
    connections = _Connections(app)
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as handlers:
            async with trio.open_nursery() as accepting:
                listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
                await accepting.start(
                    partial(trio.serve_listeners, connections.handle, listeners, handler_nursery=handlers)
                )
                task_status.started()
                await stopping.wait()
                accepting.cancel_scope.cancel()
            await connections.context.terminated.set()  # closes the idle ones
            outer.start_soon(_cut_after_grace, connections, handlers)
        outer.cancel_scope.cancel()


class _Server(TCPServer):
    """Hypercorn's server of one connection, which ends when the client has left.

    Hypercorn's own lets the connection stay until its idle time is over: a client that makes one for each request
    would soon have no more.
    """

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Connections:
    def __init__(self, app: ASGIApp) -> None:
        self.context = WorkerContext(None)
        self.open: set[trio.SocketStream] = set()
        self._config = hypercorn.Config()
        self._config.accesslog = None
        self._config.errorlog = _logger
        self._config.include_server_header = False
        self._config.keep_alive_timeout = IDLE_TIMEOUT_S
        self._app = wrap_app(cast(ASGIFramework, app), self._config.wsgi_max_body_size, "asgi")

    async def handle(self, stream: trio.SocketStream) -> None:
        if len(self.open) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        self.open.add(stream)
        any_stream: Any = stream  # Hypercorn's annotation names the TLS stream only
        try:
            await _Server(self._app, self._config, self.context, ConnectionState({}), any_stream).run()
        except Exception:  # one connection's trouble must not end the others
            _logger.exception("A connection to the local API failed")
        finally:
            self.open.discard(stream)


async def _cut_after_grace(connections: _Connections, handlers: trio.Nursery) -> None:
    await trio.sleep(GRACE_S)
    for stream in tuple(connections.open):
        stream.socket.close()
    handlers.cancel_scope.cancel()
