"""Transfers as the service keeps them: in memory while they live, sealed in the store across restarts."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec

from sdnet_core import PluginContext, SecureStorage
from sdnet_core.errors import SerializationError, StorageError
from sdnet_core.wire import decode, encode

from .events import TransferAsked, TransferCompleted, TransferFailed, TransferProgress, TransferStarted
from .transfer import RateMeter, Transfer, TransferState

__all__ = ["Job", "JobRecord", "JobStore", "Watch"]

logger = logging.getLogger(__name__)

PUBLISH_EVERY_S = 0.25
_DAY_S = 86_400.0
_MAX_STORED_BYTES = 16 << 20
_HISTORY = "history"
_JOBS = "jobs"


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a transfer that is not over, or that can be resumed.

    :param max_bytes: what was granted; None for no limit.
    :param max_items: the same for files and folders.
    :param expires_at: a grant that nothing was sent for lapses then; seconds since the epoch.
    :param roots: identifies what is sent by its names, so that an earlier attempt is found again.
    :param wanted: of what was asked for from a shared folder, the path; empty for all others.
    :param priority: the higher, the sooner its turn comes.
    :param paused: a person here has paused it.
    :param staging: the private folder in the destination; empty before anything was accepted.
    """

    transfer: Transfer
    max_bytes: int | None = None
    max_items: int | None = None
    expires_at: float | None = None
    roots: bytes = b""
    staging: str = ""
    wanted: tuple[str, ...] = ()
    priority: int = 0
    paused: bool = False
    updated_at: float = 0.0


class JobStore:
    """Keeps records and the history in the plugin's sealed store.

    How a transfer ended is stored in its own record first, which is small; `tidy` moves it to the history later.

    :param entries: most transfers that the history keeps.
    :param days: for how long.
    """

    def __init__(self, ctx: PluginContext, *, entries: int = 500, days: float = 90.0) -> None:
        self._ctx = ctx
        self._storage: SecureStorage = ctx.storage
        self._entries = entries
        self._days = days
        self._untidy: set[uuid.UUID] = set()
        self.history: list[Transfer] = []
        """What is over, oldest first."""

    async def load(self) -> list[JobRecord]:
        """Read everything; what does not decode is left out.

        :raises StorageError: it cannot be opened.
        """
        stored = await self._storage.load(_HISTORY)
        if stored is not None:
            try:
                self.history = decode(stored, list[Transfer], max_bytes=_MAX_STORED_BYTES)
            except SerializationError:
                self.history = []
        records: list[JobRecord] = []
        for name in await self._storage.list(_JOBS):
            data = await self._storage.load(name)
            if data is not None:
                try:
                    record: JobRecord = decode(data, JobRecord, max_bytes=_MAX_STORED_BYTES)
                except SerializationError:
                    await self._storage.delete(name)
                else:
                    if record.transfer.state.terminal and not record.staging:
                        self._remember(record.transfer)
                    else:
                        records.append(record)
        await self.tidy()
        return records

    async def tidy(self) -> None:
        """Bring the history on the disk up to date, without what is too old or too much.

        :raises StorageError: it could not be stored; nothing is lost.
        """
        since = self._ctx.clock.now() - self._days * _DAY_S
        kept = [past for past in self.history if (past.ended_at or past.created_at) >= since]
        kept = kept[max(0, len(kept) - self._entries) :]
        if not self._untidy and len(kept) == len(self.history):
            return
        self.history, untidy, self._untidy = kept, self._untidy, set()
        try:
            await self._storage.store(_HISTORY, await self._ctx.run_blocking(encode, kept))
            for transfer_id in untidy:
                await self._storage.delete(_name(transfer_id))
        except BaseException:
            self._untidy |= untidy
            raise

    async def forget_history(self) -> int:
        """Forget all transfers that are over.

        :returns: how many.
        """
        count, self.history = len(self.history), []
        await self._storage.store(_HISTORY, encode([]))
        for transfer_id in list(self._untidy):
            await self._storage.delete(_name(transfer_id))
            self._untidy.discard(transfer_id)
        return count

    def _remember(self, transfer: Transfer) -> None:
        self.history = [past for past in self.history if past.id != transfer.id]
        self.history.append(transfer)
        self._untidy.add(transfer.id)

    async def save(self, record: JobRecord) -> None:
        """Store a record, durably."""
        await self._storage.store(_name(record.transfer.id), encode(record))

    async def conclude(self, job: Job) -> None:
        """Store how a job ended and then tell everybody; what can be resumed stays a job, the rest becomes history."""
        transfer = job.final
        if transfer is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                if transfer.resumable and transfer.direction == "receive":
                    await self.save(msgspec.structs.replace(job.record, transfer=transfer))
                else:
                    self._remember(transfer)
                    if transfer.direction == "send":
                        # Should this not get to the disk, the receiver says after a restart that it has everything.
                        job.announce()
                    await self.save(JobRecord(transfer=transfer))
            except StorageError as error:
                logger.warning("The end of a transfer could not be stored: %s", error)
        job.announce()


def _name(transfer_id: uuid.UUID) -> str:
    return f"{_JOBS}/{transfer_id}"


