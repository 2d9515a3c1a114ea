"""What state every known peer and device is in. Methods are synchronous: state changes never interleave.

::

    Discovered ──start_pairing──▶ Pairing ──complete_pairing──▶ Paired ──mark_connected──▶ Connected
        ▲  ▲                         │                             ▲ ▲                        │
        │  └──────cancel_pairing─────┘                             │ └──── mark_connected ────┤ mark_disconnected
        └── add_discovered_peer                                 restore              Disconnected ◀┘
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass

from ..clock import Clock
from ..errors import ConflictError, DeviceNotFoundError
from .connection import DeviceConnection
from .records import ConnectionRecord, PairedDevice

__all__ = ["Connected", "DeviceRegistry", "DeviceState", "Disconnected", "Discovered", "Paired", "Pairing"]

MAX_STRANGERS = 1024
"""Peers remembered that are not paired; the longest unseen gives way."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """Seen on the network, not paired."""

    peer_id: str
    addresses: tuple[str, ...]
    discovered_at: float


@dataclass(frozen=True, slots=True)
class Pairing:
    """In the middle of pairing."""

    peer_id: str
    session_id: uuid.UUID
    started_at: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Paired, not connected since the node started."""

    device: PairedDevice
    connection: ConnectionRecord


@dataclass(frozen=True, slots=True)
class Connected:
    """Paired, with a proven session."""

    device: PairedDevice
    connection: ConnectionRecord
    live: DeviceConnection
    connected_at: float


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Paired; the connection was lost."""

    device: PairedDevice
    connection: ConnectionRecord
    last_seen: float
    reason: str


StrangerState = Discovered | Pairing
PairedState = Paired | Connected | Disconnected
DeviceState = StrangerState | PairedState


class DeviceRegistry:
    """The states of all peers and devices of one node.

    :param clock: dates the states.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._devices: dict[uuid.UUID, PairedState] = {}
        self._by_peer: dict[str, uuid.UUID] = {}
        self._strangers: OrderedDict[str, StrangerState] = OrderedDict()

    # Peers that are not paired

    def add_discovered_peer(self, peer_id: str, addresses: tuple[str, ...]) -> bool:
        """Note that a peer was seen.

        :returns: whether it was not known before.
        """
        if peer_id in self._by_peer:
            return False
        known = self._strangers.get(peer_id)
        if not isinstance(known, Pairing):
            self._strangers[peer_id] = Discovered(peer_id, addresses, self._clock.now())
        self._strangers.move_to_end(peer_id)
        if len(self._strangers) > MAX_STRANGERS:
            self._strangers.popitem(last=False)
        return known is None

    def start_pairing(self, peer_id: str, session_id: uuid.UUID) -> None:
        """A pairing with a peer has begun.

        :raises ConflictError: it is being paired already.
        """
        if isinstance(self._strangers.get(peer_id), Pairing):
            raise ConflictError("That peer is being paired already.")
        self._strangers[peer_id] = Pairing(peer_id, session_id, self._clock.now())

    def cancel_pairing(self, peer_id: str) -> None:
        """A pairing has ended without success."""
        if isinstance(self._strangers.get(peer_id), Pairing):
            self._strangers[peer_id] = Discovered(peer_id, (), self._clock.now())

    # Paired devices

    def restore(self, device: PairedDevice, connection: ConnectionRecord) -> None:
        """Put a device in as it was stored, at start."""
        self._put(Paired(device, connection))

    def complete_pairing(self, device: PairedDevice, connection: ConnectionRecord) -> None:
        """A device is paired, anew or again.

        :raises ConflictError: it is connected under its old pairing (end that connection first), or it claims the id
            or the key of another device.
        """
        self.check_identity(device)
        if isinstance(self._devices.get(device.device_id), Connected):
            raise ConflictError("The device is still connected under its old pairing.")
        self._strangers.pop(device.peer_id, None)
        self._put(Paired(device, connection))

    def check_identity(self, device: PairedDevice) -> None:
        """Device id and key belong together: neither may be taken over by a device with another.

        :raises ConflictError: the id is known with another key, or the key with another id.
        """
        old = self._devices.get(device.device_id)
        owner = self._by_peer.get(device.peer_id, device.device_id)
        if owner != device.device_id or (old is not None and old.device.peer_id != device.peer_id):
            raise ConflictError("The device claims the identity of another paired device. Forget that one first.")

    def update(self, device: PairedDevice) -> None:
        """Replace what is kept of a paired device, in whatever state it is."""
        state = self.get(device.device_id)
        match state:
            case Paired():
                self._put(Paired(device, state.connection))
            case Connected():
                self._put(Connected(device, state.connection, state.live, state.connected_at))
            case Disconnected():
                self._put(Disconnected(device, state.connection, state.last_seen, state.reason))

    def mark_connected(self, live: DeviceConnection) -> Connected:
        """A session to a device has been proven.

        :raises ConflictError: there is a connection already, or its trust allows none.
        """
        state = self.get(live.device_id)
        if isinstance(state, Connected):
            raise ConflictError("The device is connected already.")
        if state.device.trust.access is None:
            raise ConflictError(f"The device is {state.device.trust}.")
        now = self._clock.now()
        connected = Connected(state.device, state.connection.seen(now, live.dialled_address), live, now)
        self._put(connected)
        return connected

    def mark_disconnected(self, live: DeviceConnection, reason: str) -> bool:
        """A connection is gone.

        :returns: False if it was not the device's current connection, then nothing changes.
        """
        state = self._devices.get(live.device_id)
        if not isinstance(state, Connected) or state.live is not live:
            return False
        now = self._clock.now()
        self._put(Disconnected(state.device, state.connection.seen(now, None), now, reason))
        return True

    def remove(self, device_id: uuid.UUID) -> PairedDevice:
        """Forget a paired device.

        :raises DeviceNotFoundError: it is not there.
        :raises ConflictError: it is connected; end that connection first.
        """
        state = self.get(device_id)
        if isinstance(state, Connected):
            raise ConflictError("The device is still connected.")
        del self._devices[device_id]
        del self._by_peer[state.device.peer_id]
        return state.device

    # Questions

    def get(self, device_id: uuid.UUID) -> PairedState:
        """The state of a paired device.

        :raises DeviceNotFoundError: it is not paired.
        """
        try:
            return self._devices[device_id]
        except KeyError:
            raise DeviceNotFoundError(f"No paired device has the id {device_id}.") from None

    def by_peer(self, peer_id: str) -> PairedState | None:
        """The state of the paired device with that peer id, None for a stranger."""
        device_id = self._by_peer.get(peer_id)
        return None if device_id is None else self._devices[device_id]

    def by_pairing(self, pairing_id: bytes) -> PairedDevice | None:
        """The device of a pairing id (16 bytes)."""
        for state in self._devices.values():
            if state.device.pairing_id == pairing_id:
                return state.device
        return None

    def find(self, reference: str) -> PairedState:
        """A paired device by name, id, or a unique prefix of either.

        :raises DeviceNotFoundError: none fits, or several do; then they are listed.
        """
        wanted = reference.strip().casefold()
        states = self.devices()
        for matches in (
            [s for s in states if str(s.device.device_id) == wanted],
            [s for s in states if s.device.info.name.casefold() == wanted],
            [
                s
                for s in states
                if wanted
                and (str(s.device.device_id).startswith(wanted) or s.device.info.name.casefold().startswith(wanted))
            ],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                several = ", ".join(f"{s.device.info.name} ({str(s.device.device_id)[:8]})" for s in matches)
                raise DeviceNotFoundError(f"{reference!r} fits several devices: {several}. Use more of the id.")
        known = ", ".join(s.device.info.name for s in states)
        raise DeviceNotFoundError(
            f"No paired device is called {reference!r}." + (f" Paired: {known}." if known else " None is paired yet.")
        )

    def devices(self) -> tuple[PairedState, ...]:
        """All paired devices, by name."""
        return tuple(sorted(self._devices.values(), key=lambda s: (s.device.info.name.casefold(), s.device.device_id)))

    def strangers(self) -> tuple[StrangerState, ...]:
        """All peers that are not paired, latest seen last."""
        return tuple(self._strangers.values())

    def _put(self, state: PairedState) -> None:
        self._devices[state.device.device_id] = state
        self._by_peer[state.device.peer_id] = state.device.device_id
