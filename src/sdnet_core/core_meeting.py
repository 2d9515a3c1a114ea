"""What a node does to be found and to find others: on the local network, and through meeting points."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .clock import Clock, Randomness, sleep_to_beat
from .config import Config
from .devices.gate import PeerGate
from .devices.manager import PersistentConnectionManager
from .devices.registry import DeviceRegistry
from .discovery.candidates import Discovery
from .discovery.cards import ip_of
from .discovery.points import MeetingPoint, group_points, parse_point
from .discovery.reservations import Reservations
from .discovery.search import Acquaintance, Way
from .discovery.source import DiscoverySource
from .errors import ConfigurationError, InvalidRequestError, SerializationError, StorageError
from .events import EventBus, PeerDiscovered, SearchProgress
from .identity import NetworkIdentity
from .storage import SecureStorage
from .swarm.abc import Swarm
from .swarm.nat import PortMapper
from .wire import Message, decode, encode

if TYPE_CHECKING:
    from .discovery.dht import DhtDiscovery

__all__ = ["MeetingMethods"]

logger = logging.getLogger(__name__)

LOOK_S = 5.0
MAX_LEARNED = 16
"""Most addresses of meeting points kept that came with a pairing."""


class _LearnedPoints(Message, frozen=True, kw_only=True, tag=1):
    """Meeting points that were not set by a person here, newest first."""

    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=MAX_LEARNED)]


class MeetingMethods:
    """The methods of `NetworkingCore` that are about finding peers."""

    clock: Clock
    config: Config
    discovery: Discovery
    events: EventBus
    gate: PeerGate
    randomness: Randomness
    _connections: PersistentConnectionManager
    _registry: DeviceRegistry
    _storage: SecureStorage
    _swarm: Swarm
    identity: NetworkIdentity
    _learned_points: tuple[str, ...] = ()
    _dht: DhtDiscovery | None = None
    _reservations: Reservations | None = None
    _mapper: PortMapper | None = None
    _secrets: dict[tuple[bytes, str], tuple[bytes, bytes]]

    def _far_source(self) -> DiscoverySource:
        from .discovery.dht import DhtDiscovery

        reservations = self._reservations = Reservations(
            self._swarm, self.clock, self.randomness, changed=self._reached_elsewhere
        )
        self._dht = DhtDiscovery(
            self._swarm,
            self.clock,
            self.randomness,
            points=self._points,
            acquaintances=self._acquaintances,
            outside=self._outside,
            attend=reservations.attend if self.config.discovery.relay else None,
        )
        self._swarm.shows_port = self._dht.meeting.keeps
        return self._dht

    def _outside(self) -> tuple[str, ...]:
        """Where this device is reached besides what it listens on."""
        seen_as = () if self._dht is None else self._dht.meeting.seen_as
        mapped = () if self._mapper is None or self._mapper.address is None else (self._mapper.address,)
        self._swarm.outside = (*mapped, *seen_as)
        return (*mapped, *(() if self._reservations is None else self._reservations.addresses))

    async def _keep_port(self) -> None:
        """Have a port on the router, once it is known that there is one that translates addresses."""
        if self._dht is None or not self.config.discovery.upnp:
            return
        seen: set[str] = set()
        while not seen or seen & {ip_of(address) for address in self._swarm.addresses}:
            await sleep_to_beat(LOOK_S)
            seen = {ip_of(address) for address in self._dht.meeting.seen_as}
        self._mapper = PortMapper(
            lambda: self._swarm.listen_ports.get(4),
            self._reached_elsewhere,
            lambda ip: self._dht is not None and ip in {ip_of(address) for address in self._dht.meeting.seen_as},
        )
        await self._mapper.run()

    def _hung_up(self, peer_id: str) -> None:
        """The swarm has lost its connection to a peer, which may be a meeting point."""
        if self._dht is not None:
            self._dht.meeting.hung_up(peer_id)

    def _reached_elsewhere(self) -> None:
        if self._dht is not None:
            self._dht.changed()

    def _points(self) -> tuple[MeetingPoint, ...]:
        return group_points((*self.config.discovery.bootstrap, *self._learned_points))

    def _acquaintances(self) -> list[Acquaintance]:
        """The paired devices, as far as they are published for and looked for."""
        found = []
        for state in self._registry.devices():
            device = state.device
            if device.trust.access is not None:
                key = (device.pairing_root, device.peer_id)
                if key not in self._secrets:
                    own = self.identity.peer_id
                    self._secrets[key] = (_secret(key[0], own), _secret(*key))
                ours, theirs = self._secrets[key]
                found.append(Acquaintance(device.peer_id, ours, theirs, self._connections.wants(device.device_id)))
        return found

    @contextmanager
    def advertise(self, tag: bytes, *, pairing: bool = False, record: bytes | None = None) -> Iterator[None]:
        """Announce a tag in discovery for the length of the block.

        :param pairing: this device waits to be paired meanwhile.
        :param record: a secret of 32 bytes; who has it finds this device from other networks too.
        """
        token = self.discovery.advertise(tag, record=record)
        try:
            with self.gate.window() if pairing else nullcontext():
                yield
        finally:
            self.discovery.withdraw(token)

    @property
    def meeting_points(self) -> tuple[str, ...]:
        """The public nodes through which this one is found: multiaddrs that end in ``/p2p/`` and a peer id."""
        return tuple(address for point in self._points() for address in point.full_addresses)

    async def add_meeting_points(self, addresses: Iterable[str]) -> None:
        """Use more meeting points from now on. Errors: see `PluginContext.add_meeting_points`."""
        new = [full for text in addresses for full in parse_point(text).full_addresses]
        known = (*self.config.discovery.bootstrap, *self._learned_points)
        added = [address for address in dict.fromkeys(new) if address not in known]
        if not added:
            return
        self._learned_points = (*added, *self._learned_points)[:MAX_LEARNED]
        self._meeting_points_changed()
        await self._storage.store("meeting-points", encode(_LearnedPoints(addresses=self._learned_points)))

    def describe_meeting(self) -> dict[str, Any]:
        """How this device stands with its meeting points, as plain values."""
        meeting = None if self._dht is None else self._dht.meeting
        return {
            "points": list(self.meeting_points),
            "reached": [] if meeting is None else list(meeting.reached),
            "trouble": "" if meeting is None else meeting.trouble,
            "seen_as": [] if meeting is None else list(meeting.seen_as),
            "relays": [] if self._reservations is None else list(self._reservations.relays),
            "port": None if self._mapper is None else self._mapper.address,
        }

    async def _load_meeting_points(self) -> None:
        self._secrets = {}
        try:
            group_points(self.config.discovery.bootstrap)
        except InvalidRequestError as error:
            raise ConfigurationError(f"[discovery] bootstrap: {error.detail}") from error
        try:
            data = await self._storage.load("meeting-points")
            self._learned_points = () if data is None else decode(data, _LearnedPoints).addresses
            group_points(self._learned_points)
        except (StorageError, SerializationError, InvalidRequestError) as error:
            logger.warning("the meeting points that were learnt are lost: %s", error)
            self._learned_points = ()

    def _meeting_points_changed(self) -> None:
        self.discovery.refresh()

    def _on_progress(self, way: Way) -> None:
        self.events.publish(SearchProgress(way=way.name, state=str(way.state), detail=way.detail))

    async def _follow_discovery(self) -> None:
        async with self.discovery.subscribe() as candidates:
            async for candidate in candidates:
                if self._registry.add_discovered_peer(candidate.peer_id, candidate.addresses):
                    self.events.publish(
                        PeerDiscovered(
                            peer_id=candidate.peer_id, addresses=candidate.addresses, source=candidate.source
                        )
                    )
                self._connections.sighted(candidate.peer_id)


def _secret(pairing_root: bytes, publisher: str) -> bytes:
    """Under which one of two paired devices publishes for the other."""
    return HKDFExpand(SHA256(), 32, b"sdnet/rendezvous/v1 " + publisher.encode()).derive(pairing_root)
