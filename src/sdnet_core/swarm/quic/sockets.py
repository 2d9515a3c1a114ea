"""The UDP sockets under QUIC: one for each connection that we dial, one for all that come in at an address."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import errno
import logging
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import trio
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from .connection import Connection
from .core import CONNECTION_ID_BYTES

__all__ = ["ClientSocket", "Incoming", "ServerSocket", "open_client", "open_server"]

logger = logging.getLogger(__name__)

_MAX_DATAGRAM_BYTES = 65536
_BATCH = 32
"""Datagrams that are read without letting other tasks run."""
_MIN_INITIAL_BYTES = 1200
_LONG_HEADER = 0x80
_BUFFER_BYTES = 4 * 1024 * 1024
_MAX_FAREWELLS = 256
_MAX_REPEATS = 3
_VERSIONS: list[int] = [QuicProtocolVersion.VERSION_1]
_IN_PKTINFO, _IN6_PKTINFO = struct.Struct("=I4s4s"), struct.Struct("=16sI")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_IN6_PKTINFO.size) if hasattr(socket, "CMSG_SPACE") else 0
# Not in Python's module socket before 3.14.
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
# The network is down, or the way there is: a later packet may get through.
_PASSING = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EPERM, errno.EMSGSIZE, errno.ENOBUFS}

Incoming = Callable[[QuicHeader, Any, bytes, bytes | None], Connection | None]
"""Takes a client's first packet: its header, its address, the first connection id it chose, and our own one if it has
proved its address; None to take no new connection."""


def open_client(family: int, address: tuple[Any, ...]) -> ClientSocket:
    """A socket for one connection.

    :raises OSError: the machine lacks that family, or any way there.
    """
    sock = _socket(family)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return ClientSocket(sock)


def open_server(family: int, host: str, port: int) -> ServerSocket:
    """A socket for everything that comes in at an address.

    :raises OSError: the address cannot be listened on.
    """
    sock = _socket(family)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        is_wildcard = host in {"0.0.0.0", "::"}
        if is_wildcard and _ANCILLARY_BYTES:
            # The answers must come from the address that was asked.
            if family == socket.AF_INET6 and hasattr(socket, "IPV6_RECVPKTINFO"):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            elif family == socket.AF_INET and os.name == "posix" and os.uname().sysname == "Linux":
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return ServerSocket(sock, with_destination=is_wildcard and bool(_ANCILLARY_BYTES))


def _socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return sock


class ClientSocket:
    """The socket of one connection that we dial."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._connection: Connection | None = None

    def send(self, datagram: bytes, address: Any) -> bool:
        """Send, or drop what cannot be sent; False if it has to wait until :meth:`writable`."""
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            return False
        except OSError as exc:
            # Often it is an earlier datagram's error.
            if exc.errno == errno.ECONNREFUSED and self._connection is not None:
                self._connection.unreachable()
            elif exc.errno not in _PASSING:
                logger.debug("sending a datagram: %r", exc)
        return True

    async def writable(self) -> None:
        """Wait until sending is possible, or the socket is closed."""
        try:
            await trio.lowlevel.wait_writable(self._socket.fileno())
        except (trio.ClosedResourceError, ValueError, OSError):
            await trio.lowlevel.checkpoint()

    def add_id(self, connection_id: bytes, connection: Connection) -> None:
        """There is one connection only."""
        self._connection = connection

    def remove_id(self, connection_id: bytes) -> None:
        """There is one connection only."""

    def forget(self, connection: Connection, farewell: bytes | None) -> None:
        """The connection is gone."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket.fileno())
            self._socket.close()

    async def read(self, connection: Connection, address: Any) -> None:
        """Read the connection's datagrams until it is gone."""
        sock = self._socket
        while connection.failure is None:
            try:
                await trio.lowlevel.wait_readable(sock.fileno())
            except (trio.ClosedResourceError, ValueError, OSError):
                return
            for _ in range(_BATCH):
                try:
                    datagram = sock.recv(_MAX_DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    connection.unreachable()
                    break
                except OSError as exc:
                    logger.debug("receiving a datagram: %r", exc)
                    break
                connection.receive(datagram, address)


class ServerSocket:
    """The socket of everything that comes in at one address. An address is the peer's and the way it came in.

    :param with_destination: whether the machine tells which of its addresses a datagram was sent to.
    """

    def __init__(self, sock: socket.socket, *, with_destination: bool) -> None:
        self._socket = sock
        self._with_destination = with_destination
        self._connections: dict[bytes, Connection] = {}
        self._farewells: OrderedDict[bytes, list[Any]] = OrderedDict()
        self._tokens = QuicRetryTokenHandler()
        self.incoming: Incoming | None = None
        self.must_prove_address: Callable[[], bool] = lambda: False

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port, *_ = self._socket.getsockname()
        return host, port

    def send(self, datagram: bytes, address: Any) -> bool:
        """Send, or drop what cannot be sent; False if it has to wait until :meth:`writable`."""
        peer, way = address
        try:
            if way:
                self._socket.sendmsg([datagram], way, 0, peer)
            else:
                self._socket.sendto(datagram, peer)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno not in _PASSING:
                logger.debug("sending a datagram: %r", exc)
        return True

    async def writable(self) -> None:
        """Wait until sending is possible, or the socket is closed."""
        try:
            await trio.lowlevel.wait_writable(self._socket.fileno())
        except (trio.ClosedResourceError, ValueError, OSError):
            await trio.lowlevel.checkpoint()

    def add_id(self, connection_id: bytes, connection: Connection) -> None:
        """Datagrams with this id are the connection's."""
        self._connections[connection_id] = connection

    def remove_id(self, connection_id: bytes) -> None:
        """They are no more."""
        self._connections.pop(connection_id, None)

    def forget(self, connection: Connection, farewell: bytes | None) -> None:
        """The connection is gone; who still sends to it is told the farewell."""
        for connection_id in [one for one, owner in self._connections.items() if owner is connection]:
            del self._connections[connection_id]
            if farewell is not None:
                self._farewells[connection_id] = [farewell, _MAX_REPEATS]
        while len(self._farewells) > _MAX_FAREWELLS:
            self._farewells.popitem(last=False)

    def close(self) -> None:
        """Stop listening."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket.fileno())
            self._socket.close()

    @property
    def connections(self) -> set[Connection]:
        """Those that have come in and are not gone."""
        return set(self._connections.values())

    async def read(self) -> None:
        """Read datagrams until the socket is closed."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket.fileno())
            except (trio.ClosedResourceError, ValueError, OSError):
                return
            for _ in range(_BATCH):
                try:
                    datagram, address = self._receive()
                except BlockingIOError:
                    break
                except OSError as exc:
                    if self._socket.fileno() == -1:
                        return
                    logger.debug("receiving a datagram: %r", exc)
                    break
                self._take(datagram, address)

    def _receive(self) -> tuple[bytes, Any]:
        if not self._with_destination:
            datagram, peer = self._socket.recvfrom(_MAX_DATAGRAM_BYTES)
            return datagram, (peer, ())
        datagram, ancillary, _, peer = self._socket.recvmsg(_MAX_DATAGRAM_BYTES, _ANCILLARY_BYTES)
        return datagram, (peer, _way_back(ancillary))

    def _take(self, datagram: bytes, address: Any) -> None:
        if datagram and not datagram[0] & _LONG_HEADER:
            # Nearly all of them: the packets of connections that are there.
            known = self._connections.get(datagram[1 : 1 + CONNECTION_ID_BYTES])
            if known is not None:
                known.receive(datagram, address)
                return
        try:
            header = pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            return
        connection = self._connections.get(header.destination_cid)
        if connection is not None:
            connection.receive(datagram, address)
        elif (farewell := self._farewells.get(header.destination_cid)) is not None:
            farewell[1] -= 1
            if not farewell[1]:
                del self._farewells[header.destination_cid]
            self.send(farewell[0], address)
        elif len(datagram) >= _MIN_INITIAL_BYTES and header.version is not None:
            self._take_first(header, datagram, address)

    def _take_first(self, header: QuicHeader, datagram: bytes, address: Any) -> None:
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return
        if header.version not in _VERSIONS:
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid, destination_cid=header.source_cid, supported_versions=_VERSIONS
            )
            self.send(answer, address)
        elif header.packet_type is QuicPacketType.INITIAL and self.incoming is not None:
            self._take_initial(self.incoming, header, datagram, address)

    def _take_initial(self, incoming: Incoming, header: QuicHeader, datagram: bytes, address: Any) -> None:
        original, own = header.destination_cid, None
        now = trio.current_time()
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=address[0], destination_cid=header.destination_cid, token=header.token, now=now
                )
            except ValueError:
                self.send(_refusal(header, QuicErrorCode.INVALID_TOKEN), address)
                return
            own = header.destination_cid
        elif self.must_prove_address():
            # Nothing is kept of whoever may have forged the address.
            own = os.urandom(CONNECTION_ID_BYTES)
            token = self._tokens.create_token(
                address=address[0],
                original_destination_connection_id=original,
                retry_source_connection_id=own,
                now=now,
            )
            answer = encode_quic_retry(
                version=QuicProtocolVersion.VERSION_1,
                source_cid=own,
                destination_cid=header.source_cid,
                original_destination_cid=original,
                retry_token=token,
            )
            self.send(answer, address)
            return
        connection = incoming(header, address, original, own)
        if connection is None:
            self.send(_refusal(header, QuicErrorCode.CONNECTION_REFUSED), address)
            return
        self.add_id(header.destination_cid, connection)
        connection.receive(datagram, address)


def _way_back(ancillary: list[tuple[int, int, bytes]]) -> tuple[tuple[int, int, bytes], ...]:
    """What makes an answer leave from the address that the question came to."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _IN_PKTINFO.size:
            _, destination, _ = _IN_PKTINFO.unpack(data[: _IN_PKTINFO.size])
            return ((level, kind, _IN_PKTINFO.pack(0, destination, bytes(4))),)
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _IN6_PKTINFO.size:
            return ((level, kind, data[: _IN6_PKTINFO.size]),)
    return ()


def _refusal(header: QuicHeader, code: int) -> bytes:
    """A packet that ends a connection before it has begun; its keys are known to everybody (RFC 9001 section 5.2)."""
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=QuicProtocolVersion.VERSION_1)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=_MIN_INITIAL_BYTES,
        peer_cid=header.source_cid,
        version=QuicProtocolVersion.VERSION_1,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=32)
    frame.push_uint_var(code)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]
