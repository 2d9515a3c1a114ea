"""Answers devices that ask for what is shared with them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import anyio

from sdnet_core import PeerStream, PluginContext, RemoteDevice
from sdnet_core.errors import InvalidRequestError, NetworkingError, NotFoundError, ProtocolError, RefusedError

from . import fetch_messages as f
from . import messages as m
from .conversation import is_transient
from .jobs import Job, JobRecord, JobStore
from .limits import Limiter
from .machine import Acknowledged, PeerCancelled, PeerFailed
from .names import check_path, printable
from .outgoing import describe, sent
from .sending import Cancelled, Paused, Sending
from .shares import Entry, ShareBook, list_folder
from .source import scan_beneath
from .transfer import Transfer, TransferState

__all__ = ["PURPOSE", "Serving"]

PURPOSE = "get"
_TAKE_OVER_TIMEOUT_S = 10.0
_MAX_ACTIVE_PER_DEVICE = 16
_FORGET_S = 3600.0
"""So long after a lost connection a transfer that was asked for is remembered here."""


class Serving:
    """The giving half of shared folders.

    :param jobs: shared with the service.
    :param wake: called with a device that says that it goes on.
    """

    def __init__(
        self,
        ctx: PluginContext,
        shares: ShareBook,
        store: JobStore,
        jobs: dict[uuid.UUID, Job],
        limiter: Limiter,
        wake: Callable[[uuid.UUID], None],
        compress: bool,
    ) -> None:
        self._compress = compress
        self._ctx = ctx
        self._shares = shares
        self._store = store
        self._jobs = jobs
        self._limiter = limiter
        self._wake = wake
        self._sending: dict[uuid.UUID, Sending] = {}

    async def serve(self, stream: PeerStream) -> None:
        """Serve one inbound stream.

        :raises ProtocolError: the other side does not keep to the protocol.
        """
        device = stream.require_device()
        approved = False
        while True:
            try:
                request = f.decode_fetch(await stream.receive_record())
            except anyio.EndOfStream:
                return
            match request:
                case f.FetchList():
                    answer: f.FetchListing | f.FetchFailure
                    try:
                        if not approved:
                            await self._ctx.approve(device.device_id, "list what is shared with it")
                            approved = True
                        answer = await self._list(device, request)
                    except (NotFoundError, RefusedError) as error:
                        code = "not-found" if isinstance(error, NotFoundError) else "refused"
                        answer = f.FetchFailure(code=code, reason=error.detail[: m.MAX_REASON_LENGTH])
                    await stream.send_record(f.encode_fetch(answer))
                case f.FetchItems():
                    await self._give(stream, device, request)
                    return
                case f.FetchGoOn():
                    job = self._jobs.get(uuid.UUID(bytes=request.transfer_id))
                    if job is not None and job.transfer.device_id == device.device_id:
                        self._wake(device.device_id)
                case _:
                    raise ProtocolError("A request for files was expected.")

    async def _list(self, device: RemoteDevice, request: f.FetchList) -> f.FetchListing:
        if not request.path:
            shares = self._shares.shared_with(device.device_id)
            entries = [Entry(share.name, True, 0, 0, False) for share in shares]
        else:
            path = check_path(request.path)
            share = self._shares.find(device.device_id, path[0])
            entries = await self._ctx.run_blocking(list_folder, share.path, path[1:])
        behind = [entry for entry in entries if entry.name > request.after]
        return f.FetchListing(entries=tuple(behind[: f.MAX_ENTRIES]), more=len(behind) > f.MAX_ENTRIES)

    async def _give(self, stream: PeerStream, device: RemoteDevice, request: f.FetchItems) -> None:
        transfer_id = uuid.UUID(bytes=request.transfer_id)
        try:
            path = check_path(request.path)
            share = self._shares.find(device.device_id, path[0])
            await self._ctx.approve(device.device_id, f"get {printable('/'.join(path))}")
            manifest = await self._ctx.run_blocking(scan_beneath, share.path, path[1:], share.name)
            job = await self._job(device, transfer_id)
        except _NotNowError as error:
            await _refuse(stream, error.refusal, error.detail)
            return
        except (NotFoundError, InvalidRequestError) as error:
            await _refuse(stream, m.Refusal.NOT_FOUND, error.detail)
            return
        except RefusedError as error:
            await _refuse(stream, m.Refusal.POLICY, error.detail)
            return
        describe(job, manifest)
        job.idle = anyio.Event()
        sending = self._sending[job.id] = Sending(
            stream,
            job.id,
            PURPOSE,
            manifest,
            run_blocking=self._ctx.run_blocking,
            observe=job.progress,
            throttle=self._limiter.up(device.device_id),
            compress=self._compress,
        )
        try:
            outcome = await sending.run()
            name = device.name
            match outcome:
                case Acknowledged():
                    sent(job, outcome, manifest, sending.failed)
                case PeerCancelled() | Cancelled():
                    reason = job.cancel_reason or f"{name} cancelled it."
                    job.end(TransferState.CANCELLED, reason=reason)
                case PeerFailed(code=m.Refusal.PAUSED):
                    job.enter(TransferState.WAITING, reason=f"{name} has paused it.")
                case Paused():
                    pass
                case _:
                    job.end(TransferState.FAILED, reason=f"{name}: {outcome.reason}")
        except NetworkingError as error:
            if not is_transient(error):
                job.end(TransferState.FAILED, reason=error.detail)
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(job, sending)

    async def _leave(self, job: Job, sending: Sending) -> None:
        if self._sending.get(job.id) is sending:
            del self._sending[job.id]
        if job.final is not None:
            await self._store.conclude(job)
            self._jobs.pop(job.id, None)
        elif not job.record.paused and job.transfer.state is not TransferState.WAITING:
            job.enter(TransferState.WAITING, reason=f"{job.transfer.device_name} is away.")
        job.note(updated_at=self._ctx.clock.now())
        job.idle.set()

    async def _job(self, device: RemoteDevice, transfer_id: uuid.UUID) -> Job:
        """The job of a transfer that a device asks for: a new one, or the one that it goes on with."""
        job = self._jobs.get(transfer_id)
        if job is None:
            if any(past.id == transfer_id for past in self._store.history):
                raise RefusedError("That transfer is over.")
            asked = sum(
                job.transfer.purpose == PURPOSE and job.transfer.device_id == device.device_id
                for job in self._jobs.values()
            )
            if asked >= _MAX_ACTIVE_PER_DEVICE:
                raise _NotNowError(m.Refusal.BUSY, "Too many transfers at once.")
            transfer = Transfer(
                id=transfer_id,
                direction="send",
                device_id=device.device_id,
                device_name=device.name,
                purpose=PURPOSE,
                state=TransferState.OFFERING,
                created_at=self._ctx.clock.now(),
            )
            job = self._jobs[transfer_id] = Job(self._ctx, JobRecord(transfer=transfer))
            return job
        found = job.transfer
        if (found.direction, found.purpose, found.device_id) != ("send", PURPOSE, device.device_id):
            raise RefusedError("That transfer id is in use.")
        if job.record.paused:
            raise _NotNowError(m.Refusal.PAUSED, "It is paused.")
        running = self._sending.get(transfer_id)
        if running is not None:
            running.abandon()  # the other side has noticed a lost connection before we did
            with anyio.move_on_after(_TAKE_OVER_TIMEOUT_S):
                await job.idle.wait()
            if transfer_id in self._sending or transfer_id not in self._jobs:
                raise _NotNowError(m.Refusal.BUSY, "An earlier attempt is still being ended.")
        return job

    async def expire(self, job: Job) -> None:
        """End a transfer that the other side did not go on with for long."""
        transfer = job.transfer
        if (transfer.direction, transfer.purpose) != ("send", PURPOSE) or job.id in self._sending:
            return
        if job.record.updated_at and self._ctx.clock.now() >= job.record.updated_at + _FORGET_S:
            job.end(TransferState.FAILED, reason=f"{transfer.device_name} did not go on with it.")
            await self._store.conclude(job)
            self._jobs.pop(job.id, None)

    def cancel(self, job: Job, reason: str) -> bool:
        """Cancel a running conversation in order.

        :returns: whether there is one.
        """
        sending = self._sending.get(job.id)
        if sending is not None:
            sending.cancel(reason)
        return sending is not None

    def pause(self, job: Job) -> bool:
        """End a running conversation without ending the transfer.

        :returns: whether there is one.
        """
        sending = self._sending.get(job.id)
        if sending is not None:
            sending.pause()
        return sending is not None


class _NotNowError(NetworkingError):
    """It cannot be given now.

    :param refusal: one of `messages.Refusal`.
    """

    def __init__(self, refusal: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal


async def _refuse(stream: PeerStream, code: str, reason: str) -> None:
    await stream.send_record(m.encode_control(m.TransferFailure(code=code, reason=reason[: m.MAX_REASON_LENGTH])))
    await stream.send_eof()
    with anyio.move_on_after(5):
        await stream.receive_record()
