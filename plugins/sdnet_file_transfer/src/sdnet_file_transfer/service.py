"""The file transfer service: what programs, the local API and other plugins use."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import (
    ConflictError,
    InvalidRequestError,
    NetworkingError,
    NotFoundError,
)
from sdnet_core.events import ConnectionEstablished, DeviceRemoved

from .config import FileTransferConfig
from .content import ContentService
from .conversation import RecordStream
from .incoming import Incoming
from .jobs import Job, JobRecord, JobStore
from .landing import remove_staging, staging_name
from .limits import Limiter
from .outgoing import Outgoing, describe
from .single import SingleProgress, SingleReceive, SingleSend
from .source import Manifest, scan
from .transfer import Transfer, TransferState

__all__ = ["FileTransferService"]

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 30.0
_CANCEL_TIMEOUT_S = 12.0


class FileTransferService:
    """Sends files and folders to paired devices and receives theirs.

    Get it with ``ctx.get_service(FileTransferService)``.
    """

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self._config: FileTransferConfig = ctx.config if ctx.config is not None else FileTransferConfig()
        self._limiter = Limiter(ctx.clock.monotonic)
        self.contents = ContentService(ctx, self._limiter)
        """Contents of files for other plugins; they get it with ``ctx.get_service(ContentService)``."""
        self._store = JobStore(ctx.storage)
        self._jobs: dict[uuid.UUID, Job] = {}
        self._outgoing: dict[uuid.UUID, Outgoing] = {}
        self._incoming = Incoming(ctx, self._config, self._store, self._jobs)
        self._woken: dict[uuid.UUID, anyio.Event] = {}
        self._tasks: TaskGroup | None = None
        self._slots: anyio.Semaphore | None = None

    # Running

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up what was not over when the node stopped; run until cancelled.

        :raises StorageError: the store cannot be read.
        """
        self._slots = anyio.Semaphore(self._config.max_active)
        records = await self._store.load()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for record in records:
                    self._take_up(record)
                async with self._ctx.subscribe((ConnectionEstablished.kind, DeviceRemoved.kind)) as events:
                    tasks.start_soon(self._sweep)
                    task_status.started()
                    async for event in events:
                        if isinstance(event, ConnectionEstablished):
                            self._woken.pop(event.device_id, anyio.Event()).set()
                        elif isinstance(event, DeviceRemoved):
                            tasks.start_soon(self._device_removed, event.device_id)
        finally:
            self._tasks = None

    def _take_up(self, record: JobRecord) -> None:
        job = Job(self._ctx, record)
        self._jobs[job.id] = job
        if record.transfer.direction == "send":
            job.enter(TransferState.QUEUED)
            self._start(job)
        elif not record.transfer.state.terminal:
            job.enter(TransferState.WAITING, reason=f"{record.transfer.device_name} is away.")

    def _wake_event(self, device_id: uuid.UUID) -> anyio.Event:
        return self._woken.setdefault(device_id, anyio.Event())

    def _start(self, job: Job, manifest: Manifest | None = None) -> None:
        if self._tasks is None or self._slots is None:
            raise ConflictError("The file transfer service is not running.")
        job.idle = anyio.Event()
        job.scope = anyio.CancelScope()
        outgoing = self._outgoing[job.id] = Outgoing(
            self._ctx, job, slots=self._slots, woken=self._wake_event, manifest=manifest
        )
        self._tasks.start_soon(self._run_outgoing, job, outgoing)

    async def _run_outgoing(self, job: Job, outgoing: Outgoing) -> None:
        assert job.scope is not None
        try:
            with job.scope:
                await outgoing.run()
            if job.final is None:
                job.end(TransferState.CANCELLED, reason=job.cancel_reason or "")
        except Exception:
            logger.exception("A transfer failed in an unexpected way.")
            job.end(TransferState.FAILED, reason="It failed in an unexpected way; the log says more.")
        finally:
            del self._outgoing[job.id]
        await self._store.conclude(job)
        self._jobs.pop(job.id, None)
        job.idle.set()

    async def _sweep(self) -> None:
        while True:
            for job in list(self._jobs.values()):
                try:
                    await self._incoming.expire(job)
                except NetworkingError as error:
                    logger.warning("What is left of a transfer could not be removed: %s", error)
            await anyio.sleep(_SWEEP_EVERY_S)

    async def _device_removed(self, device_id: uuid.UUID) -> None:
        for job in list(self._jobs.values()):
            if job.transfer.device_id == device_id:
                try:
                    await self._stop(job, TransferState.FAILED, "The device is no longer paired.")
                except NetworkingError as error:
                    logger.warning("%s", error)

    # What is there

    def transfers(self) -> list[Transfer]:
        """All transfers, the latest first: those that are not over, and the last ones that are."""
        live = {job.id: job.transfer for job in self._jobs.values()}
        past = [transfer for transfer in self._store.history if transfer.id not in live]
        return sorted((*live.values(), *past), key=lambda transfer: transfer.created_at, reverse=True)

    def get(self, transfer_id: uuid.UUID) -> Transfer:
        """One transfer.

        :raises NotFoundError: there is none with that id.
        """
        job = self._jobs.get(transfer_id)
        if job is not None:
            return job.transfer
        for transfer in self._store.history:
            if transfer.id == transfer_id:
                return transfer
        raise NotFoundError("There is no transfer with that id.")

    def find(self, reference: str) -> Transfer:
        """One transfer by its id or a unique beginning of it.

        :raises NotFoundError: none fits, or several do.
        """
        wanted = reference.strip().lower()
        found = [transfer for transfer in self.transfers() if wanted and str(transfer.id).startswith(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"{len(found)} transfers have an id that begins with {reference}; give more of it.")
        raise NotFoundError(f"There is no transfer with the id {reference}.")

    def watch(self, transfer_id: uuid.UUID) -> AsyncIterator[Transfer]:
        """Give a transfer as it is now and after each change, until it is over.

        Progress comes at most four times a second. The iterator needs no closing.

        :raises NotFoundError: there is none with that id.
        """
        job = self._jobs.get(transfer_id)
        if job is None:
            job = Job(self._ctx, JobRecord(transfer=self.get(transfer_id)))
        return job.watch()

    # Sending

    async def send(
        self,
        device_id: uuid.UUID,
        paths: Sequence[Path | str],
        *,
        purpose: str = "send",
        grant_id: uuid.UUID | None = None,
    ) -> Transfer:
        """Start to send files and folders; goes on in the background, over reconnects and restarts, until it is over.

        :param paths: absolute.
        :param purpose: ``send``, or what the other side granted it for.
        :param grant_id: the transfer id that the other side has granted; a new one is made without it.
        :returns: the transfer; its ``id`` is ``grant_id`` if that was given.
        :raises DeviceNotFoundError: the device is not paired.
        :raises InvalidRequestError: a path is missing or not absolute, or there is nothing to send.
        :raises ConflictError: there is a transfer with that id already.
        """
        device = self._ctx.get_device(device_id)
        texts = tuple(os.fspath(path) for path in paths)
        for text in texts:
            if not os.path.isabs(text):
                raise InvalidRequestError(f"{text} is not an absolute path.")
            if not text.isprintable() and not _encodable(text):
                raise InvalidRequestError("A path contains bytes that are not text.")
        manifest = await self._ctx.run_blocking(scan, [Path(text) for text in texts])
        transfer_id = grant_id if grant_id is not None else uuid.UUID(bytes=self._ctx.randomness.bytes(16), version=4)
        if transfer_id in self._jobs:
            raise ConflictError("There is a transfer with that id already.")
        transfer = Transfer(
            id=transfer_id,
            direction="send",
            device_id=device_id,
            device_name=device.name,
            purpose=purpose,
            state=TransferState.QUEUED,
            paths=texts,
            created_at=self._ctx.clock.now(),
        )
        job = Job(self._ctx, JobRecord(transfer=transfer))
        describe(job, manifest)
        self._jobs[transfer_id] = job
        try:
            await self._store.save(job.record)
            self._start(job, manifest)
        except BaseException:
            self._jobs.pop(transfer_id, None)
            raise
        return job.transfer

    # Receiving

    async def grant(
        self,
        device_id: uuid.UUID,
        transfer_id: uuid.UUID,
        destination: Path,
        max_bytes: int | None = None,
        expires: float | None = None,
        *,
        max_items: int | None = None,
        purpose: str = "spacedrop",
    ) -> Transfer:
        """Let a later transfer with this id in, without asking anything else. It shows as waiting until it comes.

        :param destination: folder that its files go to; created if it is missing.
        :param max_bytes: the most it may have in all; None for no limit.
        :param expires: it must have begun by then, seconds since the epoch; None for an hour from now. Once it has
            begun it may go on.
        :param max_items: the most files and folders it may have; None for no limit.
        :param purpose: what the sender must give, too.
        :raises DeviceNotFoundError: the device is not paired.
        :raises ConflictError: there is a transfer with that id already.
        :raises StorageError: it could not be stored.
        """
        device = self._ctx.get_device(device_id)
        return await self._incoming.grant(
            device, transfer_id, destination, max_bytes, expires, purpose, max_items=max_items
        )

    async def receive(self, stream: PeerStream) -> None:
        """Serve one inbound stream of the file transfer protocol."""
        await self._incoming.serve(stream)

    # One transfer over a stream that another plugin has

    def send_single(
        self,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        paths: Sequence[Path],
        *,
        purpose: str,
        observe: Callable[[SingleProgress], None],
    ) -> SingleSend:
        """Make a transfer over a stream that the caller has agreed upon with a peer, paired or not.

        It runs when its ``run`` is called, once: there is no queue, no second attempt, and nothing is kept of it.

        :param stream: sealed; the other end calls `receive_single` at the same point.
        :param observe: told of each new state, and of progress at most four times a second.
        """
        return SingleSend(self._ctx, stream, transfer_id, paths, purpose=purpose, observe=observe)

    def receive_single(
        self,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        destination: Path,
        *,
        purpose: str,
        max_bytes: int,
        max_items: int,
        observe: Callable[[SingleProgress], None],
    ) -> SingleReceive:
        """Make the receiving end of `send_single`.

        :param transfer_id: what the sender must give; ``purpose`` too.
        :param destination: folder that the files go to; created if it is missing.
        :param max_bytes: the most it may have in all.
        :param max_items: the most files and folders it may have.
        """
        return SingleReceive(
            self._ctx,
            stream,
            transfer_id,
            destination,
            purpose=purpose,
            max_bytes=max_bytes,
            max_items=max_items,
            min_free_bytes=self._config.min_free_bytes,
            observe=observe,
        )

    async def clear_single(self, transfer_id: uuid.UUID, destination: Path) -> None:
        """Remove what a single transfer that a crash cut short has left in a folder; harmless when there is nothing.

        :raises StorageError: it cannot be removed.
        """
        await self._ctx.run_blocking(remove_staging, destination, staging_name(transfer_id.hex))

    # Ending

    async def cancel(self, transfer_id: uuid.UUID, *, reason: str = "") -> Transfer:
        """Cancel a transfer, from either side, and tell the other side if it is there.

        Cancelling an incoming one removes what has arrived and has no final name yet; also that of one that is over
        but could be resumed.

        :returns: how it stands then.
        :raises NotFoundError: there is none with that id.
        :raises ConflictError: it is over.
        """
        job = self._jobs.get(transfer_id)
        if job is None:
            self.get(transfer_id)
            raise ConflictError("This transfer is over already.")
        await self._stop(job, TransferState.CANCELLED, reason or "Cancelled here.")
        return job.transfer

    async def _stop(self, job: Job, state: TransferState, reason: str) -> None:
        job.cancel_reason = reason
        outgoing = self._outgoing.get(job.id)
        if outgoing is not None:
            if not outgoing.cancel(reason) and job.scope is not None:
                job.scope.cancel()
        else:
            self._incoming.cancel(job, reason)
        with anyio.move_on_after(_CANCEL_TIMEOUT_S):
            await job.idle.wait()
        if not job.idle.is_set() and job.scope is not None:
            job.scope.cancel()
            await job.idle.wait()
        if job.id in self._jobs and job.transfer.direction == "receive":
            await self._incoming.give_up(job, state, reason)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
