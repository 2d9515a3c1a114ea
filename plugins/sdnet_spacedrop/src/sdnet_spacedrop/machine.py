"""Both sides of an offer as state machines without I/O: messages and decisions in, messages out."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import ClassVar

from sdnet_core.errors import ConflictError, ProtocolError

from . import messages as m
from .text import printable

__all__ = ["DropState", "OfferMachine", "ReceiverMachine", "Role", "SenderMachine"]


class Role(StrEnum):
    """Which side of a drop this device is."""

    SENDER = "sender"
    RECEIVER = "receiver"


class DropState(StrEnum):
    """Where a drop is."""

    ASKING = "asking"
    ACCEPTED = "accepted"
    TRANSFERRING = "transferring"
    COMPLETED = "completed"
    REJECTED = "rejected"
    TIMED_OUT = "timed-out"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return not _NEXT[self]


_NEXT: dict[DropState, frozenset[DropState]] = {
    DropState.ASKING: frozenset(
        (DropState.ACCEPTED, DropState.REJECTED, DropState.TIMED_OUT, DropState.CANCELLED, DropState.FAILED)
    ),
    DropState.ACCEPTED: frozenset((DropState.TRANSFERRING, DropState.COMPLETED, DropState.CANCELLED, DropState.FAILED)),
    DropState.TRANSFERRING: frozenset((DropState.COMPLETED, DropState.CANCELLED, DropState.FAILED)),
    DropState.COMPLETED: frozenset(),
    DropState.REJECTED: frozenset(),
    DropState.TIMED_OUT: frozenset(),
    DropState.CANCELLED: frozenset(),
    DropState.FAILED: frozenset(),
}


class OfferMachine:
    """What both sides share: one state, and the way it may go.

    :ivar code: why it ended, as in `messages.Refusal`; empty while it goes on or when all is well.
    :ivar reason: the same for people.
    :ivar by_peer: the other side ended it.
    """

    role: ClassVar[Role]

    def __init__(self, request: m.SpacedropRequest, *, state: DropState = DropState.ASKING) -> None:
        self.request = request
        self.state = state
        self.code = ""
        self.reason = ""
        self.by_peer = False

    @property
    def asking(self) -> bool:
        """Whether there is no answer yet."""
        return self.state is DropState.ASKING

    @property
    def drop_id(self) -> uuid.UUID:
        """The drop's id."""
        return uuid.UUID(bytes=self.request.transfer_id)

    def transferring(self) -> None:
        """The first bytes move; harmless when they do already."""
        if self.state is DropState.ACCEPTED:
            self.state = DropState.TRANSFERRING

    def complete(self) -> None:
        """Everything has arrived.

        :raises ConflictError: it was not accepted, or has ended.
        """
        self._go(DropState.COMPLETED)

    def fail(self, reason: str, *, code: str = m.Refusal.FAILED, by_peer: bool = False) -> None:
        """It cannot go on.

        :raises ConflictError: it has ended.
        """
        self._go(DropState.FAILED, code, reason, by_peer=by_peer)

    def give_up(self, reason: str, *, by_peer: bool = False) -> None:
        """It cannot go on; harmless when it has ended."""
        if not self.state.ended:
            self.fail(reason, by_peer=by_peer)

    def cancel(self, reason: str) -> m.SpacedropCancel:
        """A person here does not want it any more.

        :returns: what to tell the other side.
        :raises ConflictError: it has ended.
        """
        self._go(DropState.CANCELLED, m.Refusal.CANCELLED, reason)
        return self.cancellation()

    def cancellation(self) -> m.SpacedropCancel:
        """What tells the other side that it is over, and why."""
        return m.SpacedropCancel(transfer_id=self.request.transfer_id, reason=self.reason[: m.MAX_REASON_LENGTH])

    def peer_cancelled(self, reason: str) -> None:
        """The other side does not want it any more.

        :raises ConflictError: it has ended.
        """
        self._go(DropState.CANCELLED, m.Refusal.CANCELLED, printable(reason), by_peer=True)

    def _check_id(self, transfer_id: bytes) -> None:
        if transfer_id != self.request.transfer_id:
            raise ProtocolError("The other side spoke of another drop.")

    def _go(self, state: DropState, code: str = "", reason: str = "", *, by_peer: bool = False) -> None:
        if state not in _NEXT[self.state]:
            past = "has ended already" if self.state.ended else "was answered already"
            raise ConflictError(f"The drop {past}: it is {self.state}.")
        self.state, self.code, self.reason, self.by_peer = state, code, reason, by_peer


