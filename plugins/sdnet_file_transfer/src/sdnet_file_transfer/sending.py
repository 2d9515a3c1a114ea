"""The sending end of one transfer's stream."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from sdnet_core.errors import TransportError

from . import messages as m
from .compression import Packer
from .conversation import LAST_WORDS_TIMEOUT_S, Conversation, RecordStream, take_next
from .limits import Throttle
from .machine import Accepted, Acknowledged, Heartbeat, PeerCancelled, PeerFailed, Rejected, SenderMachine
from .source import Filled, Left, Manifest, SourceReader
from .transfer import TransferState

__all__ = ["Cancelled", "Paused", "SendOutcome", "Sending"]

_BUFFERS = 6
"""Records in memory at once: some being read and hashed, some waiting, one being sealed and sent."""
_FILLED_AT_ONCE = 3
"""Records read and hashed by one call into a thread; as many others are sent meanwhile."""
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The transfer was cancelled here, and the other side was told."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The transfer was paused here, and the other side was told."""


SendOutcome: TypeAlias = Acknowledged | Rejected | PeerCancelled | PeerFailed | Cancelled | Paused
_Buffer: TypeAlias = bytearray
_Full: TypeAlias = tuple[_Buffer, bytes | None, Filled]
"""A buffer, what to send in its place if it was compressed, and what it holds."""


