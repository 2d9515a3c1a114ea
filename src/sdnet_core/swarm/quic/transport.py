"""QUIC as one of the swarm's transports: dials and listens on ``/udp/…/quic-v1`` addresses.

Written on aioquic's sans-I/O connection rather than on libp2p 0.8.1's own QUIC, which ends a stream whose reader waits
for 30 s, closes and resets by awaiting, and makes the peer wait for nothing when a reader stalls.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from aioquic.quic.packet import QuicHeader
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.crypto.keys import PrivateKey
from libp2p.custom_types import THandler
from libp2p.network.exceptions import SwarmException
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from ..host import Network
from .connection import Connection
from .core import Core, check_version, make_configuration
from .identity import make_credentials
from .sockets import ServerSocket, open_client, open_server

__all__ = ["QuicTransport"]

logger = logging.getLogger(__name__)

check_version()

_SHAPES = (["ip4", "udp", "quic-v1"], ["ip6", "udp", "quic-v1"])


class QuicTransport(ITransport):
    """Dials and listens on ``/quic-v1`` addresses.

    :param identity: our libp2p key, which the certificate that others see carries.
    :param max_inbound_streams: streams that a peer may have open at a time on one connection.
    """

    def __init__(self, identity: PrivateKey, *, max_inbound_streams: int) -> None:
        credentials = make_credentials(identity)
        self._max_inbound_streams = max_inbound_streams
        self._client = make_configuration(credentials, is_client=True)
        self._server = make_configuration(credentials, is_client=False)
        self._network: Network | None = None

    def set_swarm(self, network: Network) -> None:
        """The network begins to run."""
        self._network = network

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Ask for a connection, and wait until the other side answers.

        :raises OpenConnectionError: nobody listens there.
        """
        network = self.network
        family, address = _socket_address(maddr)
        try:
            sock = open_client(family, address)
        except OSError as exc:
            raise OpenConnectionError(f"{maddr}: {exc}") from exc
        connection = Connection(
            lambda: Core(self._client, max_inbound_streams=self._max_inbound_streams),
            sock,
            address,
            lambda _: maddr,
            is_initiator=True,
        )
        try:
            connection.begin()
            network.start_soon(connection.run)
            network.start_soon(sock.read, connection, address)
            await connection.answered.wait()
            if connection.refused:
                raise OpenConnectionError(f"{maddr}: connection refused") from ConnectionRefusedError()
        except BaseException:
            connection.hang_up("The dial was given up.")
            raise
        return connection  # type: ignore[return-value]  # the network knows what to do with it

    def create_listener(self, handler_function: THandler) -> IListener:
        """A listener that hands over connections before their handshake."""
        return _Listener(self, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it is an address such as ``/ip4/192.0.2.1/udp/4001/quic-v1``."""
        return [protocol.name for protocol in maddr.protocols()] in _SHAPES

    def can_listen(self, maddr: Multiaddr) -> bool:
        """The same as for dialling."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """What an address must have one of."""
        return ["quic-v1"]

    @property
    def network(self) -> Network:
        """The network, while it runs."""
        if self._network is None:
            raise SwarmException("The swarm is not running.")
        return self._network

    def serve(
        self, header: QuicHeader, address: Any, original: bytes, own: bytes | None, sock: ServerSocket
    ) -> Connection:
        """What becomes of a client's first packet."""

        def make_core() -> Core:
            return Core(
                self._server,
                max_inbound_streams=self._max_inbound_streams,
                original_destination_connection_id=original,
                retry_source_connection_id=own,
            )

        return Connection(make_core, sock, address, _multiaddr, is_initiator=False)


class _Listener(IListener):
    """Listens on one address."""

    def __init__(self, transport: QuicTransport, handler: Callable[[Any], Awaitable[None]]) -> None:
        self._transport = transport
        self._handler = handler
        self._socket: ServerSocket | None = None
        self._address: Multiaddr | None = None

    async def listen(self, maddr: Multiaddr) -> None:
        """Listen.

        :raises OpenConnectionError: that is not possible.
        """
        network = self._transport.network
        family, (host, port, *_) = _socket_address(maddr)
        try:
            sock = open_server(family, host, port)
        except OSError as exc:
            raise OpenConnectionError(f"{maddr}: {exc}") from exc
        sock.must_prove_address = lambda: network.handshakes.is_crowded
        sock.incoming = lambda *first: self._incoming(network, sock, *first)
        self._socket = sock
        self._address = _multiaddr((sock.address, ()))
        network.start_soon(sock.read)
        await trio.lowlevel.checkpoint()

    def _incoming(
        self, network: Network, sock: ServerSocket, header: QuicHeader, address: Any, original: bytes, own: bytes | None
    ) -> Connection | None:
        if not network.has_room:
            return None
        connection = self._transport.serve(header, address, original, own, sock)
        try:
            network.start_soon(connection.run)
            network.start_soon(self._serve, connection)
        except SwarmException:
            connection.hang_up("The swarm is not running.")
            return None
        return connection

    async def _serve(self, connection: Connection) -> None:
        try:
            await self._handler(connection)
        finally:
            connection.hang_up("The connection was closed by this side.")

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """Where it listens, with the real port."""
        return () if self._address is None else (self._address,)

    async def close(self) -> None:
        """Stop listening, and end what has come in."""
        if self._socket is not None:
            for connection in self._socket.connections:
                connection.hang_up("The swarm is stopping.")
            self._socket.close()
        await trio.lowlevel.checkpoint()


def _socket_address(maddr: Multiaddr) -> tuple[int, tuple[Any, ...]]:
    (family, host), (_, port) = [(protocol.name, value) for protocol, value in maddr.items()][:2]
    if family == "ip6":
        return socket.AF_INET6, (str(host), int(str(port)), 0, 0)
    return socket.AF_INET, (str(host), int(str(port)))


def _multiaddr(address: Any) -> Multiaddr:
    (host, port, *_), _ = address
    host = host.partition("%")[0]
    return Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/udp/{port}/quic-v1")
