"""Sends one job until it is over."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import anyio

from sdnet_core import PluginContext, RemoteDevice, format_count

from .jobs import Job
from .limits import Limiter
from .machine import Acknowledged, PeerCancelled, PeerFailed, Rejected
from .messages import PROTOCOL_NAME, Refusal
from .sending import Cancelled, Paused, Sending, SendOutcome
from .slots import Slots
from .source import Left, Manifest, scan
from .transfer import MAX_PROBLEMS, FileProblem, TransferState
from .trying import DISK_FULL, LATER, PAUSED_THERE, Again, Trying

__all__ = ["Outgoing", "describe", "sent"]

_FRESH_S = 2.0
"""So old may a list of the files be; a file that changed meanwhile is noticed when it is opened."""


class Outgoing(Trying):
    """One job's way.

    :param manifest: what was found on the disk just now; the first attempt need not look again if it begins at once.
    """

    def __init__(
        self,
        ctx: PluginContext,
        job: Job,
        *,
        slots: Slots,
        woken: Callable[[uuid.UUID], anyio.Event],
        limiter: Limiter,
        manifest: Manifest | None = None,
        compress: bool = True,
    ) -> None:
        self._compress = compress
        super().__init__(ctx, job, slots=slots, woken=woken)
        self._limiter = limiter
        self._sending: Sending | None = None
        self._manifest = manifest
        self._scanned_at = ctx.clock.monotonic()

    def cancel(self, reason: str) -> bool:
        if self._sending is None:
            return False
        self._sending.cancel(reason)
        return True

    def pause(self) -> bool:
        if self._sending is None:
            return False
        self._sending.pause()
        return True

    async def _converse(self, device: RemoteDevice) -> Again | None:
        job = self._job
        manifest, self._manifest = self._manifest, None
        if manifest is None or self._ctx.clock.monotonic() - self._scanned_at > _FRESH_S:
            manifest = await self._ctx.run_blocking(scan, [Path(path) for path in job.transfer.paths])
            describe(job, manifest)
        stream = await self._ctx.open_stream(device.device_id, PROTOCOL_NAME)
        try:
            self._talking = True
            self._sending = Sending(
                stream,
                job.id,
                job.transfer.purpose,
                manifest,
                run_blocking=self._ctx.run_blocking,
                observe=self._observe,
                throttle=self._limiter.up(device.device_id),
                compress=self._compress,
            )
            if job.cancel_reason is not None:
                self._sending.cancel(job.cancel_reason)
            elif job.record.paused:
                self._sending.pause()
            outcome = await self._sending.run()
            return self._conclude(outcome, manifest, self._sending.failed)
        finally:
            self._sending = None
            with anyio.move_on_after(2, shield=True):
                await stream.aclose()

    def _observe(self, state: TransferState, done_bytes: int, done_items: int) -> None:
        self._answered = self._answered or state is not TransferState.OFFERING
        self._job.progress(state, done_bytes, done_items)

    def _conclude(self, outcome: SendOutcome, manifest: Manifest, failed: list[Left]) -> Again | None:
        job, name = self._job, self._job.transfer.device_name
        problems = _problems([*manifest.left, *failed])
        match outcome:
            case Acknowledged():
                sent(job, outcome, manifest, failed)
            case Paused():
                return Again("")
            case Rejected(code=Refusal.BUSY):
                return LATER
            case Rejected(code=Refusal.PAUSED) | PeerFailed(code=Refusal.PAUSED):
                return PAUSED_THERE
            case PeerFailed(code=Refusal.NO_SPACE):
                return DISK_FULL
            case Rejected(code=Refusal.NO_SPACE) if job.transfer.done_bytes:
                return DISK_FULL  # it had begun: a person will make room
            case Rejected(code=Refusal.CANCELLED):
                job.end(TransferState.CANCELLED, reason=f"{name} cancelled it.")
            case Rejected(code=Refusal.OVER | Refusal.STORAGE | Refusal.PROTOCOL):
                job.end(TransferState.FAILED, reason=f"{name}: {outcome.reason}")
            case Rejected():
                job.end(TransferState.REJECTED, reason=outcome.reason or f"{name} refused it.")
            case PeerCancelled():
                job.end(TransferState.CANCELLED, reason=f"{name} cancelled it.", problems=problems)
            case PeerFailed():
                job.end(TransferState.FAILED, reason=f"{name}: {outcome.reason}", problems=problems)
            case Cancelled():
                reason = job.cancel_reason or ""
                job.end(TransferState.CANCELLED, reason=reason, problems=problems, resumable=True)
        return None


def sent(job: Job, outcome: Acknowledged, manifest: Manifest, failed: list[Left]) -> None:
    """End a job whose files are in place over there, as far as they could be read."""
    problems = _problems([*manifest.left, *failed])
    count = max(outcome.failed, len(failed)) + sum(not left.expected for left in manifest.left)
    if count:
        named = next((problem for problem in problems if not problem.expected), None)
        first = f": {named.path} {named.reason}" if named else ""
        total = job.transfer.items + sum(not left.expected for left in manifest.left)
        text = f"{count} of {format_count(total, 'file')} did not get there{first}."
        job.end(TransferState.FAILED, reason=text, problems=problems)
    else:
        job.end(TransferState.COMPLETED, problems=problems)


def describe(job: Job, manifest: Manifest) -> None:
    """Put into a job what was found on the disk."""
    roots = {item.path[0] for item in manifest.items}
    job.change(
        name=next(iter(roots)) if len(roots) == 1 else f"{len(roots)} items",
        items=manifest.files,
        total_bytes=manifest.total_bytes,
        problems=_problems(manifest.left),
    )


def _problems(left: list[Left]) -> tuple[FileProblem, ...]:
    return tuple(FileProblem(entry.path, entry.reason, entry.expected) for entry in left[:MAX_PROBLEMS])
