"""py-libp2p's network and host with the parts replaced that do not hold.

``Network`` is the library's ``Swarm`` with registration, inbound connections, dialling and shutdown of our own:
slots are free again when a connection closes, nothing dials by itself, one connection per peer is used whatever
happens at once, and a failing handler ends its stream and nothing else. ``Host`` is its ``BasicHost`` without tasks
outside our nursery. What runs on top of them (identify, ping, the DHT, relays) finds the interfaces it expects.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm as Libp2pNetwork
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from ..errors import ProtocolError
from .abc import Connected, Direction, Disconnected, PathChanged, SwarmEvent
from .broken_relays import BrokenRelays
from .connection import Connection
from .handshakes import Handshakes
from .muxed import MuxedConnection, MuxedStream, OwnSecurity
from .negotiation import answer, select
from .paths import Rank, judge
from .tcp import prepare_socket
from .upgrade import SwarmLimits, make_upgrader

__all__ = ["Connection", "Host", "Network", "SwarmLimits", "make_upgrader"]

logger = logging.getLogger(__name__)

_SIMULTANEOUS_S = 3.0
"""A peer whose dial reaches us so soon after ours reached it began before it knew of ours; later it has lost ours."""
_CONFIRM_S = 5.0
_PING_PROTOCOL = "/ipfs/ping/1.0.0"
"""Every libp2p peer answers to it, be it to say that it does not speak it."""
_DRAIN_IDLE_S = 1.0
"""How long the surplus connection of two must have had no stream before the lower of the peers closes it."""
_DRAIN_FOREIGN_IDLE_S = 4.0
"""The same for the higher one, whose peer may be another implementation that keeps both connections for ever."""
_MAX_OLD_PATHS = 2
"""Connections to one peer that may still be draining when a better one comes."""
_CLOSE_ALL_S = 0.7
_MAX_GONE = 256
"""Peers without a connection of which identify's results are kept; anybody can make many."""