class Sending(Conversation):
    """Sends one manifest over one stream.

    :param run_blocking: runs disk work off the event loop.
    :param observe: told of each new state, and of the bytes and files done.
    :param throttle: limits how fast; None for no limit.
    :param compress: compress what is sent the faster for it.
    """

    def __init__(
        self,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        purpose: str,
        manifest: Manifest,
        *,
        run_blocking: Callable[..., Any],
        observe: Callable[[TransferState, int, int], None],
        throttle: Throttle | None = None,
        compress: bool = True,
    ) -> None:
        super().__init__(stream)
        self._packer = Packer() if compress else None
        self._throttle = throttle
        self._machine = SenderMachine(transfer_id, purpose, manifest.items)
        self._manifest = manifest
        self._run_blocking = run_blocking
        self._observe = observe
        self._accepted = anyio.Event()
        self._asking = anyio.CancelScope()
        self._waiting = anyio.CancelScope()
        self._talked = anyio.Event()
        self._stop = False
        self._resume: Accepted | None = None
        self._outcome: SendOutcome | None = None
        self._reader: SourceReader | None = None
        self._tasks: TaskGroup | None = None

    @property
    def failed(self) -> list[Left]:
        """Files that could not be read."""
        return [] if self._reader is None else self._reader.failed

    async def run(self) -> SendOutcome:
        """Offer, send, wait until everything is in place over there.

        :raises ConnectionFailedError: the stream ended before that.
        :raises NetworkTimeoutError: nothing moved for a long time.
        :raises ProtocolError: the other side does not keep to the protocol.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks, self.scope = tasks, tasks.cancel_scope
                tasks.start_soon(self._guard, self._listen)
                tasks.start_soon(self._guard, self._talk)
                tasks.start_soon(self._guard, self._heartbeat)
                tasks.start_soon(self._guard, self._watch)
                tasks.start_soon(self._guard, self._await_cancel)
        finally:
            self._stop = True
            if self._reader is not None:
                self._reader.close()
        if self._outcome is None:
            self._raise_error()
        assert self._outcome is not None
        return self._outcome

    async def _listen(self) -> None:
        while True:
            event = self._machine.receive(await self._receive())
            if isinstance(event, Accepted):
                self._resume = event
                self._accepted.set()
            elif event is not None and not isinstance(event, Heartbeat):
                self._outcome = event
                self.scope.cancel()
                return

    async def _talk(self) -> None:
        try:
            await self._say_everything()
        except TransportError:
            # A receiver that ends the transfer says why before it closes; that may be on its way.
            with anyio.move_on_after(_LAST_WORDS_S):
                await anyio.sleep_forever()
            raise
        finally:
            self._talked.set()

    async def _say_everything(self) -> None:
        self._observe(TransferState.OFFERING, 0, 0)
        for record in self._machine.start():
            if self._stop:
                return
            await self._send(record)
        with self._asking:
            await self._accepted.wait()
        if self._resume is None:
            return
        reader = self._reader = SourceReader(self._manifest, self._resume.resume, stop=lambda: self._stop)
        self._observe(TransferState.TRANSFERRING, 0, 0)
        await self._pump(reader)
        if not self._stop:
            self._observe(TransferState.VERIFYING, reader.done_bytes, reader.done_items)
            await self._send(self._machine.complete(len(reader.failed)))

    async def _pump(self, reader: SourceReader) -> None:
        """Send records while the next ones are read and hashed."""
        assert self._tasks is not None
        give_empty, take_empty = anyio.create_memory_object_stream[_Buffer](_BUFFERS)
        give_full, take_full = anyio.create_memory_object_stream[_Full](_BUFFERS)
        for _ in range(_BUFFERS):
            give_empty.send_nowait(bytearray(m.MAX_RECORD_BYTES))
        with give_empty, take_full:
            self._tasks.start_soon(self._guard, self._fill, reader, take_empty, give_full)
            while True:
                try:
                    buffer, packed, filled = await take_next(take_full)
                except anyio.EndOfStream:
                    return
                record = memoryview(buffer)[: filled.length] if packed is None else packed
                if self._throttle is not None and self._throttle.limited and not self._stop:
                    with self._waiting:
                        await self._throttle.wait(len(record))
                    self._waiting = anyio.CancelScope()
                if self._stop:
                    return
                began = anyio.current_time()
                await self._send(record)
                if self._packer is not None:
                    self._packer.sent(len(record), anyio.current_time() - began)
                self._observe(TransferState.TRANSFERRING, filled.done_bytes, filled.done_items)
                with contextlib.suppress(anyio.BrokenResourceError):  # everything was read
                    give_empty.send_nowait(buffer)

    async def _fill(
        self,
        reader: SourceReader,
        take_empty: MemoryObjectReceiveStream[_Buffer],
        give_full: MemoryObjectSendStream[_Full],
    ) -> None:
        with take_empty, give_full, contextlib.suppress(anyio.BrokenResourceError):  # nobody sends any more
            at_once = 1  # the other side gets to work with the first one
            async for buffer in take_empty:
                buffers = [buffer]
                # As many as are not waiting to be sent. None will be free any more once a transfer is cancelled.
                with contextlib.suppress(anyio.EndOfStream):
                    while len(buffers) < at_once:
                        buffers.append(await take_next(take_empty))
                at_once = min(at_once + 1, _FILLED_AT_ONCE)
                room = m.MAX_RECORD_BYTES if self._throttle is None else self._throttle.record_bytes
                filled_all = await self._run_blocking(self._fill_and_pack, reader, buffers, room)
                for buffer, (packed, filled) in zip(buffers, filled_all, strict=False):
                    if not filled.length:
                        return
                    give_full.send_nowait((buffer, packed, filled))

    def _fill_and_pack(
        self, reader: SourceReader, buffers: Sequence[_Buffer], room: int
    ) -> list[tuple[bytes | None, Filled]]:
        """Fill several records and compress those that are worth it; runs in a thread."""
        done: list[tuple[bytes | None, Filled]] = []
        for buffer in buffers:
            item = reader.item
            filled = reader.fill(memoryview(buffer)[:room])
            packed = None
            if filled.length and self._packer is not None:
                if reader.item != item:
                    self._packer.next_file()
                packed = self._packer.pack(memoryview(buffer)[: filled.length])
            done.append((packed, filled))
            if not filled.length:
                break
        return done

    async def _await_cancel(self) -> None:
        await self._cancelled.wait()
        # A send that is cut off would break the stream, and the message behind it would not arrive.
        self._stop = True
        self._asking.cancel()
        self._waiting.cancel()
        with anyio.move_on_after(LAST_WORDS_TIMEOUT_S):
            await self._talked.wait()
        self._outcome = Paused() if self._pausing else Cancelled()
        with anyio.move_on_after(LAST_WORDS_TIMEOUT_S):
            await self._send(self._last_words())
            await self._stream.send_eof()
            await anyio.sleep_forever()  # until the receiver closes, which `_listen` notices
        self.scope.cancel()
