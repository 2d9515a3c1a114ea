"""Where peers may be: sources that look for them at the same time, and one table and stream of what they find."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from sdnet_core.clock import Clock
from sdnet_core.discovery.interfaces import local_networks
from sdnet_core.discovery.multiaddrs import MAX_ADDRESSES_PER_PEER, Network, useful_addresses
from sdnet_core.discovery.search import Rendezvous, Way, WayState
from sdnet_core.discovery.source import Announcement, Candidate, CandidateSink, DiscoverySource
from sdnet_core.errors import InvalidRequestError

__all__ = [
    "Advertisement",
    "Announcement",
    "Candidate",
    "CandidateSink",
    "CandidateStream",
    "Discovery",
    "DiscoverySource",
]

_logger = logging.getLogger(__name__)

MAX_PEERS = 1024
"""Most peers remembered per source; the one not heard of for longest gives way."""
MAX_TAG_BYTES = 64
MAX_TAGS = 16
"""Most tags announced, and most tags of another peer looked at."""
RESTART_DELAY_S = 1.0
MAX_RESTART_DELAY_S = 60.0
NETWORKS_REFRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Proof of having advertised a tag; give it to :meth:`Discovery.withdraw`."""

    tag: bytes
    number: int
    record: bytes | None = field(default=None, repr=False)


class CandidateStream:
    """One subscriber's bounded queue of candidates: iterate over it.

    A newer candidate takes the place of an older one from the same source that still waits; when too many peers
    wait, the oldest give way.
    """

    def __init__(self, predicate: Callable[[Candidate], bool] | None, buffer: int) -> None:
        self._predicate = predicate
        self._buffer = buffer
        self._queue: OrderedDict[tuple[str, str], Candidate] = OrderedDict()
        self._wake = anyio.Event()
        self._ended = False

    def _offer(self, candidate: Candidate) -> None:
        if self._predicate is not None:
            try:
                if not self._predicate(candidate):
                    return
            except Exception:
                _logger.exception("A subscriber's choice of candidates failed")
                return
        key = (candidate.peer_id, candidate.source)
        self._queue.pop(key, None)
        if len(self._queue) >= self._buffer:
            self._queue.popitem(last=False)
        self._queue[key] = candidate
        self._wake.set()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()

    async def receive(self) -> Candidate:
        """The next candidate.

        :raises anyio.EndOfStream: discovery has stopped and everything was delivered.
        """
        await anyio.lowlevel.checkpoint()
        while not self._queue:
            if self._ended:
                raise anyio.EndOfStream
            self._wake = anyio.Event()
            await self._wake.wait()
        return self._queue.popitem(last=False)[1]

    def __aiter__(self) -> CandidateStream:
        return self

    async def __anext__(self) -> Candidate:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


@dataclass(slots=True)
class _Known:
    candidate: Candidate
    expires_at: float


