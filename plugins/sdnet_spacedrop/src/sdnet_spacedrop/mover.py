"""How the bytes of a drop move: by the file transfer plugin, under the drop's id."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdnet_core import PluginContext
from sdnet_core.errors import ConflictError, NotFoundError
from sdnet_file_transfer import FileTransferService, SingleOutcome, SingleProgress, Transfer, TransferState, scan

from . import messages as m
from .drops import Drop
from .machine import Role
from .oneoff import OneOffStream
from .text import printable

__all__ = ["Mover", "Summary"]

PURPOSE = "spacedrop"
GRANT_S = 3600.0
"""How long an accepted drop may take to begin."""

Summary = tuple[tuple[m.SpacedropItem, ...], int, int, int]
"""The first items, how many more there are at the top, all files and folders, and all bytes."""


class Mover:
    """Uses the file transfer service for drops."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx

    @property
    def _files(self) -> FileTransferService:
        return self._ctx.get_service(FileTransferService)

    async def summarize(self, paths: Sequence[Path]) -> Summary:
        """What there is to send.

        :raises InvalidRequestError: a path is missing, there is nothing to send, or there is too much.
        """
        return await self._ctx.run_blocking(_summarize, paths)

    async def admit(self, drop: Drop) -> None:
        """Let the transfer in; harmless if that was done before.

        :raises StorageError: it could not be noted.
        :raises ConflictError: there is another transfer with this id.
        """
        with suppress(NotFoundError):
            past = self._files.get(drop.id)
            if (past.direction, past.device_id, past.purpose) != ("receive", drop.device_id, PURPOSE):
                raise ConflictError("There is another transfer with this id.")
            return
        assert drop.device_id is not None
        await self._files.grant(
            drop.device_id,
            drop.id,
            Path(drop.folder or self._ctx.downloads_dir),
            max_bytes=drop.machine.request.total_bytes,
            expires=self._ctx.clock.now() + GRANT_S,
            max_items=drop.machine.request.item_count,
            purpose=PURPOSE,
        )

    async def send(self, drop: Drop) -> None:
        """Send an accepted drop, and follow it to its end; takes up one that a restart cut short.

        :raises NetworkingError: it cannot begin.
        """
        try:
            self._files.get(drop.id)
        except NotFoundError:
            assert drop.device_id is not None
            await self._files.send(drop.device_id, drop.sources, purpose=PURPOSE, grant_id=drop.id)
        if drop.state.ended:  # cancelled while it was being started
            await self.stop(drop)
        await self.follow(drop)

    async def follow(self, drop: Drop) -> None:
        """Bring what becomes of the transfer into the drop, until it is over.

        :raises NotFoundError: there is no such transfer.
        """
        async for transfer in self._files.watch(drop.id):
            _take_over(drop, transfer)
            drop.notify()

    async def exchange(self, drop: Drop, stream: OneOffStream) -> None:
        """Send or receive an accepted drop over a one-off stream, to its end.

        :param stream: with a device that is not paired; it is closed at the end.
        """
        request = drop.machine.request

        def observe(progress: SingleProgress) -> None:
            drop.done_bytes, drop.rate_bytes_s = progress.done_bytes, progress.rate
            if progress.state in (TransferState.TRANSFERRING, TransferState.VERIFYING):
                drop.machine.transferring()
            drop.notify()

        if drop.machine.role is Role.SENDER:
            paths = [Path(source) for source in drop.sources]
            drop.single = self._files.send_single(stream, drop.id, paths, purpose=PURPOSE, observe=observe)
        else:
            drop.single = self._files.receive_single(
                stream,
                drop.id,
                Path(drop.folder or self._ctx.downloads_dir),
                purpose=PURPOSE,
                max_bytes=request.total_bytes,
                max_items=request.item_count,
                observe=observe,
            )
        if drop.state.ended:  # cancelled before it began
            drop.single.cancel(drop.machine.reason[: m.MAX_REASON_LENGTH])
        outcome = await drop.single.run()
        if stream.cancelled is not None and not drop.state.ended:
            drop.machine.peer_cancelled(stream.cancelled)
        _conclude(drop, outcome)

    async def clear(self, drop: Drop) -> None:
        """Remove what a one-off transfer that a crash cut short has left.

        :raises StorageError: it cannot be removed.
        """
        await self._files.clear_single(drop.id, Path(drop.folder or self._ctx.downloads_dir))

    async def stop(self, drop: Drop) -> None:
        """End the transfer, or take back the permission for it; harmless when it is over."""
        with suppress(NotFoundError, ConflictError):
            await self._files.cancel(drop.id, reason=drop.machine.reason[: m.MAX_REASON_LENGTH])


def _take_over(drop: Drop, transfer: Transfer) -> None:
    machine = drop.machine
    drop.done_bytes, drop.rate_bytes_s = transfer.done_bytes, transfer.rate
    if machine.state.ended:
        return
    match transfer.state:
        case TransferState.TRANSFERRING | TransferState.VERIFYING:
            machine.transferring()
        case TransferState.COMPLETED:
            if machine.role is Role.RECEIVER:
                drop.paths = tuple(printable(path) for path in transfer.paths)
            machine.complete()
        case TransferState.CANCELLED:
            by_peer = transfer.reason.startswith(transfer.device_name)
            (machine.peer_cancelled if by_peer else machine.cancel)(transfer.reason)
        case TransferState.FAILED | TransferState.REJECTED:
            by_peer = transfer.state is TransferState.REJECTED
            machine.fail(printable(transfer.reason) or "The transfer failed.", by_peer=by_peer)


def _conclude(drop: Drop, outcome: SingleOutcome) -> None:
    machine = drop.machine
    if machine.state.ended:
        return
    if outcome.state is TransferState.COMPLETED:
        drop.paths = tuple(printable(path) for path in outcome.paths)
        drop.done_bytes = machine.request.total_bytes
        machine.complete()
    elif outcome.state is TransferState.CANCELLED:
        (machine.peer_cancelled if outcome.by_peer else machine.cancel)(outcome.reason)
    else:
        machine.fail(printable(outcome.reason) or "The transfer failed.", by_peer=outcome.by_peer)


def _summarize(paths: Sequence[Path]) -> Summary:
    manifest = scan(paths)
    found: dict[str, list[int]] = {}
    for item in manifest.items:
        sums = found.setdefault(item.path[0], [int(len(item.path) == 1 and item.directory), 0, 0])
        sums[1] += item.size
        sums[2] += 1
    listed = tuple(
        m.SpacedropItem(name, bool(directory), size, count)
        for name, (directory, size, count) in list(found.items())[: m.MAX_LISTED_ITEMS]
    )
    return listed, len(found) - len(listed), len(manifest.items), manifest.total_bytes
