"""The TCP transport: py-libp2p's listener, and dials of our own that can leave from the port that we listen on.

A router that translates addresses gives that port one outside as well. Whoever sees us there can tell others, and a
connection that both sides dial from those ports at the same moment passes both routers.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import errno
import socket
from contextvars import ContextVar
from typing import Any

import trio
from libp2p.abc import IRawConnection
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

__all__ = ["FROM_PORTS", "TcpTransport", "limit_unsent", "open_tcp", "prepare_socket", "resolve"]

FROM_PORTS: ContextVar[dict[int, int] | None] = ContextVar("FROM_PORTS", default=None)
"""Ports that dials in this context leave from, by IP version; any other port when None."""

_UNSENT_BYTES = 128 * 1024
"""What the kernel may hold of a TCP connection unsent, until the multiplexer knows how fast the line is;
what is sent next waits for that. trio's 16 KiB are less than what a fast line takes while a task is being woken."""
_TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EINVAL}


class TcpTransport(TCP):
    """TCP."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect to an address.

        :raises OpenConnectionError: nobody answers there.
        """
        ports = FROM_PORTS.get() or {}
        failure: OSError | None = None
        for version, host, port in await resolve(str(maddr)):
            try:
                try:
                    stream = await open_tcp(version, host, port, from_port=ports.get(version, 0))
                except OSError as exc:
                    if version not in ports or exc.errno not in _TAKEN:
                        raise
                    # The port is held by an earlier connection to the same place.
                    stream = await open_tcp(version, host, port)
            except OSError as exc:
                failure = exc
            else:
                return RawConnection(TrioTCPStream(stream), True)
        raise OpenConnectionError(f"{maddr} does not answer") from failure


async def resolve(address: str) -> list[tuple[int, str, int]]:
    """IP version, IP address and port of a TCP multiaddr; several if it has a name.

    :raises OpenConnectionError: the name is not known, or it is no such address.
    """
    parts = address.removeprefix("/").split("/")
    if len(parts) < 4 or parts[2] != "tcp" or not parts[3].isdecimal():
        raise OpenConnectionError(f"{address} is no TCP address")
    kind, host, port = parts[0], parts[1], int(parts[3])
    if kind in ("ip4", "ip6"):
        return [(int(kind[2]), host, port)]
    families = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
    if kind not in families:
        raise OpenConnectionError(f"{address} is no TCP address")
    try:
        found = await trio.socket.getaddrinfo(host, port, families[kind], socket.SOCK_STREAM)
    except OSError as exc:
        raise OpenConnectionError(f"the name {host} is not known") from exc
    versions = {socket.AF_INET: 4, socket.AF_INET6: 6}
    return [(versions[family], str(where[0]), port) for family, *_, where in found if family in versions][:4]


async def open_tcp(version: int, host: str, port: int, *, from_port: int = 0) -> trio.SocketStream:
    """Open a TCP connection.

    :param from_port: the port that it leaves from, which may be one that we listen on; any when 0.
    :raises OSError: nobody answers, or the port is not to be had.
    """
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    made = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        if from_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await made.bind(("::" if version == 6 else "0.0.0.0", from_port))
        await made.connect((host, port))
        return trio.SocketStream(made)
    except BaseException:
        made.close()
        raise


def limit_unsent(tcp: trio.socket.SocketType, max_bytes: int) -> None:
    """Have the kernel take no more than so many bytes that it cannot send yet, where it can be told.

    :raises OSError: it is no TCP connection, or closed.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, max_bytes)


def prepare_socket(raw: Any) -> None:
    """Set a TCP connection up.

    It learns its peer's address, too: libp2p 0.8.1 does not understand IPv6's four-part ones.
    """
    stream = raw.stream if isinstance(raw, RawConnection) else raw
    if not isinstance(stream, TrioTCPStream):
        return
    tcp = stream.stream.socket
    if tcp.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        peer = tcp.getpeername()
        limit_unsent(tcp, _UNSENT_BYTES)
    except OSError:
        return
    stream._cached_remote_address = (str(peer[0]), int(peer[1]))
