"""The receiving end of one transfer's stream."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from sdnet_core.errors import ConnectionFailedError, NetworkingError, ProtocolError, StorageError

from . import messages as m
from .compression import unpack
from .conversation import LAST_WORDS_TIMEOUT_S, Conversation, RecordStream, is_transient, pass_on, take_next
from .landing import Landing, MismatchError
from .layout import Layout
from .limits import Throttle
from .machine import Heartbeat, Offered, PeerCancelled, PeerFailed, ReceiverMachine, SentAll
from .part import PAGE_BYTES, page_memory
from .sending import Cancelled, Paused
from .staging import DiskFullError
from .transfer import TransferState

__all__ = ["Admission", "AlreadyReceived", "ReceiveOutcome", "Received", "Receiving", "Refused"]

logger = logging.getLogger(__name__)

_QUEUED_RECORDS = 4
"""Records in memory that came and are not written yet; the sender waits then."""
_OFFER_TIMEOUT_S = 60.0
_BEFORE_CONTENTS_BYTES = 1 + m.SEGMENT_HEADER.size
"""What stands in a data record before the contents of its first file."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The offer is taken.

    :param name: of the private folder below ``destination``.
    :param adopt: see `Landing`.
    :param room: told the landing and the bytes still to come: raises `DiskFullError` when there is no room for them.
    """

    destination: Path
    name: str
    adopt: str | None
    fresh: bool
    room: Callable[[Landing, int], None]


@dataclass(frozen=True, slots=True)
class Refused:
    """The offer is not taken.

    :param code: one of `messages.Refusal`.
    """

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class AlreadyReceived:
    """This very transfer was received whole before."""


@dataclass(frozen=True, slots=True)
class Received:
    """Everything that came is in place.

    :param names: what it was put under, in the destination.
    :param failed: files that did not come.
    """

    names: tuple[str, ...]
    failed: int


_Record: TypeAlias = tuple[memoryview, int]
"""A buffer, and how much of it is in use."""
ReceiveOutcome: TypeAlias = Received | PeerCancelled | PeerFailed | Refused | AlreadyReceived | Cancelled | Paused


class Receiving(Conversation):
    """Receives one transfer from one stream.

    :param decide: asked about the offer.
    :param observe: told of each new state, and of the bytes and files done.
    :param settle: called when everything is in place and before the sender is told: makes that lasting.
    :param throttle: limits how fast; None for no limit.
    """

    def __init__(
        self,
        stream: RecordStream,
        *,
        run_blocking: Callable[..., Any],
        decide: Callable[[Offered], Awaitable[Admission | Refused | AlreadyReceived]],
        observe: Callable[[TransferState, int, int], None],
        settle: Callable[[Received], Awaitable[None]],
        throttle: Throttle | None = None,
    ) -> None:
        super().__init__(stream)
        self._throttle = throttle
        self._machine = ReceiverMachine()
        self._run_blocking = run_blocking
        self._decide = decide
        self._observe = observe
        self._settle = settle
        self._layout: Layout | None = None
        self._laid_out = anyio.Event()
        self._landing: Landing | None = None
        self._outcome: ReceiveOutcome | None = None
        self._tasks: TaskGroup | None = None
        self._syncing: anyio.Event | None = None
        self._stream_error: NetworkingError | None = None
        self._spare: list[memoryview] = []
        """Buffers for records. There are never more than the queued ones, those being written and one being received.
        """
        self.kept = False
        """After `run`: whether something that has arrived is kept for another attempt."""

    async def run(self) -> ReceiveOutcome:
        """Receive the offer, have it decided, receive the files.

        What has arrived is kept for another attempt unless the sender broke the rules or we cancelled.

        :raises ConnectionFailedError: the stream ended before everything was there.
        :raises NetworkTimeoutError: nothing moved for a long time.
        :raises ProtocolError: the sender does not keep to the protocol, or lied about a hash; it was told.
        :raises StorageError: the disk is full or failed; the sender was told.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks, self.scope = tasks, tasks.cancel_scope
                tasks.start_soon(self._guard, self._converse)
                tasks.start_soon(self._guard, self._heartbeat)
                tasks.start_soon(self._guard, self._watch)
                tasks.start_soon(self._guard, self._await_cancel)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go()
            self._spare.clear()  # at once: this object lives until the garbage is collected
        await self._say_last()
        if self._outcome is None:
            self._raise_error()
        assert self._outcome is not None
        return self._outcome

    async def _converse(self) -> None:
        offer = await self._take_offer()
        if isinstance(offer, PeerCancelled | PeerFailed):
            self._outcome = offer
        else:
            assert self._tasks is not None
            self._tasks.start_soon(self._guard, self._lay_out, offer)
            decision = await self._decide(offer)
            if isinstance(decision, Admission):
                await self._take_files(offer, decision)
            elif isinstance(decision, Refused):
                self._outcome = decision
                await self._send(self._machine.reject(decision.code, decision.reason))
            else:
                self._outcome = decision
                await self._send(self._machine.already_complete())
        self.scope.cancel()

    async def _take_offer(self) -> Offered | PeerCancelled | PeerFailed:
        try:
            with anyio.fail_after(_OFFER_TIMEOUT_S):
                while True:
                    record = await self._receive()
                    event = await self._run_blocking(self._machine.receive, record)
                    if isinstance(event, Offered | PeerCancelled | PeerFailed):
                        return event
        except TimeoutError:
            raise ProtocolError("The sender did not say in time what it wants to send.") from None

    async def _lay_out(self, offer: Offered) -> None:
        """Work out what comes, while it is decided about."""
        self._layout = await self._run_blocking(Layout, offer.items)
        self._laid_out.set()

    async def _take_files(self, offer: Offered, admission: Admission) -> None:
        self._observe(TransferState.OFFERING, 0, 0)
        await self._laid_out.wait()
        layout, self._layout = self._layout, None
        assert layout is not None
        try:
            resume = await self._run_blocking(self._prepare, offer, admission, layout)
        except DiskFullError as error:
            self._outcome = Refused(m.Refusal.NO_SPACE, error.detail)
            await self._send(self._machine.reject(m.Refusal.NO_SPACE, error.detail))
            return
        except StorageError as error:
            await self._send(self._machine.reject(m.Refusal.STORAGE, "The receiver cannot use its folder."))
            raise error
        for record in self._machine.accept(resume):
            await self._send(record)
        give, take = anyio.create_memory_object_stream[_Record](_QUEUED_RECORDS)
        assert self._tasks is not None
        self._tasks.start_soon(self._guard, self._shovel, give)
        with take:
            await self._write(take)

    def _prepare(self, offer: Offered, admission: Admission, layout: Layout) -> list[m.ItemResume]:
        landing = Landing(admission.destination, admission.name, layout, adopt=admission.adopt, fresh=admission.fresh)
        self._landing = landing
        resume = landing.verify()
        admission.room(landing, offer.total_bytes - landing.done_bytes)
        return resume

    async def _shovel(self, give: MemoryObjectSendStream[_Record]) -> None:
        """Receive records while earlier ones are hashed and written."""
        with give:
            while True:
                buffer = self._spare.pop() if self._spare else _make_buffer()
                try:
                    length = await self._receive_into(buffer)
                    if self._throttle is not None:
                        await self._throttle.wait(length)
                except NetworkingError as error:  # after the records before it, among which may be the last
                    self._stream_error = error
                    return
                try:
                    await pass_on(give, (buffer, length))
                except anyio.BrokenResourceError:  # nobody writes any more
                    return

    async def _write(self, take: MemoryObjectReceiveStream[_Record]) -> None:
        landing = self._landing
        assert landing is not None
        self._observe(TransferState.TRANSFERRING, landing.done_bytes, landing.done_items)
        while True:
            try:
                records = [await take_next(take)]
            except anyio.EndOfStream:
                raise self._stream_error or ConnectionFailedError("The connection was lost.") from None
            with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                while True:
                    records.append(take.receive_nowait())
            for buffer, length in records:  # here: that takes less time than a thread takes to have its turn for it
                landing.hash_at_once(buffer[:length])
            event, sync = await self._run_blocking(self._ingest, landing, records)
            self._spare += [buffer for buffer, _ in records]
            self._observe(TransferState.TRANSFERRING, landing.done_bytes, landing.done_items)
            if sync is not None:
                await self._sync_behind(sync)
            if isinstance(event, SentAll):
                await self._finish(landing)
                return
            if event is not None:
                self._outcome = event
                return

    def _ingest(
        self, landing: Landing, records: Sequence[_Record]
    ) -> tuple[SentAll | PeerCancelled | PeerFailed | None, Callable[[], None] | None]:
        """Check, hash and write some records; runs in a thread."""
        ended = None
        for buffer, length in records:
            record: bytes | memoryview = buffer[:length]
            if record[0] == m.PACKED:
                record = unpack(record)
            if record[0] == m.DATA:
                landing.write_all(self._machine.chunks(record))
                continue
            event = self._machine.receive(record)
            if isinstance(event, SentAll | PeerCancelled | PeerFailed):
                ended = event
                break
            if not isinstance(event, Heartbeat):
                raise ProtocolError("The sender repeated its offer.")
        landing.flush()
        return ended, landing.take_sync(busy=self._syncing is not None and not self._syncing.is_set())

    async def _sync_behind(self, sync: Callable[[], None]) -> None:
        """Bring what was written to the disk while more comes; a large file waits until the last time is done."""
        if self._syncing is not None:
            with anyio.CancelScope(shield=True):  # whoever ends this has to wait for that thread, too
                await self._syncing.wait()
        self._syncing = anyio.Event()
        assert self._tasks is not None
        self._tasks.start_soon(self._guard, self._sync, sync, self._syncing)

    async def _sync(self, sync: Callable[[], None], done: anyio.Event) -> None:
        try:
            with anyio.CancelScope(shield=True):  # it holds a descriptor, which it closes
                await self._run_blocking(sync)
        finally:
            done.set()

    async def _finish(self, landing: Landing) -> None:
        self._observe(TransferState.VERIFYING, landing.done_bytes, landing.done_items)
        with anyio.CancelScope(shield=True):
            await self._run_blocking(landing.finish)
            received = Received(tuple(landing.landed_names), landing.failed)
            await self._settle(received)
            self._outcome = received
            await self._run_blocking(landing.discard)
        self._landing = None
        await self._send(self._machine.acknowledge(received.failed))

    async def _await_cancel(self) -> None:
        await self._cancelled.wait()
        if self._outcome is None:
            self._outcome = Paused() if self._pausing else Cancelled()
        self.scope.cancel()

    async def _say_last(self) -> None:
        """Tell the sender how it ended, and wait until it has closed so that this is not lost."""
        record: bytes | None = None
        if isinstance(self._outcome, Cancelled | Paused):
            record = self._last_words()
        elif self._outcome is None and isinstance(self._error, NetworkingError):
            if is_transient(self._error):
                return
            record = m.encode_control(_failure(self._error))
        with anyio.move_on_after(LAST_WORDS_TIMEOUT_S):
            try:
                if record is not None:
                    await self._stream.send_record(record)
                await self._stream.send_eof()
                while True:
                    await self._stream.receive_record()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    async def _let_go(self) -> None:
        landing, self._landing = self._landing, None
        if landing is None:
            return
        unwanted = isinstance(self._error, ProtocolError) or isinstance(self._outcome, Cancelled | Received)
        self.kept = not unwanted and landing.done_bytes > 0
        try:
            await self._run_blocking(landing.close if self.kept else landing.discard)
        except StorageError as error:
            logger.warning("%s", error)


def _make_buffer() -> memoryview:
    """A buffer for a record, in which the contents of a file begin at a page: the disk takes them from there."""
    start = PAGE_BYTES - _BEFORE_CONTENTS_BYTES
    return memoryview(page_memory(PAGE_BYTES + m.MAX_RECORD_BYTES))[start : start + m.MAX_RECORD_BYTES]


def _failure(error: NetworkingError) -> m.TransferFailure:
    if isinstance(error, DiskFullError):
        return m.TransferFailure(code=m.Refusal.NO_SPACE, reason="The receiver's disk is full.")
    if isinstance(error, StorageError):
        return m.TransferFailure(code=m.Refusal.STORAGE, reason="The receiver could not write to its disk.")
    if isinstance(error, MismatchError):
        return m.TransferFailure(code=m.Refusal.MISMATCH, reason=error.detail[: m.MAX_REASON_LENGTH])
    return m.TransferFailure(code=m.Refusal.PROTOCOL, reason=error.detail[: m.MAX_REASON_LENGTH])
