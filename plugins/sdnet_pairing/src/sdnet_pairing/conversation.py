"""Carries a pairing machine's conversation over a stream, with its deadlines; what the roles share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from sdnet_core import PeerStream
from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, SerializationError

from .limits import PairingLimits
from .machine import Machine
from .messages import MAX_MESSAGE_BYTES
from .session import Reason
from .steps import Command, Event, Fail, Failure, Received, Send

__all__ = ["Conversation", "reason_of"]

_REASONS = {
    Failure.REFUSED: Reason.REFUSED,
    Failure.UNPROVEN: Reason.REFUSED,
    Failure.AUTHENTICATION: Reason.AUTHENTICATION,
    Failure.PROTOCOL: Reason.PROTOCOL,
    Failure.STORAGE: Reason.STORAGE,
}


def reason_of(fail: Fail) -> Reason:
    """What a failed conversation means for its session."""
    if fail.failure is Failure.DENIED and fail.reason is not None:
        return Reason(fail.reason.value)
    return _REASONS.get(fail.failure, Reason.FAILED)


class Conversation(ABC):
    """One machine on one stream.

    :ivar failure: how the machine failed, None as long as it has not.
    """

    def __init__(self, machine: Machine, stream: PeerStream, limits: PairingLimits) -> None:
        self.machine = machine
        self.failure: Fail | None = None
        self._limits = limits
        self._messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
        self._time_left_s = limits.conversation_timeout_s

    async def run(self, first: Event | None = None) -> None:
        """Talk until the machine has ended.

        :param first: what to give the machine before anything comes in.
        :raises NetworkTimeoutError: the other side took too long over a step or over all of them.
        :raises ConnectionFailedError: the stream ended too early.
        """
        events: deque[Event] = deque([] if first is None else [first])
        while True:
            while events:
                for command in self.machine.handle(events.popleft()):
                    if (answer := await self._do(command)) is not None:
                        events.append(answer)
            if self.machine.ended:
                return
            events.append(await self._receive())

    @abstractmethod
    async def carry_out(self, command: Command) -> Event | None:
        """Do what the machine asks for, except sending; give the event that answers it."""

    def person_time_s(self) -> float:
        """How long the other side's person may take before the next message comes, seconds."""
        return 0.0

    async def _do(self, command: Command) -> Event | None:
        match command:
            case Send(message):
                try:
                    with self._step():
                        await self._messages.send(message)
                except (ConnectionFailedError, NetworkTimeoutError):
                    # The last word may be lost: what it says is settled on this side.
                    if not self.machine.ended:
                        raise
                return None
            case Fail():
                self.failure = command
        return await self.carry_out(command)

    async def _receive(self) -> Event:
        with self._step(self.person_time_s()):
            try:
                return Received(await self._messages.receive_bytes())
            except SerializationError:
                # A frame that is malformed or too long is answered as any other message that makes no sense.
                return Received(b"")

    @contextmanager
    def _step(self, person_time_s: float = 0.0) -> Iterator[None]:
        """Bound one step; what it takes beyond a person's time goes off what the conversation has left."""
        started = anyio.current_time()
        allowed_s = max(0.0, min(self._limits.step_timeout_s, self._time_left_s)) + person_time_s
        try:
            with anyio.fail_after(allowed_s):
                yield
        except TimeoutError as error:
            raise NetworkTimeoutError("The other device did not answer in time.") from error
        finally:
            self._time_left_s -= max(0.0, anyio.current_time() - started - person_time_s)
