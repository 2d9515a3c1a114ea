"""A relay: carries connections between peers that cannot reach each other, within limits (circuit relay v2).

It sees who talks to whom, when and how much, and nothing of what is said: the connection inside is secured from end to
end. Reservations are for the peer that the connection belongs to, never for one that a message names.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from sdnet_core.clock import Clock
from sdnet_core.errors import NetworkingError, SerializationError
from sdnet_core.swarm.abc import Swarm, SwarmStream
from sdnet_core.swarm.relay_messages import (
    HOP,
    MAX_MESSAGE_BYTES,
    STOP,
    HopMessage,
    HopType,
    Limit,
    RelayStatus,
    StopMessage,
    StopType,
    exchange,
)
from sdnet_core.wire import MessageStream

__all__ = ["Relay", "RelayLimits"]

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
PIPE_BYTES = 64 * 1024
IDLE_S = 180.0
"""A circuit on which nothing moves for so long is closed; what runs inside keeps itself alive more often."""
SWEEP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What a relay allows.

    :param max_reservations: peers that may be called through it at a time.
    :param max_reservations_per_address: of one IP address (or one IPv6 /64).
    :param reservation_s: how long a reservation holds.
    :param max_circuits: connections it carries at a time.
    :param max_circuits_per_peer: of one peer, as caller or called.
    :param max_circuits_per_address: begun by one IP address.
    :param circuit_s: how long one connection may last.
    :param circuit_bytes: what one may carry in each direction.
    """

    max_reservations: int = 512
    max_reservations_per_address: int = 32
    reservation_s: int = 3600
    max_circuits: int = 256
    max_circuits_per_peer: int = 16
    max_circuits_per_address: int = 64
    circuit_s: int = 3600
    circuit_bytes: int = 1 << 30


@dataclass(slots=True)
class _Reservation:
    expires_at: float
    owner: str


