"""Finding peers on the local network by multicast DNS, to libp2p's specification.

The packets are composed and read with python-zeroconf's records; its service layer cannot read conformant peers (they
send no SRV record and repeat ``dnsaddr=``), and it runs an event loop of its own in a thread. Sockets and schedule are
therefore ours, one socket per interface and IP version.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import ClassVar

import anyio
import anyio.abc

from sdnet_core.clock import Clock, Randomness, sleep_to_beat
from sdnet_core.discovery.candidates import Announcement, Candidate, CandidateSink, DiscoverySource
from sdnet_core.discovery.interfaces import Interface, local_interfaces, multicast_interfaces
from sdnet_core.discovery.mdns_link import MDNS_PORT, LinkSchedule, group_address, open_socket
from sdnet_core.discovery.mdns_messages import (
    Packet,
    encode_goodbye,
    encode_query,
    encode_responses,
    encode_service_listing,
    parse_packet,
    random_instance_name,
    text_strings,
)
from sdnet_core.discovery.mdns_table import Heard, PacketBudget, PeerTable
from sdnet_core.discovery.multiaddrs import Network, is_loopback, useful_addresses

__all__ = ["MdnsDiscovery"]

_logger = logging.getLogger(__name__)

RESCAN_INTERVAL_S = 5.0
"""How often interfaces are looked for that came or went."""
SLEPT_AFTER_S = 20.0
"""When so much time passed between two rescans, the machine was asleep and may be elsewhere now."""
RETRY_INTERVAL_S = 10.0
"""An interface on which mDNS failed is tried again after this time."""
FRESH_INTERVAL_S = 30.0
"""A peer that is known already is reported as heard of again at most this often."""
GOODBYE_TIMEOUT_S = 1.0
_SOCKET_ERRORS = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)


class _Link:
    """An interface in use."""

    def __init__(self, interface: Interface, udp: anyio.abc.UDPSocket, schedule: LinkSchedule) -> None:
        self.interface = interface
        self.name = f"{interface.name} {interface.ip}"
        self.udp = udp
        self.schedule = schedule
        self.scope = anyio.CancelScope()
        self.wake = anyio.Event()
        self.announced = False
        # Only one task sends on a socket; what another wants sent waits here.
        self.outbox: deque[tuple[bytes, str, int]] = deque(maxlen=32)
        self.reply_budget = PacketBudget(per_sender=5, in_all=20)

    async def send(self, packets: Iterable[bytes]) -> None:
        for packet in packets:
            await self.udp.sendto(packet, group_address(self.interface), MDNS_PORT)

    def post(self, packet: bytes, host: str, port: int) -> None:
        self.outbox.append((packet, host, port))
        self.wake.set()


_LinkWork = Callable[[_Link, CandidateSink], Awaitable[None]]


class MdnsDiscovery(DiscoverySource):
    """Announces this node on the local network and hears of others there, on this machine included.

    :param peer_id: our own.
    :param clock: schedules and expires.
    :param randomness: names this instance and spreads what is sent.
    :param interfaces: IP addresses of the interfaces to use; all of them, loopback included, when None.
    """

    name: ClassVar[str] = "mdns"

    def __init__(
        self, peer_id: str, clock: Clock, randomness: Randomness, *, interfaces: Sequence[str] | None = None
    ) -> None:
        if interfaces is not None:
            for address in interfaces:
                ipaddress.ip_address(address)
        self._peer_id = peer_id
        self._clock = clock
        self._randomness = randomness
        self._wanted = None if interfaces is None else tuple(interfaces)
        self._instance = random_instance_name(randomness)
        self._announcement = Announcement()
        self._links: dict[str, _Link] = {}
        self._failed: dict[str, float] = {}
        self._table = PeerTable()
        self._budget = PacketBudget()
        self._fresh_at: dict[str, float] = {}
        self._own_addresses: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = frozenset()
        self._networks: tuple[Network, ...] = ()

    def announce(self, announcement: Announcement) -> None:
        self._announcement = announcement
        for link in self._links.values():
            self._plan_announcement(link)

    def refresh(self) -> None:
        for link in self._links.values():
            link.schedule.restart(self._clock.monotonic())
            link.wake.set()

    async def run(self, sink: CandidateSink) -> None:
        self._table = PeerTable()
        self._fresh_at.clear()
        try:
            async with anyio.create_task_group() as group:
                while True:
                    await self._follow_interfaces(sink, group)
                    sink.ready()
                    before = self._clock.monotonic()
                    await sleep_to_beat(RESCAN_INTERVAL_S)
                    now = self._clock.monotonic()
                    self._report(self._table.expire(now), sink)
                    if now - before > SLEPT_AFTER_S:
                        self.announce(self._announcement)
                        self.refresh()
        finally:
            with anyio.move_on_after(GOODBYE_TIMEOUT_S, shield=True):
                await self._say_goodbye()
            for link in self._links.values():
                # Closing waits for nothing on a datagram socket; the shield keeps a cancelled caller from skipping it.
                with anyio.CancelScope(shield=True):
                    await link.udp.aclose()
            self._links.clear()

    async def _say_goodbye(self) -> None:
        for link in self._links.values():
            if link.announced:
                try:
                    await link.send(encode_goodbye(self._instance))
                except _SOCKET_ERRORS as error:
                    _logger.debug("No goodbye on %s: %s", link.name, error)

    async def _follow_interfaces(self, sink: CandidateSink, group: anyio.abc.TaskGroup) -> None:
        """Bring the links in line with the interfaces there are now."""
        interfaces = local_interfaces()
        self._own_addresses = frozenset(interface.ip for interface in interfaces)
        self._networks = tuple(interface.network for interface in interfaces if not interface.ip.is_loopback)
        present = {f"{interface.name} {interface.ip}": interface for interface in multicast_interfaces(self._wanted)}
        now = self._clock.monotonic()
        for name in self._links.keys() - present.keys():
            self._links[name].scope.cancel()
        for name in present.keys() - self._links.keys():
            interface = present[name]
            if now < self._failed.get(name, -math.inf) + RETRY_INTERVAL_S:
                continue
            try:
                udp = await open_socket(interface)
            except OSError as error:
                self._note_failure(name, error)
                continue
            link = _Link(interface, udp, LinkSchedule(self._randomness, self._clock.monotonic()))
            self._links[name] = link
            self._plan_announcement(link)
            group.start_soon(self._serve, link, sink)

    def _note_failure(self, name: str, error: Exception) -> None:
        level = logging.DEBUG if name in self._failed else logging.INFO
        self._failed[name] = self._clock.monotonic()
        _logger.log(level, "No mDNS on %s: %s", name, error.__cause__ or error)

    async def _serve(self, link: _Link, sink: CandidateSink) -> None:
        try:
            with link.scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._guard, link, self._listen, sink)
                    group.start_soon(self._guard, link, self._talk, sink)
        finally:
            if link.scope.cancel_called:
                self._links.pop(link.name, None)
                self._report(self._table.drop_link(link.name), sink)
                with anyio.CancelScope(shield=True):
                    await link.udp.aclose()

    async def _guard(self, link: _Link, work: _LinkWork, sink: CandidateSink) -> None:
        """A link whose socket fails is given up; it is opened again while its interface is there."""
        try:
            await work(link, sink)
        except _SOCKET_ERRORS as error:
            self._note_failure(link.name, error)
            link.scope.cancel()

    async def _talk(self, link: _Link, sink: CandidateSink) -> None:
        while True:
            link.wake = anyio.Event()
            due = link.schedule.take_due(self._clock.monotonic())
            if due.tell:
                strings = self._strings(link)
                if strings:
                    link.announced = True
                    await link.send(encode_responses(self._instance, strings))
                elif link.announced:
                    link.announced = False
                    await link.send(encode_goodbye(self._instance))
            if due.query:
                await link.send([encode_query()])
            while link.outbox:
                await link.udp.sendto(*link.outbox.popleft())
            with anyio.move_on_after(max(0.0, link.schedule.next_at() - self._clock.monotonic())):
                await link.wake.wait()

    async def _listen(self, link: _Link, sink: CandidateSink) -> None:
        while True:
            data, (host, port) = await link.udp.receive()
            sender = host.partition("%")[0]
            now = self._clock.monotonic()
            if not self._budget.take(sender, now):
                continue
            packet = parse_packet(data)
            if packet is None:
                continue
            if packet.asks_peers and self._instance not in packet.known_instances:
                link.schedule.asked(now)
                link.wake.set()
            if packet.asks_services and link.reply_budget.take(sender, now):
                link.post(encode_service_listing(), group_address(link.interface), MDNS_PORT)
            if packet.asks_peers and port != MDNS_PORT:
                self._answer_one_shot(link, packet, host, port, now)
            for record in packet.records:
                if record.instance != self._instance and record.peer_id != self._peer_id:
                    addresses = useful_addresses(
                        record.peer_id,
                        (address for address in record.addresses if "/ip4/" in address or "/ip6/" in address),
                        networks=self._networks,
                        allow_loopback=self._is_own(sender),
                    )
                    heard = self._table.observe(record, addresses, link=link.name, sender=sender, now=now)
                    self._report(heard, sink)

    def _answer_one_shot(self, link: _Link, packet: Packet, host: str, port: int, now: float) -> None:
        """RFC 6762 section 6.7: who asks from another port hears the answer there only (and others still hear it)."""
        sender = host.partition("%")[0]
        near = self._is_own(sender) or ipaddress.ip_address(sender) in link.interface.network.network
        if near and link.reply_budget.take(sender, now):
            for answer in encode_responses(self._instance, self._strings(link), legacy_query_id=packet.query_id):
                link.post(answer, host, port)

    def _is_own(self, sender: str) -> bool:
        ip = ipaddress.ip_address(sender)
        return ip.is_loopback or ip in self._own_addresses

    def _report(self, heard: Iterable[Heard], sink: CandidateSink) -> None:
        now = self._clock.monotonic()
        for peer in heard:
            if not peer.addresses:
                self._fresh_at.pop(peer.peer_id, None)
                sink.lost(peer.peer_id)
                continue
            fresh = peer.is_new_instance or now - self._fresh_at.get(peer.peer_id, now) >= FRESH_INTERVAL_S
            if fresh or peer.peer_id not in self._fresh_at:
                self._fresh_at[peer.peer_id] = now
            candidate = Candidate(peer.peer_id, peer.addresses, self.name, peer.tags, now)
            sink.found(candidate, ttl_s=peer.expires_at - now, fresh=fresh)

    def _plan_announcement(self, link: _Link) -> None:
        link.schedule.changed(self._clock.monotonic())
        link.wake.set()

    def _strings(self, link: _Link) -> tuple[bytes, ...]:
        """What is told on a link. Loopback addresses are of use on the loopback link only."""
        addresses = self._announcement.addresses
        if not link.interface.ip.is_loopback:
            addresses = tuple(address for address in addresses if not is_loopback(address))
        return text_strings(self._peer_id, addresses, self._announcement.tags) if addresses else ()
