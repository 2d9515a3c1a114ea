"""The file transfer service: what programs, the local API and other plugins use."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import (
    ConflictError,
    NetworkingError,
    NotFoundError,
)
from sdnet_core.events import ConnectionEstablished, DeviceRemoved

from .config import FileTransferConfig
from .content import ContentService
from .fetching import Fetching, go_on
from .incoming import Incoming
from .jobs import Job, JobRecord, JobStore
from .limits import LimitSettings, LimitStore, Rates
from .outgoing import Outgoing, describe
from .serving import PURPOSE, Serving
from .shares import ShareBook
from .sharing import SharedFolders, check_absolute, new_id
from .single import SingleTransfers
from .slots import Slots
from .source import Manifest, scan
from .transfer import Transfer, TransferState
from .trying import Trying

__all__ = ["FileTransferService"]

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 30.0
_CANCEL_TIMEOUT_S = 12.0


class FileTransferService(SingleTransfers):
    """Sends files and folders to paired devices, receives theirs, and shares folders with them.

    Get it with ``ctx.get_service(FileTransferService)``.
    """

    def __init__(self, ctx: PluginContext) -> None:
        config: FileTransferConfig = ctx.config if ctx.config is not None else FileTransferConfig()
        self._limits = LimitStore(ctx)
        limiter = self._limits.limiter
        super().__init__(ctx, config.min_free_bytes, limiter)
        self._compress = config.compress
        self.contents = ContentService(ctx, limiter)
        """Contents of files for other plugins; they get it with ``ctx.get_service(ContentService)``."""
        self._store = JobStore(ctx, entries=config.history_entries, days=config.history_days)
        self._jobs: dict[uuid.UUID, Job] = {}
        self._running: dict[uuid.UUID, Trying] = {}
        self._incoming = Incoming(ctx, config, self._store, self._jobs, limiter)
        self._shares = ShareBook(ctx.storage, ctx.run_blocking)
        self.shared = SharedFolders(ctx, self._shares, self._add)
        """Folders that this device shares with others, and what they share with it."""
        self._serving = Serving(ctx, self._shares, self._store, self._jobs, limiter, self._wake, config.compress)
        self._woken: dict[uuid.UUID, anyio.Event] = {}
        self._tasks: TaskGroup | None = None
        self._slots = Slots(config.max_active)

    # Running

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up what was not over when the node stopped; run until cancelled.

        :raises StorageError: the store cannot be read.
        """
        await self._shares.load()
        await self._limits.load()
        records = await self._store.load()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for record in records:
                    self._jobs[record.transfer.id] = Job(self._ctx, record)
                await self._incoming.clear()
                for job in list(self._jobs.values()):
                    self._take_up(job)
                async with self._ctx.subscribe((ConnectionEstablished.kind, DeviceRemoved.kind)) as events:
                    tasks.start_soon(self._sweep)
                    task_status.started()
                    async for event in events:
                        if isinstance(event, ConnectionEstablished):
                            self._wake(event.device_id)
                        elif isinstance(event, DeviceRemoved):
                            tasks.start_soon(self._device_removed, event.device_id)
        finally:
            self._tasks = None

    def _take_up(self, job: Job) -> None:
        record = job.record
        if record.transfer.state.terminal:
            return
        if record.paused:
            job.enter(TransferState.PAUSED)
        elif record.transfer.direction == "send" or record.wanted:
            job.enter(TransferState.QUEUED)
            self._start(job)
        else:
            job.enter(TransferState.WAITING, reason=f"{record.transfer.device_name} is away.")

    def _wake_event(self, device_id: uuid.UUID) -> anyio.Event:
        return self._woken.setdefault(device_id, anyio.Event())

    def _wake(self, device_id: uuid.UUID) -> None:
        self._woken.pop(device_id, anyio.Event()).set()

    def _start(self, job: Job, manifest: Manifest | None = None) -> None:
        if self._tasks is None:
            raise ConflictError("The file transfer service is not running.")
        job.scope = anyio.CancelScope()
        trying: Trying
        if job.record.wanted:
            trying = Fetching(self._ctx, job, slots=self._slots, woken=self._wake_event, incoming=self._incoming)
        else:
            trying = Outgoing(
                self._ctx,
                job,
                slots=self._slots,
                woken=self._wake_event,
                limiter=self._limits.limiter,
                manifest=manifest,
                compress=self._compress,
            )
        self._running[job.id] = trying
        self._tasks.start_soon(self._try, job, trying)

    async def _try(self, job: Job, trying: Trying) -> None:
        assert job.scope is not None
        try:
            with job.scope:
                await trying.run()
            if job.final is None and not job.record.paused:
                job.end(TransferState.CANCELLED, reason=job.cancel_reason or "")
        except Exception:
            logger.exception("A transfer failed in an unexpected way.")
            job.end(TransferState.FAILED, reason="It failed in an unexpected way; the log says more.")
        finally:
            del self._running[job.id]
        if job.final is None:
            job.enter(TransferState.PAUSED)
        elif job.id in self._jobs:
            await self._store.conclude(job)
            if job.transfer.direction == "send" or not job.transfer.resumable:
                self._jobs.pop(job.id, None)
        trying.ended.set()

    async def _sweep(self) -> None:
        while True:
            for job in list(self._jobs.values()):
                try:
                    await self._incoming.expire(job)
                    await self._serving.expire(job)
                except NetworkingError as error:
                    logger.warning("What is left of a transfer could not be removed: %s", error)
            try:
                await self._store.tidy()
            except NetworkingError as error:
                logger.warning("The history of transfers could not be stored: %s", error)
            await anyio.sleep(_SWEEP_EVERY_S)

    async def _device_removed(self, device_id: uuid.UUID) -> None:
        try:
            await self._shares.forget(device_id)
        except NetworkingError as error:
            logger.warning("%s", error)
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
        priority: int = 0,
    ) -> Transfer:
        """Start to send files and folders; goes on in the background, over reconnects and restarts, until it is over.

        :param paths: absolute.
        :param purpose: ``send``, or what the other side granted it for.
        :param grant_id: the transfer id that the other side has granted; a new one is made without it.
        :param priority: among the transfers that wait for their turn, the higher, the sooner.
        :returns: the transfer; its ``id`` is ``grant_id`` if that was given.
        :raises DeviceNotFoundError: the device is not paired.
        :raises InvalidRequestError: a path is missing or not absolute, or there is nothing to send.
        :raises ConflictError: there is a transfer with that id already.
        """
        device = self._ctx.get_device(device_id)
        texts = tuple(os.fspath(path) for path in paths)
        for text in texts:
            check_absolute(text)
        manifest = await self._ctx.run_blocking(scan, [Path(text) for text in texts])
        transfer = Transfer(
            id=grant_id if grant_id is not None else new_id(self._ctx),
            direction="send",
            device_id=device_id,
            device_name=device.name,
            purpose=purpose,
            state=TransferState.QUEUED,
            paths=texts,
            created_at=self._ctx.clock.now(),
        )
        job = Job(self._ctx, JobRecord(transfer=transfer, priority=priority))
        describe(job, manifest)
        await self._add(job, manifest)
        return job.transfer

    async def _add(self, job: Job, manifest: Manifest | None = None) -> None:
        if job.id in self._jobs:
            raise ConflictError("There is a transfer with that id already.")
        self._jobs[job.id] = job
        try:
            await self._store.save(job.record)
            self._start(job, manifest)
        except BaseException:
            self._jobs.pop(job.id, None)
            raise

    # Limits

    def limits(self) -> LimitSettings:
        """How fast bytes may go out and come in."""
        return self._limits.limiter.settings

    async def limit(self, rates: Rates, device_id: uuid.UUID | None = None) -> LimitSettings:
        """Change how fast bytes may go, at once, also for what is under way.

        :param device_id: for this device alone, besides what holds for all together; None for all together.
        :raises InvalidRequestError: a limit is too low to be of use.
        :raises StorageError: it could not be stored.
        """
        if device_id is not None:
            self._ctx.get_device(device_id)
        return await self._limits.change(rates, device_id)

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

    async def serve_shared(self, stream: PeerStream) -> None:
        """Serve one inbound stream of the protocol for shared folders."""
        await self._serving.serve(stream)

    async def receive(self, stream: PeerStream) -> None:
        """Serve one inbound stream of the file transfer protocol."""
        await self._incoming.serve(stream)

    def answer(self, transfer_id: uuid.UUID, accept: bool) -> Transfer:
        """Say whether a transfer may come in about which a person is asked.

        :raises NotFoundError: there is none with that id.
        :raises ConflictError: it does not wait for an answer.
        """
        transfer = self.get(transfer_id)
        job = self._jobs.get(transfer_id)
        if job is None or transfer.state is not TransferState.ASKING:
            raise ConflictError("This transfer does not wait for an answer.")
        job.decide(accept)
        return job.transfer

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

    async def pause(self, transfer_id: uuid.UUID) -> Transfer:
        """Pause a transfer, from either side; it keeps what has arrived, also over restarts, until it is resumed.

        :returns: how it stands then.
        :raises NotFoundError: there is none with that id.
        :raises ConflictError: it is over.
        :raises StorageError: it could not be stored.
        """
        job = self._job(transfer_id)
        if job.record.paused:
            return job.transfer
        job.note(paused=True)
        running = self._running.get(job.id)
        talking = running.pause() if running else self._incoming.pause(job) or self._serving.pause(job)
        if running is not None:
            if not talking and job.scope is not None:
                job.scope.cancel()
            await self._await_end(running.ended, job)
        elif talking:
            await self._await_end(job.idle, job)
        if job.final is None:
            job.enter(TransferState.PAUSED)
            await self._store.save(job.record)
        return job.transfer

    async def resume(self, transfer_id: uuid.UUID) -> Transfer:
        """Let a paused transfer go on.

        :returns: how it stands then.
        :raises NotFoundError: there is none with that id.
        :raises ConflictError: it is over, or not paused.
        :raises StorageError: it could not be stored.
        """
        job = self._job(transfer_id)
        if not job.record.paused:
            raise ConflictError("This transfer is not paused here.")
        job.note(paused=False)
        served = job.transfer.direction == "send" and job.transfer.purpose == PURPOSE
        if (job.transfer.direction == "send" and not served) or job.record.wanted:
            job.enter(TransferState.QUEUED)
            await self._store.save(job.record)
            self._start(job)
        else:
            job.enter(TransferState.WAITING, reason=f"Waits for {job.transfer.device_name} to go on.")
            if not served:
                await self._store.save(job.record)
            if self._tasks is not None:
                self._tasks.start_soon(self._tell_that_it_goes_on, job)
        return job.transfer

    async def _tell_that_it_goes_on(self, job: Job) -> None:
        try:
            if self._ctx.get_device(job.transfer.device_id).connected:
                await go_on(self._ctx, job.transfer.device_id, job.id)
        except NetworkingError as error:
            logger.info("%s could not be told that a transfer goes on: %s", job.transfer.device_name, error.detail)

    async def forget_history(self) -> int:
        """Forget all transfers that are over.

        :returns: how many there were.
        :raises StorageError: it could not be stored.
        """
        return await self._store.forget_history()

    def _job(self, transfer_id: uuid.UUID) -> Job:
        job = self._jobs.get(transfer_id)
        if job is None or job.transfer.state.terminal:
            self.get(transfer_id)
            raise ConflictError("This transfer is over already.")
        return job

    async def _stop(self, job: Job, state: TransferState, reason: str) -> None:
        job.cancel_reason = reason
        job.decide(False)
        running = self._running.get(job.id)
        if running is not None:
            job.note(paused=False)
            if not running.cancel(reason) and job.scope is not None:
                job.scope.cancel()
            await self._await_end(running.ended, job)
        else:
            if not self._incoming.cancel(job, reason):
                self._serving.cancel(job, reason)
            await self._await_end(job.idle, job)
        if job.id not in self._jobs:
            return
        if job.transfer.direction == "receive":
            await self._incoming.give_up(job, state, reason)
        elif job.final is None:  # it was paused, or the other side did not go on with it
            job.end(state, reason=reason)
            await self._store.conclude(job)
            self._jobs.pop(job.id, None)

    async def _await_end(self, event: anyio.Event, job: Job) -> None:
        """Wait until a conversation has ended in order; break it off if that takes too long."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S):
            await event.wait()
        if not event.is_set() and job.scope is not None:
            job.scope.cancel()
            await event.wait()
