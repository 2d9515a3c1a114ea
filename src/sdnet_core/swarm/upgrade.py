"""What a swarm allows, and what turns raw connections into secure and multiplexed ones."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from dataclasses import dataclass
from typing import Any

from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.upgrader import TransportUpgrader

from .yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from .yamux import Yamux

__all__ = ["SwarmLimits", "make_upgrader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmLimits:
    """What a swarm allows.

    :param max_connections: connections at a time, in both directions.
    :param max_strangers: how many of them may be inbound ones of peers that are not known here.
    :param max_handshakes: inbound connections at a time that have not proved who they are; the oldest makes room.
    :param handshake_timeout_s: time for agreeing on security and multiplexer, in each direction.
    :param max_inbound_streams: streams that one peer may have open at a time on one connection.
    :param max_half_open_streams: how many of these may not have named their protocol yet.
    :param negotiate_timeout_s: time in which an inbound stream must name its protocol.
    :param connect_timeout_s: time for one address to answer at all.
    :param max_dial_addresses: addresses tried of one peer.
    :param max_parallel_dials: addresses of one peer tried at the same time.
    :param upgrade_stagger_s: time for the handshake with one address before that with the next that answered begins.
    :param transport_head_start_s: time for the addresses of one transport before those of the next are tried as well.
    :param relay_head_start_s: time for all direct addresses before those that go through relays are tried as well.
    """

    max_connections: int = 4096
    max_strangers: int = 4096
    max_handshakes: int = 64
    handshake_timeout_s: float = 10.0
    max_inbound_streams: int = 256
    max_half_open_streams: int = 128
    negotiate_timeout_s: float = 10.0
    connect_timeout_s: float = 8.0
    max_dial_addresses: int = 64
    max_parallel_dials: int = 8
    upgrade_stagger_s: float = 0.25
    transport_head_start_s: float = 0.25
    relay_head_start_s: float = 0.75


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
