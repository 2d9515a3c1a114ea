"""The sending end of one transfer's stream."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from sdnet_core.errors import TransportError

from . import messages as m
from .compression import Packer
from .conversation import LAST_WORDS_TIMEOUT_S, Conversation, RecordStream
from .filling import Filling
from .limits import Throttle
from .machine import Accepted, Acknowledged, Heartbeat, PeerCancelled, PeerFailed, Rejected, SenderMachine
from .source import Left, Manifest, SourceReader
from .transfer import TransferState

__all__ = ["Cancelled", "Paused", "SendOutcome", "Sending"]

_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The transfer was cancelled here, and the other side was told."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The transfer was paused here, and the other side was told."""


SendOutcome: TypeAlias = Acknowledged | Rejected | PeerCancelled | PeerFailed | Cancelled | Paused


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
        self._compress = compress
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
        self._packer: Packer | None = None
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
            await anyio.lowlevel.checkpoint()  # it leaves while the next one is made
        # The receiver most often has nothing of it yet: what goes first is read while it decides.
        reader, filling = self._open_source({})
        filling.begin()
        with self._asking:
            await self._accepted.wait()
        if self._resume is None:
            return
        self._observe(TransferState.TRANSFERRING, 0, 0)
        if self._resume.resume:
            await filling.drop()
            reader.close()
            reader, filling = self._open_source(self._resume.resume)
        await self._pump(filling)
        if not self._stop:
            self._observe(TransferState.VERIFYING, reader.done_bytes, reader.done_items)
            await self._send(self._machine.complete(len(reader.failed)))

    def _open_source(self, resume: Mapping[int, m.ItemResume]) -> tuple[SourceReader, Filling]:
        throttle = self._throttle
        self._packer = Packer() if self._compress else None
        self._reader = SourceReader(self._manifest, resume, stop=lambda: self._stop)
        filling = Filling(
            self._reader,
            self._packer,
            run_blocking=self._run_blocking,
            room=lambda: m.MAX_RECORD_BYTES if throttle is None else throttle.record_bytes,
            spawn=self._spawn,
        )
        return self._reader, filling

    async def _pump(self, filling: Filling) -> None:
        """Send records while the next ones are read and hashed."""
        throttle, packer = self._throttle, self._packer
        while (full := await filling.next()) is not None:
            record = full.record
            if throttle is not None and throttle.limited and not self._stop:
                with self._waiting:
                    await throttle.wait(len(record))
                self._waiting = anyio.CancelScope()
            if self._stop:
                return
            began = anyio.current_time()
            await self._send(record)
            if packer is not None:
                packer.sent(len(record), anyio.current_time() - began)
            self._observe(TransferState.TRANSFERRING, full.filled.done_bytes, full.filled.done_items)
            filling.sent(full)

    def _spawn(self, function: Callable[..., Any], *args: Any) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._guard, function, *args)

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
