"""Brings what is in the outbox to the devices: one stream for each protocol and priority in use.

On a stream many messages are under way at once, in order. When it breaks, all that was not answered goes again on the
next one, from the oldest on.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..errors import (
    ConnectionFailedError,
    DeviceNotFoundError,
    NetworkingError,
    NetworkTimeoutError,
    ProtocolError,
)
from ..log_context import log_context
from ..wire import MessageStream
from .delivery import (
    MAX_BATCH_BYTES,
    MAX_ITEMS,
    MAX_NUMBER,
    WINDOW,
    AnyAnswer,
    Batch,
    DeliveryOutcome,
    Done,
    Item,
    Later,
    LaterReason,
    Priority,
    Settled,
    Stale,
    Verdict,
    max_frame_bytes,
)
from .lanes import Lane, QueuedMessage
from .outbox import Outbox

__all__ = ["Courier", "MessageCarrier"]

logger = logging.getLogger(__name__)

MAX_UNDER_WAY = 1024
"""Messages sent and not answered on one stream."""
MAX_BYTES_UNDER_WAY = {Priority.HIGH: 4 << 20, Priority.NORMAL: 2 << 20, Priority.LOW: 256 << 10}
"""The same in bytes, unless it is a single message. The less, the less is in the way of what is more urgent."""
IDLE_S = 60.0
"""A stream on which nothing is under way is closed after so long."""
ANSWER_TIMEOUT_S = 45.0
"""So long the oldest message may take; the other side's handler has 30 s of them."""
CLOSE_TIMEOUT_S = 1.0
MAX_PAUSE_S = 30.0
MAX_IN_VAIN = 3
"""After more broken streams than this to a device that stays connected it is said that something is wrong."""
MAX_ANSWER_BYTES = max_frame_bytes(1 << 20)

_VERDICTS = {
    Verdict.DELIVERED: DeliveryOutcome.DELIVERED,
    Verdict.FAILED: DeliveryOutcome.FAILED,
    Verdict.REFUSED: DeliveryOutcome.REFUSED,
}
_LATER = {
    LaterReason.STORAGE: "the other device cannot store it now",
    LaterReason.FULL: "the other device takes no more for now: what it goes to is full",
}


class MessageCarrier(Protocol):
    """A stream to a device, as far as the courier needs it."""

    @property
    def draining(self) -> bool:
        """Whether it should be replaced by a new one soon."""

    async def receive(self, max_bytes: int = 65536) -> bytes: ...
    async def send(self, item: bytes) -> None: ...
    async def aclose(self) -> None: ...
    async def reset(self) -> None: ...


