"""Connects to one peer at many addresses: all are tried at once, one connection comes out.

The transports' raw dials are raced; whoever answers is upgraded, one at a time, until one turns out to be the peer.
There are no fixed pauses, no repeats and no memory of failures: when to try again is for the layers above.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging

import trio
from libp2p.abc import IRawConnection
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from multiaddr import Multiaddr

from .host import Network, remember_remote_address

__all__ = ["Dialler"]

logger = logging.getLogger(__name__)

_CROWDED_HANDSHAKE_S = 3.0
"""Time for one address's handshake while other addresses wait for their turn."""


class Dialler:
    """Dials for a :class:`Network`."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._running: dict[ID, trio.Event] = {}

    async def dial(self, peer_id: ID, addresses: list[Multiaddr]) -> None:
        """Have a connection to a peer. Cancel-safe.

        :raises SwarmException: no address answered as that peer; the message says what each one did.
        """
        while peer_id in self._running and peer_id not in self._network.connections:
            await self._running[peer_id].wait()
        if peer_id in self._network.connections:
            return
        done = self._running[peer_id] = trio.Event()
        try:
            reasons = await self._race(peer_id, addresses[: self._network.limits.max_dial_addresses])
        finally:
            del self._running[peer_id]
            done.set()
        if peer_id not in self._network.connections:
            raise SwarmException("; ".join(reasons) or "no address is known")

    async def _race(self, peer_id: ID, addresses: list[Multiaddr]) -> list[str]:
        """Try all addresses; returns what went wrong with each."""
        reasons: list[str] = []
        send, receive = trio.open_memory_channel[tuple[Multiaddr, IRawConnection]](0)
        upgrading = False

        async def stop_when_connected() -> None:
            # The peer may reach us while we try to reach it. A handshake that has begun is finished, though: if both
            # sides gave theirs up for the other's, none would be left.
            while upgrading or peer_id not in self._network.connections:
                await self._network.connected.park()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_when_connected)
            nursery.start_soon(self._open_all, peer_id, addresses, send, reasons)
            async with receive:
                async for address, raw in receive:
                    upgrading = True
                    limit_s = self._network.limits.handshake_timeout_s
                    if len(addresses) > 1:
                        limit_s = min(limit_s, _CROWDED_HANDSHAKE_S)
                    await self._upgrade(peer_id, address, raw, limit_s, reasons)
                    upgrading = False
                    if peer_id in self._network.connections:
                        break
            nursery.cancel_scope.cancel()
        return reasons

    async def _open_all(
        self,
        peer_id: ID,
        addresses: list[Multiaddr],
        send: trio.MemorySendChannel[tuple[Multiaddr, IRawConnection]],
        reasons: list[str],
    ) -> None:
        limiter = trio.CapacityLimiter(self._network.limits.max_parallel_dials)
        async with send, trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(self._open, peer_id, address, limiter, send, reasons)

    async def _open(
        self,
        peer_id: ID,
        address: Multiaddr,
        limiter: trio.CapacityLimiter,
        send: trio.MemorySendChannel[tuple[Multiaddr, IRawConnection]],
        reasons: list[str],
    ) -> None:
        """Open the raw connection of one address and hand it over."""
        async with limiter:
            try:
                transport = self._network.transport_manager.transport_for_dialing(address)
                if transport is None:
                    reasons.append(f"{address}: no transport for it")
                    return
                with trio.fail_after(self._network.limits.connect_timeout_s):
                    raw = await transport.dial(address)
            except Exception as exc:
                reasons.append(f"{address}: {_explain(exc)}")
                return
        try:
            await send.send((address, raw))
        except trio.BrokenResourceError:
            await _discard(raw)
        except BaseException:
            await _discard(raw)
            raise

    async def _upgrade(
        self, peer_id: ID, address: Multiaddr, raw: IRawConnection, limit_s: float, reasons: list[str]
    ) -> None:
        """Make a connection of what answered, if it is the peer."""
        try:
            if isinstance(raw, RawConnection):
                remember_remote_address(raw.stream)
            with trio.fail_after(limit_s):
                muxed = await self._network.upgrade(raw, peer_id)
            await self._network.add_conn(muxed, "outbound", str(address))
        except Exception as exc:
            reasons.append(f"{address}: {_explain(exc)}")
            await _discard(raw)
        except BaseException:
            await _discard(raw)
            raise


async def _discard(closer: ReadWriteCloser | IRawConnection) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1):
        try:
            await closer.close()
        except Exception as exc:
            logger.debug("closing a connection: %r", exc)


def _explain(exc: BaseException) -> str:
    """What went wrong with an address, in a few words for a person."""
    causes: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    for cause in causes:
        if isinstance(cause, PeerIDMismatchesPubkey):
            return "another peer answered"
        if isinstance(cause, trio.TooSlowError):
            return "no answer in time"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
    for cause in causes:
        if isinstance(cause, BaseExceptionGroup):
            return "; ".join(dict.fromkeys(_explain(one) for one in cause.exceptions))
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return str(causes[-1]) or type(causes[-1]).__name__
