"""One connection of the network: serves the streams that its peer opens."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from typing import TYPE_CHECKING

import trio
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from ..log_context import log_context
from .abc import Direction
from .muxed import MuxedConnection, MuxedStream
from .relay_transport import is_relayed

if TYPE_CHECKING:
    from .host import Network

__all__ = ["Connection"]

logger = logging.getLogger(__name__)


class Connection(SwarmConn):
    """A connection whose stream handlers end with it, and cannot end anything else."""

    muxed_conn: MuxedConnection
    swarm: Network

    def __init__(self, muxed_conn: MuxedConnection, network: Network, direction: Direction, address: str) -> None:
        super().__init__(muxed_conn, network, direction.value)
        self.way = direction
        way, circuit, _ = address.partition("/p2p-circuit")
        self.address = way + circuit
        self.set_transport_info(muxed_conn.get_transport_addresses(), muxed_conn.get_connection_type())
        self.opened_at = self.begun_at = trio.current_time()
        self.generation = 0
        self.is_stranger = False
        self.half_open = 0
        self._handlers = trio.CancelScope()
        muxed_conn.on_fail = self._handlers.cancel

    @property
    def relayed(self) -> bool:
        """Whether it goes through a relay."""
        return is_relayed(self.address)

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
                    # A stream that the peer has reset counts for as long as its handler runs.
                    if len(nursery.child_tasks) >= self.swarm.limits.max_inbound_streams:
                        stream.abort("Too many streams of the peer are being served.")
                    else:
                        nursery.start_soon(self._serve, stream)
                nursery.cancel_scope.cancel()

    async def _serve(self, muxed_stream: MuxedStream) -> None:
        stream = self._wrap(muxed_stream)
        in_order = False
        try:
            with log_context(peer_id=str(self.peer_id)):
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

    def _wrap(self, muxed_stream: MuxedStream) -> NetStream:
        stream = NetStream(muxed_stream, self, None)
        stream._state = StreamState.OPEN
        self.streams.add(stream)
        return stream

    async def open_muxed(self) -> MuxedStream:
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
        failure, now = self.muxed_conn.failure, trio.current_time()
        if failure and not self.muxed_conn.peer_left:
            self.swarm.broken_relays.note(self.address, lived_s=now - self.opened_at, now=now)
        reason = failure or "The connection was closed by this side."
        self.swarm.unregister(self, reason)
        self.end_handlers()
        with trio.CancelScope(shield=True):
            await self.muxed_conn.close()
            self.streams.clear()
            await self.swarm.notify_disconnected(self)
