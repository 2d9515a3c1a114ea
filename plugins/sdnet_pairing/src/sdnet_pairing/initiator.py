"""The device that shows the code: serves everybody who comes, and lets at most one in."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import anyio

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import ConflictError, ConnectionFailedError, NetworkingError, NetworkTimeoutError, StorageError

from .code import CodeKeys
from .conversation import Conversation, reason_of
from .limits import PairingLimits
from .machine import InitiatorMachine
from .messages import RefusalReason
from .session import PairingSession, PeerDevice, Reason, Role, SessionState
from .steps import (
    AskPerson,
    CodeConsumed,
    CodeProven,
    CodeUnavailable,
    Command,
    ConsumeCode,
    Event,
    Fail,
    Failure,
    Finished,
    LocalSide,
    Pairing,
    PersonAccepted,
    PersonRefused,
    Stored,
    StoreFailed,
    StorePairing,
)
from .used_codes import UsedCodes

__all__ = ["Initiator"]

logger = logging.getLogger(__name__)


class Initiator:
    """Serves inbound pairing streams.

    :param sessions: every session of this node.
    :param ask: asks the person about a session's device.
    """

    def __init__(
        self,
        ctx: PluginContext,
        limits: PairingLimits,
        *,
        used: UsedCodes,
        local_side: Callable[[], LocalSide],
        sessions: Callable[[], list[PairingSession]],
        ask: Callable[[PairingSession], Coroutine[Any, Any, None]],
    ) -> None:
        self._ctx = ctx
        self._limits = limits
        self._used = used
        self._local_side = local_side
        self._sessions = sessions
        self._ask = ask
        self._unproven: list[_Attempt] = []

    async def serve(self, stream: PeerStream) -> None:
        """Serve one stream until its conversation has ended."""
        attempt = _Attempt(self, stream)
        while len(self._unproven) >= self._limits.max_unproven:
            # Whoever knows the code proves it at once, so the oldest is the least likely to.
            self._unproven.pop(0).scope.cancel()
        self._unproven.append(attempt)
        try:
            with attempt.scope:
                await attempt.run()
        finally:
            self.forget(attempt)
            attempt.leave()
        if attempt.scope.cancelled_caught:
            await stream.reset()

    def forget(self, attempt: _Attempt) -> None:
        """The attempt has proven that it knows the code, or is over."""
        if attempt in self._unproven:
            self._unproven.remove(attempt)

    def note_refusal(self, peer_id: str) -> None:
        """A peer did not know any code that is shown now."""
        for session in self._sessions():
            if session.role is Role.INITIATOR and session.open:
                session.refuse(peer_id)

    def find_session(self, session_id: uuid.UUID) -> PairingSession | None:
        """The session that waits with this id, unless as many as may are talking about it already."""
        now = self._ctx.clock.monotonic()
        for session in self._sessions():
            if session.id == session_id and session.role is Role.INITIATOR and session.open:
                if now >= session.deadline:
                    session.expire()
                elif session.proven < self._limits.max_proven:
                    return session
        return None


class _Attempt(Conversation):
    """One joiner's conversation."""

    def __init__(self, initiator: Initiator, stream: PeerStream) -> None:
        machine = InitiatorMachine(initiator._local_side(), stream.peer_id, self._find_code)
        super().__init__(machine, stream, initiator._limits)
        self.scope = anyio.CancelScope()
        self._initiator = initiator
        self._ctx = initiator._ctx
        self._peer_id = stream.peer_id
        self._session: PairingSession | None = None
        self._has_code = False
        self._stored = False
        self._pairing = ExitStack()

    async def run(self, first: Event | None = None) -> None:
        try:
            await super().run(first)
        except NetworkTimeoutError:
            if self._session is not None:
                self._broke(self._session, Reason.TIMEOUT)
            raise

    def leave(self) -> None:
        """The conversation is over, or was cancelled."""
        session, self._session = self._session, None
        self._pairing.close()
        if session is None:
            return
        session.proven -= 1
        if self._has_code:
            self._broke(session, Reason.CONNECTION_LOST)  # unless it has ended already
        elif session.open and session.proven == 0:
            session.move(SessionState.WAITING_FOR_CONNECTION)

    async def carry_out(self, command: Command) -> Event | None:
        match command:
            case CodeProven(session_id):
                self._on_proven(session_id)
            case ConsumeCode():
                return await self._consume(command)
            case AskPerson():
                return await self._ask_person()
            case StorePairing():
                return await self._store(command)
            case Finished(pairing):
                await self._finish(pairing)
            case Fail():
                self._on_fail(command)
        return None

    def _find_code(self, session_id: uuid.UUID) -> CodeKeys | None:
        session = self._initiator.find_session(session_id)
        return None if session is None else session.keys

    def _on_proven(self, session_id: uuid.UUID) -> None:
        session = self._initiator.find_session(session_id)
        if session is None:
            raise ConnectionFailedError("The session has ended.")
        self._session = session
        session.proven += 1
        self._pairing.enter_context(self._ctx.pairing_with(self._peer_id, session.id))
        self._initiator.forget(self)
        session.move(SessionState.CONNECTED)
        session.move(SessionState.AUTHENTICATING)

    async def _consume(self, command: ConsumeCode) -> Event:
        session, device = self._session, command.device
        assert session is not None
        if session.open and self._ctx.clock.monotonic() >= session.deadline:
            session.expire()
        match session.state:
            case SessionState.EXPIRED:
                return CodeUnavailable(RefusalReason.EXPIRED)
            case SessionState.CANCELLED:
                return CodeUnavailable(RefusalReason.CANCELLED)
        if not session.open:
            return CodeUnavailable(RefusalReason.USED)
        for known in self._ctx.devices():
            if (known.device_id == device.id) != (known.peer_id == device.peer_id):
                logger.warning("peer %s claims the identity of the paired device %s", device.peer_id, known.device_id)
                return CodeUnavailable(RefusalReason.CONFLICT)
        session.take()
        session.device = PeerDevice.of(device)
        self._has_code = True
        try:
            await self._initiator._used.add(session.id, self._ctx.clock.now())
        except StorageError as error:
            logger.error("a used pairing code could not be recorded: %s", error)
            session.fail(Reason.STORAGE)
            return CodeUnavailable(RefusalReason.FAILED)
        return CodeConsumed()

    async def _ask_person(self) -> Event:
        session = self._session
        assert session is not None
        if session.auto_accept and not session.state.ended:
            session.committed = True
            return PersonAccepted()
        session.move(SessionState.AWAITING_CONFIRMATION)
        went_away = False

        async def watch_other_side() -> None:
            # Nothing may come now: whatever does is the end.
            nonlocal went_away
            try:
                await self._messages.receive_bytes_or_end()
            except NetworkingError:
                pass
            went_away = True
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_other_side)
            tasks.start_soon(self._initiator._ask, session)
            with anyio.move_on_after(self._limits.answer_timeout_s):
                await session.answered.wait()
            tasks.cancel_scope.cancel()
        if session.state.ended:
            return PersonRefused(RefusalReason.CANCELLED)
        if session.answer is not None:
            session.committed = session.answer
            return PersonAccepted() if session.answer else PersonRefused(RefusalReason.REJECTED)
        if went_away:
            raise ConnectionFailedError("The other device went away while the person was asked.")
        return PersonRefused(RefusalReason.UNANSWERED)

    async def _store(self, command: StorePairing) -> Event:
        pairing, session = command.pairing, self._session
        assert session is not None
        try:
            await self._ctx.add_paired_device(
                pairing.device,
                pairing_id=pairing.pairing_id,
                pairing_root=pairing.root,
                addresses=pairing.addresses,
                pending=True,
            )
        except NetworkingError as error:
            logger.error("the pairing with %s could not be stored: %s", pairing.device.id, error)
            session.fail(Reason.CONFLICT if isinstance(error, ConflictError) else Reason.STORAGE)
            return StoreFailed()
        self._stored = True
        return Stored()

    async def _finish(self, pairing: Pairing) -> None:
        assert self._session is not None
        pending = False
        try:
            await self._ctx.confirm_pairing(pairing.device.id, pairing.pairing_id)
        except NetworkingError as error:
            logger.warning("the pairing with %s could not be made final yet: %s", pairing.device.id, error)
            pending = True
        self._session.complete(pending=pending)

    def _on_fail(self, command: Fail) -> None:
        session = self._session
        if session is None:
            logger.info("peer %s did not prove that it knows a pairing code", self._peer_id)
            self._initiator.note_refusal(self._peer_id)
        elif not self._has_code:
            logger.info("a pairing conversation with peer %s failed: %s", self._peer_id, command.failure.name)
        elif command.failure is Failure.REFUSED:
            session.fail(Reason.REFUSED)  # it could not store the pairing; what is held as pending lapses
        else:
            self._broke(session, reason_of(command))

    def _broke(self, session: PairingSession, reason: Reason) -> None:
        """The conversation ends here: once the pairing is stored it is held as pending, before that there is none."""
        if self._stored:
            session.complete(pending=True)
        elif self._has_code:
            session.fail(reason)
