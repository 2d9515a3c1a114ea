"""Keeps one paired device connected: dials, waits, and begins again, for ever.

The addresses at which the device answered before come first, and those that discovery sees beside them: an address that
turns up while others are being tried is tried at once. Pauses between attempts double, with jitter, up to a cap; a
sighting, a change of the network or somebody who needs the device ends one. After the first two they begin short again.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from ..clock import Clock, Randomness
from ..config import ConnectionSettings
from ..discovery.candidates import Discovery
from ..errors import DeviceNotFoundError, NetworkingError, NetworkTimeoutError
from ..events import ConnectionFailed, ConnectionStateChanged, EventBus
from ..log_context import log_context
from ..session import RefusalReason, SessionRefusedError
from ..swarm.abc import Swarm
from .connection import ConnectionState, DeviceConnection, transport_of
from .records import PairedDevice
from .refusals import Refusals
from .registry import Connected, DeviceRegistry, PairedState

__all__ = ["PENDING_LIFETIME_S", "Supervisor", "Surroundings"]

logger = logging.getLogger(__name__)

PENDING_LIFETIME_S = 24 * 3600.0
"""A pairing that the other side never confirmed lapses after this time."""
PENDING_DIAL_AFTER_S = 60.0
"""So long the other side of a pending pairing may take to store it before we ask; until then it is the one to dial."""
STABLE_S = 5.0
"""A connection that lasted less does not count as a success when the next pause is chosen."""
HOLD_PAUSES = 5
"""A device whose connection made room for another is left alone for this many of the longest pauses, unless needed."""
SOON_S = 7.0
SOON_PER_DEVICE_S = 0.5
"""With few devices the pauses stay shorter than they may be, so that a network that heals is soon noticed: no longer
than `SOON_S`, or than this for each device, if the device itself has no other setting."""
MAX_FRESH_STARTS = 4
"""How often one attempt begins anew because another address of the device has turned up."""


class Rooms(Protocol):
    """The pool, as far as a supervisor needs it."""

    async def make_room(self, device_id: uuid.UUID, *, needed: bool) -> bool:
        """Whether one more connection may be made; if it is needed, another one may have to go for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all supervisors of a node share.

    :param settings: time-outs and back-off.
    :param pairing_lost: called with device id, pairing id and reason when a pairing counts no more.
    :param refusals: told of those who do not prove who they are.
    :param has_messages: whether messages wait for a device.
    :param reached: makes a session over the connection that was dialled.
    :param await_answers: waits while the other side is making one itself.
    :param hang_up: closes the connection to a device that took no session, unless somebody else uses it.
    :param count_devices: how many devices are supervised.
    :param failed: told of every attempt in vain, with the reason.
    :param slots: bounds the attempts that go on at once to devices that nobody has seen or needs.
    """

    swarm: Swarm
    discovery: Discovery
    registry: DeviceRegistry
    clock: Clock
    randomness: Randomness
    events: EventBus
    settings: ConnectionSettings
    pairing_lost: Callable[[uuid.UUID, bytes, str], Coroutine[Any, Any, None]]
    refusals: Refusals
    has_messages: Callable[[uuid.UUID], bool]
    rooms: Rooms
    reached: Callable[[PairedState], Awaitable[None]]
    await_answers: Callable[[uuid.UUID], Awaitable[None]]
    hang_up: Callable[[PairedDevice], Awaitable[None]]
    slots: anyio.Semaphore
    count_devices: Callable[[], int]
    failed: Callable[[uuid.UUID, str], None]


@dataclass(eq=False, slots=True)
class Supervisor:
    """One device's supervisor.

    :ivar state: where the way to the device stands.
    :ivar attempts: in vain since the last success.
    :ivar last_error: why the last one failed; empty if it did not.
    :ivar next_attempt_at: monotonic time, seconds; infinite if none is due by itself.
    """

    device_id: uuid.UUID
    around: Surroundings
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    state: ConnectionState = ConnectionState.DISCONNECTED
    attempts: int = 0
    last_error: str = ""
    next_attempt_at: float = -math.inf
    _wake: anyio.Event = field(default_factory=anyio.Event)
    _needed: bool = False
    _was_connected: bool = False
    _held_until: float = -math.inf
    _pause_s: float = 0.0
    _trying: frozenset[str] = frozenset()
    _dial: anyio.CancelScope | None = None

    @property
    def wanted(self) -> bool:
        """Whether the device is away and is to be connected."""
        state = self._state()
        device = state.device
        if isinstance(state, Connected) or device.trust.access is None:
            return False
        return device.auto_connect or self._needed or self.around.has_messages(self.device_id)

    # What others tell it

    def wake(self, *, needed: bool = False) -> None:
        """Try now, if the device is not connected.

        :param needed: somebody waits for the device, so that it is also tried if it would not be by itself.
        """
        self._needed = self._needed or needed
        self._wake.set()

    def begin_anew(self) -> None:
        """Something has changed that may let the device be reached now: try at once, with short pauses again."""
        self._pause_s = 0.0
        self._wake.set()

    def sighted(self) -> None:
        """Discovery has just seen the device."""
        self.begin_anew()
        if self._dial is not None and not self._trying.issuperset(self._addresses(self._state())):
            self._dial.cancel()

    def enter(self, state: ConnectionState, reason: str = "") -> None:
        """Note a state, and tell of it if it is another one."""
        if state is ConnectionState.CONNECTED:
            self._was_connected = True
            self._needed = False
            self.attempts = 0
            self.last_error = ""
        if state is self.state:
            return
        self.state = state
        around = self.around
        try:
            name = around.registry.get(self.device_id).device.name
        except DeviceNotFoundError:
            return
        around.events.publish(
            ConnectionStateChanged(device_id=self.device_id, device_name=name, state=str(state), reason=reason)
        )

    def describe(self) -> dict[str, Any]:
        """Where the way to the device stands, as plain values."""
        resting = self.state in (ConnectionState.FAILED, ConnectionState.DISCONNECTED)
        left_s = self.next_attempt_at - self.around.clock.monotonic()
        return {
            "connection_state": str(self.state),
            "attempts": self.attempts,
            "next_attempt_in_s": max(0.0, left_s) if resting and left_s < math.inf else None,
        }

    def addresses(self) -> list[str]:
        """Where the device may be reached."""
        return self._addresses(self._state())

    # Its life

    async def run(self) -> None:
        """Keep the device connected until the scope is cancelled or the device is gone."""
        try:
            peer_id = self._state().device.peer_id
        except DeviceNotFoundError:
            return
        with self.scope, log_context(device_id=self.device_id, peer_id=peer_id):
            while True:
                try:
                    state = self._state()
                except DeviceNotFoundError:
                    return
                if isinstance(state, Connected):
                    await self._while_connected(state.live)
                    continue
                pause_s = await self._step(state)
                if pause_s <= 0:
                    continue
                self.next_attempt_at = self.around.clock.monotonic() + pause_s
                with anyio.move_on_after(pause_s):
                    await self._wake.wait()
                # What a burst of sightings may cost at the most.
                await anyio.sleep(self.around.settings.reconnect_min_s / 5)

    def _state(self) -> PairedState:
        return self.around.registry.get(self.device_id)

    async def _while_connected(self, live: DeviceConnection) -> None:
        around = self.around
        self._wake = anyio.Event()
        await live.ended.wait()
        settings = around.settings
        if live.let_go:
            hold_s = HOLD_PAUSES * settings.reconnect_max_s * around.randomness.uniform(0.75, 1.25)
            self._held_until = around.clock.monotonic() + hold_s
        if around.clock.monotonic() - live.opened_at >= STABLE_S:
            self._pause_s = 0.0
            # Both sides notice a loss at the same moment: do not dial at the same moment too.
            await anyio.sleep(around.randomness.uniform(0, settings.reconnect_min_s / 2))
        else:
            with anyio.move_on_after(self._next_pause(self._state().device)):
                await self._wake.wait()

    async def _step(self, state: PairedState) -> float:
        """Do what is due.

        :returns: how long to rest unless woken, seconds; 0 to look again at once.
        """
        device, around = state.device, self.around
        now = around.clock.monotonic()
        if device.pending and around.clock.now() > device.paired_at + PENDING_LIFETIME_S:
            await around.pairing_lost(self.device_id, device.pairing_id, "it was never confirmed")
            return 0.0
        self._wake = anyio.Event()
        needed = self._needed or around.has_messages(self.device_id)
        if device.trust.access is None or not (device.auto_connect or needed):
            self._needed = False
            self.enter(ConnectionState.DISCONNECTED)
            return math.inf
        if not needed and now < self._held_until:
            self.enter(ConnectionState.DISCONNECTED)
            return self._held_until - now
        if device.pending and (wait_s := device.paired_at + PENDING_DIAL_AFTER_S - around.clock.now()) > 0:
            return wait_s
        return await self._attempt(state, needed)

    async def _attempt(self, state: PairedState, needed: bool) -> float:
        device, around = state.device, self.around
        try:
            if not await around.rooms.make_room(self.device_id, needed=needed):
                self.enter(ConnectionState.DISCONNECTED, "as many devices as allowed are connected")
                return math.inf  # woken when a place is free
            if needed or around.discovery.known(device.peer_id):
                await self._connect(state)  # not behind those that are likely to be away
            else:
                async with around.slots:
                    await self._connect(state)
            return 0.0
        except SessionRefusedError as error:
            self.last_error = error.detail
            if error.reason is RefusalReason.NOT_PAIRED:
                reason = "the other side is not paired with this device"
                await around.pairing_lost(self.device_id, device.pairing_id, reason)
                return 0.0
        except NetworkingError as error:
            self.last_error = error.detail
            around.refusals.session_failed(device.peer_id, self.device_id, error)
        self._needed = False
        if isinstance(self._state(), Connected):
            return 0.0
        self.attempts += 1
        around.failed(self.device_id, self.last_error)
        pause_s = self._next_pause(device)
        self.enter(ConnectionState.FAILED, self.last_error)
        # The first time of many: a device that is away for weeks must not fill the log.
        level = logging.INFO if self.attempts == 1 else logging.DEBUG
        logger.log(level, "device %s (%s) cannot be reached: %s", self.device_id, device.name, self.last_error)
        around.events.publish(
            ConnectionFailed(
                device_id=self.device_id,
                device_name=device.name,
                reason=self.last_error,
                retry_in_s=round(pause_s, 3),
            )
        )
        return pause_s

    async def _connect(self, state: PairedState) -> None:
        device, around = state.device, self.around
        self.enter(ConnectionState.RECONNECTING if self._was_connected else ConnectionState.CONNECTING)
        await self._reach(device)
        await around.await_answers(self.device_id)
        if isinstance(self._state(), Connected):
            return  # the other side was faster
        self.enter(ConnectionState.AUTHENTICATING)
        try:
            await around.reached(state)
        except NetworkTimeoutError:
            # The connection may be one whose other end is gone without a word: the next attempt makes a new one.
            await around.hang_up(device)
            raise

    async def _reach(self, device: PairedDevice) -> None:
        """Have a connection to the device's peer."""
        around = self.around
        for start in range(MAX_FRESH_STARTS + 1):
            addresses = self._addresses(self._state())
            # What is new goes first: the others have had their time.
            addresses.sort(key=lambda address: address in self._trying)
            self._trying = frozenset(addresses)
            with anyio.CancelScope() as scope:
                self._dial = scope if start < MAX_FRESH_STARTS else None
                try:
                    await around.swarm.dial(device.peer_id, addresses, timeout_s=around.settings.dial_timeout_s)
                finally:
                    self._dial = None
            if not scope.cancelled_caught:
                self._trying = frozenset()
                return

    def _addresses(self, state: PairedState) -> list[str]:
        config = state.device.connection_config
        seen = [a for c in self.around.discovery.known(state.device.peer_id) for a in c.addresses]
        addresses = list(dict.fromkeys((*config.addresses, *state.connection.addresses, *seen)))
        ranks = {name: rank for rank, name in enumerate(config.transports)}
        return sorted(addresses, key=lambda address: ranks.get(transport_of(address), len(ranks)))

    def _limits(self, device: PairedDevice) -> tuple[float, float]:
        """The shortest and the longest pause, seconds."""
        config, settings = device.connection_config, self.around.settings
        low = settings.reconnect_min_s if config.reconnect_min_s is None else config.reconnect_min_s
        if config.reconnect_max_s is not None:
            return low, max(low, config.reconnect_max_s)
        soon_s = max(SOON_S, SOON_PER_DEVICE_S * self.around.count_devices())
        return low, max(low, min(settings.reconnect_max_s, soon_s))

    def _next_pause(self, device: PairedDevice) -> float:
        low, high = self._limits(device)
        self._pause_s = min(high, max(low, self._pause_s * 2))
        return self._pause_s * self.around.randomness.uniform(0.75, 1.25)
