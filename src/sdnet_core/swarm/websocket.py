"""Connections over WebSocket (``/ip4/…/tcp/…/ws``): a TCP connection that begins as HTTP, for networks that let only
that through.

What is inside is protected by Noise as on TCP, so there is no TLS here (no ``/wss``). The frames are wsproto's; unlike
libp2p 0.8.1's own WebSocket transport this one needs no tasks of its own, keeps no more than one read, and counts the
HTTP part of an inbound connection among the handshakes, which are limited in time and number.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import trio
import wsproto
import wsproto.events
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .tcp import prepare_socket

__all__ = ["WebSocketStream", "WebSocketTransport"]

_READ_BYTES = 64 * 1024
_CLOSE_S = 0.1
_WS = Multiaddr("/ws")


class WebSocketStream(ReadWriteCloser):
    """The bytes inside the binary messages of one WebSocket; where messages begin and end means nothing.

    :param host: for the HTTP request of the side that dials; None for the side that is dialled.
    """

    def __init__(self, tcp: TrioTCPStream, host: str | None) -> None:
        prepare_socket(tcp)
        self._tcp = tcp
        self._host = host
        kind = wsproto.ConnectionType.SERVER if host is None else wsproto.ConnectionType.CLIENT
        self._protocol = wsproto.WSConnection(kind)
        self._received = bytearray()
        self._is_open = False
        self._ended = False
        self._opening = trio.Lock()
        self._sending = trio.Lock()

    async def open(self) -> None:
        """Do the HTTP part, once; reading and writing do it if nobody has.

        :raises ConnectionClosedError: the other side does not speak WebSocket, or has gone.
        """
        async with self._opening:
            if self._is_open:
                return
            if self._host is not None:
                await self._send(wsproto.events.Request(host=self._host, target="/"))
            while not self._is_open:
                if not await self._receive():
                    raise ConnectionClosedError("The connection ended before it was a WebSocket.", transport="ws")

    async def read(self, n: int | None = None) -> bytes:
        """Receive at least one and at most ``n`` bytes; none at the end.

        :raises ConnectionClosedError: the connection is lost, or the other side breaks the rules.
        """
        if not self._is_open:
            await self.open()
        while not self._received:
            if self._ended or not await self._receive():
                return b""
        data = bytes(self._received[:n])
        del self._received[: len(data)]
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data`` as one message.

        :raises ConnectionClosedError: the connection is lost.
        """
        if not self._is_open:
            await self.open()
        await self._send(wsproto.events.BytesMessage(data=data))

    async def close(self) -> None:
        """Say good-bye if the other side takes it at once, and close."""
        self._ended = True
        try:
            if self._is_open and not self._sending.locked():
                with trio.move_on_after(_CLOSE_S):
                    await self._send(wsproto.events.CloseConnection(code=1000))
        except ConnectionClosedError:
            pass
        finally:
            await self._tcp.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self._tcp.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The peer's address on this connection."""
        return [one.encapsulate(_WS) for one in RawConnection(self._tcp, False).get_transport_addresses()]

    async def _send(self, event: wsproto.events.Event) -> None:
        async with self._sending:
            try:
                await self._tcp.stream.send_all(self._protocol.send(event))
            except (LocalProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise ConnectionClosedError(f"The WebSocket was lost: {exc}.", transport="ws") from exc

    async def _receive(self) -> bool:
        """Take one read of the socket in; False when there is nothing more to come."""
        try:
            data = await self._tcp.stream.receive_some(_READ_BYTES)
            # An empty read tells wsproto of an end without a good-bye; what it says of that is no news.
            self._protocol.receive_data(bytes(data) or None)
            if not data:
                self._ended = True
                return False
            for event in self._protocol.events():
                await self._take(event)
        except (RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError(f"The WebSocket was lost: {exc}.", transport="ws") from exc
        return True

    async def _take(self, event: wsproto.events.Event) -> None:
        match event:
            case wsproto.events.BytesMessage(data=data):
                self._received += data
            case wsproto.events.Request():
                await self._send(wsproto.events.AcceptConnection())
                self._is_open = True
            case wsproto.events.AcceptConnection():
                self._is_open = True
            case wsproto.events.Ping():
                await self._send(event.response())
            case wsproto.events.CloseConnection():
                self._ended = True
            case wsproto.events.Pong():
                pass
            case _:
                # Text, or an answer that refuses the WebSocket.
                raise ConnectionClosedError(f"The other side sent a {type(event).__name__}.", transport="ws")


class _Listener(TCPListener):
    """A TCP listener whose addresses are WebSocket's."""

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(address.encapsulate(_WS) for address in super().get_addrs())


class WebSocketTransport(ITransport):
    """Dials and listens on ``/ws`` addresses."""

    def __init__(self) -> None:
        self._tcp = TCP()

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect, and do the HTTP part.

        :raises OpenConnectionError: nobody listens there.
        :raises ConnectionClosedError: who listens there does not speak WebSocket.
        """
        raw = await self._tcp.dial(maddr.decapsulate(_WS))
        tcp = raw.stream  # type: ignore[attr-defined]
        host = next(str(value) for _, value in maddr.items())
        name = f"[{host}]" if ":" in host else host
        stream = WebSocketStream(tcp, f"{name}:{maddr.value_for_protocol('tcp')}")
        try:
            await stream.open()
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.close()
            raise
        return RawConnection(stream, True, addresses=[maddr])

    def create_listener(self, handler_function: THandler) -> IListener:
        """A listener that hands over WebSockets; their HTTP part is done when they are first used."""

        async def handle(tcp: ReadWriteCloser) -> None:
            assert isinstance(tcp, TrioTCPStream)
            await handler_function(WebSocketStream(tcp, None))

        return _Listener(handle)

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it is an address such as ``/ip4/192.0.2.1/tcp/80/ws``."""
        return [protocol.name for protocol in maddr.protocols()][1:] == ["tcp", "ws"]

    def can_listen(self, maddr: Multiaddr) -> bool:
        """The same as for dialling."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """What an address must have one of."""
        return ["ws"]
