"""What both ends of a transfer's stream need: deadlines, signs of life, one error out of several tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, TransportError

from . import messages as m

__all__ = [
    "HEARTBEAT_S",
    "LAST_WORDS_TIMEOUT_S",
    "STALL_S",
    "Conversation",
    "RecordStream",
    "is_transient",
    "pass_on",
    "take_next",
]

HEARTBEAT_S = 10.0
"""Seconds of silence after which an end that is busy with its disk says that it is there."""
STALL_S = 60.0
"""Seconds without a byte in either direction after which the stream is given up."""
LAST_WORDS_TIMEOUT_S = 5.0
"""Seconds for a last message to arrive before the stream is closed."""

T = TypeVar("T")


class RecordStream(Protocol):
    """What is needed of a stream; `sdnet_core.PeerStream` has it."""

    async def send_record(self, data: bytes | bytearray | memoryview) -> None: ...
    async def receive_record(self) -> bytes: ...
    async def receive_record_into(self, buffer: memoryview) -> int: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class Conversation:
    """One end of a stream, used by several tasks of one task group.

    :ivar scope: the task group's; cancelled when an outcome or an error is there.
    """

    def __init__(self, stream: RecordStream) -> None:
        self._stream = stream
        self._moved_at = anyio.current_time()
        self._sent_at = self._moved_at
        self._sends = 0
        """How many records are being sent; all but one of them wait for their turn."""
        self._sends_from = self._moved_at
        self._receives_from: float | None = None
        """Since when a record is waited for."""
        self._error: Exception | None = None
        self._cancel_reason: str | None = None
        self._cancelled = anyio.Event()
        self._pausing = False
        self.scope = anyio.CancelScope()

    def cancel(self, reason: str) -> None:
        """Have the transfer ended in order: the other side is told. May be called at any time, also before it runs."""
        if self._cancel_reason is None:
            self._cancel_reason = reason
            self._cancelled.set()

    def pause(self) -> None:
        """Have the conversation ended in order, and the other side told that it goes on later."""
        if self._cancel_reason is None:
            self._pausing = True
            self.cancel("It is paused there.")

    def _last_words(self) -> bytes:
        """What the other side is told when we cancel or pause."""
        reason = (self._cancel_reason or "")[: m.MAX_REASON_LENGTH]
        if self._pausing:
            return m.encode_control(m.TransferFailure(code=m.Refusal.PAUSED, reason=reason))
        return m.encode_control(m.TransferCancel(reason=reason))

    def abandon(self) -> None:
        """Have the conversation ended at once, as if the connection were lost."""
        if self._error is None:
            self._error = ConnectionFailedError("A newer attempt took over.")
        self.scope.cancel()

    async def _guard(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run one of the tasks; the first error of all ends them."""
        try:
            await function(*args)
        except Exception as error:
            if self._error is None:
                self._error = error
            self.scope.cancel()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _send(self, record: bytes | bytearray | memoryview) -> None:
        if not self._sends:
            self._sends_from = anyio.current_time()
        self._sends += 1
        try:
            await self._stream.send_record(record)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error
        finally:
            self._sends -= 1
        self._moved_at = self._sent_at = anyio.current_time()

    async def _receive(self) -> bytes:
        """The next record; raises as `_receive_into`."""
        return await self._receiving(self._stream.receive_record())

    async def _receive_into(self, buffer: memoryview) -> int:
        """Receive the next record into a buffer of the longest record's size.

        :returns: how many bytes it has.
        :raises ConnectionFailedError: the stream ended or broke.
        """
        return await self._receiving(self._stream.receive_record_into(buffer))

    async def _receiving(self, receive: Awaitable[T]) -> T:
        self._receives_from = anyio.current_time()
        try:
            received = await receive
        except anyio.EndOfStream:
            raise ConnectionFailedError("The other device ended the conversation.") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error
        finally:
            self._receives_from = None
        self._moved_at = anyio.current_time()
        return received

    async def _watch(self) -> None:
        """End the conversation when nothing moves any more. One task sees to that, not a deadline for each record.

        :raises NetworkTimeoutError: nothing has moved for a long time.
        """
        while True:
            now = anyio.current_time()
            look_at = now + STALL_S
            if self._sends:
                give_up_at = max(self._sends_from, self._sent_at) + STALL_S
                if give_up_at <= now:
                    raise NetworkTimeoutError("The other device has stopped taking data.")
                look_at = min(look_at, give_up_at)
            if self._receives_from is not None:
                give_up_at = max(self._receives_from, self._moved_at) + STALL_S
                if give_up_at <= now:
                    raise NetworkTimeoutError("The other device has stopped answering.")
                look_at = min(look_at, give_up_at)
            await anyio.sleep_until(look_at)

    async def _heartbeat(self) -> None:
        """Say now and then that we are there while we have nothing else to say."""
        record = m.encode_control(m.TransferHeartbeat())
        while True:
            silent_s = anyio.current_time() - self._sent_at
            if silent_s >= HEARTBEAT_S:
                await self._send(record)
            else:
                await anyio.sleep(HEARTBEAT_S - silent_s)


async def take_next(stream: MemoryObjectReceiveStream[T]) -> T:
    """The next item, without a round of the scheduler if it is there; raises what ``receive`` does."""
    try:
        return stream.receive_nowait()
    except anyio.WouldBlock:
        return await stream.receive()


async def pass_on(stream: MemoryObjectSendStream[T], item: T) -> None:
    """Pass an item on, without a round of the scheduler if there is room; raises what ``send`` does."""
    try:
        stream.send_nowait(item)
    except anyio.WouldBlock:
        await stream.send(item)


def is_transient(error: Exception | None) -> bool:
    """Whether the same may well work when the devices meet again."""
    return isinstance(error, TransportError | NetworkTimeoutError)
