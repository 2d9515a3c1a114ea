"""Circuits as connections of the swarm: addresses such as ``/ip4/…/tcp/…/p2p/RELAY/p2p-circuit`` can be dialled."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections.abc import Awaitable, Callable

import anyio
import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from .relay_client import Circuit
from .relay_messages import Limit

__all__ = ["CircuitStream", "CircuitTransport", "is_relayed"]

RENEW_SHARE = 0.5
"""When so much of what a circuit may carry or last is used up, it is time for another one."""

Call = Callable[[str, str, str], Awaitable[Circuit]]
"""Makes a circuit: address of the relay, its peer id, and whom to call."""


def is_relayed(address: object) -> bool:
    """Whether an address goes through a relay."""
    return "/p2p-circuit" in str(address)


class CircuitStream(ReadWriteCloser):
    """The bytes of a circuit; knows how much of its limits is left."""

    def __init__(self, circuit: Circuit, address: Multiaddr) -> None:
        self._stream = circuit.stream
        self._pending = circuit.pending
        self._address = address
        self._limit: Limit = circuit.limit
        self._opened_at = trio.current_time()
        self._read_bytes = len(circuit.pending)
        self._written_bytes = 0

    @property
    def limited(self) -> bool:
        """Whether it may not last, or carry, as much as one likes."""
        return bool(self._limit.duration_s or self._limit.data_bytes)

    @property
    def used(self) -> float:
        """How much of its limits is used up, 0 to 1."""
        shares = [0.0]
        if self._limit.duration_s:
            shares.append((trio.current_time() - self._opened_at) / self._limit.duration_s)
        if self._limit.data_bytes:
            shares.append(max(self._read_bytes, self._written_bytes) / self._limit.data_bytes)
        return max(shares)

    async def read(self, n: int | None = None) -> bytes:
        """Receive at least one and at most ``n`` bytes; none at the end.

        :raises ConnectionClosedError: the circuit is lost.
        """
        if not self._pending:
            try:
                self._pending = await self._stream.receive(65536)
            except anyio.EndOfStream:
                return b""
            except anyio.ClosedResourceError:
                return b""
            except anyio.BrokenResourceError as exc:
                raise ConnectionClosedError(f"The relay ended the connection: {exc}", transport="circuit") from exc
            self._read_bytes += len(self._pending)
        data = self._pending[:n]
        self._pending = self._pending[len(data) :]
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes.

        :raises ConnectionClosedError: the circuit is lost.
        """
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise ConnectionClosedError(f"The relay ended the connection: {exc}", transport="circuit") from exc
        self._written_bytes += len(data)

    async def close(self) -> None:
        """End the circuit."""
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Not known: the relay stands in between."""
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The relay's address."""
        return [self._address]


class CircuitTransport(ITransport):
    """Dials through relays.

    :param call: makes a circuit.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    @staticmethod
    def protocols() -> list[str]:
        """What its addresses have in common."""
        return ["p2p-circuit"]

    def listen_order(self) -> int:
        """Asked before all others, which would take such an address for the relay's own."""
        return -1

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Make a circuit to the peer that the address ends with. Errors: as `call_through` and `Swarm.dial`."""
        way, _, target = str(maddr).partition("/p2p-circuit")
        relay_address, _, relay = way.rpartition("/p2p/")
        circuit = await self._call(relay_address, relay, target.removeprefix("/p2p/"))
        stream = CircuitStream(circuit, Multiaddr(f"{way}/p2p-circuit"))
        return RawConnection(stream, True, ConnectionType.RELAYED, stream.get_transport_addresses())

    def create_listener(self, handler_function: THandler) -> IListener:
        """Nobody listens on circuits: relays bring them."""
        raise NotImplementedError("Circuits come through reservations.")

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it is an address of a circuit."""
        return is_relayed(maddr)

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Never."""
        return False
