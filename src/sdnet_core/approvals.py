"""Asks a person before a device may do something: each question waits, bounded in number and time, for an answer."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import anyio

from .clock import Clock, Randomness
from .devices.trust import RemoteDevice
from .errors import NotFoundError, RefusedError
from .events import ApprovalDecided, ApprovalRequested, EventBus

__all__ = ["Approval", "Approvals"]

TIMEOUT_S = 60.0
MAX_PER_DEVICE = 8
MAX_WAITING = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A question that waits for a person.

    :param protocol: the name of the protocol the device asks for.
    :param what: more about it; may be empty.
    :param asked_by: the plugin that wants a person to decide; empty if the device's trust does.
    :param expires_at: when no answer becomes "no", seconds since the epoch.
    """

    id: uuid.UUID
    device: RemoteDevice
    protocol: str
    what: str
    asked_by: str
    created_at: float
    expires_at: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the local API."""
        return {
            "id": str(self.id),
            "device_id": str(self.device.device_id),
            "device_name": self.device.name,
            "protocol": self.protocol,
            "what": self.what,
            "asked_by": self.asked_by,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }


@dataclass(slots=True)
class _Waiting:
    approval: Approval
    answer: bool | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)


class Approvals:
    """The questions of one node.

    :param timeout_s: how long a person has.
    """

    def __init__(self, clock: Clock, randomness: Randomness, events: EventBus, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._randomness = randomness
        self._events = events
        self._waiting: dict[uuid.UUID, _Waiting] = {}

    def pending(self) -> tuple[Approval, ...]:
        """The questions that wait for an answer, oldest first."""
        return tuple(waiting.approval for waiting in self._waiting.values())

    def approve(self, reference: str) -> Approval:
        """Allow it, this once.

        :param reference: the question's id, or a unique prefix of it.
        :raises NotFoundError: no question with that id waits (any more), or several begin so.
        """
        return self._answer(reference, True)

    def deny(self, reference: str) -> Approval:
        """Do not allow it.

        :raises NotFoundError: as `approve`.
        """
        return self._answer(reference, False)

    async def ask(self, device: RemoteDevice, protocol: str, *, what: str = "", asked_by: str = "") -> None:
        """Wait until a person has allowed something. No answer in time is "no"; being cancelled withdraws the question.

        :raises RefusedError: the person said no, did not answer, or too many questions wait already.
        """
        of_device = sum(w.approval.device.device_id == device.device_id for w in self._waiting.values())
        if of_device >= MAX_PER_DEVICE or len(self._waiting) >= MAX_WAITING:
            raise RefusedError(f"Too many questions about {device.name} wait for an answer already.")
        now = self._clock.now()
        approval = Approval(
            id=uuid.UUID(bytes=self._randomness.bytes(16), version=4),
            device=device,
            protocol=protocol,
            what=what,
            asked_by=asked_by,
            created_at=now,
            expires_at=now + self.timeout_s,
        )
        waiting = self._waiting[approval.id] = _Waiting(approval)
        self._events.publish(
            ApprovalRequested(
                approval_id=approval.id,
                device_id=device.device_id,
                device_name=device.name,
                protocol=protocol,
                what=what,
                expires_at=approval.expires_at,
            )
        )
        decision = "withdrawn"
        try:
            with anyio.move_on_after(self.timeout_s):
                await waiting.answered.wait()
            decision = {True: "approved", False: "denied", None: "timed-out"}[waiting.answer]
        finally:
            del self._waiting[approval.id]
            self._events.publish(
                ApprovalDecided(
                    approval_id=approval.id,
                    device_id=device.device_id,
                    device_name=device.name,
                    protocol=protocol,
                    decision=decision,
                )
            )
        if waiting.answer is None:
            raise RefusedError(f"Nobody allowed {protocol} for {device.name} within {self.timeout_s:g} s.")
        if not waiting.answer:
            raise RefusedError(f"A person denied {protocol} for {device.name}.")

    def _answer(self, reference: str, answer: bool) -> Approval:
        wanted = reference.strip().lower()
        found = [w for w in self._waiting.values() if wanted and str(w.approval.id).startswith(wanted)]
        if not found:
            raise NotFoundError(f"No question {reference!r} waits for an answer; it may have run out of time.")
        if len(found) > 1:
            raise NotFoundError(f"{len(found)} questions begin with {reference!r}; use more of the id.")
        (waiting,) = found
        if waiting.answer is not None:
            raise NotFoundError(f"The question {reference!r} was answered already.")
        waiting.answer = answer
        waiting.answered.set()
        return waiting.approval
