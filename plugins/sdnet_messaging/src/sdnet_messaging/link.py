"""One long-lived stream to a device, on which many messages are under way at once."""

from __future__ import annotations

import itertools
import logging
from typing import TypeVar, cast

import anyio

from sdnet_core import PeerStream
from sdnet_core.errors import ConnectionFailedError, NetworkingError
from sdnet_core.wire import Message, encode, encode_frame

from .messages import MAX_MESSAGE_BYTES, Ack, Data, Notification, Ping, Pong, Reply, Text

__all__ = ["FrameWriter", "Link", "LinkBrokenError"]

logger = logging.getLogger(__name__)

MAX_JOINED_BYTES = 64 << 10
"""Messages that wait together go as one record up to this size."""
CLOSE_TIMEOUT_S = 1.0

T = TypeVar("T", bound=Message)


class LinkBrokenError(Exception):
    """The stream ended before the answer came; the message may or may not have arrived."""


class FrameWriter:
    """Sends messages in the order in which they were put, those that wait together as one record.

    :param buffer: messages held before `put` waits.
    """

    def __init__(self, stream: PeerStream, *, buffer: int = 64) -> None:
        self._stream = stream
        self._sender, self._receiver = anyio.create_memory_object_stream[bytes](buffer)

    async def put(self, message: Message) -> None:
        """Hand over a message.

        :raises anyio.BrokenResourceError: the writer has ended.
        :raises anyio.ClosedResourceError: it was told to end.
        """
        await self._sender.send(encode_frame(encode(message)))

    def end(self) -> None:
        """Let `run` end when everything put was sent."""
        self._sender.close()

    def abandon(self) -> None:
        """Nothing put from now on, or not yet taken, is sent."""
        self._sender.close()
        self._receiver.close()

    async def run(self) -> None:
        """Send until `end`, or the stream breaks.

        :raises anyio.BrokenResourceError: the stream is gone.
        :raises anyio.ClosedResourceError: the stream was closed.
        """
        with self._receiver:
            async for frame in self._receiver:
                frames = [frame]
                size = len(frame)
                while size < MAX_JOINED_BYTES:
                    try:
                        frames.append(self._receiver.receive_nowait())
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                    size += len(frames[-1])
                await self._stream.send(b"".join(frames))


class _Waiter:
    __slots__ = ("answered", "reply")

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.reply: Reply | None = None


class Link:
    """Our side of a stream: asks, and matches answers to what was asked.

    :param idle_s: closes itself when nothing was asked for so long.
    :ivar broken: whether nothing can be asked any more.
    """

    def __init__(self, stream: PeerStream, *, idle_s: float) -> None:
        self._stream = stream
        self._writer = FrameWriter(stream)
        self._waiting: dict[tuple[type[Reply], int], _Waiter] = {}
        self._nonces = itertools.count()
        self._idle_s = idle_s
        self._last_used = anyio.current_time()
        self._scope = anyio.CancelScope()
        self.broken = False

    async def deliver(self, message: Data | Text | Notification, *, timeout_s: float) -> Ack:
        """Send a message and wait until the other side has settled it.

        :raises LinkBrokenError: the stream ended first.
        :raises TimeoutError: no answer within ``timeout_s``.
        """
        return cast(Ack, await self._ask(message, (Ack, message.sequence), timeout_s))

    async def ping(self, *, timeout_s: float) -> float:
        """Measure the round trip, seconds. Errors as `deliver`."""
        nonce = next(self._nonces)
        started = anyio.current_time()
        await self._ask(Ping(nonce=nonce), (Pong, nonce), timeout_s)
        return anyio.current_time() - started

    def cut(self) -> None:
        """Give the link up: whoever waits gets `LinkBrokenError`."""
        self.broken = True
        self._scope.cancel()

    async def _ask(self, message: Message, key: tuple[type[Reply], int], timeout_s: float) -> Reply:
        if self.broken or key in self._waiting:
            raise LinkBrokenError
        self._last_used = anyio.current_time()
        waiter = self._waiting[key] = _Waiter()
        try:
            with anyio.fail_after(timeout_s):
                await self._writer.put(message)
                await waiter.answered.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise LinkBrokenError from error
        finally:
            self._last_used = anyio.current_time()
            if self._waiting.get(key) is waiter:
                del self._waiting[key]
        if waiter.reply is None:
            raise LinkBrokenError
        return waiter.reply

    async def run(self) -> None:
        """Move messages until the stream ends, nobody has used it for long, or it is cut."""
        orderly = False
        try:
            with self._scope:
                orderly = await self._run()
        finally:
            self.broken = True
            self._writer.abandon()
            waiting, self._waiting = self._waiting, {}
            for waiter in waiting.values():
                waiter.answered.set()
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await (self._stream.aclose() if orderly else self._stream.reset())

    async def _run(self) -> bool:
        """Give whether the stream ended in order, which is: we have nothing more to ask."""
        orderly = False
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                try:
                    await self._writer.run()
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    tasks.cancel_scope.cancel()

            async def watch() -> None:
                nonlocal orderly
                while (left := self._idle_left()) > 0:  # noqa: ASYNC110 - a deadline that moves
                    await anyio.sleep(left)
                orderly = self.broken = True
                tasks.cancel_scope.cancel()

            async def read() -> None:
                messages = self._stream.messages(max_bytes=MAX_MESSAGE_BYTES)
                try:
                    while True:
                        self._answered(await messages.receive(Reply))
                except ConnectionFailedError:
                    pass
                except NetworkingError as error:
                    logger.warning("messaging to %s: %s", self._stream.peer_id, error)
                tasks.cancel_scope.cancel()

            tasks.start_soon(write)
            tasks.start_soon(watch)
            tasks.start_soon(read)
        return orderly

    def _idle_left(self) -> float:
        if self._waiting:
            return self._idle_s
        return self._last_used + self._idle_s - anyio.current_time()

    def _answered(self, reply: Reply) -> None:
        key = (type(reply), reply.sequence if isinstance(reply, Ack) else reply.nonce)
        # An answer that nobody waits for any more comes after its deadline.
        waiter = self._waiting.pop(key, None)
        if waiter is not None:
            waiter.reply = reply
            waiter.answered.set()
