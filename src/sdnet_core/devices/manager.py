"""Keeps every paired device connected: one supervisor a device, for ever.

A supervisor dials the addresses at which the device answered before and those that discovery sees, makes a session, and
starts again with jittered exponential back-off whenever that fails or the connection is lost. A fresh sighting in
discovery cuts the pause short. Both sides may dial: of two handshakes at the same time the one that the higher peer id
began goes on, the other is refused as busy. A handshake that comes later than the session we have replaces it: who
dials has lost it.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from ..clock import Clock, Randomness
from ..config import ConnectionSettings
from ..discovery.candidates import Discovery
from ..errors import ConnectionFailedError, DeviceNotFoundError, NetworkingError, RefusedError
from ..events import ConnectionEstablished, ConnectionFailed, ConnectionLost, DeviceConfirmed, EventBus
from ..identity import NetworkIdentity
from ..session import PROTOCOL_ID as SESSION_PROTOCOL
from ..session import (
    ControlChannel,
    ControlEnd,
    ControlSettings,
    EndReason,
    GoodbyeReason,
    PeerSecret,
    RefusalReason,
    Role,
    Session,
    SessionRefusedError,
    SessionTable,
    initiate,
    keep_ours,
    respond,
    suites_by_speed,
)
from ..swarm.abc import Swarm, SwarmStream
from .connection import DeviceConnection, explain_end
from .records import DeviceStore, PairedDevice
from .refusals import Refusals
from .registry import Connected, DeviceRegistry, PairedState

__all__ = ["PersistentConnectionManager"]

logger = logging.getLogger(__name__)


PENDING_LIFETIME_S = 24 * 3600.0
"""A pairing that the other side never confirmed lapses after this time."""
PENDING_DIAL_AFTER_S = 60.0
"""So long the other side of a pending pairing may take to store it before we ask; until then it is the one to dial."""
GOODBYE_TIMEOUT_S = 0.3


@dataclass(slots=True)
class _Supervisor:
    """One device's supervisor task.

    :param wake: set by a sighting or a request to connect now; replaced each time it was noticed.
    """

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    wake: anyio.Event = field(default_factory=anyio.Event)
    last_error: str = ""


class PersistentConnectionManager:
    """Owns all connections to paired devices.

    :param settings: time-outs and back-off.
    :param pairing_lost: called with device id, pairing id and reason when a pairing counts no more, as when the other
        side says, and proves, that it is not paired with us.
    :param refusals: told of those who do not prove who they are.
    """

    def __init__(
        self,
        *,
        swarm: Swarm,
        discovery: Discovery,
        registry: DeviceRegistry,
        store: DeviceStore,
        identity: NetworkIdentity,
        clock: Clock,
        randomness: Randomness,
        events: EventBus,
        settings: ConnectionSettings,
        pairing_lost: Callable[[uuid.UUID, bytes, str], Coroutine[Any, Any, None]],
        refusals: Refusals,
    ) -> None:
        self._swarm = swarm
        self._discovery = discovery
        self._registry = registry
        self._store = store
        self._identity = identity
        self._clock = clock
        self._randomness = randomness
        self._events = events
        self._settings = settings
        self._pairing_lost = pairing_lost
        self._refusals = refusals
        self._supervisors: dict[uuid.UUID, _Supervisor] = {}
        self._sessions = SessionTable()
        self._live: dict[Session, DeviceConnection] = {}
        self._dialling: set[uuid.UUID] = set()
        self._answering: Counter[uuid.UUID] = Counter()
        self._suites = suites_by_speed()
        self._control = ControlSettings(
            keepalive_interval_s=settings.keepalive_interval_s,
            keepalive_misses=settings.keepalive_misses,
            goodbye_timeout_s=GOODBYE_TIMEOUT_S,
        )
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Supervise every device in the registry until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for state in self._registry.devices():
                    self.supervise(state.device.device_id)
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._tasks = None
                for live in tuple(self._live.values()):
                    self._finish(live, "this device stopped")

    async def farewell(self) -> None:
        """Before `run` is cancelled: stop dialling, and tell every connected device that this node stops."""
        for supervisor in self._supervisors.values():
            supervisor.scope.cancel()
        async with anyio.create_task_group() as tasks:
            for live in tuple(self._live.values()):
                tasks.start_soon(live.control.goodbye, GoodbyeReason.SHUTDOWN)

    # What others ask

    def supervise(self, device_id: uuid.UUID) -> None:
        """Start keeping a device connected; does nothing if that is so already."""
        if self._tasks is not None and device_id not in self._supervisors:
            supervisor = self._supervisors[device_id] = _Supervisor()
            self._tasks.start_soon(self._supervise, device_id, supervisor)

    async def release(self, device_id: uuid.UUID, goodbye: GoodbyeReason, reason: str, *, hang_up: str = "") -> None:
        """Stop keeping a device connected and end its sessions at once, but for a last word.

        :param goodbye: what the device is told.
        :param reason: what is shown here.
        :param hang_up: the peer whose connections below are closed too, with everything else that runs on them.
        """
        supervisor = self._supervisors.pop(device_id, None)
        if supervisor is not None:
            supervisor.scope.cancel()
        ending = self.cut(device_id, reason)
        try:
            async with anyio.create_task_group() as tasks:
                for live in ending:
                    tasks.start_soon(live.control.goodbye, goodbye)
                    for stream in live.session.streams:
                        tasks.start_soon(stream.reset)
        finally:
            for live in ending:
                self._finish(live, reason)
        if hang_up:
            await self._swarm.hang_up(hang_up)

    def cut(self, device_id: uuid.UUID, reason: str) -> list[DeviceConnection]:
        """Let nothing more pass on a device's connections than `release`'s last word.

        :returns: the connections.
        """
        ending = [live for live in self._live.values() if live.device_id == device_id]
        for live in ending:
            self._part(live, reason)
        return ending

    async def reset_streams(self, device_id: uuid.UUID) -> None:
        """End all streams with a device; the connection stays."""
        for live in [live for live in self._live.values() if live.device_id == device_id]:
            live.cancel_streams()
            for stream in live.session.streams:
                await stream.reset()

    def sighted(self, peer_id: str) -> None:
        """Discovery has just seen a peer: if it is a paired device that is away, try at once."""
        state = self._registry.by_peer(peer_id)
        if state is not None and not isinstance(state, Connected):
            self._wake(state.device.device_id)

    def lost(self, peer_id: str, generation: int) -> None:
        """The swarm has lost its connection to a peer."""
        for live in tuple(self._live.values()):
            if live.peer_id == peer_id and live.session.generation <= generation:
                self._finish(live, "the connection was lost")

    async def connected(self, device_id: uuid.UUID, *, timeout_s: float) -> DeviceConnection:
        """The live connection to a device, waiting for one to come about.

        :raises DeviceNotFoundError: the device is not paired.
        :raises ConnectionFailedError: none came about in time, or its trust allows none.
        """
        try:
            with anyio.fail_after(timeout_s):
                while not isinstance(state := self._registry.get(device_id), Connected):
                    if state.device.trust.access is None:
                        raise ConnectionFailedError(
                            f"{state.device.name} is {state.device.trust}: pair it again to connect."
                        )
                    self._wake(device_id)
                    await self._changed.wait()
                return state.live
        except TimeoutError:
            state = self._registry.get(device_id)
            why = f" ({self.last_error(device_id)})" if self.last_error(device_id) else ""
            raise ConnectionFailedError(f"{state.device.name} is not connected{why}.") from None

    def last_error(self, device_id: uuid.UUID) -> str:
        """Why the last attempt to reach a device failed; empty if it did not."""
        supervisor = self._supervisors.get(device_id)
        return supervisor.last_error if supervisor is not None else ""

    async def wait_session(self, peer_id: str, epoch_id: bytes) -> DeviceConnection:
        """The connection whose session has an epoch. The caller sets the deadline.

        :raises RefusedError: there is no such session.
        """
        while True:
            session = self._sessions.find(peer_id, epoch_id)
            if session is None:
                raise RefusedError("The stream belongs to no session with that device.")
            live = self._live.get(session)
            if live is not None:
                return live
            await self._changed.wait()  # proven, and about to be put in

    async def serve(self, stream: SwarmStream) -> None:
        """Answer a peer that opened ``/sdnet/session/1``, and stay with the session until it ends."""
        state = self._registry.by_peer(stream.peer_id)
        device_id = None if state is None else state.device.device_id
        if device_id is not None:
            self._answering[device_id] += 1
        try:
            session, _ = await respond(
                stream,
                self._identity,
                lambda pairing_id: self._secret(stream.peer_id, pairing_id),
                self._suites,
                self._clock,
                self._randomness,
                admit=lambda _: (
                    device_id not in self._dialling
                    or not keep_ours(self._swarm.peer_id, stream.peer_id, Role.INITIATOR)
                ),
                timeout_s=self._settings.handshake_timeout_s,
                table=self._sessions,
            )
            live = await self._install(session)
        except NetworkingError as error:
            logger.info("no session with %s: %s", stream.peer_id, error)
            self._refusals.session_failed(stream.peer_id, device_id, error)
            return
        finally:
            if device_id is not None:
                self._answering[device_id] -= 1
        await self._attend(live)

    # The supervisor

    async def _supervise(self, device_id: uuid.UUID, supervisor: _Supervisor) -> None:
        pause_s = 0.0
        with supervisor.scope:
            while True:
                try:
                    state = self._registry.get(device_id)
                except DeviceNotFoundError:
                    return
                if isinstance(state, Connected):
                    await state.live.ended.wait()
                    # Both sides notice a loss at the same moment: do not dial at the same moment too.
                    await anyio.sleep(self._randomness.uniform(0, self._settings.reconnect_min_s / 2))
                    pause_s = 0.0
                    continue
                if self._lapsed(state.device):
                    await self._pairing_lost(device_id, state.device.pairing_id, "it was never confirmed")
                    continue
                wait_s = self._waits_for_them(state.device)
                if wait_s > 0:
                    pause_s = wait_s
                elif state.device.trust.access is not None and (state.device.auto_connect or supervisor.wake.is_set()):
                    supervisor.wake = anyio.Event()
                    try:
                        await self._connect(state)
                        supervisor.last_error = ""
                        continue
                    except SessionRefusedError as error:
                        supervisor.last_error = error.detail
                        if error.reason is RefusalReason.NOT_PAIRED:
                            reason = "the other side is not paired with this device"
                            await self._pairing_lost(device_id, state.device.pairing_id, reason)
                            continue
                    except NetworkingError as error:
                        supervisor.last_error = error.detail
                        self._refusals.session_failed(state.device.peer_id, device_id, error)
                    low, high = self._settings.reconnect_min_s, self._settings.reconnect_max_s
                    pause_s = min(high, max(low, pause_s * 2)) * self._randomness.uniform(0.75, 1.25)
                    if not isinstance(self._registry.get(device_id), Connected):
                        self._note_failure(state, supervisor.last_error, pause_s)
                else:
                    pause_s = math.inf
                with anyio.move_on_after(pause_s):
                    await self._woken(device_id, supervisor)
                    pause_s = 0.0
                # What a burst of sightings may cost at the most.
                await anyio.sleep(self._settings.reconnect_min_s / 5)

    async def _connect(self, state: PairedState) -> None:
        device = state.device
        seen = [a for c in self._discovery.known(device.peer_id) for a in c.addresses]
        addresses = tuple(dict.fromkeys((*state.connection.addresses, *seen)))
        await self._swarm.dial(device.peer_id, addresses, timeout_s=self._settings.dial_timeout_s)
        if self._answering[device.device_id]:
            with anyio.move_on_after(self._settings.handshake_timeout_s):
                while self._answering[device.device_id]:
                    await self._changed.wait()
        if isinstance(self._registry.get(device.device_id), Connected):
            return  # the other side was faster
        self._dialling.add(device.device_id)
        try:
            stream = await self._swarm.open_stream(
                device.peer_id, [SESSION_PROTOCOL], timeout_s=self._settings.handshake_timeout_s
            )
            session = await initiate(
                stream,
                self._identity,
                PeerSecret(device.pairing_id, device.pairing_root, device.peer_id),
                self._suites,
                self._clock,
                self._randomness,
                timeout_s=self._settings.handshake_timeout_s,
                table=self._sessions,
            )
        finally:
            self._dialling.discard(device.device_id)
        live = await self._install(session)
        if self._tasks is not None:
            self._tasks.start_soon(self._attend, live)

    async def _woken(self, device_id: uuid.UUID, supervisor: _Supervisor) -> None:
        """Wait for a sighting, or for the other side to connect."""
        async with anyio.create_task_group() as tasks:

            async def connected() -> None:
                while not isinstance(self._registry.get(device_id), Connected):
                    await self._changed.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(connected)
            await supervisor.wake.wait()
            tasks.cancel_scope.cancel()

    def _note_failure(self, state: PairedState, reason: str, pause_s: float) -> None:
        device = state.device
        logger.info("device %s (%s) cannot be reached: %s", device.device_id, device.name, reason)
        self._events.publish(
            ConnectionFailed(
                device_id=device.device_id, device_name=device.name, reason=reason, retry_in_s=round(pause_s, 3)
            )
        )

    # The life of a connection

    async def _install(self, session: Session) -> DeviceConnection:
        state = self._registry.by_peer(session.peer_id)
        try:
            if state is None or state.device.pairing_id != session.pairing_id:
                raise DeviceNotFoundError("The device was forgotten or paired anew while it connected.")
            if state.device.pending:
                # Whoever proves the root has stored the pairing.
                await self.confirm(state.device)
            live = DeviceConnection(
                device_id=state.device.device_id,
                session=session,
                control=ControlChannel(session, self._clock, self._randomness, self._control),
                address=self._swarm.remote_address(session.peer_id),
            )
            state = self._registry.get(live.device_id)
            if isinstance(state, Connected):
                self._finish(state.live, "the device connected anew")
            connected = self._registry.mark_connected(live)
        except NetworkingError:
            self._sessions.remove(session)
            session.close()
            await session.reset_streams()
            raise
        self._live[session] = live
        if self._tasks is not None:
            self._tasks.start_soon(self._store.save_connection, live.device_id, connected.connection)
        device = connected.device
        logger.info("device %s (%s) is connected", device.device_id, device.name)
        self._events.publish(
            ConnectionEstablished(
                device_id=device.device_id, device_name=device.name, peer_id=live.peer_id, address=live.address
            )
        )
        self.changed()
        return live

    async def _attend(self, live: DeviceConnection) -> None:
        """Run a connection's control channel until it ends."""
        end = ControlEnd(EndReason.LOST)
        try:
            with anyio.CancelScope() as live.control_scope:
                if live.session not in self._live:
                    live.control_scope.cancel()
                end = await live.control.run()
        finally:
            end = live.control.end or end
            self._finish(live, explain_end(end))
        if (end.reason, end.goodbye) == (EndReason.PEER_GOODBYE, GoodbyeReason.NOT_PAIRED):
            if self._tasks is not None:
                reason = "the other side has ended the pairing"
                self._tasks.start_soon(self._pairing_lost, live.device_id, live.session.pairing_id, reason)

    def _finish(self, live: DeviceConnection, reason: str) -> None:
        """A connection is over."""
        self._live.pop(live.session, None)
        if live.control_scope is not None:
            live.control_scope.cancel()
        self._part(live, reason)

    def _part(self, live: DeviceConnection, reason: str) -> None:
        """Use a connection for no stream any more."""
        self._sessions.remove(live.session)
        live.end(reason)
        if self._registry.mark_disconnected(live, live.reason):
            device = self._registry.get(live.device_id).device
            logger.info("device %s (%s) is disconnected: %s", device.device_id, device.name, live.reason)
            self._events.publish(
                ConnectionLost(
                    device_id=device.device_id,
                    device_name=device.name,
                    peer_id=live.peer_id,
                    reason=live.reason,
                )
            )
        self.changed()

    # Pairings

    def _secret(self, peer_id: str, pairing_id: bytes) -> PeerSecret | None:
        device = self._registry.by_pairing(pairing_id)
        if device is None or device.peer_id != peer_id or device.trust.access is None or self._lapsed(device):
            return None
        return PeerSecret(device.pairing_id, device.pairing_root, device.peer_id)

    def _lapsed(self, device: PairedDevice) -> bool:
        return device.pending and self._clock.now() > device.paired_at + PENDING_LIFETIME_S

    def _waits_for_them(self, device: PairedDevice) -> float:
        """Seconds in which the other side of a pending pairing is the one to dial."""
        return device.paired_at + PENDING_DIAL_AFTER_S - self._clock.now() if device.pending else 0.0

    async def confirm(self, device: PairedDevice) -> None:
        """Make a pending pairing final, durably.

        :raises StorageError: it could not be stored; the pairing stays pending.
        """
        final = msgspec.structs.replace(device, pending=False)
        await self._store.save_pairing(final)
        self._registry.update(final)
        self._events.publish(DeviceConfirmed(device_id=device.device_id, device_name=device.name))

    # Waking

    def _wake(self, device_id: uuid.UUID) -> None:
        supervisor = self._supervisors.get(device_id)
        if supervisor is not None:
            supervisor.wake.set()

    def changed(self) -> None:
        """Pairings or their trust have changed: whoever waits for a device looks again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
