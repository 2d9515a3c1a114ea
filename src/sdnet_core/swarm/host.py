"""py-libp2p's network and host with the parts replaced that do not hold.

``Network`` is the library's ``Swarm`` with registration, inbound connections, dialling and shutdown of our own:
slots are free again when a connection closes, nothing dials by itself, one connection per peer is used whatever
happens at once, and a failing handler ends its stream and nothing else. ``Host`` is its ``BasicHost`` without tasks
outside our nursery. What runs on top of them (identify, ping, the DHT, relays) finds the interfaces it expects.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, IRawConnection, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.network.swarm import Swarm as Libp2pNetwork
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from .abc import Connected, Direction, Disconnected, SwarmEvent
from .yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from .yamux import Yamux, YamuxStream

__all__ = ["Connection", "Host", "Network", "SwarmLimits", "make_upgrader"]

logger = logging.getLogger(__name__)

_SIMULTANEOUS_S = 15.0
"""Connections in opposite directions that are made within this time were dialled at once: no dial takes longer."""
_DRAIN_IDLE_S = 1.0
"""How long the surplus connection of two must have had no stream before the lower of the peers closes it."""
_DRAIN_FOREIGN_IDLE_S = 4.0
"""The same for the higher one, whose peer may be another implementation that keeps both connections for ever."""
_CLOSE_ALL_S = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmLimits:
    """What a swarm allows.

    :param max_connections: connections at a time, in both directions.
    :param max_handshakes: inbound connections at a time that have not proved who they are.
    :param handshake_timeout_s: time for agreeing on security and multiplexer, in each direction.
    :param max_inbound_streams: streams that one peer may have open at a time on one connection.
    :param negotiate_timeout_s: time in which an inbound stream must name its protocol.
    :param connect_timeout_s: time for one address to answer at all.
    :param max_dial_addresses: addresses tried of one peer.
    :param max_parallel_dials: addresses of one peer tried at the same time.
    """

    max_connections: int = 4096
    max_handshakes: int = 64
    handshake_timeout_s: float = 10.0
    max_inbound_streams: int = 256
    negotiate_timeout_s: float = 10.0
    connect_timeout_s: float = 8.0
    max_dial_addresses: int = 64
    max_parallel_dials: int = 8


class _YamuxSelector(MuxerMultistream):
    """Makes our multiplexer; libp2p 0.8.1 makes its own for ``/yamux/1.0.0`` whatever class it is given."""

    def __init__(self, max_inbound_streams: int, negotiate_timeout_s: float) -> None:
        super().__init__({TProtocol(YAMUX_PROTOCOL_ID): Yamux}, int(negotiate_timeout_s))
        self._max_inbound_streams = max_inbound_streams

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = Yamux(conn, peer_id, max_inbound_streams=self._max_inbound_streams)
        return self._annotate_connection(muxed, conn, protocol)


def make_upgrader(security: Any, limits: SwarmLimits) -> TransportUpgrader:
    """An upgrader that knows exactly the given security protocols and our multiplexer."""
    upgrader = TransportUpgrader(security, {}, int(limits.handshake_timeout_s))
    upgrader.muxer_multistream = _YamuxSelector(limits.max_inbound_streams, limits.handshake_timeout_s)
    return upgrader


class Connection(SwarmConn):
    """A connection whose stream handlers end with it, and cannot end anything else."""

    muxed_conn: Yamux
    swarm: Network

    def __init__(self, muxed_conn: IMuxedConn, network: Network, direction: Direction, address: str) -> None:
        super().__init__(muxed_conn, network, direction.value)
        self.way = direction
        self.address = address
        self.set_transport_info(muxed_conn.get_transport_addresses(), muxed_conn.get_connection_type())
        self.opened_at = trio.current_time()
        self.generation = 0
        self._handlers = trio.CancelScope()
        muxed_conn.on_fail = self._handlers.cancel  # type: ignore[attr-defined]

    @property
    def peer_id(self) -> ID:
        """Who is at the other end, as the handshake proved."""
        return self.muxed_conn.peer_id

    async def start(self) -> None:
        """Serve the streams that the peer opens, until the connection is gone."""
        with self._handlers:
            async with trio.open_nursery() as nursery:
                self.event_started.set()
                while True:
                    try:
                        stream = await self.muxed_conn.accept_stream()
                    except MuxedConnUnavailable:
                        break
                    nursery.start_soon(self._serve, stream)
                nursery.cancel_scope.cancel()

    async def _serve(self, muxed_stream: YamuxStream) -> None:
        stream = self._wrap(muxed_stream)
        in_order = False
        try:
            await self.swarm.common_stream_handler(stream)
            in_order = True
        except Exception as exc:
            # A handler's failure must not leave this method: it would end the host.
            logger.debug("a stream from %s ended: %r", self.peer_id, exc)
        finally:
            if in_order:
                muxed_stream.finish()
                muxed_stream.close_read()
            else:
                muxed_stream.abort()
            self.streams.discard(stream)

    def _wrap(self, muxed_stream: YamuxStream) -> NetStream:
        stream = NetStream(muxed_stream, self, None)
        stream._state = StreamState.OPEN
        self.streams.add(stream)
        return stream

    async def open_muxed(self) -> YamuxStream:
        """Open a stream, without agreeing on a protocol.

        :raises MuxedStreamError: the connection is gone.
        """
        return await self.muxed_conn.open_stream()

    async def new_stream(self) -> NetStream:
        """Open a stream for the library's own protocols."""
        return self._wrap(await self.muxed_conn.open_stream())

    def end_handlers(self) -> None:
        """Cancel every handler of a stream of this connection."""
        self._handlers.cancel()

    async def close(self) -> None:
        """Close the connection, ending its handlers and streams at once."""
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        reason = self.muxed_conn.failure or "The connection was closed by this side."
        self.swarm.unregister(self, reason)
        self.end_handlers()
        with trio.CancelScope(shield=True):
            await self.muxed_conn.close()
            self.streams.clear()
            await self.swarm.notify_disconnected(self)