class Job:
    """One transfer while it lives. All its methods are synchronous; changes reach those who watch at once.

    :ivar changed: set, and replaced, when something changes.
    :ivar final: how it ended, also while that is being stored; None as long as it is not over.
    :ivar scope: cancelling it ends whatever is running for this transfer.
    """

    def __init__(self, ctx: PluginContext, record: JobRecord) -> None:
        self._ctx = ctx
        self.record = record
        self.scope: anyio.CancelScope | None = None
        self.idle = anyio.Event()
        self.idle.set()
        self.cancel_reason: str | None = None
        self.final: Transfer | None = record.transfer if record.transfer.state.terminal else None
        self.changed = anyio.Event()
        self.answered = anyio.Event()
        self.answer: bool | None = None
        """What a person said to the offer; None before that."""
        self._meter = RateMeter()
        self._published_at = 0.0
        self._done = (record.transfer.done_bytes, record.transfer.done_items)

    @property
    def transfer(self) -> Transfer:
        """How it stands."""
        return self.record.transfer

    @property
    def id(self) -> uuid.UUID:
        return self.record.transfer.id

    def change(self, **fields: Any) -> None:
        """Set fields of the transfer and tell those who watch."""
        transfer = msgspec.structs.replace(self.record.transfer, **fields)
        self.record = msgspec.structs.replace(self.record, transfer=transfer)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def note(self, **fields: Any) -> None:
        """Set fields of the record that nobody watches."""
        self.record = msgspec.structs.replace(self.record, **fields)

    def ask(self) -> None:
        """Tell everybody that a person is to decide."""
        self.change(state=TransferState.ASKING)
        transfer = self.transfer
        self._ctx.publish(TransferAsked(**self._about(), items=transfer.items, total_bytes=transfer.total_bytes))

    def decide(self, answer: bool) -> None:
        """Take the person's answer."""
        if self.answer is None:
            self.answer = answer
            self.answered.set()

    def enter(self, state: TransferState, *, reason: str = "") -> None:
        """Go to a state in which nothing moves."""
        if self.transfer.state is not state or self.transfer.reason != reason:
            done_bytes, done_items = self._done
            self.change(state=state, reason=reason, rate=0.0, eta_s=None, done_bytes=done_bytes, done_items=done_items)

    def started(self, done_bytes: int) -> None:
        """Bytes begin to move."""
        self._meter = RateMeter()
        self._meter.update(self._ctx.clock.monotonic(), done_bytes)
        self.change(state=TransferState.TRANSFERRING, reason="", done_bytes=done_bytes)
        self._ctx.publish(
            TransferStarted(**self._about(), items=self.transfer.items, total_bytes=self.transfer.total_bytes)
        )

    def progress(self, state: TransferState, done_bytes: int, done_items: int) -> None:
        """Hear how far it is; tells the others at most four times a second."""
        transfer = self.transfer
        self._done = (done_bytes, done_items)
        if transfer.state is not state:
            if state is TransferState.TRANSFERRING:
                self.started(done_bytes)
            else:
                self.enter(state)
            return
        now = self._ctx.clock.monotonic()
        if now - self._published_at < PUBLISH_EVERY_S:
            return
        self._published_at = now
        rate = self._meter.update(now, done_bytes)
        eta_s = (transfer.total_bytes - done_bytes) / rate if rate > 0 else None
        self.change(done_bytes=done_bytes, done_items=done_items, rate=rate, eta_s=eta_s)
        self._ctx.publish(
            TransferProgress(
                **self._about(), done_bytes=done_bytes, total_bytes=transfer.total_bytes, rate=rate, eta_s=eta_s
            )
        )

    def end(self, state: TransferState, *, reason: str = "", **fields: Any) -> None:
        """Decide on a state that stays. Others learn of it by `announce`, when it is stored."""
        if self.final is not None:
            return
        done_bytes, done_items = self._done
        if state is TransferState.COMPLETED:
            done_bytes, done_items = self.transfer.total_bytes, self.transfer.items
        fields |= {"done_bytes": done_bytes, "done_items": done_items, "ended_at": self._ctx.clock.now()}
        self.final = msgspec.structs.replace(self.transfer, state=state, reason=reason, rate=0.0, eta_s=None, **fields)

    def reopen(self) -> None:
        """Let a transfer that was ended, but can be resumed, go on."""
        self.final = None
        self.change(resumable=False, ended_at=None, reason="")

    def announce(self) -> None:
        """Tell everybody that it is over."""
        transfer = self.final
        if transfer is None or self.transfer == transfer:
            return
        self.note(transfer=transfer)
        self.change()
        if transfer.state is TransferState.COMPLETED:
            self._ctx.publish(
                TransferCompleted(**self._about(), total_bytes=transfer.total_bytes, paths=transfer.paths)
            )
        else:
            self._ctx.publish(TransferFailed(**self._about(), state=transfer.state.value, reason=transfer.reason))

    def watch(self) -> Watch:
        """Give how it stands now and after each change, until it is over; a slow listener misses some."""
        return Watch(self)

    def _about(self) -> dict[str, Any]:
        transfer = self.transfer
        return {
            "transfer_id": transfer.id,
            "direction": transfer.direction,
            "device_id": transfer.device_id,
            "device_name": transfer.device_name,
            "purpose": transfer.purpose,
            "name": transfer.name,
        }


class Watch(AsyncIterator[Transfer]):
    """How a transfer stands now and after each change, until it is over. Needs no closing."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seen: anyio.Event | None = None
        self._over = False

    async def __anext__(self) -> Transfer:
        if self._over:
            raise StopAsyncIteration
        if self._seen is not None:
            await self._seen.wait()
        self._seen = self._job.changed
        transfer = self._job.transfer
        self._over = transfer.state.terminal
        return transfer