class SenderMachine(OfferMachine):
    """The side that offers.

    :ivar asked: a person at the other side is being asked, as far as we know.
    :ivar reached: the receiver has said something about the offer.
    """

    role = Role.SENDER

    def __init__(self, request: m.SpacedropRequest) -> None:
        super().__init__(request)
        self.asked = False
        self.reached = False

    def receive(self, message: m.SenderMessage) -> None:
        """Take what the receiver says.

        :raises ProtocolError: it is about another drop, or has no place here.
        """
        self._check_id(message.transfer_id)
        if self.state is not DropState.ASKING:
            raise ProtocolError("The receiver answered a drop that waits for no answer.")
        self.reached = True
        if isinstance(message, m.SpacedropAsked):
            if self.asked:
                raise ProtocolError("The receiver said twice that it asks.")
            self.asked = True
        elif isinstance(message, m.SpacedropCancel):
            self.peer_cancelled(message.reason)
        elif message.accepted:
            self._go(DropState.ACCEPTED)
        else:
            ends = {
                m.Refusal.TIMED_OUT: DropState.TIMED_OUT,
                m.Refusal.CANCELLED: DropState.CANCELLED,
                m.Refusal.FAILED: DropState.FAILED,
            }
            state = ends.get(message.code, DropState.REJECTED)
            self._go(state, message.code, printable(message.reason), by_peer=True)

    def repeat(self) -> None:
        """The conversation broke off before the answer; the same offer is made again."""
        self.asked = False

    def time_out(self, reason: str) -> m.SpacedropCancel:
        """No answer came.

        :returns: what to tell the other side.
        :raises ConflictError: it was answered.
        """
        self._go(DropState.TIMED_OUT, m.Refusal.TIMED_OUT, reason)
        return self.cancellation()


class ReceiverMachine(OfferMachine):
    """The side that is asked.

    :ivar interrupted: it failed only because the conversation broke off before the answer.
    """

    role = Role.RECEIVER
    interrupted = False

    def asked(self, timeout_s: float) -> m.SpacedropAsked:
        """Tell the sender that a person is being asked."""
        timeout_ms = round(1000 * max(0.0, min(timeout_s, m.MAX_ANSWER_TIMEOUT_S)))
        return m.SpacedropAsked(transfer_id=self.request.transfer_id, timeout_ms=timeout_ms)

    def accept(self) -> None:
        """A person, or policy, takes it.

        :raises ConflictError: it was answered, or has ended.
        """
        self._go(DropState.ACCEPTED)

    def reject(self, reason: str) -> None:
        """A person does not take it.

        :raises ConflictError: it was answered, or has ended.
        """
        self._go(DropState.REJECTED, m.Refusal.REJECTED, reason)

    def time_out(self, reason: str) -> None:
        """Nobody answered.

        :raises ConflictError: it was answered, or has ended.
        """
        self._go(DropState.TIMED_OUT, m.Refusal.TIMED_OUT, reason)

    def interrupt(self, reason: str) -> None:
        """The conversation broke off before the answer; `resume` takes the offer up again.

        :raises ConflictError: it was answered, or has ended.
        """
        self._go(DropState.FAILED, m.Refusal.FAILED, reason, by_peer=True)
        self.interrupted = True

    def repeated(self, request: m.SpacedropRequest) -> None:
        """The sender made the same offer again, since the conversation broke off.

        :raises ProtocolError: it is not the same offer.
        """
        if request != self.request:
            raise ProtocolError("The sender changed an offer.")

    def resume(self) -> None:
        """Ask again about an offer whose conversation broke off.

        :raises ConflictError: it did not.
        """
        if not self.interrupted:
            raise ConflictError(f"The drop is {self.state}.")
        self.interrupted = False
        self.state, self.code, self.reason, self.by_peer = DropState.ASKING, "", "", False

    def withdraw(self, message: m.SpacedropCancel) -> None:
        """Take the sender's cancellation; harmless when the drop has ended.

        :raises ProtocolError: it is about another drop.
        """
        self._check_id(message.transfer_id)
        if not self.state.ended:
            self.peer_cancelled(message.reason)

    def answer(self) -> m.SpacedropResponse:
        """The answer as it stands, also when the sender asks again.

        :raises ConflictError: there is none yet.
        """
        if self.state is DropState.ASKING:
            raise ConflictError("The drop is not answered yet.")
        accepted = self.state in (DropState.ACCEPTED, DropState.TRANSFERRING, DropState.COMPLETED)
        return m.SpacedropResponse(
            transfer_id=self.request.transfer_id,
            accepted=accepted,
            code="" if accepted else self.code,
            reason="" if accepted else self.reason[: m.MAX_REASON_LENGTH],
        )
