"""Makes sessions with paired devices, as the one who dialled and as the one who was dialled."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from ..clock import Clock, Randomness
from ..identity import NetworkIdentity
from ..session import PROTOCOL_ID as SESSION_PROTOCOL
from ..session import PeerSecret, Role, Session, SessionTable, initiate, keep_ours, respond, suites_by_speed
from ..swarm.abc import Swarm, SwarmStream
from .records import PairedDevice
from .registry import DeviceRegistry
from .supervisor import PENDING_LIFETIME_S

__all__ = ["SessionMaker"]


class SessionMaker:
    """The handshakes of a node.

    :param timeout_s: for one handshake.
    :param has_room: whether a device may be connected now.
    :ivar table: the sessions that streams may belong to.
    """

    def __init__(
        self,
        *,
        swarm: Swarm,
        registry: DeviceRegistry,
        identity: NetworkIdentity,
        clock: Clock,
        randomness: Randomness,
        timeout_s: float,
        has_room: Callable[[uuid.UUID | None], bool],
    ) -> None:
        self.table = SessionTable()
        self._swarm = swarm
        self._registry = registry
        self._identity = identity
        self._clock = clock
        self._randomness = randomness
        self._timeout_s = timeout_s
        self._has_room = has_room
        self._suites = suites_by_speed()
        self._dialling: set[uuid.UUID] = set()
        self._answering: Counter[uuid.UUID] = Counter()
        self._answered = anyio.Event()

    def making(self, device_id: uuid.UUID) -> bool:
        """Whether a session with a device is being made, by whomever."""
        return device_id in self._dialling or bool(self._answering[device_id])

    @contextmanager
    def answering(self, device_id: uuid.UUID | None) -> Iterator[None]:
        """A device makes a session itself for the length of the block; None for a stranger who tries to."""
        if device_id is None:
            yield
            return
        self._answering[device_id] += 1
        try:
            yield
        finally:
            self._answering[device_id] -= 1
            if not self._answering[device_id]:
                del self._answering[device_id]
            answered, self._answered = self._answered, anyio.Event()
            answered.set()

    async def await_answers(self, device_id: uuid.UUID) -> None:
        """Wait while a device makes a session itself, but not for ever."""
        with anyio.move_on_after(self._timeout_s):
            while self._answering[device_id]:
                await self._answered.wait()

    async def dial(self, device: PairedDevice) -> Session:
        """Make a session with a device whose peer is connected. Errors: as `initiate` and `Swarm.open_stream`."""
        self._dialling.add(device.device_id)
        try:
            stream = await self._swarm.open_stream(device.peer_id, [SESSION_PROTOCOL], timeout_s=self._timeout_s)
            return await initiate(
                stream,
                self._identity,
                PeerSecret(device.pairing_id, device.pairing_root, device.peer_id),
                self._suites,
                self._clock,
                self._randomness,
                timeout_s=self._timeout_s,
                table=self.table,
            )
        finally:
            self._dialling.discard(device.device_id)

    async def answer(self, stream: SwarmStream, device_id: uuid.UUID | None) -> Session:
        """Make a session with a peer that asks for one. Errors: as `respond`."""
        session, _ = await respond(
            stream,
            self._identity,
            lambda pairing_id: self._secret(stream.peer_id, pairing_id),
            self._suites,
            self._clock,
            self._randomness,
            admit=lambda _: self._admits(device_id, stream.peer_id),
            timeout_s=self._timeout_s,
            table=self.table,
        )
        return session

    def _admits(self, device_id: uuid.UUID | None, peer_id: str) -> bool:
        """Whether to make the session that a paired device asks for."""
        if device_id in self._dialling and keep_ours(self._swarm.peer_id, peer_id, Role.INITIATOR):
            return False
        return self._has_room(device_id)

    def _secret(self, peer_id: str, pairing_id: bytes) -> PeerSecret | None:
        device = self._registry.by_pairing(pairing_id)
        if device is None or device.peer_id != peer_id or device.trust.access is None:
            return None
        if device.pending and self._clock.now() > device.paired_at + PENDING_LIFETIME_S:
            return None
        return PeerSecret(device.pairing_id, device.pairing_root, device.peer_id)
