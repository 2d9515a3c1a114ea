"""Connects to one peer at many addresses: all are tried at once, one connection comes out.

The transports' raw dials are raced. The first that answers has a quarter of a second for its handshake before the next
one begins as well, so an address where somebody listens and says nothing costs no more than that. The addresses of a
preferred transport have as long a start over those of the next, or until they have all failed; so have all relays over
those through which a connection broke a while ago. There are no fixed pauses, no repeats and no other memory of
failures: when to try again is for the layers above.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from itertools import zip_longest

import trio
from libp2p.abc import IRawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from multiaddr import Multiaddr

from .host import Network
from .muxed import OwnSecurity
from .relay_transport import is_relayed
from .tcp import prepare_socket
from .transports import preference

__all__ = ["Dialler"]

logger = logging.getLogger(__name__)

Raw = IRawConnection | OwnSecurity
"""What a transport makes of an address that answers."""
_CROWDED_COMMIT_S = 3.0
"""Time for agreeing on the multiplexer with one address while others wait for their turn."""


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
            await self.race(peer_id, addresses)
        finally:
            del self._running[peer_id]
            done.set()

    async def race(self, peer_id: ID, addresses: list[Multiaddr], *, newer_than: int = 0) -> None:
        """Try all addresses, whatever else is going on with the peer.

        :param newer_than: the generation of a connection that does not count, because a better one is wanted.
        :raises SwarmException: as :meth:`dial`.
        """
        race = _Race(self._network, peer_id, addresses[: self._network.limits.max_dial_addresses], newer_than)
        await race.run()
        if not race.is_over:
            raise SwarmException("; ".join(race.reasons) or "no address is known")


class _Race:
    """All addresses of one peer, of which one becomes a connection.

    Handshakes with several addresses may run at once; they leave nothing behind at the other side. Agreeing on the
    multiplexer is what makes a connection there, so one at a time does that.
    """

    def __init__(self, network: Network, peer_id: ID, addresses: list[Multiaddr], newer_than: int) -> None:
        self._newer_than = newer_than
        self.reasons: list[str] = []
        self._network = network
        self._peer_id = peer_id
        self._addresses = addresses
        self._begun_at = trio.current_time()
        self._commit = trio.Lock()
        self._over = trio.CancelScope()

    @property
    def is_over(self) -> bool:
        """Whether there is a connection."""
        best = self._network.best_connection(self._peer_id)
        return best is not None and best.generation > self._newer_than

    async def run(self) -> None:
        """Try all addresses until there is a connection, or until all have failed."""
        send, receive = trio.open_memory_channel[tuple[Multiaddr, Raw]](0)
        with self._over:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_connected)
                nursery.start_soon(self._open_all, send)
                async with receive, trio.open_nursery() as upgrades:
                    async for address, raw in receive:
                        settled = trio.Event()
                        upgrades.start_soon(self._upgrade, address, raw, settled)
                        with trio.move_on_after(self._network.limits.upgrade_stagger_s):
                            await settled.wait()
                nursery.cancel_scope.cancel()

    async def _stop_when_connected(self) -> None:
        # The peer may reach us while we try to reach it. What has got so far that the peer may count on it is finished,
        # though: if both sides gave theirs up for the other's, none would be left.
        while self._commit.locked() or not self.is_over:
            await self._network.connected.park()
        self._over.cancel()

    async def _open_all(self, send: trio.MemorySendChannel[tuple[Multiaddr, Raw]]) -> None:
        limits, broken = self._network.limits, self._network.broken_relays
        groups = preference(
            self._network.transport_manager.get_transports(),
            self._addresses,
            is_broken=lambda address: broken.holds(address, now=self._begun_at),
        )
        async with send, trio.open_nursery() as nursery:
            for group, following in zip_longest(groups, groups[1:]):
                # Each transport has room of its own: one that is blocked does not take up that of the next.
                limiter = trio.CapacityLimiter(limits.max_parallel_dials)
                failed = trio.Event()
                nursery.start_soon(self._open_group, group, limiter, send, failed)
                if following is not None:
                    relayed = is_relayed(following[0])
                    with trio.move_on_after(limits.relay_head_start_s if relayed else limits.transport_head_start_s):
                        await failed.wait()

    async def _open_group(
        self,
        group: list[Multiaddr],
        limiter: trio.CapacityLimiter,
        send: trio.MemorySendChannel[tuple[Multiaddr, Raw]],
        failed: trio.Event,
    ) -> None:
        """Open the addresses of one transport; tells at once if none of them answers."""
        answered = False

        async def one(address: Multiaddr) -> None:
            nonlocal answered
            answered |= await self._open(address, limiter, send)

        async with trio.open_nursery() as nursery:
            for address in group:
                nursery.start_soon(one, address)
        if not answered:
            failed.set()

    async def _open(
        self,
        address: Multiaddr,
        limiter: trio.CapacityLimiter,
        send: trio.MemorySendChannel[tuple[Multiaddr, Raw]],
    ) -> bool:
        """Open the raw connection of one address and hand it over; False if it does not answer."""
        async with limiter:
            try:
                transport = self._network.transport_manager.transport_for_dialing(address)
                if transport is None:
                    self.reasons.append(f"{address}: no transport for it")
                    return False
                with trio.fail_after(self._network.limits.connect_timeout_s):
                    raw: Raw = await transport.dial(address)
            except Exception as exc:
                self.reasons.append(f"{address}: {_explain(exc)}")
                return False
        try:
            await send.send((address, raw))
        except trio.BrokenResourceError:
            await _discard(raw)
        except BaseException:
            await _discard(raw)
            raise
        return True

    async def _upgrade(self, address: Multiaddr, raw: Raw, settled: trio.Event) -> None:
        """Make a connection of what answered, if it is the peer and no other address is faster."""
        limit_s = self._network.limits.handshake_timeout_s
        try:
            prepare_socket(raw)
            with trio.fail_after(limit_s):
                secured = await self._network.secure(raw, self._peer_id)
            async with self._commit:
                if self.is_over:
                    await _discard(raw)
                    return
                with trio.fail_after(min(limit_s, _CROWDED_COMMIT_S) if len(self._addresses) > 1 else limit_s):
                    muxed = await self._network.multiplex(secured)
                await self._network.add_conn(muxed, "outbound", str(address), begun_at=self._begun_at)
        except Exception as exc:
            self.reasons.append(f"{address}: {_explain(exc)}")
            await _discard(raw)
        except BaseException:
            await _discard(raw)
            raise
        finally:
            settled.set()
            # Whoever waits for a connection looks again: the commit is over.
            self._network.connected.unpark_all()


async def _discard(closer: Raw) -> None:
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
