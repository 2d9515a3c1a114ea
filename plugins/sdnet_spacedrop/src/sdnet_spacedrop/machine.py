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

    COMPARING = "comparing"
    """With a device that is not paired: people compare the check number before anything is offered."""
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
    DropState.COMPARING: frozenset(
        (DropState.ASKING, DropState.REJECTED, DropState.TIMED_OUT, DropState.CANCELLED, DropState.FAILED)
    ),
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

    :param request: what is offered; None while it is not known.
    :param drop_id: when there is no ``request`` to take it from.
    :ivar code: why it ended, as in `messages.Refusal`; empty while it goes on or when all is well.
    :ivar reason: the same for people.
    :ivar by_peer: the other side ended it.
    """

    role: ClassVar[Role]

    def __init__(
        self, request: m.SpacedropRequest | None, *, drop_id: uuid.UUID | None = None, state: DropState | None = None
    ) -> None:
        if request is None and drop_id is None:
            raise ValueError("a drop has an id before it has an offer")
        self.drop_id = uuid.UUID(bytes=request.transfer_id) if request is not None else drop_id or uuid.UUID(int=0)
        self._request = request
        self.state = state or DropState.ASKING
        self.code = ""
        self.reason = ""
        self.by_peer = False

    @property
    def asking(self) -> bool:
        """Whether there is no answer yet."""
        return self.state is DropState.ASKING

    @property
    def open(self) -> bool:
        """Whether it waits for people: for their answer, or for the comparison before it."""
        return self.state in (DropState.COMPARING, DropState.ASKING)

    @property
    def offered(self) -> bool:
        """Whether it is known what is offered."""
        return self._request is not None

    @property
    def request(self) -> m.SpacedropRequest:
        """What is offered.

        :raises ConflictError: that is not known yet.
        """
        if self._request is None:
            raise ConflictError("The sender has not said yet what it wants to send.")
        return self._request

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
        return m.SpacedropCancel(transfer_id=self.drop_id.bytes, reason=self.reason[: m.MAX_REASON_LENGTH])

    def peer_cancelled(self, reason: str) -> None:
        """The other side does not want it any more.

        :raises ConflictError: it has ended.
        """
        self._go(DropState.CANCELLED, m.Refusal.CANCELLED, printable(reason), by_peer=True)

    def _check_id(self, transfer_id: bytes) -> None:
        if transfer_id != self.drop_id.bytes:
            raise ProtocolError("The other side spoke of another drop.")

    def _go(self, state: DropState, code: str = "", reason: str = "", *, by_peer: bool = False) -> None:
        if state not in _NEXT[self.state]:
            past = "has ended already" if self.state.ended else "was answered already"
            if self.state is DropState.COMPARING:
                past = "was not offered yet"
            raise ConflictError(f"The drop {past}: it is {self.state}.")
        self.state, self.code, self.reason, self.by_peer = state, code, reason, by_peer


class SenderMachine(OfferMachine):
    """The side that offers.

    :ivar asked: a person at the other side is being asked, as far as we know.
    :ivar reached: the receiver has said something about the offer.
    """

    role = Role.SENDER

    def __init__(self, request: m.SpacedropRequest, *, state: DropState | None = None) -> None:
        super().__init__(request, state=state)
        self.asked = False
        self.reached = False

    def receive(self, message: m.SenderMessage) -> None:
        """Take what the receiver says.

        :raises ProtocolError: it is about another drop, or has no place here.
        """
        self._check_id(message.transfer_id)
        if not self.open:
            raise ProtocolError("The receiver answered a drop that waits for no answer.")
        self.reached = True
        if isinstance(message, m.SpacedropAsked):
            if self.asked or self.state is DropState.COMPARING:
                raise ProtocolError("The receiver said twice that it asks.")
            self.asked = True
        elif isinstance(message, m.SpacedropCancel):
            self.peer_cancelled(message.reason)
        elif message.accepted:
            if self.state is DropState.COMPARING:
                raise ProtocolError("The receiver accepted what was not offered yet.")
            self._go(DropState.ACCEPTED)
        else:
            ends = {
                m.Refusal.TIMED_OUT: DropState.TIMED_OUT,
                m.Refusal.CANCELLED: DropState.CANCELLED,
                m.Refusal.FAILED: DropState.FAILED,
            }
            state = ends.get(message.code, DropState.REJECTED)
            self._go(state, message.code, printable(message.reason), by_peer=True)

    def confirm(self) -> None:
        """The person here has seen the same check number on the other screen; the offer may go out.

        :raises ConflictError: there is nothing to compare, or no more.
        """
        if self.state is not DropState.COMPARING:
            raise ConflictError(f"There is no number to compare: the drop is {self.state}.")
        self._go(DropState.ASKING)

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

    def offer(self, request: m.SpacedropRequest) -> None:
        """The sender says what it offers, after the comparison.

        :raises ProtocolError: it is about another drop, or comes a second time.
        :raises ConflictError: the drop has ended.
        """
        self._check_id(request.transfer_id)
        if self._request is not None:
            raise ProtocolError("The sender made two offers.")
        self._go(DropState.ASKING)
        self._request = request

    def asked(self, timeout_s: float) -> m.SpacedropAsked:
        """Tell the sender that a person is being asked."""
        timeout_ms = round(1000 * max(0.0, min(timeout_s, m.MAX_ANSWER_TIMEOUT_S)))
        return m.SpacedropAsked(transfer_id=self.drop_id.bytes, timeout_ms=timeout_ms)

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
        if self.open:
            raise ConflictError("The drop is not answered yet.")
        accepted = self.state in (DropState.ACCEPTED, DropState.TRANSFERRING, DropState.COMPLETED)
        return m.SpacedropResponse(
            transfer_id=self.drop_id.bytes,
            accepted=accepted,
            code="" if accepted else self.code,
            reason="" if accepted else self.reason[: m.MAX_REASON_LENGTH],
        )
