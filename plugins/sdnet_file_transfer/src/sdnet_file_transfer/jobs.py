"""Transfers as the service keeps them: in memory while they live, sealed in the store across restarts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import msgspec

from sdnet_core import PluginContext, SecureStorage
from sdnet_core.errors import SerializationError
from sdnet_core.wire import decode, encode

from .events import TransferCompleted, TransferFailed, TransferProgress, TransferStarted
from .transfer import RateMeter, Transfer, TransferState

__all__ = ["Job", "JobRecord", "JobStore"]

PUBLISH_EVERY_S = 0.25
_HISTORY_ENTRIES = 200
_MAX_STORED_BYTES = 16 << 20
_HISTORY = "history"
_JOBS = "jobs"


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a transfer that is not over, or that can be resumed.

    :param max_bytes: what was granted; None for no limit.
    :param expires_at: a grant that nothing was sent for lapses then; seconds since the epoch.
    :param roots: identifies what is sent by its names, so that an earlier attempt is found again.
    :param staging: the private folder in the destination; empty before anything was accepted.
    """

    transfer: Transfer
    max_bytes: int | None = None
    expires_at: float | None = None
    roots: bytes = b""
    staging: str = ""
    updated_at: float = 0.0


class JobStore:
    """Keeps records and the history in the plugin's sealed store."""

    def __init__(self, storage: SecureStorage) -> None:
        self._storage = storage
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
                    records.append(decode(data, JobRecord, max_bytes=_MAX_STORED_BYTES))
                except SerializationError:
                    await self._storage.delete(name)
        return records

    async def save(self, record: JobRecord) -> None:
        """Store a record, durably."""
        await self._storage.store(_name(record.transfer.id), encode(record))

    async def archive(self, transfer: Transfer) -> None:
        """Move a transfer that is over to the history, durably."""
        self.history = [past for past in self.history if past.id != transfer.id][1 - _HISTORY_ENTRIES :]
        self.history.append(transfer)
        await self._storage.store(_HISTORY, encode(self.history))
        await self._storage.delete(_name(transfer.id))


def _name(transfer_id: uuid.UUID) -> str:
    return f"{_JOBS}/{transfer_id}"


class Job:
    """One transfer while it lives. All its methods are synchronous; changes reach those who watch at once.

    :ivar scope: cancelling it ends whatever is running for this transfer.
    """

    def __init__(self, ctx: PluginContext, record: JobRecord) -> None:
        self._ctx = ctx
        self.record = record
        self.scope: anyio.CancelScope | None = None
        self.idle = anyio.Event()
        self.idle.set()
        self.cancel_reason: str | None = None
        self._changed = anyio.Event()
        self._meter = RateMeter()
        self._published_at = 0.0

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
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def note(self, **fields: Any) -> None:
        """Set fields of the record that nobody watches."""
        self.record = msgspec.structs.replace(self.record, **fields)

    def enter(self, state: TransferState, *, reason: str = "") -> None:
        """Go to a state in which nothing moves."""
        if self.transfer.state is not state or self.transfer.reason != reason:
            self.change(state=state, reason=reason, rate=0.0, eta_s=None)

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
        if transfer.state is not state:
            if state is TransferState.TRANSFERRING:
                self.started(done_bytes)
            else:
                self.enter(state)
                if state is TransferState.VERIFYING:
                    self.change(done_bytes=done_bytes, done_items=done_items)
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
        """Reach a state that stays."""
        if state is TransferState.COMPLETED:
            fields |= {"done_bytes": self.transfer.total_bytes, "done_items": self.transfer.items}
        self.change(state=state, reason=reason, rate=0.0, eta_s=None, ended_at=self._ctx.clock.now(), **fields)
        transfer = self.transfer
        if state is TransferState.COMPLETED:
            self._ctx.publish(
                TransferCompleted(**self._about(), total_bytes=transfer.total_bytes, paths=transfer.paths)
            )
        else:
            self._ctx.publish(TransferFailed(**self._about(), state=state.value, reason=reason))

    async def watch(self) -> AsyncGenerator[Transfer, None]:
        """Give how it stands now and after each change, until it is over; a slow listener misses some."""
        while True:
            changed = self._changed
            transfer = self.transfer
            yield transfer
            if transfer.state.terminal:
                return
            await changed.wait()

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
