"""The serving half of the DHT: answers questions of anybody, within limits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import anyio

from sdnet_core.clock import Clock
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.dht_messages import (
    MAX_ADDRESSES,
    MAX_QUESTION_BYTES,
    PROTOCOL,
    AnyAnswer,
    AnyQuestion,
    FindNodes,
    FindRecord,
    Found,
    Named,
    RefusalReason,
    Refused,
    Stored,
    StoreRecord,
)
from sdnet_core.discovery.dht_records import check_record
from sdnet_core.discovery.dht_store import Budget, RecordStore
from sdnet_core.discovery.kademlia import Contact, RoutingTable, node_id
from sdnet_core.discovery.multiaddrs import parse_multiaddr
from sdnet_core.errors import AuthenticationFailedError, NetworkingError, SerializationError
from sdnet_core.swarm.abc import Swarm, SwarmStream
from sdnet_core.wire import MessageStream, decode

__all__ = ["DhtServer", "owner_of"]

_logger = logging.getLogger(__name__)

QUESTION_TIMEOUT_S = 30.0
"""How long a stream may wait for its next question."""
REFRESH_S = 300.0
"""How often a node asks for those near to it, and whether those it knows are still there."""
FIRST_REFRESH_S = 5.0
SWEEP_S = 60.0


def owner_of(address: str | None, peer_id: str) -> str:
    """Whom to charge: the IP address, the network of an IPv6 one, or the relay that somebody came through."""
    try:
        parsed = parse_multiaddr(address or "")
    except ValueError:
        return peer_id
    if parsed.ip is None:
        return peer_id
    if parsed.ip.version == 6:
        return str(parsed.ip.exploded)[:19]
    return str(parsed.ip)


class DhtServer:
    """Keeps records for others and knows other nodes.

    :param client: asks other nodes; its table is the one that is told.
    :param announced: the addresses at which this node itself serves.
    :param start: the nodes it begins with.
    :ivar counts: what was asked and answered since the start.
    """

    def __init__(
        self,
        swarm: Swarm,
        clock: Clock,
        client: DhtClient,
        *,
        announced: Callable[[], Sequence[str]],
        start: Sequence[Contact] = (),
        store: RecordStore | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.store = RecordStore() if store is None else store  # one that is empty counts
        self.counts: Counter[str] = Counter()
        self._swarm = swarm
        self._clock = clock
        self._client = client
        self._announced = announced
        self._start = tuple(start)
        self._budget = budget or Budget(per_s=50.0, burst=500.0)

    @property
    def table(self) -> RoutingTable:
        """The nodes this one knows."""
        return self._client.table

    async def run(self) -> None:
        """Serve until cancelled."""
        self._swarm.set_stream_handler(PROTOCOL, self._serve)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._client.run)
                tasks.start_soon(self._refresh)
                while True:
                    await anyio.sleep(SWEEP_S)
                    self.store.sweep(now=self._clock.now())
        finally:
            self._swarm.remove_stream_handler(PROTOCOL)

    async def _refresh(self) -> None:
        pause_s = FIRST_REFRESH_S
        while True:
            for contact in (*self._start, *self.table):
                if await self._client.hello(contact, self._own_addresses()) is None:
                    self.table.remove(contact.peer_id)
            if len(self.table):
                lookup = await self._client.lookup(node_id(self._swarm.peer_id), (*self._start, *self.table))
                for contact in lookup.closest():
                    await self._client.hello(contact, self._own_addresses())
            await anyio.sleep(pause_s)
            pause_s = min(REFRESH_S, pause_s * 2)

    def _own_addresses(self) -> tuple[str, ...]:
        return tuple(self._announced())[:MAX_ADDRESSES]

    async def _serve(self, stream: SwarmStream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_QUESTION_BYTES)
        owner = owner_of(self._swarm.remote_address(stream.peer_id), stream.peer_id)
        while True:
            with anyio.move_on_after(QUESTION_TIMEOUT_S) as patience:
                try:
                    data = await messages.receive_bytes_or_end()
                except NetworkingError as error:
                    _logger.debug("a question of %s broke off: %s", stream.peer_id, error)
                    await stream.reset()
                    return
                if data is None:
                    return
                answer = self._answer(stream.peer_id, owner, data)
                self.counts[
                    "answered" if not isinstance(answer, Refused) else f"refused-{answer.reason.name.lower()}"
                ] += 1
                await messages.send(answer)
            if patience.cancelled_caught:
                await stream.reset()
                return

    def _answer(self, peer_id: str, owner: str, data: bytes) -> AnyAnswer:
        if not self._budget.take(owner, self._clock.monotonic()):
            return Refused(reason=RefusalReason.BUSY)
        try:
            question: AnyQuestion = decode(data, AnyQuestion, max_bytes=MAX_QUESTION_BYTES)
        except SerializationError as error:
            _logger.debug("a question of %s is not valid: %s", peer_id, error)
            return Refused(reason=RefusalReason.INVALID)
        match question:
            case FindNodes(target=target, serves=serves):
                if serves:
                    self._note(Contact(peer_id, serves), owner)
                return self._found(peer_id, target)
            case FindRecord(target=target):
                self.counts["lookups"] += 1
                return self._found(peer_id, target, record=True)
            case StoreRecord():
                return self._keep(question, owner)

    def _found(self, peer_id: str, target: bytes, *, record: bool = False) -> Found:
        closer = [contact for contact in self.table.closest(target) if contact.peer_id != peer_id]
        return Found(
            closer=tuple(map(Named.of, closer)),
            record=self.store.get(target, now=self._clock.now()) if record else None,
            seen_as=(self._swarm.remote_address(peer_id) or "")[:256],
        )

    def _keep(self, question: StoreRecord, owner: str) -> Stored | Refused:
        now = self._clock.now()
        try:
            check_record(question.record, now=now)
        except AuthenticationFailedError:
            return Refused(reason=RefusalReason.INVALID)
        except SerializationError:
            return Refused(reason=RefusalReason.CLOCK)
        newer = self.store.put(question.record, owner=owner, now=now)
        if newer is not None:
            return Refused(reason=RefusalReason.STALE, record=newer)
        self.counts["stored"] += 1
        return Stored()

    def _note(self, contact: Contact, owner: str) -> None:
        """Somebody says that it serves: at the address it comes from, or under a name, it may."""
        addresses = tuple(address for address in contact.addresses if _plausible(address, owner))
        if addresses:
            self.table.add(Contact(contact.peer_id, addresses))


def _plausible(address: str, owner: str) -> bool:
    try:
        parsed = parse_multiaddr(address)
    except ValueError:
        return False
    if parsed.is_relayed or (
        "tcp" not in parsed.names() and "udp" not in parsed.names() and "memory" not in parsed.names()
    ):
        return False
    return parsed.ip is None or owner_of(address, "") == owner
