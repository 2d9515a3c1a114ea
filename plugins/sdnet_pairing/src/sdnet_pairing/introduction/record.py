"""One introduction while the node runs: its machine, what its person sees of it, and who waits for news (no I/O)."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio

from .machine import IntroducerMachine, PartyMachine
from .messages import EndReason, Party
from .status import IntroducedDevice, IntroductionRole, IntroductionState, IntroductionStatus
from .steps import Accepted, Event, Refused, Side

__all__ = ["Introduction", "Watch"]


@dataclass(slots=True, eq=False)
class Introduction:
    """One introduction; one task, `Owner.run`, owns its machine.

    :param people: device ids of the two (introducer), or of the introducer (one of the two).
    """

    id: uuid.UUID
    role: IntroductionRole
    machine: IntroducerMachine | PartyMachine
    people: dict[Side | None, uuid.UUID]
    introducer: str
    introducer_id: uuid.UUID
    parties: tuple[Party, ...]
    created_at: float
    expires_at: float
    deadline: float
    state: IntroductionState = IntroductionState.WAITING
    reason: EndReason | None = None
    detail: str = ""
    pending: bool = False
    answered: bool = False
    revision: int = 0
    inbox: deque[Event] = field(default_factory=lambda: deque(maxlen=32))
    wake: anyio.Event = field(default_factory=anyio.Event)
    news: anyio.Event = field(default_factory=anyio.Event)

    def give(self, event: Event) -> None:
        """Have the owner hand an event to the machine."""
        self.inbox.append(event)
        self.wake.set()

    def status(self) -> IntroductionStatus:
        """The introduction now."""
        stages = ["", ""]
        if isinstance(self.machine, IntroducerMachine):
            stages = [self.machine.stages[side].name.lower() for side in Side]
        return IntroductionStatus(
            id=self.id,
            role=self.role,
            state=self.state,
            introducer=self.introducer,
            introducer_id=self.introducer_id,
            devices=tuple(IntroducedDevice.of(p, s) for p, s in zip(self.parties, stages, strict=False)),
            created_at=self.created_at,
            expires_at=self.expires_at,
            reason=self.reason,
            detail=self.detail,
            pending=self.pending,
        )

    @property
    def awaits_answer(self) -> bool:
        """Whether this device's person is asked."""
        return self.state is IntroductionState.AWAITING_CONFIRMATION and not self.answered

    def give_answer(self, answer: Accepted | Refused) -> None:
        """The person has answered; only the first answer counts."""
        if self.awaits_answer:
            self.answered = True
            self.give(answer)

    def changed(self) -> None:
        """Tell who waits for news."""
        if self.answered and self.state is IntroductionState.AWAITING_CONFIRMATION:
            self.state = IntroductionState.WAITING
        self.revision += 1
        news, self.news = self.news, anyio.Event()
        news.set()


class Watch(AsyncIterator[IntroductionStatus]):
    """An introduction's status now, and after each change, until it is over.

    :param status: gives it.
    """

    def __init__(self, introduction: Introduction, status: Callable[[Introduction], IntroductionStatus]) -> None:
        self._introduction = introduction
        self._status = status
        self._told = -1
        self._over = False

    async def __anext__(self) -> IntroductionStatus:
        if self._over:
            raise StopAsyncIteration
        while self._introduction.revision == self._told:
            await self._introduction.news.wait()
        self._told = self._introduction.revision
        status = self._status(self._introduction)
        self._over = status.state.ended
        return status
