"""All connections to paired devices: one supervisor a device, one session a device, a bounded pool.

Supervisors dial; both sides may. Of two handshakes at the same time the one that the higher peer id began goes on, the
other is refused as busy. A handshake that comes later than the session we have replaces it: who dials has lost it.

No more devices are connected at once than the settings allow. A device that is needed, or that connects to us, takes
the place of the one that was not used for longest; one with running streams keeps its place.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from ..clock import Clock, Randomness
from ..config import ConnectionSettings
from ..discovery.candidates import Discovery
from ..errors import ConnectionFailedError, DeviceNotFoundError, NetworkingError, RefusedError
from ..events import ConnectionEstablished, ConnectionLost, DeviceConfirmed, EventBus
from ..identity import NetworkIdentity
from ..log_context import log_context
from ..session import ControlChannel, ControlEnd, EndReason, GoodbyeReason, Session
from ..swarm.abc import Swarm, SwarmStream
from .connection import ConnectionState, DeviceConnection, explain_end
from .history import ConnectionHistory
from .keepalive import keepalive_of
from .paths import PathKeeper
from .pool import ConnectionPool
from .records import DeviceStore, PairedDevice
from .refusals import Refusals
from .registry import Connected, DeviceRegistry, PairedState
from .rooms import RoomMethods
from .sessions import SessionMaker
from .supervisor import Supervisor, Surroundings
from .watch import ConnectionWatch

__all__ = ["PersistentConnectionManager"]

logger = logging.getLogger(__name__)

MAX_ATTEMPTS_AT_ONCE = 64
"""Of those to devices that nobody has seen or needs."""


class PersistentConnectionManager(RoomMethods):
    """Owns all connections to paired devices.

    :param settings: time-outs and back-off.
    :param pairing_lost: called with device id, pairing id and reason when a pairing counts no more, as when the other
        side says, and proves, that it is not paired with us.
    :param refusals: told of those who do not prove who they are.
    :param has_messages: whether messages wait for a device.
    :ivar history: of the connections to each device.
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
        has_messages: Callable[[uuid.UUID], bool] = lambda device_id: False,
    ) -> None:
        self._swarm = swarm
        self._registry = registry
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._events = events
        self._settings = settings
        self._pairing_lost = pairing_lost
        self._refusals = refusals
        self.history = ConnectionHistory(store.storage, clock)
        self._supervisors: dict[uuid.UUID, Supervisor] = {}
        self.pool = ConnectionPool(clock, settings.max_connections, has_messages)
        self._maker = SessionMaker(
            swarm=swarm,
            registry=registry,
            identity=identity,
            clock=clock,
            randomness=randomness,
            timeout_s=settings.handshake_timeout_s,
            has_room=lambda device_id: self.pool.has_room(device_id) or self.pool.least_useful() is not None,
        )
        self._sessions = self._maker.table
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._watch = ConnectionWatch(
            pool=self.pool,
            clock=clock,
            address_of=swarm.remote_address,
            keepalive_interval_s=settings.keepalive_interval_s,
            moved=lambda: self.paths.wake(),
            slept=self.look_around,
            silent=self._fell_silent,
        )
        self.paths = PathKeeper(
            swarm=swarm,
            pool=self.pool,
            clock=clock,
            addresses=lambda live: s.addresses() if (s := self._supervisors.get(live.device_id)) else [],
            move=lambda live: self._reached(self._registry.get(live.device_id)),
            finish=self._finish,
        )
        self._around = Surroundings(
            swarm=swarm,
            discovery=discovery,
            registry=registry,
            clock=clock,
            randomness=randomness,
            events=events,
            settings=settings,
            pairing_lost=pairing_lost,
            refusals=refusals,
            has_messages=has_messages,
            rooms=self,
            reached=self._reached,
            await_answers=self._maker.await_answers,
            hang_up=self._hang_up_unused,
            slots=anyio.Semaphore(MAX_ATTEMPTS_AT_ONCE),
            count_devices=lambda: len(self._supervisors),
            failed=self.history.failed,
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Supervise every device in the registry until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for state in self._registry.devices():
                    self.supervise(state.device.device_id)
                tasks.start_soon(self.history.tidy, self._registry.ids)
                tasks.start_soon(self.paths.run, tasks)
                task_status.started()
                await self._watch.run(tasks)
            finally:
                self._tasks = None
                for live in self.pool:
                    self._finish(live, "this device stopped")
                with anyio.CancelScope(shield=True):
                    await self.history.write_all()

    async def farewell(self) -> None:
        """Before `run` is cancelled: stop dialling, and tell every connected device that this node stops."""
        for supervisor in self._supervisors.values():
            supervisor.scope.cancel()
        async with anyio.create_task_group() as tasks:
            for live in self.pool:
                tasks.start_soon(live.control.goodbye, GoodbyeReason.SHUTDOWN)

    # What others ask

    def supervise(self, device_id: uuid.UUID) -> None:
        """Start keeping a device connected; does nothing if that is so already."""
        if self._tasks is not None and device_id not in self._supervisors:
            supervisor = self._supervisors[device_id] = Supervisor(device_id, self._around)
            self._tasks.start_soon(supervisor.run)

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
        ending = self.pool.of_device(device_id)
        for live in ending:
            self._part(live, reason)
        return ending

    async def reset_streams(self, device_id: uuid.UUID) -> None:
        """End all streams with a device; the connection stays."""
        for live in self.pool.of_device(device_id):
            live.cancel_streams()
            for stream in live.session.streams:
                await stream.reset()

    def sighted(self, peer_id: str) -> None:
        """Discovery has just seen a peer: if it is a paired device that is away, try at once."""
        state = self._registry.by_peer(peer_id)
        if isinstance(state, Connected):
            self.paths.look(peer_id)
        elif state is not None:
            supervisor = self._supervisors.get(state.device.device_id)
            if supervisor is not None:
                supervisor.sighted()

    def needed(self, device_id: uuid.UUID) -> None:
        """Somebody wants something of a device: if it is away, try at once, even if it would not be tried by itself."""
        supervisor = self._supervisors.get(device_id)
        if supervisor is not None:
            supervisor.wake(needed=True)

    def wants(self, device_id: uuid.UUID) -> bool:
        """Whether a device that is away is being tried, so that it is worth looking for."""
        supervisor = self._supervisors.get(device_id)
        return supervisor is not None and supervisor.wanted

    def reconsider(self, device_id: uuid.UUID) -> None:
        """How a device is to be connected has changed."""
        supervisor = self._supervisors.get(device_id)
        if supervisor is not None:
            supervisor.wake()

    def look_around(self, why: str) -> None:
        """The machine has slept, or its network has changed: try every device now, and ask those we have for a sign.

        :param why: for the log.
        """
        logger.info("looking for all devices anew: %s", why)
        self.paths.look()
        for supervisor in tuple(self._supervisors.values()):
            supervisor.begin_anew()
        if self._tasks is not None:
            for live in self.pool:
                live.control.look()
                self._tasks.start_soon(self._watch.probe, live)

    def lost(self, peer_id: str, generation: int) -> None:
        """The swarm has lost its connection to a peer."""
        self.paths.lost(peer_id)
        for live in self.pool:
            if live.peer_id == peer_id and live.session.generation <= generation:
                # The other side may have said why just before.
                self._finish(live, explain_end(live.control.end or ControlEnd(EndReason.LOST)))

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
                    self.needed(device_id)
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

    def describe(self, device_id: uuid.UUID) -> dict[str, Any]:
        """Where the way to a device stands, as plain values."""
        supervisor = self._supervisors.get(device_id)
        if supervisor is None:
            return {"connection_state": str(ConnectionState.DISCONNECTED), "attempts": 0, "next_attempt_in_s": None}
        return supervisor.describe()

    async def wait_session(self, peer_id: str, epoch_id: bytes) -> DeviceConnection:
        """The connection whose session has an epoch. The caller sets the deadline.

        :raises RefusedError: there is no such session.
        """
        while True:
            session = self._sessions.find(peer_id, epoch_id)
            if session is None:
                raise RefusedError("The stream belongs to no session with that device.")
            live = self.pool.by_session(session)
            if live is not None:
                return live
            await self._changed.wait()  # proven, and about to be put in

    async def serve(self, stream: SwarmStream) -> None:
        """Answer a peer that opened ``/sdnet/session/1``, and stay with the session until it ends."""
        state = self._registry.by_peer(stream.peer_id)
        device_id = None if state is None else state.device.device_id
        with log_context(device_id=device_id, peer_id=stream.peer_id):
            await self._serve(stream, device_id)

    async def _serve(self, stream: SwarmStream, device_id: uuid.UUID | None) -> None:
        try:
            with self._maker.answering(device_id):
                live = await self._install(await self._maker.answer(stream, device_id))
        except NetworkingError as error:
            logger.info("no session with %s: %s", stream.peer_id, error)
            self._refusals.session_failed(stream.peer_id, device_id, error)
            return
        await self._attend(live)

    async def _reached(self, state: PairedState) -> None:
        """Make a session with a device whose peer is connected."""
        live = await self._install(await self._maker.dial(state.device))
        if self._tasks is not None:
            self._tasks.start_soon(self._attend, live)

    async def _hang_up_unused(self, device: PairedDevice) -> None:
        """Close the connection to a peer if no session uses it and none is being made."""
        if not self._maker.making(device.device_id) and not self.pool.uses(device.peer_id):
            await self._swarm.hang_up(device.peer_id)

    # The life of a connection

    async def _install(self, session: Session) -> DeviceConnection:
        state = self._registry.by_peer(session.peer_id)
        try:
            if state is None or state.device.pairing_id != session.pairing_id:
                raise DeviceNotFoundError("The device was forgotten or paired anew while it connected.")
            if state.device.pending:
                # Whoever proves the root has stored the pairing.
                await self.confirm(state.device)
            now = self._clock.monotonic()
            live = DeviceConnection(
                device_id=state.device.device_id,
                session=session,
                control=ControlChannel(
                    session,
                    self._clock,
                    self._randomness,
                    keepalive_of(state.device.connection_config, self._settings),
                ),
                address=self._swarm.remote_address(session.peer_id),
                dialled_address=self._swarm.dialled_address(session.peer_id),
                opened_at=now,
                began_at=self._clock.now(),
                used_at=now,
            )
            state = self._registry.get(live.device_id)
            old = state.live if isinstance(state, Connected) else None
            if old is not None and not self.paths.is_move(old, live):
                self._finish(old, "the device connected anew")
                old = None
            connected = self._registry.mark_connected(live, instead_of=old)
        except NetworkingError:
            self._sessions.remove(session)
            session.close()
            await session.reset_streams()
            raise
        self.pool.add(live)
        self.paths.wake()
        self.history.began(live)
        if old is not None and self._tasks is not None:
            old.retire()
            self._tasks.start_soon(self.paths.retire, old)
        if self._tasks is not None:
            self._tasks.start_soon(self.history.write, live.device_id)
            self._tasks.start_soon(self._store.save_connection, live.device_id, connected.connection)
        device = connected.device
        self._enter(live.device_id, ConnectionState.CONNECTED)
        logger.info("device %s (%s) is connected", device.device_id, device.name)
        self._events.publish(
            ConnectionEstablished(
                device_id=device.device_id, device_name=device.name, peer_id=live.peer_id, address=live.address
            )
        )
        self.changed()
        self.reconsider(live.device_id)
        if len(self.pool) > self.pool.max_connections and self._tasks is not None:
            least = self.pool.least_useful(but=live)
            if least is not None:
                self._displace(least)
                self._tasks.start_soon(self._let_go, least)
        return live

    async def _attend(self, live: DeviceConnection) -> None:
        """Run a connection's control channel until it ends."""
        end = ControlEnd(EndReason.LOST)
        try:
            with anyio.CancelScope() as live.control_scope:
                if live not in self.pool:
                    live.control_scope.cancel()
                end = await live.control.run()
        finally:
            end = live.control.end or end
            live.let_go = live.let_go or end.goodbye is GoodbyeReason.IDLE
            self._finish(live, explain_end(end))
        if end.reason is EndReason.STALE:
            await self._fell_silent(live)
        if (end.reason, end.goodbye) == (EndReason.PEER_GOODBYE, GoodbyeReason.NOT_PAIRED):
            if self._tasks is not None:
                reason = "the other side has ended the pairing"
                self._tasks.start_soon(self._pairing_lost, live.device_id, live.session.pairing_id, reason)

    def _finish(self, live: DeviceConnection, reason: str) -> None:
        """A connection is over."""
        self.pool.remove(live)
        self.paths.wake()
        if live.control_scope is not None:
            live.control_scope.cancel()
        self._part(live, reason)

    def _part(self, live: DeviceConnection, reason: str) -> None:
        """Use a connection for no stream any more."""
        self._sessions.remove(live.session)
        live.end(reason)
        if self._registry.mark_disconnected(live, live.reason):
            device = self._registry.get(live.device_id).device
            self._enter(live.device_id, ConnectionState.DISCONNECTED, live.reason)
            self.history.ended(live)
            if self._tasks is not None:
                self._tasks.start_soon(self.history.write, live.device_id)
            logger.info("device %s (%s) is disconnected: %s", device.device_id, device.name, live.reason)
            self._events.publish(
                ConnectionLost(
                    device_id=device.device_id,
                    device_name=device.name,
                    peer_id=live.peer_id,
                    reason=live.reason,
                )
            )
        waiting = self.pool.next_waiting()
        if waiting is not None and waiting in self._supervisors:
            self._supervisors[waiting].wake()
        self.changed()

    async def _fell_silent(self, live: DeviceConnection) -> None:
        """The other end of a connection is not there any more; below, it may seem to be for a long time yet."""
        self._finish(live, "the other device fell silent")
        state = self._registry.by_peer(live.peer_id)
        if state is not None:
            await self._hang_up_unused(state.device)

    # Pairings

    async def confirm(self, device: PairedDevice) -> None:
        """Make a pending pairing final, durably. The other side may show it in two ways at once; it is told once.

        :raises StorageError: it could not be stored; the pairing stays pending.
        """
        final = msgspec.structs.replace(device, pending=False)
        await self._store.save_pairing(final)
        known = self._registry.get(device.device_id).device
        if known.pairing_id == device.pairing_id and not known.pending:
            return
        self._registry.update(final)
        self._events.publish(DeviceConfirmed(device_id=device.device_id, device_name=device.name))

    # Waking

    def _enter(self, device_id: uuid.UUID, state: ConnectionState, reason: str = "") -> None:
        supervisor = self._supervisors.get(device_id)
        if supervisor is not None:
            supervisor.enter(state, reason)

    def changed(self) -> None:
        """Pairings or their trust have changed: whoever waits for a device looks again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
