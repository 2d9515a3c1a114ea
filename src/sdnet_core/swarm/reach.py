"""Ways to a peer other than dialling it: through a relay, and from there to a direct connection."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from typing import Any

from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from .abc import Path, Swarm, SwarmStream
from .connection import Connection
from .dialler import Dialler
from .host import Network
from .relay_client import Circuit, answer_call, call_through
from .relay_transport import CircuitStream

__all__ = ["Reach"]

logger = logging.getLogger(__name__)

RELAY_DIAL_TIMEOUT_S = 8.0


class Reach:
    """What a swarm does to reach peers through relays and around them."""

    def __init__(self, swarm: Swarm, network: Network, dialler: Dialler) -> None:
        self._swarm = swarm
        self._network = network
        self._dialler = dialler

    def path(self, peer_id: ID) -> Path | None:
        """How a peer is connected now."""
        best = self._network.best_connection(peer_id)
        if best is None:
            return None
        circuit = _circuit(best)
        if circuit is None:
            return Path(best.address, best.relayed, best.way, best.generation)
        return Path(best.address, best.relayed, best.way, best.generation, circuit.used, circuit.limited)

    async def call(self, address: str, relay: str, peer_id: str) -> Circuit:
        """Make a circuit to a peer, over a connection to the relay that is made if there is none.

        Errors: as `call_through` and `Swarm.dial`.
        """
        if not self._swarm.is_connected(relay):
            await self._swarm.dial(relay, [address], timeout_s=RELAY_DIAL_TIMEOUT_S)
        return await call_through(self._swarm, relay, peer_id)

    async def answer(self, stream: SwarmStream) -> None:
        """A relay has a call for us: take it if we have a place there, and stay with it until it ends."""
        relay = stream.peer_id
        circuit = await answer_call(stream, take=relay in self._swarm.relays)
        if circuit is not None:
            address = Multiaddr(f"{self._swarm.remote_address(relay) or ''}/p2p/{relay}/p2p-circuit")
            await self._network._handle_inbound_connection(CircuitStream(circuit, address), address)

    async def improve(self, peer_id: ID, addresses: list[Multiaddr]) -> None:
        """Have a direct connection to a peer that is connected through a relay.

        :raises SwarmException: no address answered.
        """
        best = self._network.best_connection(peer_id)
        if best is None:
            raise SwarmException("there is no connection to improve")
        if best.relayed:
            await self._dialler.race(peer_id, addresses, newer_than=best.generation)

    async def renew(self, peer_id: ID) -> None:
        """Have a fresh circuit through the same relay.

        :raises SwarmException: there is none to be had.
        """
        best = self._network.best_connection(peer_id)
        if best is None or not best.relayed:
            raise SwarmException("there is no circuit to renew")
        way = Multiaddr(f"{best.address}/p2p/{peer_id}")
        await self._dialler.race(peer_id, [way], newer_than=best.generation)


def _circuit(connection: Connection) -> CircuitStream | None:
    """The circuit that a connection runs on, if it does."""
    raw: Any = getattr(getattr(connection.muxed_conn, "secured_conn", None), "conn", None)
    stream = getattr(raw, "stream", None)
    return stream if isinstance(stream, CircuitStream) else None
