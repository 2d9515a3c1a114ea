"""What both ends of a transfer's stream need: deadlines, signs of life, one error out of several tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import anyio

from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, TransportError

from . import messages as m

__all__ = ["HEARTBEAT_S", "LAST_WORDS_TIMEOUT_S", "STALL_S", "Conversation", "RecordStream", "is_transient"]

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
        try:
            with anyio.fail_after(STALL_S):
                await self._stream.send_record(record)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error
        except TimeoutError:
            raise NetworkTimeoutError("The other device has stopped taking data.") from None
        self._moved_at = self._sent_at = anyio.current_time()

    async def _receive(self) -> bytes:
        """The next record; raises as `_receive_into`."""
        return await self._receive_with(self._stream.receive_record)

    async def _receive_into(self, buffer: memoryview) -> int:
        """Receive the next record into a buffer of the longest record's size.

        :returns: how many bytes it has.
        :raises NetworkTimeoutError: nothing has moved for a long time.
        :raises ConnectionFailedError: the stream ended or broke.
        """
        return await self._receive_with(lambda: self._stream.receive_record_into(buffer))

    async def _receive_with(self, receive: Callable[[], Awaitable[T]]) -> T:
        began_at = anyio.current_time()
        while True:
            give_up_at = max(began_at, self._moved_at) + STALL_S
            try:
                with anyio.fail_after(give_up_at - anyio.current_time()):
                    received = await receive()
            except TimeoutError:
                if self._moved_at + STALL_S > give_up_at:
                    continue  # we have sent something meanwhile
                raise NetworkTimeoutError("The other device has stopped answering.") from None
            except anyio.EndOfStream:
                raise ConnectionFailedError("The other device ended the conversation.") from None
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise ConnectionFailedError("The connection was lost.") from error
            self._moved_at = anyio.current_time()
            return received

    async def _heartbeat(self) -> None:
        """Say now and then that we are there while we have nothing else to say."""
        record = m.encode_control(m.TransferHeartbeat())
        while True:
            silent_s = anyio.current_time() - self._sent_at
            if silent_s >= HEARTBEAT_S:
                await self._send(record)
            else:
                await anyio.sleep(HEARTBEAT_S - silent_s)


def is_transient(error: Exception | None) -> bool:
    """Whether the same may well work when the devices meet again."""
    return isinstance(error, TransportError | NetworkTimeoutError)
