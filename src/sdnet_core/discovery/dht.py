"""Being found and finding others through meeting points: publishes this device's card, and looks for others' cards.

A card is published under every secret that this device shares with somebody: the one of a pairing code while it waits
to be paired, and one for each paired device. It is looked for in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio

from sdnet_core.clock import Clock, Randomness
from sdnet_core.discovery.cards import make_card, this_host, worth_trying
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.dht_records import DAY_S, Card, Record, RecordKeys, daily_secret
from sdnet_core.discovery.interfaces import local_networks
from sdnet_core.discovery.kademlia import Contact
from sdnet_core.discovery.meeting import MeetingPoints
from sdnet_core.discovery.multiaddrs import Network
from sdnet_core.discovery.points import MeetingPoint
from sdnet_core.discovery.search import Acquaintance, WayState
from sdnet_core.discovery.source import Announcement, Candidate, CandidateSink, DiscoverySource
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.abc import Swarm

from ..wording import format_count

__all__ = ["DhtDiscovery"]

_logger = logging.getLogger(__name__)

TICK_S = 1.0
SHORT_LIFETIME_S = 900
SHORT_REPUBLISH_S = 240.0
LONG_LIFETIME_S = 2 * 3600
LONG_REPUBLISH_S = 1200.0
DAY_OVERLAP_S = 6 * 3600
"""Around midnight (UTC) cards of both days are published, for devices whose clocks differ."""
RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0
SEEK_MIN_S = 0.5
SEEK_SHORT_MAX_S = 2.0
"""Longest pause between two looks for a card that a person waits for."""
SEEK_LONG_MAX_S = 45.0
MAX_AT_ONCE = 8
WITHDRAW_S = 1.0
MAX_DAILY = 16_384


@dataclass(eq=False, slots=True)
class _Published:
    """One record of ours."""

    keys: RecordKeys
    sequence: int = 0
    card: Card | None = None
    due_at: float = float("-inf")
    pause_s: float = 0.0
    busy: bool = False


@dataclass(eq=False, slots=True)
class _Sought:
    """One record of somebody else."""

    keys: RecordKeys
    peer_id: str | None
    sequence: int = 0
    due_at: float = float("-inf")
    pause_s: float = SEEK_MIN_S
    busy: bool = False


@dataclass(frozen=True, slots=True)
class _Wish:
    tags: frozenset[bytes] = field(default_factory=frozenset)
    lifetime_s: int = LONG_LIFETIME_S
    republish_s: float = LONG_REPUBLISH_S


class DhtDiscovery(DiscoverySource):
    """The DHT as a way of finding peers. Without meeting points it does nothing.

    :param points: gives the meeting points to use now.
    :param acquaintances: gives the peers that share secrets with us for good.
    :param outside: where this device is reached besides what it listens on.
    :param networks: gives this machine's networks.
    :param attend: see `MeetingPoints`.
    """

    name: ClassVar[str] = "dht"

    def __init__(
        self,
        swarm: Swarm,
        clock: Clock,
        randomness: Randomness,
        *,
        points: Callable[[], Sequence[MeetingPoint]],
        acquaintances: Callable[[], Sequence[Acquaintance]] = lambda: (),
        outside: Callable[[], Sequence[str]] = lambda: (),
        networks: Callable[[], Sequence[Network]] = local_networks,
        attend: Callable[[MeetingPoint], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._swarm = swarm
        self._clock = clock
        self._randomness = randomness
        self._points = points
        self._acquaintances = acquaintances
        self._outside = outside
        self._networks = networks
        self._host = this_host()
        self._client = DhtClient(swarm, clock, keep=self._keeps)
        self.meeting = MeetingPoints(
            swarm, self._client, clock, randomness, points=points, changed=self.changed, attend=attend
        )
        self._announcement = Announcement()
        self._secrets: frozenset[bytes] = frozenset()
        self._published: dict[bytes, _Published] = {}
        self._sought: dict[bytes, _Sought] = {}
        self._daily: dict[tuple[bytes, int], bytes] = {}
        self._reached: frozenset[str] = frozenset()
        self._sink: CandidateSink | None = None
        self._wake = anyio.Event()

    def _keeps(self, peer_id: str) -> bool:
        return self.meeting.keeps(peer_id) or (self._swarm.knows is not None and self._swarm.knows(peer_id))

    # What it is told

    def announce(self, announcement: Announcement) -> None:
        if announcement.addresses != self._announcement.addresses:
            self.meeting.look()
        self._announcement = announcement
        self._wake.set()

    def seek(self, secrets: frozenset[bytes]) -> None:
        self._secrets = secrets
        self._wake.set()

    def refresh(self) -> None:
        for sought in self._sought.values():
            sought.due_at, sought.pause_s = float("-inf"), SEEK_MIN_S
        self.meeting.look()
        self._wake.set()

    def changed(self) -> None:
        """Meeting points came or went, or this device is reached elsewhere."""
        reached = frozenset(self.meeting.reached)
        if reached - self._reached:
            # It may have lost what we gave it, or never have had it.
            for published in self._published.values():
                published.due_at, published.pause_s = float("-inf"), 0.0
            for sought in self._sought.values():
                sought.due_at, sought.pause_s = float("-inf"), SEEK_MIN_S
        self._reached = reached
        self._tell()
        self._wake.set()

    def _tell(self) -> None:
        if self._sink is None:
            return
        points = self._points()
        count = format_count(len(points), "meeting point")
        if not points:
            self._sink.progress(WayState.OFF, "No meeting point is set.")
        elif self._reached:
            self._sink.progress(WayState.LOOKING, f"{len(self._reached)} of {count} answer.")
        elif self.meeting.trouble:
            self._sink.progress(WayState.UNREACHABLE, f"No meeting point answers: {self.meeting.trouble}")
        else:
            self._sink.progress(WayState.STARTING, "Connecting to the meeting points.")

    # Its life

    async def run(self, sink: CandidateSink) -> None:
        self._sink = sink
        sink.ready()
        self._tell()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._client.run)
                tasks.start_soon(self.meeting.run)
                tasks.start_soon(self._work)
        finally:
            self._sink = None
            with anyio.move_on_after(WITHDRAW_S, shield=True):
                await self._withdraw_all()

    async def _work(self) -> None:
        slots = anyio.Semaphore(MAX_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            while True:
                self._wake = anyio.Event()
                if not self._points():
                    self._tell()
                    await self._wake.wait()
                    self.meeting.look()
                    continue
                if self._reached or len(self._client.table):
                    wishes = self._wishes()
                    for secret, wish in wishes.items():
                        published = self._published.get(secret)
                        if published is None:
                            published = self._published[secret] = _Published(RecordKeys(secret))
                        card = self._card(wish.tags)
                        if not published.busy and self._is_due(published, card):
                            published.busy = True
                            tasks.start_soon(self._publish, slots, published, card, wish)
                    for secret, gone in list(self._published.items()):
                        if secret not in wishes and not gone.busy:
                            del self._published[secret]
                            tasks.start_soon(self._withdraw, gone)
                    for sought in self._seek_list():
                        if not sought.busy and sought.due_at <= self._clock.monotonic():
                            sought.busy = True
                            tasks.start_soon(self._look_for, slots, sought)
                with anyio.move_on_after(self._pause_s()):
                    await self._wake.wait()

    def _pause_s(self) -> float:
        due = min((s.due_at for s in self._sought.values() if not s.busy), default=float("inf"))
        return min(TICK_S, max(0.05, due - self._clock.monotonic()))

    # Publishing

    def _wishes(self) -> dict[bytes, _Wish]:
        now = self._clock.now()
        wishes = {}
        for acquaintance in self._acquaintances():
            for at in (now - DAY_OVERLAP_S, now + DAY_OVERLAP_S):
                wishes[self._of_day(acquaintance.ours, at)] = _Wish()
        for record in self._announcement.records:
            wishes[record.secret] = _Wish(record.tags, SHORT_LIFETIME_S, SHORT_REPUBLISH_S)
        return wishes

    def _of_day(self, secret: bytes, at: float) -> bytes:
        key = (secret, int(at // DAY_S))
        if key not in self._daily:
            if len(self._daily) >= MAX_DAILY:
                self._daily.clear()
            self._daily[key] = daily_secret(secret, at)
        return self._daily[key]

    def _card(self, tags: frozenset[bytes]) -> Card:
        return make_card(
            self._swarm.peer_id,
            self._announcement.addresses,
            self._outside(),
            tags=tags,
            host=self._host,
            seen_as=self.meeting.seen_as,
        )

    def _is_due(self, published: _Published, card: Card) -> bool:
        now = self._clock.monotonic()
        if published.card != card and published.pause_s == 0:
            return bool(card.addresses)
        return published.due_at <= now and bool(card.addresses)

    async def _publish(self, slots: anyio.Semaphore, published: _Published, card: Card, wish: _Wish) -> None:
        try:
            async with slots:
                done = await self._put(published, card, wish.lifetime_s)
            now = self._clock.monotonic()
            if done:
                published.card = card
                published.pause_s = 0.0
                published.due_at = now + wish.republish_s * self._randomness.uniform(0.8, 1.0)
            else:
                published.pause_s = min(RETRY_MAX_S, max(RETRY_MIN_S, published.pause_s * 2))
                published.due_at = now + published.pause_s * self._randomness.uniform(0.75, 1.25)
        finally:
            published.busy = False
            self._wake.set()

    async def _put(self, published: _Published, card: Card | None, lifetime_s: int) -> bool:
        """Store a record; under a higher number if a node has a newer one."""
        for _ in range(3):
            now = self._clock.now()
            published.sequence = max(published.sequence + 1, int(now * 1000))
            record = published.keys.make(
                card,
                sequence=published.sequence,
                expires_at=int(now) + lifetime_s,
                nonce=self._randomness.bytes(12),
            )
            result = await self._client.store(record, self._start())
            if result.clock:
                _logger.warning("a meeting point does not take a record: this device's clock, or its, is wrong")
            if result.newer is None or result.newer.sequence < record.sequence:
                return result.stored > 0
            published.sequence = result.newer.sequence
        return False

    async def _withdraw(self, published: _Published) -> None:
        if published.card is not None:
            await self._put(published, None, SHORT_LIFETIME_S)

    async def _withdraw_all(self) -> None:
        if not self._reached:
            return
        async with anyio.create_task_group() as tasks:
            for published in self._published.values():
                tasks.start_soon(self._withdraw, published)
        self._published.clear()

    def _start(self) -> tuple[Contact, ...]:
        """The nodes that a search begins with: those that we are connected to, or else all there are."""
        reached = tuple(contact for contact in self.meeting.contacts if contact.peer_id in self._reached)
        return reached or self.meeting.contacts

    # Looking

    def _seek_list(self) -> list[_Sought]:
        now = self._clock.now()
        wanted: dict[bytes, str | None] = dict.fromkeys(self._secrets)
        for acquaintance in self._acquaintances():
            if acquaintance.wanted:
                wanted[self._of_day(acquaintance.theirs, now)] = acquaintance.peer_id
        for secret in self._sought.keys() - wanted.keys():
            del self._sought[secret]
        for secret, peer_id in wanted.items():
            if secret not in self._sought:
                self._sought[secret] = _Sought(RecordKeys(secret), peer_id)
        return list(self._sought.values())

    async def _look_for(self, slots: anyio.Semaphore, sought: _Sought) -> None:
        try:
            async with slots:
                await self._client.find(
                    sought.keys.key, self._start(), found=lambda record: self._found(sought, record)
                )
        finally:
            longest_s = SEEK_SHORT_MAX_S if sought.peer_id is None else SEEK_LONG_MAX_S
            sought.due_at = self._clock.monotonic() + sought.pause_s * self._randomness.uniform(0.8, 1.2)
            sought.pause_s = min(longest_s, sought.pause_s * 2)
            sought.busy = False
            self._wake.set()

    def _found(self, sought: _Sought, record: Record) -> None:
        """A valid record has come; it need not be the newest there is."""
        if self._sink is None or record.sequence <= sought.sequence:
            return
        try:
            card = sought.keys.open(record)
        except NetworkingError as error:
            _logger.info("a record cannot be read: %s", error)
            return
        sought.sequence = record.sequence
        if card is None:
            if sought.peer_id is not None:
                self._sink.lost(sought.peer_id)
            return
        if card.peer_id == self._swarm.peer_id or (sought.peer_id is not None and card.peer_id != sought.peer_id):
            return
        addresses = worth_trying(card, host=self._host, networks=self._networks(), seen_as=self.meeting.seen_as)
        ttl_s = max(60.0, record.expires_at - self._clock.now())
        candidate = Candidate(card.peer_id, addresses, self.name, frozenset(card.tags))
        self._sink.found(candidate, ttl_s=ttl_s, fresh=True)
