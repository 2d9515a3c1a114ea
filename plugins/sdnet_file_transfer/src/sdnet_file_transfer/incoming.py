"""Decides about offers, and keeps what is known of transfers to this device."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
from blake3 import blake3

from sdnet_core import Access, PeerStream, PluginContext, RemoteDevice, format_count
from sdnet_core.errors import ConflictError, NetworkingError, ProtocolError, StorageError

from .config import FileTransferConfig
from .conversation import is_transient
from .jobs import Job, JobRecord, JobStore
from .landing import Landing
from .limits import Limiter
from .machine import Offered, PeerCancelled, PeerFailed
from .messages import Refusal
from .receiving import Admission, AlreadyReceived, Received, ReceiveOutcome, Receiving, Refused
from .sending import Cancelled
from .staging import DiskFullError, remove_staging, staging_name
from .transfer import Transfer, TransferState

__all__ = ["Incoming"]

logger = logging.getLogger(__name__)

_DAY_S = 86_400.0
_GRANT_S = 3600.0
_TAKE_OVER_TIMEOUT_S = 10.0
_MAX_ACTIVE_PER_DEVICE = 16
_MAX_ASKING = 32
_ANSWER_S = 60.0
"""So long a person may think about an offer."""
DISK_FULL = "The disk is full; it goes on when there is room."


class Incoming:
    """The receiving half of the service.

    :param jobs: shared with the service.
    """

    def __init__(
        self,
        ctx: PluginContext,
        config: FileTransferConfig,
        store: JobStore,
        jobs: dict[uuid.UUID, Job],
        limiter: Limiter,
    ) -> None:
        self._limiter = limiter
        self._ctx = ctx
        self._config = config
        self._store = store
        self._jobs = jobs
        self._receiving: dict[uuid.UUID, Receiving] = {}
        self._promised: dict[uuid.UUID, tuple[int, int]] = {}
        """By running transfer, the file system it goes to and the bytes still to come when it began."""

    async def grant(
        self,
        device: RemoteDevice,
        transfer_id: uuid.UUID,
        destination: Path,
        max_bytes: int | None,
        expires_at: float | None,
        purpose: str,
        *,
        max_items: int | None = None,
    ) -> Transfer:
        """See `FileTransferService.grant`."""
        if transfer_id in self._jobs or any(past.id == transfer_id for past in self._store.history):
            raise ConflictError("There is a transfer with that id already.")
        now = self._ctx.clock.now()
        transfer = Transfer(
            id=transfer_id,
            direction="receive",
            device_id=device.device_id,
            device_name=device.name,
            purpose=purpose,
            state=TransferState.WAITING,
            destination=str(destination),
            created_at=now,
        )
        expires_at = now + _GRANT_S if expires_at is None else expires_at
        record = JobRecord(
            transfer=transfer, max_bytes=max_bytes, max_items=max_items, expires_at=expires_at, updated_at=now
        )
        job = self._jobs[transfer_id] = Job(self._ctx, record)
        try:
            await self._store.save(record)
        except BaseException:
            del self._jobs[transfer_id]
            raise
        return job.transfer

    async def serve(
        self, stream: PeerStream, *, expected: Job | None = None
    ) -> tuple[ReceiveOutcome | None, NetworkingError | None]:
        """Receive what one stream brings.

        :param expected: the only transfer that may come on it; None for any.
        :returns: how it ended, or the error that cut it short.
        """
        device = stream.require_device()
        conversation = _Conversation(self, device, expected)
        receiving = Receiving(
            stream,
            run_blocking=self._ctx.run_blocking,
            decide=conversation.decide,
            observe=conversation.observe,
            settle=conversation.settle,
            throttle=self._limiter.down(device.device_id),
        )
        conversation.receiving = receiving
        try:
            outcome = await receiving.run()
            conversation.conclude(outcome)
            return outcome, None
        except NetworkingError as error:
            conversation.fail(error)
            return None, error
        finally:
            await conversation.leave()

    def cancel(self, job: Job, reason: str) -> bool:
        """Cancel a running conversation in order.

        :returns: whether there is one.
        """
        receiving = self._receiving.get(job.id)
        if receiving is not None:
            receiving.cancel(reason)
        return receiving is not None

    def pause(self, job: Job) -> bool:
        """End a running conversation without ending the transfer.

        :returns: whether there is one.
        """
        receiving = self._receiving.get(job.id)
        if receiving is not None:
            receiving.pause()
        return receiving is not None

    async def clear(self) -> None:
        """Remove what a crash between the end of a transfer and its tidying up has left; done before any runs."""
        live = {job.record.staging for job in self._jobs.values()}
        ended = [past for past in self._store.history if past.direction == "receive"]
        left = {(Path(past.destination), name) for past in ended if (name := staging_name(past.id.hex)) not in live}
        try:
            await self._ctx.run_blocking(_remove_all, left)
        except StorageError as error:
            logger.warning("What is left of a transfer could not be removed: %s", error)

    async def expire(self, job: Job) -> None:
        """End a transfer that was not taken up for too long, and remove what is left of it.

        :raises StorageError: that cannot be removed.
        """
        record, now = job.record, self._ctx.clock.now()
        if job.transfer.direction != "receive" or job.id in self._receiving:
            return
        if record.staging:
            if now >= record.updated_at + self._config.keep_days * _DAY_S:
                await self.give_up(job, TransferState.FAILED, f"{job.transfer.device_name} did not go on with it.")
        elif record.expires_at is not None and now >= record.expires_at:
            await self.give_up(job, TransferState.FAILED, f"{job.transfer.device_name} did not send it in time.")

    async def give_up(self, job: Job, state: TransferState, reason: str) -> None:
        """End a transfer for which nothing runs, for good, and remove what has arrived of it.

        :raises StorageError: that cannot be removed.
        """
        if job.record.staging:
            await self._ctx.run_blocking(remove_staging, Path(job.transfer.destination), job.record.staging)
            job.note(staging="")
        if job.final is not None:  # it is over and could have been resumed
            job.final = msgspec.structs.replace(job.final, resumable=False)
        job.end(state, reason=reason)
        await self._store.conclude(job)
        self._jobs.pop(job.id, None)

    # What follows is used by one conversation.

    async def decide(self, device: RemoteDevice, offer: Offered) -> tuple[Job, Admission] | Refused | AlreadyReceived:
        """Let an offer in or not."""
        for past in self._store.history:
            if past.id == offer.transfer_id:
                if (past.direction, past.device_id) != ("receive", device.device_id):
                    return Refused(Refusal.POLICY, "That transfer id is in use.")
                if past.state is TransferState.COMPLETED:
                    return AlreadyReceived()
                return Refused(
                    Refusal.CANCELLED if past.state is TransferState.CANCELLED else Refusal.POLICY, past.reason
                )
        job = self._jobs.get(offer.transfer_id)
        if job is None:
            return await self._admit_new(device, offer)
        if (job.transfer.direction, job.transfer.device_id) != ("receive", device.device_id):
            return Refused(Refusal.POLICY, "That transfer id is in use.")
        return await self._admit_again(job, offer)

    async def _admit_new(self, device: RemoteDevice, offer: Offered) -> tuple[Job, Admission] | Refused:
        if offer.purpose != "send":
            return Refused(Refusal.POLICY, "Nobody has agreed to this transfer.")
        if self._config.accept == "never":
            return Refused(Refusal.POLICY, "This device takes no files that it was not asked about before.")
        active = sum(job.transfer.device_id == device.device_id for job in map(self._jobs.get, self._receiving) if job)
        if active >= _MAX_ACTIVE_PER_DEVICE:
            return Refused(Refusal.BUSY, "Too many transfers at once.")
        transfer = Transfer(
            id=offer.transfer_id,
            direction="receive",
            device_id=device.device_id,
            device_name=device.name,
            purpose=offer.purpose,
            state=TransferState.OFFERING,
            destination=str(self._ctx.downloads_dir),
            created_at=self._ctx.clock.now(),
        )
        job = self._jobs[offer.transfer_id] = Job(self._ctx, JobRecord(transfer=transfer))
        try:
            if self._config.accept == "ask" or (device.trust.access or 0) < Access.TRUSTED:
                refused = await self._ask(job, offer)
                if refused is not None:
                    return refused
            return await self._begin(job, offer)
        except BaseException:
            self._jobs.pop(offer.transfer_id, None)
            raise

    async def _ask(self, job: Job, offer: Offered) -> Refused | None:
        """Have a person decide. One that is not answered is as one that was rejected, but is not remembered."""
        if sum(other.transfer.state is TransferState.ASKING for other in self._jobs.values()) >= _MAX_ASKING:
            del self._jobs[job.id]
            return Refused(Refusal.BUSY, "Too many questions wait for an answer here.")
        describe_offer(job, offer, _roots(offer))
        job.ask()
        with anyio.move_on_after(_ANSWER_S):
            await job.answered.wait()
        if job.answer:
            return None
        reason = "Nobody has answered." if job.answer is None else "It was rejected."
        job.end(TransferState.REJECTED, reason=reason)
        await self._store.conclude(job)
        self._jobs.pop(job.id, None)
        return Refused(Refusal.POLICY, reason)

    async def _admit_again(self, job: Job, offer: Offered) -> tuple[Job, Admission] | Refused:
        record = job.record
        if offer.purpose != job.transfer.purpose or job.transfer.state is TransferState.ASKING:
            return Refused(Refusal.POLICY, "Nobody has agreed to this transfer.")
        if record.paused:
            return Refused(Refusal.PAUSED, "It is paused.")
        if record.wanted and any(item.path[0] != record.wanted[-1] for item in offer.items):
            return Refused(Refusal.POLICY, "That is not what was asked for.")
        if record.max_bytes is not None and offer.total_bytes > record.max_bytes:
            return Refused(Refusal.TOO_LARGE, "It is larger than what was agreed to.")
        if record.max_items is not None and len(offer.items) > record.max_items:
            return Refused(Refusal.TOO_LARGE, "It has more files than what was agreed to.")
        if not record.staging and record.expires_at is not None and self._ctx.clock.now() >= record.expires_at:
            return Refused(Refusal.POLICY, "It comes too late.")
        running = self._receiving.get(job.id)
        if running is not None:
            # The sender has noticed a lost connection before we did.
            running.abandon()
            with anyio.move_on_after(_TAKE_OVER_TIMEOUT_S):
                await job.idle.wait()
            if job.id in self._receiving or job.id not in self._jobs:
                return Refused(Refusal.BUSY, "An earlier attempt is still being ended.")
        if job.transfer.state is TransferState.CANCELLED and job.cancel_reason is not None:
            return Refused(Refusal.CANCELLED, job.transfer.reason)
        return await self._begin(job, offer)

    async def _begin(self, job: Job, offer: Offered) -> tuple[Job, Admission]:
        roots = _roots(offer)
        digest = blake3("\0".join(roots).encode()).digest()
        name = staging_name(offer.transfer_id.hex)
        fresh = not job.record.staging
        adopt = await self._adopt(job, digest) if fresh else None
        job.idle = anyio.Event()
        job.reopen()
        describe_offer(job, offer, roots)
        job.change(state=TransferState.OFFERING)
        job.note(roots=digest, staging=name, updated_at=self._ctx.clock.now())
        await self._store.save(job.record)

        def room(landing: Landing, missing: int) -> None:
            self._check_room(job.id, landing, missing)

        return job, Admission(Path(job.transfer.destination), name, adopt, fresh, room)

    async def _adopt(self, job: Job, roots: bytes) -> str | None:
        """Find what an earlier transfer of the same things has left."""
        for other in list(self._jobs.values()):
            past = other.transfer
            if (
                past.resumable
                and other.record.staging
                and other.record.roots == roots
                and (past.device_id, past.destination) == (job.transfer.device_id, job.transfer.destination)
                and other.id not in self._receiving
                and other is not job
            ):
                staging = other.record.staging
                other.note(staging="")
                other.final = msgspec.structs.replace(past, resumable=False)
                del self._jobs[other.id]
                await self._store.conclude(other)
                return staging
        return None

    def _check_room(self, transfer_id: uuid.UUID, landing: Landing, missing: int) -> None:
        """Runs in a thread; what others were promised only ever shrinks."""
        promised = sum(
            amount
            for other, (file_system, amount) in list(self._promised.items())
            if other != transfer_id and file_system == landing.file_system
        )
        free = landing.free_bytes() - promised - self._config.min_free_bytes
        if missing > free:
            raise DiskFullError("There is not enough room on the receiver's disk.")
        self._promised[transfer_id] = (landing.file_system, missing)

    async def settle(self, job: Job, received: Received) -> None:
        """Note for good that everything is in place."""
        paths = tuple(str(Path(job.transfer.destination) / name) for name in received.names)
        if received.failed:
            reason = (
                f"{received.failed} of {format_count(job.transfer.items, 'file')} could not be read by their sender."
            )
            job.end(TransferState.FAILED, reason=reason, paths=paths)
        else:
            job.end(TransferState.COMPLETED, paths=paths)
        job.note(staging="")
        await self._store.conclude(job)
        self._jobs.pop(job.id, None)


def _remove_all(left: set[tuple[Path, str]]) -> None:
    for destination, name in left:
        remove_staging(destination, name)


def _roots(offer: Offered) -> list[str]:
    return list(dict.fromkeys([item.path[0] for item in offer.items]))


def describe_offer(job: Job, offer: Offered, roots: Sequence[str]) -> None:
    """Put into a job what is offered.

    :param roots: the names under which it was sent.
    """
    job.change(
        name=roots[0] if len(roots) == 1 else f"{len(roots)} items",
        items=sum(not item.directory for item in offer.items),
        total_bytes=offer.total_bytes,
    )


class _Conversation:
    """One stream's way through `Incoming`."""

    def __init__(self, incoming: Incoming, device: RemoteDevice, expected: Job | None) -> None:
        self._incoming = incoming
        self._device = device
        self._expected = expected
        self._waits_for = f"{device.name} is away."
        self.job: Job | None = None
        self.receiving: Receiving | None = None

    async def decide(self, offer: Offered) -> Admission | Refused | AlreadyReceived:
        if self._expected is not None and self._expected.id != offer.transfer_id:
            raise ProtocolError("The other device sends something else than it was asked for.")
        decision = await self._incoming.decide(self._device, offer)
        if not isinstance(decision, tuple):
            return decision
        self.job, admission = decision
        assert self.receiving is not None
        self._incoming._receiving[self.job.id] = self.receiving
        return admission

    def observe(self, state: TransferState, done_bytes: int, done_items: int) -> None:
        if self.job is not None:
            self.job.progress(state, done_bytes, done_items)
            file_system, _ = self._incoming._promised.get(self.job.id, (0, 0))
            if state is TransferState.TRANSFERRING:
                self._incoming._promised[self.job.id] = (file_system, self.job.transfer.total_bytes - done_bytes)

    async def settle(self, received: Received) -> None:
        assert self.job is not None
        await self._incoming.settle(self.job, received)

    def conclude(self, outcome: ReceiveOutcome) -> None:
        job = self.job
        if job is None:
            return
        name = self._device.name
        match outcome:
            case PeerCancelled():
                self._end(job, TransferState.CANCELLED, f"{name} cancelled it.")
            case PeerFailed(code=Refusal.PAUSED):
                self._waits_for = f"{name} has paused it."
            case Refused(code=Refusal.NO_SPACE) if job.transfer.done_bytes:
                self._waits_for = DISK_FULL
            case PeerFailed():
                self._end(job, TransferState.FAILED, f"{name}: {outcome.reason}")
            case Refused():
                self._end(job, TransferState.FAILED, outcome.reason)
            case Cancelled():
                self._end(job, TransferState.CANCELLED, job.cancel_reason or "")

    def fail(self, error: NetworkingError) -> None:
        if self.job is None:
            logger.info("An offer of files from %s came to nothing: %s", self._device.name, error.detail)
        elif isinstance(error, DiskFullError):
            self._waits_for = DISK_FULL
        elif not is_transient(error):
            self._end(self.job, TransferState.FAILED, error.detail)

    def _end(self, job: Job, state: TransferState, reason: str) -> None:
        kept = self.receiving is not None and self.receiving.kept
        if not kept:
            job.note(staging="")
        job.end(state, reason=reason, resumable=kept)

    async def leave(self) -> None:
        job = self.job
        if job is None:
            return
        incoming = self._incoming
        if incoming._receiving.get(job.id) is self.receiving:
            del incoming._receiving[job.id]
        incoming._promised.pop(job.id, None)
        if job.final is None:
            if not job.record.paused:
                job.enter(TransferState.WAITING, reason=self._waits_for)
        elif job.id in incoming._jobs:
            await incoming._store.conclude(job)
            if not job.final.resumable:
                incoming._jobs.pop(job.id, None)
        job.idle.set()
