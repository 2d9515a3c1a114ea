"""The device on which the code was typed: looks for the one that shows it, and asks it to pair."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from sdnet_core import Candidate, PeerStream, PluginContext, public_key_from_peer_id
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NetworkingError,
    NetworkTimeoutError,
    ProtocolError,
    SerializationError,
)

from .code import CodeKeys, matches_tag
from .conversation import Conversation, reason_of
from .events import PairingProgress
from .limits import PairingLimits
from .machine import JoinerMachine
from .search import Activity, SearchStatus
from .session import PairingSession, PeerDevice, Reason, SessionState
from .steps import (
    CodeProven,
    Command,
    Event,
    Fail,
    Failure,
    Finished,
    LocalSide,
    Start,
    Stored,
    StoreFailed,
    StorePairing,
)
from .uri import PairingUri, circuit_addresses
from .used_codes import UsedCodes

__all__ = ["Hint", "Joiner", "hints_of", "parse_hints"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 1.0
MAX_HINTS = 16
MAX_ADDRESSES = 32
_HINT = re.compile(r"(/[!-~]{1,400})/p2p/([1-9A-HJ-NP-Za-km-z]{40,64})")


@dataclass(frozen=True, slots=True)
class Hint:
    """Where the device that shows the code may be.

    :param address: multiaddr without the trailing ``/p2p``.
    :param sure: it came with the code, so this peer shows it or nobody does.
    """

    peer_id: str
    address: str
    sure: bool = False


def parse_hints(texts: Iterable[str]) -> tuple[Hint, ...]:
    """Read multiaddrs that end in ``/p2p/<peer id>``.

    :raises InvalidRequestError: one does not, or there are too many.
    """
    hints = []
    for text in texts:
        match = _HINT.fullmatch(text)
        if match is None:
            raise InvalidRequestError("A hint is a multiaddr that ends in /p2p/ and the peer id of the device.")
        try:
            public_key_from_peer_id(match[2])
        except SerializationError as error:
            raise InvalidRequestError(f"A hint names no peer: {error}") from error
        hints.append(Hint(match[2], match[1]))
    if len(hints) > MAX_HINTS:
        raise InvalidRequestError(f"At most {MAX_HINTS} hints are taken.")
    return tuple(hints)


def hints_of(link: PairingUri) -> tuple[Hint, ...]:
    """Where the device that made a link may be."""
    addresses = (*link.addresses, *circuit_addresses(link.meeting_points))
    return tuple(Hint(link.peer_id, address, sure=True) for address in addresses)


@dataclass(slots=True)
class _Peer:
    """A peer that may show the code.

    :param sure: it announced a tag that only the code gives, or came with the code; otherwise somebody hinted at it.
    """

    peer_id: str
    addresses: list[str] = field(default_factory=list)
    sure: bool = False
    given_up: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def add(self, addresses: Sequence[str]) -> None:
        """Try these first from now on."""
        self.addresses = list(dict.fromkeys((*addresses, *self.addresses)))[:MAX_ADDRESSES]


class Joiner:
    """One joiner's search: follows discovery, tries each peer that fits until one proves that it knows the code.

    :param session: ends in every case, unless the search is cancelled.
    """

    def __init__(
        self,
        ctx: PluginContext,
        limits: PairingLimits,
        session: PairingSession,
        *,
        used: UsedCodes,
        local_side: Callable[[], LocalSide],
        hints: Sequence[Hint] = (),
        meeting_points: Sequence[str] = (),
    ) -> None:
        assert session.keys is not None
        assert session.search is not None
        self._search = session.search
        self._meeting_points = meeting_points
        self._ctx = ctx
        self._limits = limits
        self._session = session
        self._keys: CodeKeys = session.keys
        self._used = used
        self._local_side = local_side
        self._hints = hints
        self._peers: dict[str, _Peer] = {}
        self._told: SearchStatus | None = None

    async def run(self) -> None:
        """Search until the session has ended. The caller ends the session when time runs out."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_when_over, tasks.cancel_scope)
            tasks.start_soon(self._follow_ways)
            for hint in self._hints:
                self._add(tasks, hint.peer_id, [hint.address], sure=hint.sure)
            await self._use_meeting_points()
            async with self._ctx.candidates(record=self._keys.record, refresh=True) as candidates:
                async for candidate in candidates:
                    self._search.saw(candidate)
                    if self._fits(candidate):
                        self._add(tasks, candidate.peer_id, candidate.addresses, sure=True)
                    self._tell()
                await anyio.sleep_forever()  # discovery has ended; what was found is still being tried

    async def _use_meeting_points(self) -> None:
        if self._meeting_points:
            try:
                await self._ctx.add_meeting_points(self._meeting_points)
            except NetworkingError as error:
                logger.warning("the meeting points of a pairing link could not be taken over: %s", error)

    async def _follow_ways(self) -> None:
        async with self._ctx.subscribe(("search-progress",)) as changes:
            async for _ in changes:
                self._tell()

    def _tell(self) -> None:
        """Let people know how far the search has come, if that is news."""
        status = self._search.status()
        if status == self._told or self._session.state.ended:
            return
        if self._told is None or status.summary != self._told.summary:
            self._ctx.publish(
                PairingProgress(
                    session_id=self._session.id,
                    activity=str(status.activity),
                    found=status.found,
                    detail=status.summary,
                )
            )
        self._told = status
        self._session.progressed()

    async def _stop_when_over(self, scope: anyio.CancelScope) -> None:
        while not self._session.state.ended:
            await self._session.wait_for_news()
        scope.cancel()

    def _fits(self, candidate: Candidate) -> bool:
        return any(matches_tag(self._keys.discovery, tag, candidate.peer_id) for tag in candidate.tags)

    def _add(self, tasks: TaskGroup, peer_id: str, addresses: Sequence[str], *, sure: bool) -> None:
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= self._limits.max_peers or self._session.taken:
                return
            peer = self._peers[peer_id] = _Peer(peer_id)
            tasks.start_soon(self._pursue, peer)
        peer.add(addresses)
        peer.sure = peer.sure or sure
        self._search.found(peer_id, addresses)

    async def _pursue(self, peer: _Peer) -> None:
        """Try one peer until it is clear whether it shows the code."""
        with peer.scope:
            while not peer.given_up and not self._session.state.ended:
                try:
                    await self._try(peer)
                except NetworkingError as error:
                    logger.info("peer %s could not be asked to pair: %s", peer.peer_id, error)
                    self._search.failed(peer.peer_id, error.detail)
                    self._tell()
                    if self._session.taken:
                        timed_out = isinstance(error, NetworkTimeoutError)
                        self._session.fail(Reason.TIMEOUT if timed_out else Reason.CONNECTION_LOST)
                    elif isinstance(error, ProtocolError) and not peer.sure:
                        self._give_up(peer, Reason.PROTOCOL)
                await anyio.sleep(self._limits.retry_pause_s)

    async def _try(self, peer: _Peer) -> None:
        self._at(peer, Activity.CONNECTING)
        stream = await self._ctx.open_stranger_stream(
            peer.peer_id, peer.addresses, "pairing", timeout_s=self._limits.step_timeout_s
        )
        attempt = _Attempt(self, peer, stream)
        self._at(peer, Activity.ASKING)
        self._session.move(SessionState.CONNECTED)
        try:
            with self._ctx.pairing_with(peer.peer_id, self._session.id):
                await attempt.run(Start())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                if attempt.machine.ended and attempt.failure is None:
                    await stream.aclose()
                else:
                    await stream.reset()
            if not self._session.taken:
                self._session.move(SessionState.WAITING_FOR_CONNECTION)
        if attempt.failure is not None:
            self._search.failed(peer.peer_id, "It refused.")
            self._give_up(peer, reason_of(attempt.failure), final=self._session.taken)

    def _give_up(self, peer: _Peer, reason: Reason, *, final: bool = False) -> None:
        """This peer will not pair. Nobody can announce the tag without the code, so a sure one has the last word."""
        peer.given_up = True
        if final or peer.sure or all(other.given_up for other in self._peers.values()):
            self._session.fail(reason)

    def _at(self, peer: _Peer, activity: Activity) -> None:
        self._search.does(peer.peer_id, activity)
        self._tell()

    def choose(self, chosen: _Peer) -> None:
        """The peer has proven that it knows the code: the others are left alone."""
        self._session.take()
        self._search.does(chosen.peer_id, Activity.WAITING_FOR_APPROVAL)
        for peer in self._peers.values():
            if peer is not chosen:
                peer.scope.cancel()