class Network(Libp2pNetwork):
    """py-libp2p's swarm, held together.

    :param emit: is told of every connection and disconnection, in order; must not block.
    :param accepting: whether new connections can be taken on now.
    :param admits: whether a connection with a peer may be.
    """

    def __init__(
        self,
        peer_id: ID,
        peerstore: Any,
        upgrader: TransportUpgrader,
        transports: list[Any],
        *,
        limits: SwarmLimits,
        emit: Callable[[SwarmEvent], None],
        accepting: Callable[[], bool],
        admits: Callable[[str], bool] = lambda _: True,
    ) -> None:
        super().__init__(
            peer_id,
            peerstore,
            upgrader,
            transports,
            retry_config=RetryConfig(max_retries=0),
            connection_config=ConnectionConfig(
                max_connections=limits.max_connections,
                high_watermark=limits.max_connections,
                # Nothing is dialled and nothing is pruned by itself.
                min_connections=0,
                low_watermark=0,
                inbound_upgrade_timeout=limits.handshake_timeout_s,
                outbound_upgrade_timeout=limits.handshake_timeout_s,
                inbound_stream_protocol_negotiation_timeout=limits.negotiate_timeout_s,
            ),
        )
        self.limits = limits
        self._emit = emit
        self._accepting = accepting
        self._admits = admits
        self._generation = 0
        self._handshakes = 0
        self.dialler: Callable[[ID, list[Multiaddr]], Awaitable[None]] | None = None
        self.connected = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Run until cancelled. The library's pruner and auto-connector are not started."""
        async with trio.open_nursery() as nursery:
            self.background_nursery = nursery
            self.transport_manager.set_background_nursery(nursery)
            self.transport_manager.set_swarm(self)
            self.event_background_nursery_created.set()
            try:
                await trio.sleep_forever()
            finally:
                self.background_nursery = None

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run something for as long as the network runs.

        :raises SwarmException: the network is not running.
        """
        if self.background_nursery is None or self._closing:
            raise SwarmException("The swarm is not running.")
        self.background_nursery.start_soon(function, *args)

    def best_connection(self, peer_id: ID) -> Connection | None:
        """The connection to use for new streams to a peer."""
        connections = self.connections.get(peer_id)
        return connections[0] if connections else None  # type: ignore[return-value]

    async def listen_on(self, address: Multiaddr) -> None:
        """Listen on one address.

        :raises OpenConnectionError: that is not possible.
        :raises SwarmException: no transport can listen on such an address.
        """

        async def handle(stream: ReadWriteCloser) -> None:
            await self._handle_inbound_connection(stream, address)

        if self.transport_manager.transport_for_listening(address) is None:
            raise SwarmException(f"there is no transport for {address}")
        listener = self.transport_manager.add_listen_addr(address, handle)
        if listener is None:
            raise SwarmException(f"there is no transport for {address}")
        await listener.listen(address)
        self.listeners[str(address)] = listener
        await self.notify_listen(address)

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        """Take on an inbound connection; returns when it has closed, which frees its slot."""
        if isinstance(read_write_closer, IMuxedConn):
            await (await self.add_conn(read_write_closer, "inbound")).event_closed.wait()
            return
        known = sum(map(len, self.connections.values()))
        if self._closing or not self._accepting() or known >= self.limits.max_connections:
            logger.debug("refusing a connection: %d are open", known)
            return
        if self._handshakes >= self.limits.max_handshakes:
            logger.debug("refusing a connection: %d handshakes are going on", self._handshakes)
            return
        remember_remote_address(read_write_closer)
        raw = RawConnection(read_write_closer, False)
        self._handshakes += 1
        try:
            with trio.fail_after(self.limits.handshake_timeout_s):
                muxed = await self.upgrade(raw, None)
        except Exception as exc:
            logger.debug("an inbound connection from %s failed: %r", raw.get_remote_address(), exc)
            return
        finally:
            self._handshakes -= 1
        try:
            connection = await self.add_conn(muxed, "inbound")
        except SwarmException as exc:
            logger.debug("an inbound connection from %s was refused: %s", muxed.peer_id, exc)
            return
        await connection.event_closed.wait()

    async def upgrade(self, raw: IRawConnection, peer_id: ID | None) -> Yamux:
        """Make a raw connection secure and multiplexed; the caller closes it when this fails.

        :param peer_id: who must be at the other end; None for an inbound connection.
        """
        secured = await self.upgrader.upgrade_security(raw, peer_id is not None, peer_id)
        remote = secured.get_remote_peer()
        if remote == self.self_id:
            raise SwarmException("that is this peer itself")
        muxed = await self.upgrader.upgrade_connection(secured, remote)
        assert isinstance(muxed, Yamux)
        return muxed

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown", address: str = "") -> Connection:
        """Start a multiplexed connection and register it."""
        way = Direction.INBOUND if direction == "inbound" else Direction.OUTBOUND
        if not address:
            addresses = muxed_conn.get_transport_addresses()
            address = str(addresses[0]) if addresses else ""
        connection = Connection(muxed_conn, self, way, address)
        try:
            self.start_soon(muxed_conn.start)
            await muxed_conn.event_started.wait()
            if muxed_conn.is_closed:
                raise SwarmException("the connection closed as it opened")
            if not self._admits(str(connection.peer_id)):
                raise SwarmException("that peer is not let in")
            if sum(map(len, self.connections.values())) >= self.limits.max_connections:
                raise SwarmException("there are too many connections")
            # First the registration, then the streams: no handler runs on a connection nobody was told of.
            self.start_soon(connection.start)
            self._register(connection)
        except BaseException:
            connection.event_closed.set()
            with trio.CancelScope(shield=True):
                await muxed_conn.close()
            raise
        await self.notify_connected(connection)
        return connection

    def _register(self, new: Connection) -> None:
        """Put a connection among its peer's, best first, and tell of it if it is the first."""
        peer_id = new.peer_id
        others: list[Any] = self.connections.get(peer_id, [])
        if others:
            old: Connection = others[0]
            if new.way is not old.way and new.opened_at - old.opened_at < _SIMULTANEOUS_S:
                # Both sides dialled at once and have both connections now. Both prefer the one that the lower peer id
                # dialled; the lower also closes the other one, once no stream is left on it, and the higher does so
                # later if the lower has not.
                we_are_lower = self.self_id.to_bytes() < peer_id.to_bytes()
                lower_dialled = Direction.OUTBOUND if we_are_lower else Direction.INBOUND
                new.generation = old.generation
                if new.way is lower_dialled:
                    self.connections[peer_id] = [new, *others]
                else:
                    self.connections[peer_id] = [*others, new]
                idle_s = _DRAIN_IDLE_S if we_are_lower else _DRAIN_FOREIGN_IDLE_S
                self.start_soon(self._drain, old if new.way is lower_dialled else new, idle_s)
                return
            # The peer has connected anew: it has lost the old connection, even if we were not told.
            for connection in list(others):
                self.start_soon(connection.close)
                self.unregister(connection, "The peer has connected anew.")
        self._generation += 1
        new.generation = self._generation
        self.connections[peer_id] = [new]
        self._emit(Connected(str(peer_id), new.address, new.way, new.generation))
        self.connected.unpark_all()

    async def _drain(self, connection: Connection, idle_s: float) -> None:
        """Close the surplus one of two connections when it has had no streams for ``idle_s``."""
        idle_since = trio.current_time()
        while not connection.is_closed:
            if connection.muxed_conn.streams:
                idle_since = trio.current_time()
            if trio.current_time() - idle_since >= idle_s:
                if len(self.connections.get(connection.peer_id, [])) > 1:
                    await connection.close()
                return
            with trio.move_on_after(idle_s / 4):
                await connection.event_closed.wait()

    def unregister(self, connection: Connection, reason: str) -> None:
        """A connection is gone; tell of it if it was the last."""
        peer_id = connection.peer_id
        others = self.connections.get(peer_id, [])
        if connection not in others:
            return
        others.remove(connection)
        if not others:
            del self.connections[peer_id]
            self._emit(Disconnected(str(peer_id), connection.generation, reason))

    async def close_peer(self, peer_id: ID) -> None:
        """Close every connection to a peer."""
        connections: list[Any] = list(self.connections.get(peer_id, []))
        for connection in connections:
            connection.end_handlers()
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.close)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Connect to a peer at the addresses that the peerstore knows, for the library's own protocols."""
        if peer_id not in self.connections:
            if self.dialler is None:
                raise SwarmException("The swarm cannot dial.")
            try:
                addresses = list(self.peerstore.addrs(peer_id))
            except Exception as exc:
                raise SwarmException(f"no address of {peer_id} is known") from exc
            await self.dialler(peer_id, addresses)
        return list(self.connections.get(peer_id, []))

    async def new_stream(self, peer_id: ID) -> NetStream:
        """Open a stream to a peer, for the library's own protocols."""
        if peer_id not in self.connections:
            await self.dial_peer(peer_id)
        connection = self.best_connection(peer_id)
        if connection is None:
            raise SwarmException(f"there is no connection to {peer_id}")
        try:
            return await connection.new_stream()
        except MuxedStreamError as exc:
            raise SwarmException(f"the connection to {peer_id} broke") from exc

    async def notify_disconnected(self, conn: INetConn) -> None:
        """Tell the library's parts; unlike the original this never dials anybody."""
        await self._notify("disconnected", conn)

    async def close(self) -> None:
        """Close every connection, then every listener; bounded in time."""
        if self._closing:
            return
        self._closing = True
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_ALL_S):
            async with trio.open_nursery() as nursery:
                for connections in list(self.connections.values()):
                    for connection in list(connections):
                        nursery.start_soon(connection.close)
        with trio.CancelScope(shield=True):
            for listener in list(self.listeners.values()):
                await listener.close()
            self.listeners.clear()
            await self.transport_manager.close_all()


def remember_remote_address(stream: Any) -> None:
    """Let a TCP stream know its peer's address; libp2p 0.8.1 does not understand IPv6's four-part ones."""
    if isinstance(stream, TrioTCPStream):
        try:
            peer = stream.stream.socket.getpeername()
        except OSError:
            return
        if stream.stream.socket.family in (socket.AF_INET, socket.AF_INET6):
            stream._cached_remote_address = (str(peer[0]), int(peer[1]))


class Host(BasicHost):
    """py-libp2p's host, with its background tasks in the network's nursery."""

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Ask a peer what it speaks; the original runs this outside any nursery, where a failure ends the program."""
        network = self._network
        if (
            not isinstance(network, Network)
            or peer_id == self.get_id()
            or peer_id in self._identify_inflight
            or self._has_cached_protocols(peer_id)
            or not self._should_identify_peer(peer_id)
        ):
            return

        async def identify() -> None:
            try:
                await self._identify_peer(peer_id, reason=reason)
            except Exception as exc:
                logger.debug("identifying %s: %r", peer_id, exc)
            finally:
                self._identify_inflight.discard(peer_id)

        try:
            network.start_soon(identify)
        except SwarmException:
            return
        self._identify_inflight.add(peer_id)