class Courier:
    """Delivers what is in the outbox, for as long as it runs.

    :param open_stream: opens a stream of a protocol's messages to a connected device.
    :param is_connected: whether a device has a session. When that changes, `connected` is called.
    :param retry_s: first pause after a stream that brought nothing.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        open_stream: Callable[[uuid.UUID, str], Awaitable[MessageCarrier]],
        is_connected: Callable[[uuid.UUID], bool],
        retry_s: float,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._outbox = outbox
        self._open_stream = open_stream
        self._is_connected = is_connected
        self._retry_s = retry_s
        self._answer_timeout_s = answer_timeout_s
        self._active: set[Lane] = set()
        self._connects: dict[uuid.UUID, anyio.Event] = {}

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Deliver until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._outbox.on_work(lambda lane: self._start(tasks, lane))
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                self._outbox.on_work(lambda lane: None)

    def connected(self, device_id: uuid.UUID) -> None:
        """A device has a new session."""
        self._connects.pop(device_id, anyio.Event()).set()

    def _start(self, tasks: TaskGroup, lane: Lane) -> None:
        if lane not in self._active:
            self._active.add(lane)
            tasks.start_soon(self._serve, lane)

    async def _serve(self, lane: Lane) -> None:
        with log_context(device_id=lane.device_id):
            await self._deliver(lane)

    async def _deliver(self, lane: Lane) -> None:
        pause_s = 0.0
        in_vain = 0
        try:
            while lane.queue:
                while not self._is_connected(lane.device_id):
                    lane.error = ""
                    await self._next_connection(lane.device_id)
                    pause_s, in_vain = 0.0, 0
                try:
                    error = await self._run_stream(lane)
                except (ConnectionFailedError, NetworkTimeoutError) as failure:
                    error = str(failure)
                except NetworkingError as failure:
                    error = lane.error = str(failure).removesuffix(".")
                if not error:
                    pause_s, in_vain = 0.0, 0
                elif lane.queue:
                    in_vain += 1
                    if not lane.error and in_vain > MAX_IN_VAIN:
                        lane.error = error
                    logger.info("messages of %s to %s wait: %s", lane.protocol_name, lane.device_id, error)
                    pause_s = min(MAX_PAUSE_S, max(self._retry_s, pause_s * 2))
                    with anyio.move_on_after(pause_s):
                        await self._next_connection(lane.device_id)
                        pause_s = 0.0
        except DeviceNotFoundError:
            pass
        finally:
            self._active.discard(lane)

    async def _next_connection(self, device_id: uuid.UUID) -> None:
        await self._connects.setdefault(device_id, anyio.Event()).wait()

    async def _run_stream(self, lane: Lane) -> str:
        """Give why nothing was settled; empty if something was, or there was nothing."""
        stream = await self._open_stream(lane.device_id, lane.protocol_name)
        conversation = _Conversation(self._outbox, lane, stream, self._answer_timeout_s)
        lane.open = True
        lane.rewind()
        try:
            await conversation.run()
        finally:
            lane.open = False
            lane.rewind()
        if conversation.next_number is not None:
            await self._outbox.renumber(lane, conversation.next_number)
            return ""
        return "" if conversation.progress else conversation.error


class _Conversation:
    """One stream, until it ends.

    :ivar progress: whether anything was settled.
    :ivar error: why it ended; empty for in order.
    :ivar next_number: set if the device wants other numbers.
    """

    def __init__(self, outbox: Outbox, lane: Lane, stream: MessageCarrier, answer_timeout_s: float) -> None:
        self._outbox = outbox
        self._lane = lane
        self._stream = stream
        self._messages = MessageStream(stream, max_bytes=MAX_ANSWER_BYTES)
        self._answer_timeout_s = answer_timeout_s
        self._under_way: dict[int, QueuedMessage] = {}
        self._bytes = 0
        self._patience = anyio.CancelScope()
        self.progress = False
        self.error = ""
        self.next_number: int | None = None

    async def run(self) -> None:
        orderly = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, tasks.cancel_scope)
                try:
                    await self._write()
                    orderly = True
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionFailedError):
                    self.error = "the connection broke"
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await (self._stream.aclose() if orderly else self._stream.reset())

    async def _write(self) -> None:
        """Send until the stream should end in order."""
        lane = self._lane
        while True:
            lane.changed = anyio.Event()
            draining = self._stream.draining
            batch = [] if draining else await self._take()
            if batch:
                await self._send(batch)
            elif draining and not self._under_way:
                return
            else:
                with anyio.move_on_after(math.inf if self._under_way else IDLE_S) as idle:
                    await lane.changed.wait()
                if idle.cancelled_caught and not self._under_way and not lane.unsent:
                    return

    async def _take(self) -> list[tuple[QueuedMessage, bytes]]:
        """The next messages to send, as many as may be under way."""
        batch: list[QueuedMessage] = []
        expired: list[QueuedMessage] = []
        size = 0
        unsent = self._lane.unsent
        below = self._lane.below(next(iter(self._under_way), MAX_NUMBER))
        while unsent and len(batch) < MAX_ITEMS and len(self._under_way) + len(batch) < MAX_UNDER_WAY:
            message = unsent[0]
            if message.settled or message.number <= self._lane.sent:
                unsent.popleft()
                continue
            if self._outbox.is_over(message):
                expired.append(unsent.popleft())
                continue
            below = min(below, message.number)
            if batch and size + message.size > MAX_BATCH_BYTES:
                break
            if self._bytes and self._bytes + size + message.size > MAX_BYTES_UNDER_WAY[self._lane.priority]:
                break
            if message.number >= below + WINDOW:
                break
            size += message.size
            batch.append(unsent.popleft())
        if expired:
            await self._outbox.settle(expired, DeliveryOutcome.EXPIRED)
        if all(message.data is not None for message in batch):
            return [(message, message.data or b"") for message in batch]
        return await self._load(batch)

    async def _load(self, batch: list[QueuedMessage]) -> list[tuple[QueuedMessage, bytes]]:
        payloads = await self._outbox.payloads(batch)
        damaged = [m for m, data in zip(batch, payloads, strict=True) if data is None and not m.settled]
        await self._outbox.settle(damaged, DeliveryOutcome.FAILED)
        return [(m, data) for m, data in zip(batch, payloads, strict=True) if data is not None and not m.settled]

    async def _send(self, batch: list[tuple[QueuedMessage, bytes]]) -> None:
        if not self._under_way:
            self._patience.deadline = anyio.current_time() + self._answer_timeout_s
        for message, _ in batch:
            message.tried = True
            self._under_way[message.number] = message
            self._bytes += message.size
        self._lane.sent = batch[-1][0].number
        items = tuple(Item(number=message.number, id=message.id.bytes, data=data) for message, data in batch)
        below = self._lane.below(next(iter(self._under_way)))
        await self._messages.send(Batch(priority=self._lane.priority, below=below, items=items))

    async def _read(self, scope: anyio.CancelScope) -> None:
        """Take answers until there will be no more; then the whole conversation ends."""
        try:
            self.error = self._lane.error = await self._take_answers()
        except ConnectionFailedError:
            self.error = "the connection broke"
        except ProtocolError as error:
            self.error = self._lane.error = f"the other device broke the protocol: {error}"
        scope.cancel()

    async def _take_answers(self) -> str:
        """Give why there will be no more."""
        while True:
            deadline = anyio.current_time() + self._answer_timeout_s if self._under_way else math.inf
            with anyio.CancelScope(deadline=deadline) as self._patience:
                answer: AnyAnswer = await self._messages.receive(AnyAnswer)
            if self._patience.cancelled_caught:
                return f"no answer within {self._answer_timeout_s:g} s"
            match answer:
                case Done(up_to=up_to):
                    await self._settle([n for n in self._under_way if n <= up_to], DeliveryOutcome.DELIVERED)
                case Settled(number=number, verdict=verdict, response=response):
                    await self._settle([number], _VERDICTS[verdict], response)
                case Later(reason=reason):
                    return _LATER[reason]
                case Stale(next_number=next_number):
                    self.next_number = next_number
                    return "the other device wants other numbers"

    async def _settle(self, numbers: list[int], outcome: DeliveryOutcome, response: bytes = b"") -> None:
        done = [message for number in numbers if (message := self._under_way.pop(number, None)) is not None]
        if not done:
            return
        self._bytes -= sum(message.size for message in done)
        self.progress = True
        self._lane.error = ""
        self._lane.changed.set()
        await self._outbox.settle(done, outcome, response)