class Discovery:
    """Runs all sources at the same time; none can stop or delay another.

    Use: ``async with discovery.run(): …``. All methods are for the event loop's thread.

    :param sources: in the order in which their addresses are tried.
    :param clock: dates and expires what was found.
    :param peer_id: our own, which is never a candidate.
    :param networks: gives this machine's networks; their addresses are preferred.
    :param restart_delay_s: how long a source that failed waits at first, seconds; doubles up to a minute.
    :param on_progress: told when one of the ways of finding peers stands elsewhere than before.
    """

    def __init__(
        self,
        sources: Iterable[DiscoverySource],
        clock: Clock,
        *,
        peer_id: str,
        networks: Callable[[], Sequence[Network]] = local_networks,
        restart_delay_s: float = RESTART_DELAY_S,
        on_progress: Callable[[Way], None] | None = None,
    ) -> None:
        self._sources = tuple(sources)
        if len({source.name for source in self._sources}) != len(self._sources):
            raise ValueError("two discovery sources have the same name")
        self._clock = clock
        self._peer_id = peer_id
        self._read_networks = networks
        self._restart_delay_s = restart_delay_s
        self._networks: Sequence[Network] = ()
        self._networks_read_at = -math.inf
        self._known: dict[str, OrderedDict[str, _Known]] = {source.name: OrderedDict() for source in self._sources}
        self._streams: set[CandidateStream] = set()
        self._advertised: set[Advertisement] = set()
        self._numbers = itertools.count(1)
        self._announcement = Announcement()
        self._sought: Counter[bytes] = Counter()
        self._ways = {source.name: Way(source.name) for source in self._sources}
        self._on_progress = on_progress
        self._stopped = False

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run the sources for the length of the block; leaving it withdraws what was announced."""
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                for source in self._sources:
                    group.start_soon(self._supervise, source, name=f"discovery {source.name}")
                try:
                    yield
                except Exception as error:
                    # Raised below, so that the caller's own exception does not come out of a group.
                    failure = error
                finally:
                    group.cancel_scope.cancel()
        finally:
            self._stopped = True
            for stream in tuple(self._streams):
                stream._end()
        if failure is not None:
            raise failure

    async def _supervise(self, source: DiscoverySource) -> None:
        delay_s = self._restart_delay_s
        while True:
            started_at = self._clock.monotonic()
            try:
                self._announce_to(source)
                self._seek_by(source)
                if await self._run_once(source):
                    _logger.debug("Discovery by %s has ended", source.name)
                    self._progress(source.name, WayState.OFF)
                    return
                self._progress(source.name, WayState.FAILED, "It did not start in time.")
                _logger.warning(
                    "Discovery by %s did not start within %.0f s; trying again in %.0f s",
                    source.name,
                    source.start_timeout_s,
                    delay_s,
                )
            except Exception as error:
                self._progress(source.name, WayState.FAILED, str(error) or type(error).__name__)
                _logger.warning(
                    "Discovery by %s failed; trying again in %.0f s: %s",
                    source.name,
                    delay_s,
                    error,
                    exc_info=_logger.isEnabledFor(logging.DEBUG),
                )
            if self._clock.monotonic() - started_at > source.start_timeout_s + MAX_RESTART_DELAY_S:
                delay_s = self._restart_delay_s
            await anyio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RESTART_DELAY_S)

    async def _run_once(self, source: DiscoverySource) -> bool:
        """Run a source once; False if it hung while starting."""
        sink = _Sink(self, source.name)
        error: Exception | None = None
        hung = True
        async with anyio.create_task_group() as group:
            group.start_soon(_watch_start, sink, source.start_timeout_s, group)
            try:
                await source.run(sink)
            except Exception as raised:
                error = raised
            hung = False
            group.cancel_scope.cancel()
        if error is not None:
            raise error
        return not hung

    def _announce_to(self, source: DiscoverySource) -> None:
        try:
            source.announce(self._announcement)
        except Exception:
            _logger.exception("Discovery by %s does not take the announcement", source.name)

    def _seek_by(self, source: DiscoverySource) -> None:
        try:
            source.seek(frozenset(self._sought))
        except Exception:
            _logger.exception("Discovery by %s does not take what is sought", source.name)

    def ways(self) -> tuple[Way, ...]:
        """The ways of finding peers, and where each stands."""
        return tuple(self._ways.values())

    def _progress(self, source: str, state: WayState, detail: str = "") -> None:
        way = Way(source, state, detail)
        if self._ways[source] != way:
            self._ways[source] = way
            if self._on_progress is not None:
                self._on_progress(way)

    def refresh(self) -> None:
        """Look again now instead of at the next turn, because somebody waits."""
        for source in self._sources:
            try:
                source.refresh()
            except Exception:
                _logger.exception("Discovery by %s does not look again", source.name)

    def _set_announcement(self, announcement: Announcement) -> None:
        if announcement != self._announcement:
            self._announcement = announcement
            for source in self._sources:
                self._announce_to(source)

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """Announce this node at these multiaddrs from now on."""
        chosen = useful_addresses(self._peer_id, addresses)
        self._set_announcement(replace(self._announcement, addresses=chosen))

    def advertise(self, tag: bytes, *, record: bytes | None = None) -> Advertisement:
        """Announce a tag beside the addresses, until as many withdrew it as advertised it.

        :param tag: 1 to 64 bytes that everybody near can read.
        :param record: a secret of 32 bytes; who has it finds this node and the tag from far away too.
        :raises InvalidRequestError: the tag is empty or too long, or there are 16 others.
        """
        if not 1 <= len(tag) <= MAX_TAG_BYTES:
            raise InvalidRequestError(f"An advertised tag has 1 to {MAX_TAG_BYTES} bytes.")
        tags = {held.tag for held in self._advertised} | {tag}
        if len(tags) > MAX_TAGS:
            raise InvalidRequestError(f"At most {MAX_TAGS} tags can be advertised at the same time.")
        if record is not None:
            Rendezvous(record)  # which checks it
        token = Advertisement(tag, next(self._numbers), record)
        self._advertised.add(token)
        self._announce_advertised()
        return token

    def withdraw(self, token: Advertisement) -> None:
        """Take back an advertisement; a second time does nothing."""
        self._advertised.discard(token)
        self._announce_advertised()

    def _announce_advertised(self) -> None:
        tags = frozenset(held.tag for held in self._advertised)
        secrets = {held.record for held in self._advertised if held.record is not None}
        records = frozenset(
            Rendezvous(secret, frozenset(held.tag for held in self._advertised if held.record == secret))
            for secret in secrets
        )
        self._set_announcement(replace(self._announcement, tags=tags, records=records))

    def known(self, peer_id: str) -> tuple[Candidate, ...]:
        """What is known of a peer now: at most one candidate per source, in the order of the sources."""
        now = self._clock.monotonic()
        found = (self._known[source.name].get(peer_id) for source in self._sources)
        return tuple(known.candidate for known in found if known is not None and known.expires_at > now)

    def peers(self) -> tuple[Candidate, ...]:
        """Everything known now, longest unheard of first within each source."""
        now = self._clock.monotonic()
        return tuple(
            known.candidate
            for source in self._sources
            for known in self._known[source.name].values()
            if known.expires_at > now
        )

    @asynccontextmanager
    async def subscribe(
        self,
        predicate: Callable[[Candidate], bool] | None = None,
        *,
        buffer: int = 256,
        record: bytes | None = None,
    ) -> AsyncIterator[CandidateStream]:
        """Follow what is found: first what is known already, then each news as it comes.

        :param predicate: only candidates for which this is true; must be quick.
        :param buffer: candidates held for a slow subscriber before the oldest give way.
        :param record: look far away too, for the node that advertises with this secret.
        """
        if record is not None:
            Rendezvous(record)  # which checks it
        if buffer < 1:
            raise ValueError("a subscription holds at least one candidate")
        stream = CandidateStream(predicate, buffer)
        for candidate in self.peers():
            stream._offer(candidate)
        if self._stopped:
            stream._end()
        self._streams.add(stream)
        self._change_sought(record, 1)
        try:
            yield stream
        finally:
            self._change_sought(record, -1)
            self._streams.discard(stream)

    def _change_sought(self, record: bytes | None, change: int) -> None:
        if record is not None:
            self._sought[record] += change
            self._sought += Counter()  # leaves out what nobody seeks any more
            for source in self._sources:
                self._seek_by(source)

    def _current_networks(self, now: float) -> Sequence[Network]:
        if now - self._networks_read_at >= NETWORKS_REFRESH_S:
            self._networks_read_at = now
            try:
                self._networks = tuple(self._read_networks())
            except OSError as error:
                _logger.debug("The network interfaces cannot be read: %s", error)
        return self._networks

    def _found(self, source: str, candidate: Candidate, ttl_s: float, fresh: bool) -> None:
        if candidate.peer_id == self._peer_id:
            return
        now = self._clock.monotonic()
        addresses = useful_addresses(
            candidate.peer_id,
            candidate.addresses[: 4 * MAX_ADDRESSES_PER_PEER],
            networks=self._current_networks(now),
        )
        tags = frozenset(sorted(tag for tag in candidate.tags if 1 <= len(tag) <= MAX_TAG_BYTES)[:MAX_TAGS])
        if not addresses:
            self._lost(source, candidate.peer_id)
            return
        candidate = replace(candidate, addresses=addresses, tags=tags, source=source, seen_at=now)
        table = self._known[source]
        before = table.pop(candidate.peer_id, None)
        if before is None and len(table) >= MAX_PEERS:
            table.popitem(last=False)
        table[candidate.peer_id] = _Known(candidate, now + ttl_s)
        if before is not None and before.expires_at > now and not fresh:
            # Another order of the same addresses is no news; nor is one address less.
            if set(addresses) <= set(before.candidate.addresses) and tags == before.candidate.tags:
                return
        for stream in tuple(self._streams):
            stream._offer(candidate)

    def _lost(self, source: str, peer_id: str) -> None:
        self._known[source].pop(peer_id, None)


class _Sink(CandidateSink):
    def __init__(self, discovery: Discovery, source: str) -> None:
        self._discovery = discovery
        self._source = source
        self.is_ready = anyio.Event()

    def ready(self) -> None:
        if not self.is_ready.is_set():
            self.is_ready.set()
            if self._discovery._ways[self._source].state in (WayState.STARTING, WayState.FAILED):
                self.progress(WayState.LOOKING)

    def progress(self, state: WayState, detail: str = "") -> None:
        self._discovery._progress(self._source, state, detail)

    def found(self, candidate: Candidate, *, ttl_s: float = math.inf, fresh: bool = False) -> None:
        self.ready()
        self._discovery._found(self._source, candidate, ttl_s, fresh)

    def lost(self, peer_id: str) -> None:
        self._discovery._lost(self._source, peer_id)


async def _watch_start(sink: _Sink, timeout_s: float, group: TaskGroup) -> None:
    with anyio.move_on_after(timeout_s) as scope:
        await sink.is_ready.wait()
    if scope.cancelled_caught:
        group.cancel_scope.cancel()