class Network(Libp2pNetwork):
    """py-libp2p's swarm, held together.

    :param emit: is told of every connection and disconnection, in order; must not block.
    :param accepting: whether new connections can be taken on now.
    :param admits: whether a connection with a peer may be.
    :param knows: whether a peer is one that does not count as a stranger.
    :param awaits_stranger: whether strangers that are there make room for a new one.
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
        knows: Callable[[str], bool] = lambda _: True,
        awaits_stranger: Callable[[], bool] = lambda: False,
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
        self._knows = knows
        self._awaits_stranger = awaits_stranger
        self._generation = 0
        self.handshakes = Handshakes(limits.max_handshakes)
        self.broken_relays = BrokenRelays()
        self._gone: dict[ID, None] = {}
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

    @property
    def has_room(self) -> bool:
        """Whether connections are taken on now."""
        known = sum(map(len, self.connections.values()))
        return not self._closing and self._accepting() and known < self.limits.max_connections

    async def _handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser | OwnSecurity, maddr: Multiaddr
    ) -> None:
        """Take on an inbound connection; returns when it has closed, which frees its slot."""
        if not self.has_room:
            logger.debug("refusing a connection: too many are open")
            return
        begun_at = trio.current_time()
        raw: IRawConnection | OwnSecurity
        if isinstance(read_write_closer, OwnSecurity):
            raw = read_write_closer
        else:
            prepare_socket(read_write_closer)
            # A transport of ours knows its address better than the library, which takes everything for TCP.
            tell = getattr(read_write_closer, "get_transport_addresses", None)
            raw = RawConnection(read_write_closer, False, addresses=tell() if tell is not None else None)
        if not await self.handshakes.make_room():
            logger.debug("refusing a connection: too many wait for their handshake")
            return
        with self.handshakes.slot() as slot:
            try:
                with trio.fail_after(self.limits.handshake_timeout_s):
                    muxed = await self.multiplex(await self.secure(raw, None))
            except Exception as exc:
                logger.debug("an inbound connection from %s failed: %r", raw.get_transport_addresses(), exc)
                return
        if slot.cancelled_caught:
            logger.debug("an inbound connection from %s made room", raw.get_transport_addresses())
            return
        try:
            connection = await self.add_conn(muxed, "inbound", begun_at=begun_at)
        except SwarmException as exc:
            logger.debug("an inbound connection from %s was refused: %s", raw.get_transport_addresses(), exc)
            return
        await connection.event_closed.wait()

    async def secure(self, raw: IRawConnection | OwnSecurity, peer_id: ID | None) -> ISecureConn | OwnSecurity:
        """Make a raw connection secure, if the peer is one that may connect; the caller closes it when this fails.

        :param peer_id: who must be at the other end; None for an inbound connection.
        """
        secured: ISecureConn | OwnSecurity
        if isinstance(raw, OwnSecurity):
            await raw.authenticate(peer_id)
            secured, remote = raw, raw.peer_id
        else:
            secured = await self.upgrader.upgrade_security(raw, peer_id is not None, peer_id)
            remote = secured.get_remote_peer()
        if remote == self.self_id:
            raise SwarmException("that is this peer itself")
        if not self._admits(str(remote)):
            raise SwarmException("that peer may not connect")
        return secured

    async def multiplex(self, secured: ISecureConn | OwnSecurity) -> MuxedConnection:
        """Agree on the multiplexer; the caller closes the raw connection when this fails."""
        if isinstance(secured, OwnSecurity):
            await secured.agree()
            return secured
        muxed = await self.upgrader.upgrade_connection(secured, secured.get_remote_peer())
        assert isinstance(muxed, MuxedConnection)
        return muxed

    async def add_conn(
        self,
        muxed_conn: IMuxedConn,
        direction: str = "unknown",
        address: str = "",
        *,
        begun_at: float | None = None,
    ) -> Connection:
        """Start a multiplexed connection and register it.

        :param begun_at: when it was accepted, or when dialling the peer began; now when None.
        """
        assert isinstance(muxed_conn, MuxedConnection)
        way = Direction.INBOUND if direction == "inbound" else Direction.OUTBOUND
        if not address:
            addresses = muxed_conn.get_transport_addresses()
            address = str(addresses[0]) if addresses else ""
        connection = Connection(muxed_conn, self, way, address)
        if begun_at is not None:
            connection.begun_at = begun_at
        try:
            self.start_soon(muxed_conn.start)
            await muxed_conn.event_started.wait()
            if muxed_conn.is_closed:
                raise SwarmException("the connection closed as it opened")
            if not self._admits(str(connection.peer_id)):
                raise SwarmException("that peer is not let in")
            if sum(map(len, self.connections.values())) >= self.limits.max_connections:
                raise SwarmException("there are too many connections")
            if way is Direction.INBOUND:
                connection.is_stranger = not self._knows(str(connection.peer_id))
                if connection.is_stranger:
                    await self._make_room_among_strangers()
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

    async def _make_room_among_strangers(self) -> None:
        """Have a stranger leave if there are as many as may be, and one is waited for.

        :raises SwarmException: none is.
        """
        while len(strangers := self._strangers()) >= self.limits.max_strangers:
            if not self._awaits_stranger():
                raise SwarmException("there are too many connections of strangers")
            # Whoever is meant says so at once, and is known from then on: the one that idles for longest is not meant.
            await min(strangers, key=lambda connection: (bool(connection.streams), connection.opened_at)).close()

    def _strangers(self) -> list[Connection]:
        """The connections of peers that we do not know; some may have become known since they connected."""
        strangers = [connection for connection in self._all_connections() if connection.is_stranger]
        for connection in strangers:
            connection.is_stranger = not self._knows(str(connection.peer_id))
        return [connection for connection in strangers if connection.is_stranger]

    def _all_connections(self) -> Iterator[Connection]:
        for connections in self.connections.values():
            yield from connections  # type: ignore[misc]

    def _register(self, new: Connection) -> None:
        """Put a connection among its peer's, best first, and tell of it if it is the first."""
        peer_id = new.peer_id
        others: list[Any] = self.connections.get(peer_id, [])
        if others:
            old: Connection = others[0]
            we_are_lower = self.self_id.to_bytes() < peer_id.to_bytes()
            rank = judge(
                old_relayed=old.relayed,
                new_relayed=new.relayed,
                opposite=new.way is not old.way,
                soon=new.begun_at - old.opened_at < _SIMULTANEOUS_S,
                we_are_lower=we_are_lower,
                we_dialled=new.way is Direction.OUTBOUND,
            )
            if rank is Rank.BETTER:
                self._prefer(new, others)
                return
            if rank is not Rank.ANEW:
                # Both sides dialled at once and have both connections now. Both prefer the one that the lower peer id
                # dialled; the lower also closes the other one, once no stream is left on it, and the higher does so
                # later if the lower has not.
                first = rank is Rank.FIRST
                new.generation = old.generation
                self.connections[peer_id] = [new, *others] if first else [*others, new]
                if not first:
                    self.start_soon(self._confirm, old)
                idle_s = _DRAIN_IDLE_S if we_are_lower else _DRAIN_FOREIGN_IDLE_S
                self.start_soon(self._drain, old if first else new, idle_s)
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

    async def _confirm(self, connection: Connection) -> None:
        """Close a connection that new streams would go to if nothing answers on it any more."""
        with trio.move_on_after(_CONFIRM_S) as deadline, contextlib.suppress(MuxedStreamError, ProtocolError):
            stream = await connection.open_muxed()
            try:
                await select(stream, [_PING_PROTOCOL])
            finally:
                stream.abort()
        if deadline.cancelled_caught:
            await connection.close()

    def _prefer(self, new: Connection, others: list[Any]) -> None:
        """Use a better connection beside those that there are."""
        peer_id = new.peer_id
        self._generation += 1
        new.generation = self._generation
        self.connections[peer_id] = [new, *others]
        for connection in others[:_MAX_OLD_PATHS]:
            self.start_soon(self._drain, connection, _DRAIN_FOREIGN_IDLE_S)
        for connection in others[_MAX_OLD_PATHS:]:
            self.start_soon(connection.close)
        self._emit(PathChanged(str(peer_id), new.address, new.way, new.generation))
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
            self._remember_gone(peer_id)

    def _remember_gone(self, peer_id: ID) -> None:
        """Keep what the library stores about peers that have gone for the last few of them only."""
        self._gone.pop(peer_id, None)
        self._gone[peer_id] = None
        while len(self._gone) > _MAX_GONE:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            if oldest not in self.connections and self.peerstore.has_peer(oldest):
                self.peerstore.clear_peerdata(oldest)

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
                for connection in list(self._all_connections()):
                    nursery.start_soon(connection.close)
        with trio.CancelScope(shield=True):
            for listener in list(self.listeners.values()):
                await listener.close()
            self.listeners.clear()
            await self.transport_manager.close_all()


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

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        """Let the peer name a protocol, and run its handler."""
        muxed, connection = getattr(net_stream, "muxed_stream", None), getattr(net_stream, "swarm_conn", None)
        if not isinstance(muxed, MuxedStream) or not isinstance(connection, Connection):
            await super()._swarm_stream_handler(net_stream)
            return
        limits = connection.swarm.limits
        if connection.half_open >= limits.max_half_open_streams:
            muxed.abort("Too many streams have not named their protocol.")
            return
        connection.half_open += 1
        try:
            with trio.fail_after(limits.negotiate_timeout_s):
                protocol = TProtocol(await answer(muxed, self.multiselect.handlers))
        finally:
            connection.half_open -= 1
        handler = self.multiselect.handlers.get(protocol)
        if handler is None:
            muxed.abort()
            return
        net_stream.set_protocol(protocol)
        await handler(net_stream)
