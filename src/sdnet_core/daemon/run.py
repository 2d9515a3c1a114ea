"""Runs a node with its local API until it is told to stop."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio.abc import TaskStatus

from ..config import Config
from ..errors import AlreadyRunningError, NetworkingError, StorageError
from .app import create_app, require_token
from .descriptors import allow_connections
from .listener import ApiListener, open_listener
from .log import DaemonLog, configure_logging
from .memory import give_back_memory, keep_memory_private
from .problems import encode_json, single_cause
from .process import check_not_running

if TYPE_CHECKING:
    from ..core import NetworkingCore
    from ..storage import Unlock

__all__ = ["run_node"]

STOP_TIMEOUT_S = 10.0
"""A stop that takes longer ends the process the hard way; the store survives that."""
LOCK_ATTEMPTS = 5

_logger = logging.getLogger(__name__)


def run_node(
    config: Config,
    *,
    on_ready: Callable[[dict[str, Any]], None],
    unlock: Unlock | None = None,
    foreground: bool = False,
    tcp: bool = False,
) -> None:
    """Run the node; returns when it has stopped cleanly. Blocking; call it in the main thread, after the last fork.

    :param on_ready: called with the node's status once it is up and its API answers.
    :param unlock: opens the data; the key file when None.
    :param foreground: log to standard error too.
    :param tcp: serve the local API on loopback TCP although there are Unix sockets.
    :raises AlreadyRunningError: a node runs on this data directory.
    :raises NetworkingError: it cannot start, or it failed while it ran; says why.
    """
    keep_memory_private()
    check_not_running(config)
    try:
        log = configure_logging(config, foreground=foreground)
    except OSError as error:
        raise StorageError(f"The log {config.paths.log_file} cannot be written: {error.strerror}.") from error
    if problem := allow_connections(config.connections.max_connections):
        _logger.warning("%s", problem)
    try:
        _run_with_patience(partial(_run, config, tcp, on_ready, unlock, log), config)
    except Exception as error:
        cause = single_cause(error)
        if isinstance(cause, NetworkingError):
            # What a person can put right needs no traceback between them and the reason.
            _logger.error("the node ends: %s", cause.detail)
            _logger.debug("where it ended", exc_info=error)
            raise cause from error
        _logger.exception("the node ends")
        reason = f"{type(cause).__name__}: {cause}".strip().removesuffix(".")
        raise NetworkingError(f"The node failed: {reason}. See {config.paths.log_file}.") from error
    finally:
        log.close()


def _run_with_patience(run: Callable[[], Awaitable[None]], config: Config) -> None:
    """Run the node. Whoever looks at the lock holds it for a moment: that is not a node."""
    for attempt in range(LOCK_ATTEMPTS):
        try:
            anyio.run(run, backend="trio")
            return
        except Exception as error:
            found = single_cause(error)
            if not isinstance(found, AlreadyRunningError) or attempt == LOCK_ATTEMPTS - 1:
                raise
            check_not_running(config)


async def _run(
    config: Config, tcp: bool, on_ready: Callable[[dict[str, Any]], None], unlock: Unlock | None, log: DaemonLog
) -> None:
    await _Run(config, tcp, on_ready, unlock, log).run()


class _Run:
    """One run of a node, from the start to the stop."""

    def __init__(
        self,
        config: Config,
        tcp: bool,
        on_ready: Callable[[dict[str, Any]], None],
        unlock: Unlock | None,
        log: DaemonLog,
    ) -> None:
        self._config = config
        self._unlock = unlock
        self._tcp = tcp
        self._on_ready = on_ready
        self._log = log
        self._starting = anyio.CancelScope()
        self._ready = False
        self._stopping = anyio.Event()
        self._watchdog = threading.Timer(STOP_TIMEOUT_S, _leave_at_once)
        self._watchdog.daemon = True

    async def run(self) -> None:
        """Run the node until a signal or a client stops it."""
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._heed_signals)
                with self._starting:
                    # Imported here, since it brings in libp2p: signals are heeded from before that.
                    from ..core import NetworkingCore

                    async with NetworkingCore(self._config, unlock=self._unlock) as core:
                        # Below the core, which holds the lock on the data directory.
                        with open_listener(self._config, tcp=self._tcp) as listener:
                            await self._serve(core, listener)
                group.cancel_scope.cancel()
            _logger.info("stopped")
        finally:
            self._watchdog.cancel()

    def stop(self) -> None:
        """Begin to stop."""
        if not self._stopping.is_set():
            _logger.info("stopping")
            self._stopping.set()
            self._watchdog.start()
            if not self._ready:
                self._starting.cancel()

    async def _serve(self, core: NetworkingCore, listener: ApiListener) -> None:
        from .server import serve

        guard = None
        if (endpoint := listener.endpoint) is not None:
            hosts = (f"{endpoint.host}:{endpoint.port}", f"localhost:{endpoint.port}")
            guard = partial(require_token, token=endpoint.token, hosts=hosts)
        app = create_app(core, stop=self.stop, stopping=self._stopping, log=self._log, guard=guard)
        async with anyio.create_task_group() as group:
            await group.start(partial(serve, app, listener.socket, stopping=self._stopping))
            self._ready = True
            self._log.warn_of_unknown()
            _logger.info("ready")
            self._on_ready(msgspec.json.decode(encode_json(core.status())))
            give_back_memory()

    async def _heed_signals(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        wanted = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        with anyio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for number in signals:
                if self._stopping.is_set():
                    _logger.warning("second signal; leaving at once")
                    os._exit(128 + number)
                _logger.info("received %s", signal.Signals(number).name)
                self.stop()


def _leave_at_once() -> None:
    _logger.error("the node did not stop within %s s; leaving at once", STOP_TIMEOUT_S)
    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
    os._exit(1)
