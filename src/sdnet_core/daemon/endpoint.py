"""Where the local API is reached: a Unix socket, or loopback TCP with a token where there are no Unix sockets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..errors import NetworkingError, StorageError

__all__ = ["TcpEndpoint", "check_private", "endpoint_file", "has_unix_sockets", "read_tcp_endpoint"]

_MAX_ENDPOINT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """The loopback address and the secret that a client must show there.

    :param token: bearer token (RFC 6750), new at each start of the node.
    """

    host: str
    port: int
    token: str


def has_unix_sockets() -> bool:
    """Whether this system has Unix sockets."""
    return hasattr(socket, "AF_UNIX")


def endpoint_file(config: Config) -> Path:
    """The file, beside the socket's place, that names the TCP endpoint."""
    return config.paths.socket.with_suffix(".json")


def check_private(directory: Path) -> None:
    """Make sure that a directory is ours alone, so that what answers there is our own node.

    :raises FileNotFoundError: there is no such directory.
    :raises StorageError: somebody else owns it, or others may write to it.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{directory} should be a directory but is not; move it away.")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise StorageError(f"{directory} belongs to another user; the local API is not used there.")
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageError(f"{directory} is open to other users; run: chmod 700 {directory}")


def read_tcp_endpoint(config: Config) -> TcpEndpoint | None:
    """Read where a node listens on TCP.

    :returns: None if no node left such a file.
    :raises NetworkingError: the file is not what a node writes.
    """
    file = endpoint_file(config)
    text = ""
    with contextlib.suppress(FileNotFoundError), file.open(encoding="utf-8") as opened:
        text = opened.read(_MAX_ENDPOINT_BYTES)
    if not text:
        return None
    try:
        values = json.loads(text)
        return TcpEndpoint(str(values["host"]), int(values["port"]), str(values["token"]))
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkingError(f"{file} is damaged; stop the node and remove it.") from error
