"""One pairing session as its person sees it: its state, its end, and who waits for news of it (no I/O)."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import anyio

from sdnet_core import DeviceInfo

from .code import CodeKeys
from .search import Search, SearchStatus

__all__ = ["PairingSession", "PairingStatus", "PeerDevice", "Reason", "Role", "SessionState"]


MAX_NAMED = 8
"""Peers named that tried without knowing the code."""


class Role(StrEnum):
    """Which side of a pairing this device is."""

    INITIATOR = "initiator"
    """It shows the code."""
    JOINER = "joiner"
    """The code was typed on it."""


class SessionState(StrEnum):
    """Where a session is."""

    WAITING_FOR_CONNECTION = "waiting-for-connection"
    CONNECTED = "connected"
    AUTHENTICATING = "authenticating"
    AWAITING_CONFIRMATION = "awaiting-confirmation"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self in (self.COMPLETED, self.FAILED, self.CANCELLED, self.EXPIRED)


class Reason(StrEnum):
    """Why a session ended without a pairing."""

    REFUSED = "refused"
    REJECTED = "rejected"
    UNANSWERED = "unanswered"
    USED = "used"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CONFLICT = "conflict"
    FAILED = "failed"
    NOT_FOUND = "not-found"
    CONNECTION_LOST = "connection-lost"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    AUTHENTICATION = "authentication"
    STORAGE = "storage"


_WHY = {
    Reason.REFUSED: "The other device refused: the code is wrong, has expired or was used already.",
    Reason.REJECTED: "The person at the other device rejected the pairing.",
    Reason.UNANSWERED: "Nobody at the other device answered in time.",
    Reason.USED: "The code was used by another device already. Make a new one.",
    Reason.EXPIRED: "The code has expired. Make a new one.",
    Reason.CANCELLED: "The pairing was cancelled.",
    Reason.CONFLICT: "A device with this identity is paired already, with another key. Forget that one first.",
    Reason.FAILED: "The other device could not store the pairing.",
    Reason.NOT_FOUND: "No device that shows this code was found: the code is wrong, has expired or was used already, "
    "or the two devices do not see each other on the network.",
    Reason.CONNECTION_LOST: "The connection to the other device was lost.",
    Reason.TIMEOUT: "The other device did not answer in time.",
    Reason.PROTOCOL: "The other device sent something that does not belong into a pairing.",
    Reason.AUTHENTICATION: "The other device did not prove who it is.",
    Reason.STORAGE: "The pairing could not be stored on this device.",
}
_WHY_INITIATOR = {
    Reason.REJECTED: "The pairing was rejected.",
    Reason.UNANSWERED: "The pairing was not accepted in time.",
    Reason.EXPIRED: "The code has expired unused.",
    Reason.REFUSED: "The other device could not complete the pairing.",
}
_PENDING = (
    "The other device has not confirmed yet. The pairing counts as soon as it connects, and lapses after 24 hours."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDevice:
    """Who the other side has proven to be.

    :param fingerprint: of its device key, as words.
    :param fingerprint_hex: the same in hexadecimal.
    """

    device_id: uuid.UUID
    name: str
    os: str
    version: str
    fingerprint: str
    fingerprint_hex: str
    peer_id: str

    @classmethod
    def of(cls, device: DeviceInfo) -> PeerDevice:
        """Take over what the device said of itself."""
        return cls(
            device_id=device.id,
            name=device.name,
            os=device.os,
            version=device.version,
            fingerprint=device.fingerprint.words,
            fingerprint_hex=device.fingerprint.hex,
            peer_id=device.peer_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStatus:
    """A session at one moment.

    :param id: follows from the code, the same on both devices; tells nothing of the code.
    :param created_at: seconds since the epoch.
    :param expires_at: when the code, or the joiner's search, runs out; seconds since the epoch.
    :param device: the other side, once it has proven itself.
    :param reason: why it ended without a pairing; a `Reason`.
    :param detail: the same, or what is still to come, for a person.
    :param pending: completed here, not yet confirmed by the other side.
    :param refused: attempts without the code while it was shown.
    :param search: how far a joiner's search has come, or had come when it ended.
    """

    id: uuid.UUID
    role: Role
    state: SessionState
    created_at: float
    expires_at: float
    auto_accept: bool
    device: PeerDevice | None
    reason: Reason | None
    detail: str
    pending: bool
    refused: int = 0
    search: SearchStatus | None = None


class PairingSession:
    """One session while the node runs; nothing of it is written to disk.

    :param keys: forgotten when the session ends.
    :param deadline: monotonic seconds at which the code, or the joiner's search, runs out.
    :param changed: called after every change of state.
    """

    def __init__(
        self,
        role: Role,
        keys: CodeKeys,
        *,
        created_at: float,
        expires_at: float,
        deadline: float,
        auto_accept: bool = False,
        changed: Callable[[PairingSession], None],
    ) -> None:
        self.id = keys.session_id
        self.role = role
        self.keys: CodeKeys | None = keys
        self.created_at = created_at
        self.expires_at = expires_at
        self.deadline = deadline
        self.auto_accept = auto_accept
        self.state = SessionState.WAITING_FOR_CONNECTION
        self.device: PeerDevice | None = None
        self.reason: Reason | None = None
        self.pending = False
        self.proven = 0
        """Conversations going on in which the other side knows the code."""
        self.taken = False
        """One conversation has used up the code (initiator) or was chosen (joiner)."""
        self.committed = False
        """The pairing is being stored: it can no longer be called off."""
        self.answer: bool | None = None
        self.search: Search | None = None
        self.refused = 0
        self.refused_peers: deque[str] = deque(maxlen=MAX_NAMED)
        self.revision = 0
        """Goes up with everything that a person could see."""
        self.closed = anyio.Event()
        """Set when the code is used up or the session is over: nothing is announced or looked for any more."""
        self.answered = anyio.Event()
        """Set when the person has answered or the session is over."""
        self._changed = changed
        self._detail = ""
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<PairingSession {self.id} {self.role} {self.state}>"

    @property
    def open(self) -> bool:
        """Whether the code can still be used."""
        return not self.taken and not self.state.ended

    def move(self, state: SessionState) -> None:
        """Come into a state that is not the end."""
        if not self.state.ended and state is not self.state:
            self._enter(state)

    def take(self) -> None:
        """Use up the code for one conversation."""
        self.taken = True
        self.closed.set()

    def refuse(self, peer_id: str) -> None:
        """A peer did not know a code while this one was shown."""
        self.refused += 1
        if peer_id in self.refused_peers:
            self.refused_peers.remove(peer_id)
        self.refused_peers.append(peer_id)

    def give_answer(self, answer: bool) -> None:
        """The person has answered; only the first answer counts."""
        if self.answer is None:
            self.answer = answer
            self.answered.set()

    def complete(self, *, pending: bool = False) -> None:
        """The devices are paired."""
        if not self.state.ended:
            self.pending = pending
            self._enter(SessionState.COMPLETED)

    def fail(self, reason: Reason) -> None:
        """There will be no pairing."""
        if not self.state.ended:
            self.reason = reason
            self._enter(SessionState.FAILED)

    def cancel(self) -> None:
        """The person gave up."""
        if not self.state.ended:
            self.reason = Reason.CANCELLED
            self._enter(SessionState.CANCELLED)

    def expire(self, reason: Reason = Reason.EXPIRED) -> None:
        """Time has run out."""
        if not self.state.ended:
            self.reason = reason
            if reason is Reason.NOT_FOUND and self.search is not None:
                self._detail = self.search.diagnosis()
            self._enter(SessionState.EXPIRED)

    def status(self) -> PairingStatus:
        """The session now."""
        detail = _PENDING if self.pending else ""
        if self._detail:
            detail = self._detail
        elif self.reason is not None:
            detail = _WHY[self.reason]
            if self.role is Role.INITIATOR:
                detail = _WHY_INITIATOR.get(self.reason, detail)
        return PairingStatus(
            id=self.id,
            role=self.role,
            state=self.state,
            created_at=self.created_at,
            expires_at=self.expires_at,
            auto_accept=self.auto_accept,
            device=self.device,
            reason=self.reason,
            detail=detail,
            pending=self.pending,
            refused=self.refused,
            search=None if self.search is None else self.search.status(),
        )

    async def wait_for_news(self) -> None:
        """Wait for the next change."""
        await self._news.wait()

    def progressed(self) -> None:
        """The search has come further."""
        if not self.state.ended:
            self._tell()

    def _enter(self, state: SessionState) -> None:
        self.state = state
        if state.ended:
            self.keys = None
            self.closed.set()
            self.answered.set()
        self._tell()
        self._changed(self)

    def _tell(self) -> None:
        self.revision += 1
        news, self._news = self._news, anyio.Event()
        news.set()