class _Attempt(Conversation):
    """One conversation with one peer."""

    def __init__(self, joiner: Joiner, peer: _Peer, stream: PeerStream) -> None:
        super().__init__(JoinerMachine(joiner._local_side(), peer.peer_id, joiner._keys), stream, joiner._limits)
        self._joiner = joiner
        self._peer = peer
        self._ctx = joiner._ctx
        self._session = joiner._session

    def person_time_s(self) -> float:
        return self._limits.answer_timeout_s if self._session.taken else 0.0

    async def carry_out(self, command: Command) -> Event | None:
        session = self._session
        match command:
            case CodeProven(_, device):
                assert device is not None
                if session.taken or session.state.ended:
                    raise ConnectionFailedError("Another conversation was faster.")
                self._joiner.choose(self._peer)
                session.device = PeerDevice.of(device)
                session.move(SessionState.AUTHENTICATING)
                # From here on the initiator's person may be asked; whether, it does not say.
                session.move(SessionState.AWAITING_CONFIRMATION)
            case StorePairing():
                return await self._store(command)
            case Finished():
                session.complete()
            case Fail() if command.failure is Failure.DENIED:
                logger.info("peer %s declined to pair: %s", self._peer.peer_id, command.reason)
        return None

    async def _store(self, command: StorePairing) -> Event:
        pairing, session = command.pairing, self._session
        if session.state.ended:
            return StoreFailed()
        session.committed = True
        try:
            await self._joiner._used.add(session.id, self._ctx.clock.now())
            await self._ctx.add_paired_device(
                pairing.device,
                pairing_id=pairing.pairing_id,
                pairing_root=pairing.root,
                addresses=tuple(dict.fromkeys((*self._peer.addresses, *pairing.addresses))),
            )
        except NetworkingError as error:
            logger.error("the pairing with %s could not be stored: %s", pairing.device.id, error)
            session.fail(Reason.CONFLICT if isinstance(error, ConflictError) else Reason.STORAGE)
            return StoreFailed()
        return Stored()