class Relay:
    """Serves as a relay on a swarm.

    :param announced: binary multiaddrs of this relay, with its peer id.
    :param owner_of: whom to charge for a connection, by its remote address and peer id.
    :ivar counts: what was asked and carried since the start.
    """

    def __init__(
        self,
        swarm: Swarm,
        clock: Clock,
        *,
        limits: RelayLimits | None = None,
        announced: Callable[[], Sequence[bytes]] = lambda: (),
        owner_of: Callable[[str | None, str], str] = lambda _, peer_id: peer_id,
    ) -> None:
        self.limits = limits or RelayLimits()
        self.counts: Counter[str] = Counter()
        self._swarm = swarm
        self._clock = clock
        self._announced = announced
        self._owner_of = owner_of
        self._reservations: dict[str, _Reservation] = {}
        self._circuits = 0
        self._of_peer: Counter[str] = Counter()
        self._of_owner: Counter[str] = Counter()

    @property
    def reservations(self) -> int:
        """How many peers can be called."""
        return len(self._reservations)

    @property
    def circuits(self) -> int:
        """How many connections are being carried."""
        return self._circuits

    async def run(self) -> None:
        """Serve until cancelled."""
        self._swarm.set_stream_handler(HOP, self._serve)
        try:
            while True:
                await anyio.sleep(SWEEP_S)
                self._sweep()
        finally:
            self._swarm.remove_stream_handler(HOP)

    def _sweep(self) -> None:
        """Forget reservations that are over, or whose peers have gone."""
        now = self._clock.monotonic()
        for peer_id, reservation in list(self._reservations.items()):
            if reservation.expires_at <= now or not self._swarm.is_connected(peer_id):
                del self._reservations[peer_id]

    async def _serve(self, stream: SwarmStream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        request: HopMessage | None = None
        try:
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                request = HopMessage.decode(await messages.receive_bytes())
        except SerializationError as error:
            logger.debug("a request of %s is not valid: %s", stream.peer_id, error)
            await self._say(messages, RelayStatus.MALFORMED_MESSAGE)
            return
        except (NetworkingError, TimeoutError):
            await stream.reset()
            return
        match request.type:
            case HopType.RESERVE:
                await self._reserve(stream, messages)
            case HopType.CONNECT:
                await self._connect(stream, messages, request.peer)
            case _:
                await self._say(messages, RelayStatus.UNEXPECTED_MESSAGE)

    async def _say(self, messages: MessageStream, status: RelayStatus) -> None:
        self.counts[f"status-{status.name.lower().replace('_', '-')}"] += 1
        try:
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                await messages.send_bytes(HopMessage(type=HopType.STATUS, status=status).encode())
        except (NetworkingError, TimeoutError):
            pass

    # Reservations

    async def _reserve(self, stream: SwarmStream, messages: MessageStream) -> None:
        peer_id = stream.peer_id
        address = self._swarm.remote_address(peer_id)
        owner = self._owner_of(address, peer_id)
        if "/p2p-circuit" in (address or ""):
            await self._say(messages, RelayStatus.PERMISSION_DENIED)
            return
        if peer_id not in self._reservations and not self._has_place(owner):
            await self._say(messages, RelayStatus.RESERVATION_REFUSED)
            return
        self._reservations[peer_id] = _Reservation(self._clock.monotonic() + self.limits.reservation_s, owner)
        self.counts["reserved"] += 1
        answer = HopMessage(
            type=HopType.STATUS,
            status=RelayStatus.OK,
            expires_at=int(self._clock.now()) + self.limits.reservation_s,
            addresses=tuple(self._announced())[:8],
            limit=self._limit,
        )
        with anyio.move_on_after(REQUEST_TIMEOUT_S):
            await messages.send_bytes(answer.encode())

    def _has_place(self, owner: str) -> bool:
        def full() -> bool:
            of_owner = sum(reservation.owner == owner for reservation in self._reservations.values())
            limits = self.limits
            return len(self._reservations) >= limits.max_reservations or (
                of_owner >= limits.max_reservations_per_address
            )

        if full():
            self._sweep()
        return not full()

    @property
    def _limit(self) -> Limit:
        return Limit(self.limits.circuit_s, self.limits.circuit_bytes)

    # Circuits

    async def _connect(self, stream: SwarmStream, messages: MessageStream, target: str) -> None:
        source = stream.peer_id
        address = self._swarm.remote_address(source)
        owner = self._owner_of(address, source)
        reservation = self._reservations.get(target)
        limits = self.limits
        if "/p2p-circuit" in (address or "") or target == source:
            await self._say(messages, RelayStatus.PERMISSION_DENIED)
        elif (
            reservation is None
            or reservation.expires_at <= self._clock.monotonic()
            or not self._swarm.is_connected(target)
        ):
            await self._say(messages, RelayStatus.NO_RESERVATION)
        elif (
            self._circuits >= limits.max_circuits
            or max(self._of_peer[source], self._of_peer[target]) >= limits.max_circuits_per_peer
            or self._of_owner[owner] >= limits.max_circuits_per_address
        ):
            await self._say(messages, RelayStatus.RESOURCE_LIMIT_EXCEEDED)
        else:
            await self._carry(stream, messages, target, owner)

    async def _carry(self, stream: SwarmStream, messages: MessageStream, target: str, owner: str) -> None:
        source = stream.peer_id
        charged = ((self._of_peer, source), (self._of_peer, target), (self._of_owner, owner))
        self._circuits += 1
        for counter, key in charged:
            counter[key] += 1
        called: SwarmStream | None = None
        try:
            called, theirs = await self._call(source, target)
            if called is None or theirs is None:
                await self._say(messages, RelayStatus.CONNECTION_FAILED)
                return
            answer = HopMessage(type=HopType.STATUS, status=RelayStatus.OK, limit=self._limit)
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                await messages.send_bytes(answer.encode())
            self.counts["connected"] += 1
            await self._pipe(stream, messages.take_pending(), called, theirs.take_pending())
        except (NetworkingError, TimeoutError) as error:
            logger.debug("a circuit from %s to %s ended: %s", source, target, error)
        finally:
            self._circuits -= 1
            for counter, key in charged:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
            with anyio.CancelScope(shield=True):
                await stream.reset()
                if called is not None:
                    await called.reset()

    async def _call(self, source: str, target: str) -> tuple[SwarmStream | None, MessageStream | None]:
        """Ask a peer whether it takes a connection from another."""
        called: SwarmStream | None = None
        try:
            with anyio.fail_after(STOP_TIMEOUT_S):
                called = await self._swarm.open_stream(target, [STOP], timeout_s=STOP_TIMEOUT_S)
                messages = MessageStream(called, max_bytes=MAX_MESSAGE_BYTES)
                request = StopMessage(type=StopType.CONNECT, peer=source, limit=self._limit)
                answer = StopMessage.decode(await exchange(messages, request))
            if answer.type is StopType.STATUS and answer.status is RelayStatus.OK:
                return called, messages
            logger.debug("%s takes no connection from %s: %s", target, source, answer.status)
        except (NetworkingError, TimeoutError) as error:
            logger.debug("%s cannot be called: %s", target, error)
        if called is not None:
            await called.reset()
        return None, None

    async def _pipe(self, one: SwarmStream, from_one: bytes, other: SwarmStream, from_other: bytes) -> None:
        """Carry bytes both ways until both ends are done, one breaks, or a limit is reached."""
        moved = [self._clock.monotonic()]
        with anyio.move_on_after(self.limits.circuit_s or None) as life:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._copy, one, other, from_one, moved, tasks.cancel_scope)
                tasks.start_soon(self._copy, other, one, from_other, moved, tasks.cancel_scope)
                ended = anyio.Event()
                tasks.start_soon(self._watch, moved, tasks.cancel_scope, ended)
        if life.cancelled_caught:
            self.counts["ended-by-time"] += 1

    async def _watch(self, moved: list[float], scope: anyio.CancelScope, ended: anyio.Event) -> None:
        while self._clock.monotonic() - moved[0] < IDLE_S:
            with anyio.move_on_after(IDLE_S / 6):
                await ended.wait()
        self.counts["ended-by-idleness"] += 1
        scope.cancel()

    async def _copy(
        self, source: SwarmStream, sink: SwarmStream, first: bytes, moved: list[float], scope: anyio.CancelScope
    ) -> None:
        left = self.limits.circuit_bytes or None
        data = first
        try:
            while True:
                if left is not None and len(data) > left:
                    self.counts["ended-by-bytes"] += 1
                    break
                if data:
                    await sink.send(data)
                    moved[0] = self._clock.monotonic()
                    self.counts["bytes"] += len(data)
                    left = None if left is None else left - len(data)
                data = await source.receive(PIPE_BYTES)
        except anyio.EndOfStream:
            pass
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        # A connection's half has no use without the other: both ends close what they carry as a whole.
        scope.cancel()
