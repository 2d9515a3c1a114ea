"""The pairing plugin's Python interface: starts, lists, answers and ends pairing sessions."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import PeerStream, PluginContext, ProtocolHandler
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError, PluginError

from .code import ENTROPY_BYTES, TAG_SALT_BYTES, PairingCode, discovery_tag
from .events import PairingAttemptsRefused, PairingCompleted, PairingFailed, PairingRequest, PairingStateChanged
from .initiator import Initiator
from .joiner import Hint, Joiner, hints_of, parse_hints
from .limits import PairingLimits
from .messages import is_announceable
from .search import Search
from .session import PairingSession, PairingStatus, Reason, Role, SessionState
from .steps import LocalSide
from .ui import PairingUserInterface, PendingList
from .uri import PairingUri, choose_addresses, choose_meeting_points, is_uri
from .used_codes import UsedCodes

__all__ = ["CodeUsedError", "PairingHandler", "PairingService", "ShownCode"]

logger = logging.getLogger(__name__)


class CodeUsedError(ConflictError):
    """The code was used already; it works only once."""

    code = "pairing-code-used"
    exit_code = 4


@dataclass(frozen=True, slots=True, repr=False)
class ShownCode:
    """A new code and the session that waits for it.

    :param words: for the person's eyes only.
    :param uri: the same with hints where this device is, for a QR code or to be pasted; as secret as the words.
    """

    words: tuple[str, ...]
    uri: str
    status: PairingStatus

    def __repr__(self) -> str:
        return f"ShownCode({self.status.id})"


class PairingService:
    """Pairing on one node. All methods are for the event loop's thread; sessions live as long as the node runs.

    :ivar user_interface: asks the person; exchange it at any time.
    """

    def __init__(self, ctx: PluginContext, limits: PairingLimits | None = None) -> None:
        self.limits = limits or PairingLimits()
        self.user_interface: PairingUserInterface = PendingList()
        self._ctx = ctx
        self._sessions: list[PairingSession] = []
        self._used: UsedCodes | None = None
        self._initiator: Initiator | None = None
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Run sessions until cancelled."""
        used = UsedCodes(self._ctx.storage, limit=self.limits.max_used_codes)
        await used.load()
        self._used = used
        self._initiator = Initiator(
            self._ctx,
            self.limits,
            used=used,
            local_side=self.local_side,
            sessions=lambda: self._sessions,
            ask=self._ask,
        )
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._tasks = None
                for session in self._sessions:
                    session.cancel()

    # Starting

    async def start_pairing_as_initiator(self, *, auto_accept: bool = False) -> ShownCode:
        """Make a code, announce that this device shows it, and wait for one device to come.

        :param auto_accept: pair with whoever knows the code without asking a person.
        :raises ConflictError: too many sessions are open.
        """
        tasks = self._require_running()
        code = PairingCode(self._ctx.randomness.bytes(ENTROPY_BYTES))
        session = self._new_session(Role.INITIATOR, code, self.limits.code_lifetime_s, auto_accept=auto_accept)
        try:
            await tasks.start(self._show, session)
        except BaseException:
            session.cancel()
            raise
        return ShownCode(code.words, str(self._link(code)), session.status())

    async def start_pairing_as_joiner(
        self,
        code: str | Iterable[str],
        *,
        hints: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> PairingStatus:
        """Look for the device that shows a code, and pair with it. Typing the code is this side's consent.

        :param code: the words as typed, or the pairing link as pasted.
        :param hints: multiaddrs with ``/p2p/`` at which the device may be, tried beside what discovery finds.
        :param timeout_s: how long to look.
        :raises CodeError: it is neither a code nor a link; says which word is wrong.
        :raises CodeUsedError: it was used on this device already.
        :raises ConflictError: this device shows that code itself, or is joining with it already, or too many sessions
            are open.
        :raises InvalidRequestError: a hint or the time is not right.
        """
        tasks = self._require_running()
        places = parse_hints(hints)
        points: tuple[str, ...] = ()
        if isinstance(code, str) and is_uri(code):
            link = PairingUri.parse(code)
            parsed, points = link.code, link.meeting_points
            places += hints_of(link)
        else:
            parsed = PairingCode.parse(code)
        limit_s = self.limits.search_timeout_s if timeout_s is None else timeout_s
        if not 0 < limit_s <= self.limits.code_lifetime_s:
            raise InvalidRequestError(f"A search takes up to {self.limits.code_lifetime_s:.0f} s.")
        session_id = parsed.keys().session_id
        for other in self._sessions:
            if other.id == session_id and not other.state.ended:
                if other.role is Role.INITIATOR:
                    raise ConflictError("This device shows that code itself; type it on the other device.")
                raise ConflictError("This device is joining with that code already.")
        if self._used is not None and session_id in self._used:
            raise CodeUsedError("The code was used already; a code works only once. Make a new one.")
        session = self._new_session(Role.JOINER, parsed, limit_s)
        session.search = Search(self._ctx.search_ways, hinted=bool(places))
        tasks.start_soon(self._join, session, places, points)
        return session.status()

    # Looking and answering

    def get_pairing_status(self) -> tuple[PairingStatus, ...]:
        """All sessions, those that are over for a while too; newest last."""
        self._expire()
        return tuple(session.status() for session in self._sessions)

    def get_session(self, reference: str) -> PairingStatus:
        """One session by its id, or a unique prefix of it.

        :raises NotFoundError: there is none, or several begin so.
        """
        return self._find(reference).status()

    def pending(self) -> tuple[PairingStatus, ...]:
        """The sessions in which a device waits for this side's person to answer."""
        self._expire()
        return tuple(s.status() for s in self._sessions if _awaits_answer(s))

    def accept(self, reference: str) -> PairingStatus:
        """Pair with the device that asks.

        :raises NotFoundError: as `get_session`.
        :raises ConflictError: no device asks in this session, or it was answered already.
        """
        return self._answer(reference, True)

    def reject(self, reference: str) -> PairingStatus:
        """Do not pair with the device that asks.

        :raises NotFoundError: as `get_session`.
        :raises ConflictError: no device asks in this session, or it was answered already.
        """
        return self._answer(reference, False)

    def cancel(self, reference: str) -> PairingStatus:
        """Give a session up. The code is worthless from now on.

        :raises NotFoundError: as `get_session`.
        :raises ConflictError: it is over, or the pairing is being stored.
        """
        session = self._find(reference)
        if session.state.ended:
            raise ConflictError(f"That pairing is over: it is {session.state}.")
        if session.committed:
            raise ConflictError("The pairing is being completed; revoke the device instead.")
        session.cancel()
        return session.status()

    def watch(self, reference: str) -> AsyncIterator[PairingStatus]:
        """Follow a session: its status now, and after each change, until it is over.

        :raises NotFoundError: as `get_session`.
        """
        return _Watch(self._find(reference))

    # Serving

    async def serve(self, stream: PeerStream) -> None:
        """Serve one inbound stream of the pairing protocol."""
        if self._initiator is None or self._tasks is None:
            await stream.reset()
            return
        await self._initiator.serve(stream)

    # Inside

    def _require_running(self) -> TaskGroup:
        if self._tasks is None:
            raise PluginError("Pairing is not possible while the node is starting or stopping.")
        return self._tasks

    def local_side(self) -> LocalSide:
        """This device, as it shows itself in a conversation."""
        return LocalSide(
            device=self._ctx.local_device,
            sign=self._ctx.sign,
            random_bytes=self._ctx.randomness.bytes,
            addresses=tuple(filter(is_announceable, self._ctx.addresses))[:16],
        )

    def _link(self, code: PairingCode) -> PairingUri:
        local, points = self._ctx.local_device, choose_meeting_points(self._ctx.meeting_points)
        return PairingUri(code, local.peer_id, choose_addresses(self._ctx.addresses), points)

    def _new_session(
        self, role: Role, code: PairingCode, lifetime_s: float, *, auto_accept: bool = False
    ) -> PairingSession:
        self._expire()
        if sum(s.role is role and not s.state.ended for s in self._sessions) >= self.limits.max_open_sessions:
            raise ConflictError("Too many pairings are going on; cancel one first.")
        keys, now = code.keys(), self._ctx.clock.now()
        session = PairingSession(
            role,
            keys,
            created_at=now,
            expires_at=now + lifetime_s,
            deadline=self._ctx.clock.monotonic() + lifetime_s,
            auto_accept=auto_accept,
            changed=self._on_change,
        )
        self._sessions = [s for s in self._sessions if s.id != keys.session_id]  # an earlier attempt with this code
        ended = [s for s in self._sessions if s.state.ended]
        for old in ended[: max(0, len(ended) - self.limits.max_ended_sessions + 1)]:
            self._sessions.remove(old)
        self._sessions.append(session)
        return session

    async def _show(self, session: PairingSession, *, task_status: TaskStatus[None]) -> None:
        assert session.keys is not None
        salt = self._ctx.randomness.bytes(TAG_SALT_BYTES)
        tag = discovery_tag(session.keys.discovery, salt, self._ctx.local_device.peer_id)
        # Found by whoever has the code: near by the tag, from other networks by the record.
        try:
            with self._ctx.advertise(tag, record=session.keys.record):
                task_status.started()
                await self._until_closed(session)
        finally:
            if session.refused:
                self._ctx.publish(
                    PairingAttemptsRefused(
                        session_id=session.id, count=session.refused, peer_ids=tuple(session.refused_peers)
                    )
                )

    async def _join(self, session: PairingSession, hints: Sequence[Hint], meeting_points: Sequence[str]) -> None:
        assert self._used is not None
        joiner = Joiner(
            self._ctx,
            self.limits,
            session,
            used=self._used,
            local_side=self.local_side,
            hints=hints,
            meeting_points=meeting_points,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_closed, session)
            try:
                await joiner.run()
            except Exception:
                logger.exception("a search for a device to pair with failed")
                session.fail(Reason.FAILED)

    async def _until_closed(self, session: PairingSession) -> None:
        """Wait until the code is used up or the session is over; end the session when its time runs out first."""
        while not session.closed.is_set():
            self._expire_session(session)
            left_s = session.deadline - self._ctx.clock.monotonic()
            with anyio.move_on_after(max(0.0, min(left_s, self.limits.expiry_check_s))):
                await session.closed.wait()

    def _expire(self) -> None:
        for session in self._sessions:
            self._expire_session(session)

    def _expire_session(self, session: PairingSession) -> None:
        if session.open and self._ctx.clock.monotonic() >= session.deadline:
            session.expire(Reason.EXPIRED if session.role is Role.INITIATOR else Reason.NOT_FOUND)

    async def _ask(self, session: PairingSession) -> None:
        status = session.status()
        device = status.device
        assert device is not None
        self._ctx.publish(
            PairingRequest(
                session_id=status.id,
                device_id=device.device_id,
                device_name=device.name,
                device_os=device.os,
                fingerprint=device.fingerprint,
                peer_id=device.peer_id,
            )
        )
        try:
            answer = await self.user_interface.confirm_pairing(status)
        except Exception:
            logger.exception("the user interface could not ask about pairing %s", status.id)
        else:
            session.give_answer(answer)

    def _find(self, reference: str) -> PairingSession:
        self._expire()
        wanted = reference.strip().lower()
        found = [session for session in self._sessions if wanted and str(session.id).startswith(wanted)]
        if not found:
            raise NotFoundError(f"There is no pairing session {reference!r}.")
        if len(found) > 1:
            raise NotFoundError(
                f"{len(found)} pairing sessions begin with {reference!r}: {', '.join(str(s.id) for s in found)}."
            )
        return found[0]

    def _answer(self, reference: str, answer: bool) -> PairingStatus:
        session = self._find(reference)
        if not _awaits_answer(session):
            raise ConflictError(f"No device waits for an answer in that pairing: it is {session.state}.")
        session.give_answer(answer)
        return session.status()

    def _on_change(self, session: PairingSession) -> None:
        status = session.status()
        role, device = str(status.role), status.device
        self._ctx.publish(PairingStateChanged(session_id=status.id, role=role, state=str(status.state)))
        if status.state is SessionState.COMPLETED and device is not None:
            self._ctx.publish(
                PairingCompleted(
                    session_id=status.id,
                    role=role,
                    device_id=device.device_id,
                    device_name=device.name,
                    peer_id=device.peer_id,
                    pending=status.pending,
                )
            )
        elif status.reason is not None:
            self._ctx.publish(
                PairingFailed(session_id=status.id, role=role, reason=str(status.reason), detail=status.detail)
            )
        try:
            self.user_interface.pairing_changed(status)
        except Exception:
            logger.exception("the user interface could not be told of pairing %s", status.id)


class PairingHandler(ProtocolHandler):
    """Serves ``/sdnet/pairing/1``."""

    protocol_name = "pairing"

    def __init__(self, service: PairingService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.serve(stream)


def _awaits_answer(session: PairingSession) -> bool:
    return (
        session.role is Role.INITIATOR
        and session.state is SessionState.AWAITING_CONFIRMATION
        and session.answer is None
    )


class _Watch(AsyncIterator[PairingStatus]):
    def __init__(self, session: PairingSession) -> None:
        self._session = session
        self._told = -1
        self._over = False

    async def __anext__(self) -> PairingStatus:
        if self._over:
            raise StopAsyncIteration
        while self._session.revision == self._told:
            await self._session.wait_for_news()
        self._told = self._session.revision
        status = self._session.status()
        self._over = status.state.ended
        return status
