"""Runs a public node in the foreground, with a small API on a socket of its own, until it is told to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..config import Config
from ..errors import NetworkingError, StorageError
from ..public_node import PublicNode
from .app import require_token
from .descriptors import allow_connections
from .listener import open_listener
from .log import configure_logging
from .memory import keep_memory_private
from .problems import single_cause
from .process import check_not_running

__all__ = ["run_public_node"]

_logger = logging.getLogger(__name__)


def run_public_node(config: Config, *, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Run it; returns when it has stopped cleanly. Blocking; call it in the main thread.

    :param config: as `config_of_public_node` gives it.
    :param on_ready: called with the node's status once it listens.
    :raises AlreadyRunningError: it runs already.
    :raises NetworkingError: it cannot start, or it failed while it ran; says why.
    """
    keep_memory_private()
    check_not_running(config)
    try:
        log = configure_logging(config, foreground=True)
    except OSError as error:
        raise StorageError(f"The log {config.paths.log_file} cannot be written: {error.strerror}.") from error
    if problem := allow_connections(config.public_node.max_connections):
        _logger.warning("%s", problem)
    try:
        anyio.run(_run, config, on_ready, backend="trio")
    except Exception as error:
        cause = single_cause(error)
        if isinstance(cause, NetworkingError):
            raise cause from error
        _logger.exception("the public node ends")
        raise NetworkingError(f"The public node failed: {cause!r}. See {config.paths.log_file}.") from error
    finally:
        log.close()


async def _run(config: Config, on_ready: Callable[[dict[str, Any]], None]) -> None:
    from .server import serve

    stopping = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_heed_signals, stopping)
        async with PublicNode.run(config) as node:
            with open_listener(config) as listener:
                app: Any = _app(node)
                if (endpoint := listener.endpoint) is not None:
                    hosts = (f"{endpoint.host}:{endpoint.port}", f"localhost:{endpoint.port}")
                    app = require_token(app, endpoint.token, hosts)
                async with anyio.create_task_group() as serving:
                    await serving.start(partial(serve, app, listener.socket, stopping=stopping))
                    on_ready(node.status())
                    await stopping.wait()
        tasks.cancel_scope.cancel()


def _app(node: PublicNode) -> Starlette:
    async def status(_: Request) -> Response:
        return JSONResponse(node.status())

    async def metrics(_: Request) -> Response:
        return Response(node.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/v1/public-node", status), Route("/v1/metrics", metrics)])


async def _heed_signals(stopping: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    wanted = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    with anyio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for number in signals:
            _logger.info("received %s; stopping", signal.Signals(number).name)
            stopping.set()
