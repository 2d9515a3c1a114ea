"""The socket that the local API listens on, and what it leaves in the runtime directory."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..clock import SystemRandomness
from ..config import Config
from ..errors import AlreadyRunningError, TransportError
from ..storage import ensure_private_directory, write_atomic
from .endpoint import TcpEndpoint, check_private, endpoint_file, has_unix_sockets

__all__ = ["ApiListener", "open_listener"]

BACKLOG = 64
MAX_SOCKET_PATH_BYTES = 107
"""Length of ``sun_path`` on Linux, less the final zero; 103 on macOS."""


@dataclass(frozen=True, slots=True)
class ApiListener:
    """A listening socket.

    :param endpoint: on TCP, the address and the token that clients must show.
    """

    socket: socket.socket
    endpoint: TcpEndpoint | None = None


@contextlib.contextmanager
def open_listener(config: Config, *, tcp: bool = False) -> Iterator[ApiListener]:
    """Listen for the local API, and clean up in the end. Call it with the instance's lock held.

    :param tcp: use loopback TCP although there are Unix sockets.
    :raises AlreadyRunningError: something answers at that place already.
    :raises TransportError: it is not possible to listen there.
    :raises StorageError: the runtime directory is not ours alone.
    """
    directory = config.paths.runtime
    ensure_private_directory(directory)
    check_private(directory)
    with _open_tcp(config) if tcp or not has_unix_sockets() else _open_unix(config) as listener:
        yield listener


@contextlib.contextmanager
def _open_unix(config: Config) -> Iterator[ApiListener]:
    path = config.paths.socket
    endpoint_file(config).unlink(missing_ok=True)
    _remove_stale(path)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as made:
        try:
            made.bind(os.fspath(path))
            path.chmod(0o600)
            made.listen(BACKLOG)
        except OSError as error:
            reason = error.strerror or f"{error}; {len(os.fsencode(path))} bytes, {MAX_SOCKET_PATH_BYTES} at most"
            raise TransportError(f"The local API cannot listen at {path}: {reason}.") from error
        ours = _inode(path)
        try:
            yield ApiListener(made)
        finally:
            if _inode(path) == ours:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_tcp(config: Config) -> Iterator[ApiListener]:
    with contextlib.suppress(FileNotFoundError):
        _remove_stale(config.paths.socket)
    file = endpoint_file(config)
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as made:
        made.bind(("127.0.0.1", 0))
        made.listen(BACKLOG)
        host, port = made.getsockname()
        endpoint = TcpEndpoint(host, port, secrets.token_urlsafe(32))
        document = {"host": host, "port": port, "token": endpoint.token}
        write_atomic(file, json.dumps(document).encode(), randomness=SystemRandomness(), keep_previous=False)
        try:
            yield ApiListener(made, endpoint)
        finally:
            file.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed node left behind."""
    if not path.exists():
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            probe.connect(os.fspath(path))
            raise AlreadyRunningError(f"Another node answers at {path} already.")
    path.unlink(missing_ok=True)


def _inode(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None
