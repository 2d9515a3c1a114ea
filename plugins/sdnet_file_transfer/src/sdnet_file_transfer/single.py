"""One transfer over a stream that somebody else has made: no queue, no second attempt, no history.

For a peer that is not paired, with which another plugin has agreed upon a sealed stream and a transfer. Bytes, names
and hashes go through the same code as everything else.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import msgspec

from sdnet_core import PluginContext, format_count
from sdnet_core.errors import NetworkingError

from .conversation import RecordStream
from .landing import Landing
from .limits import Limiter, Throttle
from .machine import Acknowledged, Offered, PeerCancelled, PeerFailed, Rejected
from .messages import Refusal
from .receiving import Admission, Received, Receiving, Refused
from .sending import Cancelled, Sending
from .source import Manifest, scan
from .staging import DiskFullError, remove_staging, staging_name
from .transfer import RateMeter, TransferState

__all__ = ["SingleOutcome", "SingleProgress", "SingleReceive", "SingleSend", "SingleTransfers"]

_REPORT_EVERY_S = 0.25
_CLOSE_TIMEOUT_S = 2.0


class SingleProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a single transfer is.

    :param rate: bytes a second, averaged over the last seconds.
    """

    state: TransferState
    done_bytes: int
    rate: float


class SingleOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a single transfer ended.

    :param state: ``completed``, ``rejected``, ``cancelled`` or ``failed``.
    :param by_peer: the other side ended it.
    :param paths: at the receiver, what was put in place.
    """

    state: TransferState
    reason: str = ""
    by_peer: bool = False
    paths: tuple[str, ...] = ()


class _Single:
    """What both directions share."""

    def __init__(self, ctx: PluginContext, observe: Callable[[SingleProgress], None]) -> None:
        self._ctx = ctx
        self._report = observe
        self._meter = RateMeter()
        self._reported: tuple[TransferState, float] | None = None
        self._conversation: Sending | Receiving | None = None
        self._cancel_reason: str | None = None

    def cancel(self, reason: str) -> None:
        """Cancel in order: the other side is told. May be called at any time, also before it runs."""
        if self._cancel_reason is None:
            self._cancel_reason = reason
            if self._conversation is not None:
                self._conversation.cancel(reason)

    def _begin(self, conversation: Sending | Receiving) -> None:
        self._conversation = conversation
        if self._cancel_reason is not None:
            conversation.cancel(self._cancel_reason)

    def _observe(self, state: TransferState, done_bytes: int, done_items: int) -> None:
        now = self._ctx.clock.monotonic()
        if self._reported is not None and self._reported[0] is state and now - self._reported[1] < _REPORT_EVERY_S:
            return
        self._reported = state, now
        rate = self._meter.update(now, done_bytes)
        self._report(SingleProgress(state=state, done_bytes=done_bytes, rate=rate))


class SingleSend(_Single):
    """Sends files and folders over one stream; made by `FileTransferService.send_single`."""

    def __init__(
        self,
        ctx: PluginContext,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        paths: Sequence[Path],
        *,
        purpose: str,
        throttle: Throttle,
        observe: Callable[[SingleProgress], None],
    ) -> None:
        super().__init__(ctx, observe)
        self._stream = stream
        self._id = transfer_id
        self._paths = paths
        self._purpose = purpose
        self._throttle = throttle

    async def run(self) -> SingleOutcome:
        """Send, wait until everything is in place there, close the stream. What goes wrong is in the outcome."""
        try:
            manifest = await self._ctx.run_blocking(scan, self._paths)
            sending = Sending(
                self._stream,
                self._id,
                self._purpose,
                manifest,
                run_blocking=self._ctx.run_blocking,
                observe=self._observe,
                throttle=self._throttle,
            )
            self._begin(sending)
            outcome = await sending.run()
        except NetworkingError as error:
            return SingleOutcome(state=TransferState.FAILED, reason=error.detail)
        finally:
            with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await self._stream.aclose()
        match outcome:
            case Acknowledged():
                return _sent(manifest, max(outcome.failed, len(sending.failed)), sending)
            case Rejected():
                return SingleOutcome(state=TransferState.REJECTED, reason=outcome.reason, by_peer=True)
            case PeerCancelled():
                return SingleOutcome(state=TransferState.CANCELLED, reason=outcome.reason, by_peer=True)
            case PeerFailed():
                return SingleOutcome(state=TransferState.FAILED, reason=outcome.reason, by_peer=True)
            case _:
                return SingleOutcome(state=TransferState.CANCELLED, reason=self._cancel_reason or "")


def _sent(manifest: Manifest, failed: int, sending: Sending) -> SingleOutcome:
    left = [entry for entry in (*manifest.left, *sending.failed) if not entry.expected]
    if not failed and not left:
        return SingleOutcome(state=TransferState.COMPLETED)
    first = f": {left[0].path} {left[0].reason}" if left else ""
    reason = f"{max(failed, len(left))} of the files did not get there{first}."
    return SingleOutcome(state=TransferState.FAILED, reason=reason)


class SingleReceive(_Single):
    """Receives one transfer from one stream; made by `FileTransferService.receive_single`.

    Of one that does not end well nothing stays but what has its final name already.
    """

    def __init__(
        self,
        ctx: PluginContext,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        destination: Path,
        *,
        purpose: str,
        max_bytes: int,
        max_items: int,
        min_free_bytes: int,
        throttle: Throttle,
        observe: Callable[[SingleProgress], None],
    ) -> None:
        super().__init__(ctx, observe)
        self._stream = stream
        self._id = transfer_id
        self._destination = destination
        self._purpose = purpose
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._min_free_bytes = min_free_bytes
        self._throttle = throttle
        self._staging = staging_name(transfer_id.hex)

    async def run(self) -> SingleOutcome:
        """Receive, then close the stream. What goes wrong is in the outcome."""
        receiving = Receiving(
            self._stream,
            run_blocking=self._ctx.run_blocking,
            decide=self._decide,
            observe=self._observe,
            settle=self._settle,
            throttle=self._throttle,
        )
        self._begin(receiving)
        try:
            outcome = await receiving.run()
        except NetworkingError as error:
            return SingleOutcome(state=TransferState.FAILED, reason=error.detail)
        finally:
            with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await self._stream.aclose()
            if receiving.kept:
                with anyio.CancelScope(shield=True):
                    await self._ctx.run_blocking(remove_staging, self._destination, self._staging)
        match outcome:
            case Received() if outcome.failed:
                reason = f"{format_count(outcome.failed, 'file')} could not be read by their sender."
                return SingleOutcome(state=TransferState.FAILED, reason=reason, paths=self._paths(outcome))
            case Received():
                return SingleOutcome(state=TransferState.COMPLETED, paths=self._paths(outcome))
            case PeerCancelled():
                return SingleOutcome(state=TransferState.CANCELLED, reason=outcome.reason, by_peer=True)
            case PeerFailed():
                return SingleOutcome(state=TransferState.FAILED, reason=outcome.reason, by_peer=True)
            case Cancelled():
                return SingleOutcome(state=TransferState.CANCELLED, reason=self._cancel_reason or "")
            case Refused():
                return SingleOutcome(state=TransferState.FAILED, reason=outcome.reason)
            case _:
                return SingleOutcome(state=TransferState.FAILED, reason="It was received before.")

    async def _decide(self, offer: Offered) -> Admission | Refused:
        if offer.transfer_id != self._id or offer.purpose != self._purpose:
            return Refused(Refusal.POLICY, "Nobody has agreed to this transfer.")
        if offer.total_bytes > self._max_bytes:
            return Refused(Refusal.TOO_LARGE, "It is larger than what was agreed to.")
        if len(offer.items) > self._max_items:
            return Refused(Refusal.TOO_LARGE, "It has more files than what was agreed to.")
        return Admission(self._destination, self._staging, None, True, self._check_room)

    def _check_room(self, landing: Landing, missing: int) -> None:
        if missing > landing.free_bytes() - self._min_free_bytes:
            raise DiskFullError("There is not enough room on the receiver's disk.")

    async def _settle(self, received: Received) -> None:
        pass  # whoever agreed to it keeps the books

    def _paths(self, received: Received) -> tuple[str, ...]:
        return tuple(str(self._destination / name) for name in received.names)


class SingleTransfers:
    """The part of `FileTransferService` for transfers over a stream that another plugin has."""

    def __init__(self, ctx: PluginContext, min_free_bytes: int, limiter: Limiter) -> None:
        self._ctx = ctx
        self._min_free_bytes = min_free_bytes
        self._limiter = limiter

    def send_single(
        self,
        stream: RecordStream,
        transfer_id: uuid.UUID,
        paths: Sequence[Path],
        *,
        purpose: str,
        observe: Callable[[SingleProgress], None],
        device_id: uuid.UUID | None = None,
    ) -> SingleSend:
        """Make a transfer over a stream that the caller has agreed upon with a peer, paired or not.

        It runs when its ``run`` is called, once: there is no queue, no second attempt, and nothing is kept of it. The
        limits of bandwidth hold for it as for any other.

        :param stream: sealed; the other end calls `receive_single` at the same point.
        :param observe: told of each new state, and of progress at most four times a second.
        :param device_id: whose own limit of bandwidth holds too; None for a peer that is not paired.
        """
        throttle = self._limiter.up(device_id)
        return SingleSend(self._ctx, stream, transfer_id, paths, purpose=purpose, throttle=throttle, observe=observe)

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
        device_id: uuid.UUID | None = None,
    ) -> SingleReceive:
        """Make the receiving end of `send_single`.

        :param transfer_id: what the sender must give; ``purpose`` too.
        :param destination: folder that the files go to; created if it is missing.
        :param max_bytes: the most it may have in all.
        :param max_items: the most files and folders it may have.
        :param device_id: as with `send_single`.
        """
        return SingleReceive(
            self._ctx,
            stream,
            transfer_id,
            destination,
            purpose=purpose,
            max_bytes=max_bytes,
            max_items=max_items,
            min_free_bytes=self._min_free_bytes,
            throttle=self._limiter.down(device_id),
            observe=observe,
        )

    async def clear_single(self, transfer_id: uuid.UUID, destination: Path) -> None:
        """Remove what a single transfer that a crash cut short has left in a folder; harmless when there is nothing.

        :raises StorageError: it cannot be removed.
        """
        await self._ctx.run_blocking(remove_staging, destination, staging_name(transfer_id.hex))
