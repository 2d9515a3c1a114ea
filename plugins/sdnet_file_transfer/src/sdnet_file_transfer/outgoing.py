"""Sends one job until it is over, across reconnects."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import anyio

from sdnet_core import PluginContext
from sdnet_core.errors import DeviceNotFoundError, NetworkingError

from .conversation import is_transient
from .jobs import Job
from .machine import Acknowledged, PeerCancelled, PeerFailed, Rejected
from .messages import PROTOCOL_NAME, Refusal
from .sending import Cancelled, Sending, SendOutcome
from .source import Left, Manifest, scan
from .transfer import MAX_PROBLEMS, FileProblem, TransferState

__all__ = ["Outgoing", "describe"]

_CONNECT_TIMEOUT_S = 15.0
_MIN_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_FRESH_S = 2.0
"""So old may a list of the files be; a file that changed meanwhile is noticed when it is opened."""
_MAX_SHORT_ATTEMPTS = 8
"""So many times in a row a connected device may end the conversation before it answers."""


class Outgoing:
    """One job's way.

    :param slots: limits how many send at once.
    :param woken: gives an event that is set when the device is connected again.
    :param manifest: what was found on the disk just now; the first attempt need not look again if it begins at once.
    """

    def __init__(
        self,
        ctx: PluginContext,
        job: Job,
        *,
        slots: anyio.Semaphore,
        woken: Callable[[uuid.UUID], anyio.Event],
        manifest: Manifest | None = None,
    ) -> None:
        self._ctx = ctx
        self._job = job
        self._slots = slots
        self._woken = woken
        self._sending: Sending | None = None
        self._answered = False
        self._manifest = manifest
        self._scanned_at = ctx.clock.monotonic()

    def cancel(self, reason: str) -> bool:
        """Cancel in order if a conversation is under way.

        :returns: whether one is.
        """
        if self._sending is None:
            return False
        self._sending.cancel(reason)
        return True

    async def run(self) -> None:
        """Try until it is over; then the job is in a state that stays."""
        attempts = short = 0
        while True:
            woken = self._woken(self._job.transfer.device_id)
            self._answered = False
            try:
                if await self._attempt():
                    return
                reason = "The other device is busy."
            except DeviceNotFoundError:
                self._job.end(TransferState.FAILED, reason="The device is no longer paired.")
                return
            except NetworkingError as error:
                if not is_transient(error):
                    self._job.end(TransferState.FAILED, reason=error.detail)
                    return
                reason = error.detail
                connected = self._sending is not None
                short = short + 1 if connected and not self._answered else 0
                if short >= _MAX_SHORT_ATTEMPTS:
                    self._job.end(TransferState.FAILED, reason="The other device ends the transfer without a reason.")
                    return
            finally:
                self._sending = None
            attempts = 0 if self._answered else attempts + 1
            self._job.enter(TransferState.WAITING, reason=reason)
            pause_s = min(_MAX_PAUSE_S, _MIN_PAUSE_S * 2 ** min(attempts, 10))
            with anyio.move_on_after(self._ctx.randomness.uniform(pause_s / 2, pause_s)):
                await woken.wait()

    async def _attempt(self) -> bool:
        """Go through one conversation.

        :returns: whether the transfer is over.
        """
        job = self._job
        device = self._ctx.get_device(job.transfer.device_id)
        if not device.connected:
            job.enter(TransferState.WAITING, reason=f"{device.name} is away.")
            await self._ctx.connect(device.device_id, timeout_s=_CONNECT_TIMEOUT_S)
        if job.transfer.state is not TransferState.QUEUED:
            job.enter(TransferState.QUEUED)
        async with self._slots:
            manifest, self._manifest = self._manifest, None
            if manifest is None or self._ctx.clock.monotonic() - self._scanned_at > _FRESH_S:
                manifest = await self._ctx.run_blocking(scan, [Path(path) for path in job.transfer.paths])
                describe(job, manifest)
            stream = await self._ctx.open_stream(device.device_id, PROTOCOL_NAME)
            try:
                self._sending = Sending(
                    stream,
                    job.id,
                    job.transfer.purpose,
                    manifest,
                    run_blocking=self._ctx.run_blocking,
                    observe=self._observe,
                )
                if job.cancel_reason is not None:
                    self._sending.cancel(job.cancel_reason)
                outcome = await self._sending.run()
                return self._conclude(outcome, manifest, self._sending.failed)
            finally:
                with anyio.move_on_after(2, shield=True):
                    await stream.aclose()

    def _observe(self, state: TransferState, done_bytes: int, done_items: int) -> None:
        self._answered = self._answered or state is not TransferState.OFFERING
        self._job.progress(state, done_bytes, done_items)

    def _conclude(self, outcome: SendOutcome, manifest: Manifest, failed: list[Left]) -> bool:
        job, name = self._job, self._job.transfer.device_name
        problems = _problems([*manifest.left, *failed])
        match outcome:
            case Acknowledged():
                count = max(outcome.failed, len(failed)) + sum(not left.expected for left in manifest.left)
                if count:
                    named = next((problem for problem in problems if not problem.expected), None)
                    first = f": {named.path} {named.reason}" if named else ""
                    total = job.transfer.items + sum(not left.expected for left in manifest.left)
                    text = f"{count} of {total} files did not get there{first}."
                    job.end(TransferState.FAILED, reason=text, problems=problems)
                else:
                    job.end(TransferState.COMPLETED, problems=problems)
            case Rejected(code=Refusal.BUSY):
                return False
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
        return True


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
