"""One link to a device: a stream, the machine that talks on it, and the replicas it talks about."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import anyio

from sdnet_core import PeerStream, RemoteDevice
from sdnet_core.errors import NetworkingError, ProtocolError, StorageError
from sdnet_core.wire import Message, MessageStream, decode, encode, encode_frame

from .apply import Refusal
from .limits import MAX_MESSAGE_BYTES, MAX_PUSH_BATCHES, MAX_PUSH_BYTES
from .machine import (
    ApplyBatches,
    Command,
    Deliver,
    Diverged,
    Fork,
    LinkMachine,
    ReadLog,
    ReadSnapshot,
    Send,
    TakeSnapshot,
)
from .messages import AnyLinkMessage, Goodbye, Hello, Signal, SnapshotBegin, SnapshotEnd, SnapshotPage
from .operations import Role, SignedBatch
from .replica import Commit, Replica
from .snapshot import SnapshotReader, SnapshotWriter
from .standing import View
from .tasks import Tasks
from .vectors import covers

__all__ = ["MAX_FRAME_BYTES", "Link", "LinkHost"]

logger = logging.getLogger(__name__)

C = TypeVar("C")

MAX_JOINED_BYTES = 256 << 10
MAX_SIGNALS = 256
"""Signals that wait to be sent; further ones are left out."""
INBOX_MESSAGES = 4
SNAPSHOT_BATCHES = 64
"""A device that has nothing and lacks more batches than this gets a snapshot."""
MAX_FRAME_BYTES = MAX_MESSAGE_BYTES + (64 << 10)


class LinkHost(Protocol):
    """What a link needs to know and to tell."""

    relay_delay_s: float

    def replica(self, library: bytes) -> Replica:
        """The replica of a library that is shared on the link."""

    def snapshot_source(self, library: bytes) -> bytes | None:
        """The device whose word counts for a library of which we have nothing yet."""

    def refused(self, library: bytes, device: RemoteDevice, refusals: Sequence[Refusal]) -> None:
        """The device sent batches that do not count."""

    def forked(self, library: bytes, device: RemoteDevice, author: bytes, sequence: int) -> None:
        """The device has another history of an author than we have."""

    def delivered(self, device: RemoteDevice, message: Signal | Goodbye) -> None:
        """A signal came, or the device ended the talk about a library."""

    def shareable(self, library: bytes, device: RemoteDevice) -> View | None:
        """How a library stands that the device may be told about; None if it may not."""

    def completed(self, library: bytes) -> None:
        """A snapshot was taken in."""

    def moved(self, library: bytes) -> None:
        """What the other device has changed."""

    def diverged(self, library: bytes, device: RemoteDevice) -> None:
        """The device has the same batches and yet other entries."""

    def snapshot_turn(self, library: bytes) -> anyio.Semaphore:
        """Held by the link that takes in a snapshot."""


class Link:
    """Our side of a stream that began with `Open`."""

    def __init__(
        self, host: LinkHost, stream: PeerStream, messages: MessageStream, device: RemoteDevice, our_device: bytes
    ) -> None:
        self._host = host
        self._stream = stream
        self._messages = messages
        self.device = device
        self.machine = LinkMachine(our_device)
        self._outbox: deque[tuple[bool, bytes]] = deque()
        self._filled = anyio.Event()
        self._commands: deque[Command] = deque()
        self._tasks = Tasks()
        self._readers: dict[bytes, SnapshotReader] = {}
        self._writers: dict[bytes, SnapshotWriter | None] = {}
        self._timers: set[bytes] = set()
        self._signals = 0
        self.opened_by_us = True
        self.sent_bytes = 0
        self.received_bytes = 0

    async def run(self) -> None:
        """Talk until the stream ends.

        :raises NetworkingError: the other side broke the protocol.
        """
        failure: NetworkingError | None = None
        inbox_in, inbox_out = anyio.create_memory_object_stream[AnyLinkMessage](INBOX_MESSAGES)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks.begin(tasks)

                async def read() -> None:
                    nonlocal failure
                    try:
                        with inbox_in:
                            while (data := await self._messages.receive_bytes_or_end()) is not None:
                                self.received_bytes += len(data)
                                await inbox_in.send(decode(data, AnyLinkMessage, max_bytes=MAX_FRAME_BYTES))
                    except NetworkingError as error:
                        failure = error
                    except anyio.BrokenResourceError:
                        pass
                    tasks.cancel_scope.cancel()

                async def process() -> None:
                    nonlocal failure
                    try:
                        with inbox_out:
                            async for message in inbox_out:
                                self._begin_if_new(message)
                                await self._process(self.machine.received(message))
                                self._host.moved(message.library)
                    except NetworkingError as error:
                        failure = error
                        tasks.cancel_scope.cancel()

                tasks.start_soon(self._write, tasks.cancel_scope)
                tasks.start_soon(read)
                tasks.start_soon(process)
                pending = list(self._commands)
                self._commands.clear()
                self._start(pending)
        finally:
            self._tasks.end()
            self.release()
            inbox_in.close()
            inbox_out.close()
            with anyio.CancelScope(shield=True):
                for library in list(self._readers):
                    with suppress(NetworkingError):
                        await self._close_reader(library)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the link."""
        self._tasks.cancel()

    def do(self, commands: Sequence[Command]) -> None:
        """Carry out what the machine wants, from outside of the conversation."""
        if self._tasks.begun:
            self._start(commands)
        else:
            self._commands.extend(commands)

    def committed(self, library: bytes, commit: Commit) -> None:
        """A library changed here."""
        self.do(self.machine.committed(library, commit.view))
        if self.machine.holds(library) and library not in self._timers:
            if self._tasks.start(self._relay_later, library):
                self._timers.add(library)

    def signal(self, message: Signal) -> None:
        """Send something to whoever listens at the other side; it is left out if too much waits already."""
        if self._signals < MAX_SIGNALS:
            self.do(self.machine.signal(message))

    async def _relay_later(self, library: bytes) -> None:
        await anyio.sleep(self._host.relay_delay_s)
        self._timers.discard(library)
        self._start(self.machine.relay(library))

    def _begin_if_new(self, message: AnyLinkMessage) -> None:
        """A device that begins to talk about a library that we, too, may talk about is answered."""
        if isinstance(message, Hello) and message.library not in self.machine.libraries:
            view = self._host.shareable(message.library, self.device)
            if view is not None:
                self._start(self.machine.share(message.library, view))

    # Commands

    def _start(self, commands: Sequence[Command]) -> None:
        """Carry out commands; those that take time in tasks of their own. A link that is over does nothing."""
        if not self._tasks.running:
            return
        for command in commands:
            match command:
                case Send():
                    self._put(command.message)
                case ReadLog():
                    self._tasks.start(self._guarded, self._read_log, command)
                case ReadSnapshot():
                    self._tasks.start(self._guarded, self._read_snapshot, command)
                case _:
                    raise AssertionError(f"{command} is only an answer to a message")

    async def _process(self, commands: Sequence[Command]) -> None:
        """Carry out commands that answer a message, in order."""
        for command in commands:
            match command:
                case ApplyBatches():
                    await self._apply(command)
                case TakeSnapshot():
                    await self._take_snapshot(command.message)
                case Fork():
                    self._host.forked(command.library, self.device, command.author, command.sequence)
                case Diverged():
                    self._host.diverged(command.library, self.device)
                case Deliver():
                    self._host.delivered(self.device, command.message)
                case _:
                    self._start([command])

    async def _guarded(self, function: Callable[[C], Awaitable[None]], command: C) -> None:
        """Run a command in a task; if it fails, the link ends, and nothing else does."""
        try:
            await function(command)
        except NetworkingError as error:
            logger.warning("the link to %s ends: %s", self.device.device_id, error)
            self.close()

    async def _apply(self, command: ApplyBatches) -> None:
        replica = self._host.replica(command.library)
        applied = await replica.apply(command.batches)
        if applied.refusals:
            self._host.refused(command.library, self.device, applied.refusals)
        self._start(self.machine.applied(command.library, applied))

    async def _read_log(self, command: ReadLog) -> None:
        replica = self._host.replica(command.library)
        store, view = replica.store, replica.view
        may_give = view.members.role(store.device) is Role.OWNER and not view.loading and not view.rebuild
        if not command.after and may_give and sum(view.vector.values()) > SNAPSHOT_BATCHES:
            self._start(self.machine.log_gone(command.library, may_give=True))
            return

        def read() -> tuple[list[tuple[bytes, int, SignedBatch]], int]:
            return store.read_log(command.after, command.cursor, max_bytes=MAX_PUSH_BYTES, max_batches=MAX_PUSH_BATCHES)

        try:
            batches, cursor = await replica.read(read)
        except StorageError as error:
            logger.info("the log of a library does not go back far enough for %s: %s", self.device.device_id, error)
            self._start(self.machine.log_gone(command.library, may_give=may_give))
            return
        full = len(batches) >= MAX_PUSH_BATCHES or sum(len(batch.body) for _, _, batch in batches) >= MAX_PUSH_BYTES
        self._start(self.machine.log_read(command.library, batches, cursor if full else None, command.after))
        self._host.moved(command.library)

    async def _read_snapshot(self, command: ReadSnapshot) -> None:
        library = command.library
        replica = self._host.replica(library)
        view = replica.view
        if view.members.role(replica.store.device) is not Role.OWNER or view.loading or view.rebuild:
            self._start(self.machine.log_gone(library, may_give=False))
            return
        message: SnapshotBegin | SnapshotPage | SnapshotEnd
        if command.first or library not in self._readers:
            await self._close_reader(library)
            reader = self._readers[library] = await replica.read(SnapshotReader, replica.store)
            message, size = await replica.read(reader.begin), 0
        else:
            page = await replica.read(self._readers[library].next_page)
            if page is None:
                await self._close_reader(library)
                message, size = SnapshotEnd(library=library), 0
            else:
                message, size = page, sum(map(len, page.states))
        self._start(self.machine.snapshot_read(library, message, size))

    async def _close_reader(self, library: bytes) -> None:
        reader = self._readers.pop(library, None)
        if reader is not None:
            await self._host.replica(library).read(reader.close)

    async def _take_snapshot(self, message: SnapshotBegin | SnapshotPage | SnapshotEnd) -> None:
        library = message.library
        replica = self._host.replica(library)
        if isinstance(message, SnapshotBegin):
            await self._begin_snapshot(replica, message)
        writer = self._writers.get(library)
        lock = self._host.snapshot_turn(library)
        if writer is not None:
            try:
                if isinstance(message, SnapshotPage):
                    page = message
                    await replica.work(lambda transaction: writer.add(transaction, page))
                elif isinstance(message, SnapshotEnd):
                    await replica.work(writer.finish)
            except BaseException:
                self._writers.pop(library, None)
                lock.release()
                raise
        if isinstance(message, SnapshotEnd) and self._writers.pop(library, None) is not None:
            lock.release()
            self._host.completed(library)
        self._start(self.machine.snapshot_taken(library, message))

    async def _begin_snapshot(self, replica: Replica, begin: SnapshotBegin) -> None:
        library, view = begin.library, replica.view
        sender = self.device.device_id.bytes
        fresh = not view.vector or (view.loading and not view.members.writes)
        trusted = sender == self._host.snapshot_source(library) if fresh else view.members.role(sender) is Role.OWNER
        if not trusted:
            raise ProtocolError(f"{self.device.name} sent a snapshot, which only an owner of the library may.")
        lock = self._host.snapshot_turn(library)
        if self._writers.pop(library, None) is None:
            await lock.acquire()
        view = replica.view
        theirs = {head.author: head.sequence for head in begin.heads}
        if not (view.loading or view.rebuild) and covers(view.vector, theirs):
            lock.release()  # another link was quicker
            self._writers[library] = None
            return
        writer = SnapshotWriter(begin, rebuild=view.rebuild)
        try:
            await replica.work(writer.start)
        except BaseException:
            lock.release()
            raise
        self._writers[library] = writer

    def release(self) -> None:
        """Let others take in the snapshots that this link did not finish."""
        for library, writer in self._writers.items():
            if writer is not None:
                self._host.snapshot_turn(library).release()
        self._writers.clear()

    # Sending

    def _put(self, message: Message) -> None:
        signal = isinstance(message, Signal)
        self._signals += signal
        self._outbox.append((signal, encode_frame(encode(message))))
        self._filled.set()

    async def _write(self, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await self._filled.wait()
                self._filled = anyio.Event()
                while self._outbox:
                    frames, size = [], 0
                    while self._outbox and size < MAX_JOINED_BYTES:
                        signal, frame = self._outbox.popleft()
                        self._signals -= signal
                        frames.append(frame)
                        size += len(frame)
                    self.sent_bytes += size
                    await self._stream.send(b"".join(frames))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()
        except NetworkingError as error:
            logger.debug("the link to %s broke: %s", self.device.device_id, error)
            scope.cancel()
