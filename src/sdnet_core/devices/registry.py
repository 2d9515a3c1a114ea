"""What state every known peer and device is in. Methods are synchronous: state changes never interleave.

::

    Discovered ──start_pairing──▶ Pairing ──complete_pairing──▶ Paired ──mark_connected──▶ Connected
        ▲  ▲                         │                             ▲ ▲                        │  ▲
        │  └──────cancel_pairing─────┘                             │ │       mark_disconnected│  │mark_connected
        └── add_discovered_peer                                 restore └─complete_pairing─ Disconnected

Besides, a paired device that is not connected can be revoked, expire (`update`) or be removed; its trust, its name and
whether its pairing is confirmed can change in any state. What is not drawn is refused with a `ConflictError`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..clock import Clock
from ..errors import ConflictError, DeviceNotFoundError, InvalidRequestError
from .connection import DeviceConnection
from .records import ConnectionRecord, PairedDevice
from .trust import Trust

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
    """In the middle of pairing.

    :param before: what was known of the peer before, so that a pairing that fails loses nothing.
    """

    peer_id: str
    session_id: uuid.UUID
    started_at: float
    before: Discovered | None = None


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
        seen = Discovered(peer_id, addresses, self._clock.now())
        self._strangers[peer_id] = replace(known, before=seen) if isinstance(known, Pairing) else seen
        self._strangers.move_to_end(peer_id)
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next((p for p, state in self._strangers.items() if isinstance(state, Discovered)), None)
            if oldest is not None:
                del self._strangers[oldest]
        return known is None

    def start_pairing(self, peer_id: str, session_id: uuid.UUID) -> None:
        """A pairing with a peer has begun. One that is paired already is paired anew; its state stays until then.

        :raises ConflictError: it is being paired already.
        """
        known = self._strangers.get(peer_id)
        if isinstance(known, Pairing):
            raise ConflictError("That peer is being paired already.")
        self._strangers[peer_id] = Pairing(peer_id, session_id, self._clock.now(), known)

    def cancel_pairing(self, peer_id: str) -> bool:
        """A pairing has ended without success: the peer is what it was before.

        :returns: False if it was not being paired, then nothing changes.
        """
        pairing = self._strangers.get(peer_id)
        if not isinstance(pairing, Pairing):
            return False
        if peer_id in self._by_peer:
            del self._strangers[peer_id]
        else:
            self._strangers[peer_id] = pairing.before or Discovered(peer_id, (), self._clock.now())
        return True

    def stranger(self, peer_id: str) -> StrangerState | None:
        """The state of a peer that is not paired, or that is being paired; None if it was never seen."""
        return self._strangers.get(peer_id)

    # Paired devices

    def restore(self, device: PairedDevice, connection: ConnectionRecord) -> None:
        """Put a device in as it was stored, at start.

        :raises ConflictError: it is there already, or it claims the id or the key of another device.
        """
        if device.device_id in self._devices:
            raise ConflictError(f"{device.name} is known already.")
        self.check_identity(device)
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
        """Replace what is kept of a paired device, in whatever state it is.

        :raises DeviceNotFoundError: it is not there.
        :raises ConflictError: that change is not allowed, see `check_update`.
        """
        self.check_update(device)
        state = self.get(device.device_id)
        match state:
            case Paired():
                self._put(Paired(device, state.connection))
            case Connected():
                self._put(Connected(device, state.connection, state.live, state.connected_at))
            case Disconnected():
                self._put(Disconnected(device, state.connection, state.last_seen, state.reason))

    def check_update(self, device: PairedDevice) -> None:
        """Whether what is kept of a device may change to this.

        :raises DeviceNotFoundError: it is not there.
        :raises ConflictError: it is another pairing (that is what `complete_pairing` is for), its trust would come
            back from revoked or expired, a confirmed pairing would become pending, or it is connected and would lose
            all trust (end that connection first).
        """
        state = self.get(device.device_id)
        old = state.device
        if (old.pairing_id, old.peer_id) != (device.pairing_id, device.peer_id):
            raise ConflictError(f"{old.name} was paired anew meanwhile.")
        if device.trust is not old.trust and (
            old.trust is Trust.REVOKED or (old.trust is Trust.EXPIRED and device.trust is not Trust.REVOKED)
        ):
            raise ConflictError(f"{old.name} is {old.trust}; only pairing it again gives it trust.")
        if device.pending and not old.pending:
            raise ConflictError(f"The pairing with {old.name} is confirmed already.")
        if isinstance(state, Connected) and device.trust.access is None:
            raise ConflictError(f"{old.name} is still connected.")

    def check_name(self, device_id: uuid.UUID, name: str) -> None:
        """Whether a device can be called so on this device and still be found.

        :raises DeviceNotFoundError: it is not there.
        :raises InvalidRequestError: it is not a name: 1 to 64 printable characters, not only spaces, and no id.
        :raises ConflictError: another device is called so.
        """
        self.get(device_id)
        if not 0 < len(name) <= 64 or not name.isprintable() or name != name.strip():
            raise InvalidRequestError("A device's name has 1 to 64 printable characters and no space at its ends.")
        with contextlib.suppress(ValueError):
            uuid.UUID(name)
            raise InvalidRequestError("A device cannot be called like an id.")
        for state in self._devices.values():
            other = state.device
            if other.device_id != device_id and name.casefold() in (other.name.casefold(), other.info.name.casefold()):
                raise ConflictError(f"Another device is called {name!r} already.")

    def mark_connected(self, live: DeviceConnection, *, instead_of: DeviceConnection | None = None) -> Connected:
        """A session to a device has been proven.

        :param instead_of: the connection that it takes over from.
        :raises ConflictError: there is a connection already, or its trust allows none.
        """
        state = self.get(live.device_id)
        if isinstance(state, Connected) and state.live is not instead_of:
            raise ConflictError("The device is connected already.")
        if state.device.trust.access is None:
            raise ConflictError(f"{state.device.name} is {state.device.trust}.")
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
        """A paired device by id, by its name here or its own, or by a unique prefix of any.

        :raises DeviceNotFoundError: none fits, or several do; then they are listed.
        """
        wanted = reference.strip().casefold()
        states = self.devices()
        for matches in (
            [s for s in states if str(s.device.device_id) == wanted],
            [s for s in states if s.device.name.casefold() == wanted],
            [s for s in states if s.device.info.name.casefold() == wanted],
            [s for s in states if wanted and any(text.startswith(wanted) for text in _searchable(s.device))],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                several = ", ".join(f"{s.device.name} ({str(s.device.device_id)[:8]})" for s in matches)
                raise DeviceNotFoundError(f"{reference!r} fits several devices: {several}. Use more of the id.")
        known = ", ".join(s.device.name for s in states)
        raise DeviceNotFoundError(
            f"No paired device is called {reference!r}." + (f" Paired: {known}." if known else " None is paired yet.")
        )

    def devices(self) -> tuple[PairedState, ...]:
        """All paired devices, by name."""
        return tuple(sorted(self._devices.values(), key=lambda s: (s.device.name.casefold(), s.device.device_id)))

    def ids(self) -> frozenset[uuid.UUID]:
        """The ids of all paired devices."""
        return frozenset(self._devices)

    def revoked_peers(self) -> tuple[str, ...]:
        """The peer ids of revoked devices."""
        return tuple(s.device.peer_id for s in self._devices.values() if s.device.trust is Trust.REVOKED)

    def strangers(self) -> tuple[StrangerState, ...]:
        """All peers that are not paired, latest seen last."""
        return tuple(self._strangers.values())

    def _put(self, state: PairedState) -> None:
        self._devices[state.device.device_id] = state
        self._by_peer[state.device.peer_id] = state.device.device_id


def _searchable(device: PairedDevice) -> Iterator[str]:
    yield str(device.device_id)
    yield device.name.casefold()
    yield device.info.name.casefold()
