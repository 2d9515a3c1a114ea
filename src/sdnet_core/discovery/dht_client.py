"""The asking half of the DHT: one question, a lookup, finding and storing a record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import anyio

from sdnet_core.clock import Clock, sleep_to_beat
from sdnet_core.discovery.dht_messages import (
    MAX_ANSWER_BYTES,
    PROTOCOL,
    AnyAnswer,
    AnyQuestion,
    FindNodes,
    FindRecord,
    Found,
    RefusalReason,
    Refused,
    Stored,
    StoreRecord,
)
from sdnet_core.discovery.dht_records import Record, check_record
from sdnet_core.discovery.kademlia import Contact, Lookup, RoutingTable, node_id
from sdnet_core.errors import AuthenticationFailedError, NetworkingError, NetworkTimeoutError, SerializationError
from sdnet_core.swarm.abc import Swarm
from sdnet_core.wire import MessageStream

__all__ = ["DhtClient", "StoreResult"]

_logger = logging.getLogger(__name__)

QUESTION_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 5.0
BORROWED_S = 30.0
"""A connection that was made for questions is closed when none was asked for so long."""
REPLICAS = 8
"""Nodes that a record is stored at, those it begins with not counted."""


@dataclass(slots=True)
class StoreResult:
    """What became of storing a record.

    :ivar stored: nodes that keep it.
    :ivar newer: a record of the same key that a node has instead.
    :ivar clock: a node says that it has expired already, or lives for too long: a clock is wrong.
    """

    stored: int = 0
    newer: Record | None = None
    clock: bool = False


@dataclass(slots=True)
class _Search:
    """A lookup under way, with what was found of a record."""

    lookup: Lookup
    found: Callable[[Record], None] | None = None
    best: Record | None = None
    answers: int = 0
    news: anyio.Event = field(default_factory=anyio.Event)


class DhtClient:
    """Asks nodes. It remembers which nodes answered, and closes what it dialled.

    :param keep: whether the connection to a peer is of use to others too, so that it stays.
    """

    def __init__(self, swarm: Swarm, clock: Clock, *, keep: Callable[[str], bool] = lambda _: False) -> None:
        self.table = RoutingTable(swarm.peer_id)
        self._swarm = swarm
        self._clock = clock
        self._keep = keep
        self._borrowed: dict[str, float] = {}
        self._asking: dict[str, int] = {}

    async def run(self) -> None:
        """Close idle connections until cancelled; those left are closed then."""
        try:
            while True:
                await sleep_to_beat(BORROWED_S / 3)
                now = self._clock.monotonic()
                for peer_id in [p for p, used in self._borrowed.items() if now - used >= BORROWED_S]:
                    if not self._asking.get(peer_id):
                        await self._give_back(peer_id)
        finally:
            with anyio.move_on_after(1, shield=True):
                for peer_id in list(self._borrowed):
                    await self._give_back(peer_id)

    async def _give_back(self, peer_id: str) -> None:
        del self._borrowed[peer_id]
        if not self._keep(peer_id):
            await self._swarm.hang_up(peer_id)

    async def ask(self, contact: Contact, question: AnyQuestion, *, timeout_s: float = QUESTION_TIMEOUT_S) -> AnyAnswer:
        """Put one question to one node; connects first if needed.

        :raises NetworkingError: no valid answer came.
        """
        peer_id = contact.peer_id
        self._asking[peer_id] = self._asking.get(peer_id, 0) + 1
        try:
            if not self._swarm.is_connected(peer_id):
                await self._swarm.dial(peer_id, contact.addresses, timeout_s=DIAL_TIMEOUT_S)
                self._borrowed[peer_id] = self._clock.monotonic()
            with anyio.fail_after(timeout_s):
                stream = await self._swarm.open_stream(peer_id, [PROTOCOL], timeout_s=timeout_s)
                try:
                    messages = MessageStream(stream, max_bytes=MAX_ANSWER_BYTES)
                    await messages.send(question)
                    await stream.send_eof()
                    answer: AnyAnswer = await messages.receive(AnyAnswer)
                    return answer
                finally:
                    with anyio.CancelScope(shield=True):
                        await stream.reset()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise NetworkTimeoutError(f"The connection to {peer_id} broke.") from error
        except TimeoutError as error:
            raise NetworkTimeoutError(f"{peer_id} did not answer within {timeout_s:g} s.") from error
        finally:
            self._asking[peer_id] -= 1
            if not self._asking[peer_id]:
                del self._asking[peer_id]
            if peer_id in self._borrowed:
                self._borrowed[peer_id] = self._clock.monotonic()

    async def hello(self, contact: Contact, serves: Sequence[str] = (), *, timeout_s: float = 5.0) -> Found | None:
        """Ask a node for those near to us, which shows that it is there; None if it does not answer.

        :param serves: where we serve ourselves.
        """
        question = FindNodes(target=node_id(self._swarm.peer_id), serves=tuple(serves))
        try:
            answer = await self.ask(contact, question, timeout_s=timeout_s)
        except NetworkingError as error:
            _logger.debug("node %s gives no answer: %s", contact.peer_id, error)
            return None
        if not isinstance(answer, Found):
            return None
        self.table.add(contact)
        return answer

    async def lookup(self, target: bytes, start: Iterable[Contact]) -> Lookup:
        """Find the nodes nearest to a place."""
        search = _Search(Lookup(target, self._swarm.peer_id))
        await self._run(search, start)
        return search.lookup

    async def find(
        self, key: bytes, start: Iterable[Contact], *, found: Callable[[Record], None] = lambda _: None
    ) -> tuple[Record | None, int]:
        """Look for a record; never believes what it has heard before.

        :param found: called with each valid record that is newer than those before, as they come.
        :returns: the newest one, and how many nodes have answered.
        """
        search = _Search(Lookup(key, self._swarm.peer_id), found)
        await self._run(search, start)
        return search.best, search.answers

    async def store(self, record: Record, start: Iterable[Contact]) -> StoreResult:
        """Store a record at the nodes nearest to its key, and at those that the search for them begins with."""
        first = list(start)
        result = StoreResult()
        search = _Search(Lookup(record.key, self._swarm.peer_id))

        async def put(contact: Contact) -> None:
            try:
                answer = await self.ask(contact, StoreRecord(record=record))
            except NetworkingError as error:
                _logger.debug("node %s does not store: %s", contact.peer_id, error)
                return
            match answer:
                case Stored():
                    result.stored += 1
                case Refused(reason=RefusalReason.STALE, record=newer) if newer is not None:
                    if self._valid(newer, record.key) and newer.sequence >= record.sequence:
                        result.newer = newer
                case Refused(reason=RefusalReason.CLOCK):
                    result.clock = True

        async with anyio.create_task_group() as tasks:
            # They are what both sides have in common; whatever else happens, the record is there.
            for contact in first:
                tasks.start_soon(put, contact)
            await self._run(search, first)
            known = {contact.peer_id for contact in first}
            for contact in [c for c in search.lookup.closest() if c.peer_id not in known][:REPLICAS]:
                tasks.start_soon(put, contact)
        return result

    async def _run(self, search: _Search, start: Iterable[Contact]) -> None:
        lookup = search.lookup
        lookup.add(start)
        lookup.add(self.table.closest(lookup.target))
        async with anyio.create_task_group() as tasks:
            while not lookup.done:
                search.news = anyio.Event()
                while (contact := lookup.take()) is not None:
                    tasks.start_soon(self._question, search, contact)
                await search.news.wait()

    async def _question(self, search: _Search, contact: Contact) -> None:
        lookup = search.lookup
        question: AnyQuestion = (
            FindNodes(target=lookup.target) if search.found is None else FindRecord(target=lookup.target)
        )
        try:
            answer = await self.ask(contact, question)
        except NetworkingError as error:
            _logger.debug("node %s gives no answer: %s", contact.peer_id, error)
            answer = None
        if isinstance(answer, Found):
            self.table.add(contact)
            search.answers += 1
            lookup.answered(contact.peer_id, [named.contact for named in answer.closer])
            if answer.record is not None and search.found is not None:
                self._take(search, answer.record)
        else:
            if answer is None:
                self.table.remove(contact.peer_id)
            lookup.failed(contact.peer_id)
        search.news.set()

    def _take(self, search: _Search, record: Record) -> None:
        if not self._valid(record, search.lookup.target):
            _logger.info("a node gave a record that is not valid")
            return
        if search.best is None or record.sequence > search.best.sequence:
            search.best = record
            if search.found is not None:
                search.found(record)

    def _valid(self, record: Record, key: bytes) -> bool:
        if record.key != key:
            return False
        try:
            check_record(record, now=self._clock.now())
        except (AuthenticationFailedError, SerializationError):
            return False
        return True
