"""The Spacedrop service: what programs, the local API and the protocol use."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import PeerStream, PluginContext, ProtocolHandler
from sdnet_core.errors import ConflictError, NetworkTimeoutError
from sdnet_core.wire import MessageStream

from . import messages as m
from .drops import Drop, DropBook, DropStatus
from .incoming import IncomingDrops
from .machine import DropState, Role
from .mover import Mover
from .outgoing import OutgoingDrops
from .settings import SpacedropSettings

__all__ = ["SpacedropHandler", "SpacedropService"]

FIRST_MESSAGE_TIMEOUT_S = 10.0


class SpacedropService:
    """Offers files to paired devices, and asks this device's person about theirs.

    Get it with ``ctx.get_service(SpacedropService)``. A drop is named by its id or a unique prefix of it.
    """

    def __init__(self, ctx: PluginContext) -> None:
        settings: SpacedropSettings = ctx.config or SpacedropSettings()
        self.settings = settings
        self._ctx = ctx
        self._book = DropBook(ctx)
        self._mover = Mover(ctx)
        self._outgoing = OutgoingDrops(ctx, self._book, self._mover, settings)
        self._incoming = IncomingDrops(ctx, self._book, self._mover, settings, start=self._start)
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up the drops that the last stop cut short; run until cancelled.

        :raises StorageError: the store cannot be read.
        """
        await self._book.load()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for drop in self._book:
                    if drop.state.ended:
                        continue
                    restore = self._outgoing.carry_on if drop.machine.role is Role.SENDER else self._incoming.restore
                    self._start(restore, drop)
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None

    def _start(self, function: Callable[[Drop], Coroutine[Any, Any, None]], drop: Drop) -> None:
        if self._tasks is None:
            raise ConflictError("Spacedrop is not running.")
        self._tasks.start_soon(function, drop)

    # What is there

    def drops(self) -> list[DropStatus]:
        """All drops, sent and received, the latest first."""
        return self._statuses(lambda drop: True)

    def pending(self) -> list[DropStatus]:
        """The offers that wait for an answer from this device's person, the latest first."""
        return self._statuses(_is_pending)

    def inbox(self) -> list[DropStatus]:
        """The drops received, with where they were put, the latest first."""
        return self._statuses(lambda drop: drop.machine.role is Role.RECEIVER and drop.state is DropState.COMPLETED)

    def get(self, reference: str) -> DropStatus:
        """One drop.

        :raises NotFoundError: there is none, or several fit.
        """
        return self._book.find(reference).status()

    def watch(self, reference: str) -> AsyncIterator[DropStatus]:
        """A drop's status now and after every change, until it has ended.

        :raises NotFoundError: there is none, or several fit.
        """
        return self._book.find(reference).changes()

    def _statuses(self, among: Callable[[Drop], bool]) -> list[DropStatus]:
        found = sorted(filter(among, self._book), key=lambda drop: drop.created_at, reverse=True)
        return [drop.status() for drop in found]

    # What people do

    async def send(self, device_id: uuid.UUID, paths: Sequence[Path | str], message: str = "") -> DropStatus:
        """Offer files and folders to a device. Returns when the offer is made up; it then goes on by itself.

        :param paths: absolute.
        :param message: for the person there, up to 2000 characters.
        :raises DeviceNotFoundError: the device is not paired.
        :raises InvalidRequestError: the message is too long, a path is missing, or there is nothing to send.
        :raises RefusedError: too many drops are under way.
        """
        drop = await self._outgoing.offer(device_id, [Path(path) for path in paths], message)
        self._start(self._outgoing.run, drop)
        return drop.status()

    async def accept(self, reference: str, folder: Path | str | None = None) -> DropStatus:
        """Take an offer; the files come by themselves then.

        :param folder: an absolute path, made if it is missing; the downloads folder when None.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it was answered, or has ended.
        :raises InvalidRequestError: the folder cannot be one.
        """
        drop = self._find_offer(reference)
        await self._incoming.accept(drop, None if folder is None else Path(folder))
        return drop.status()

    async def reject(self, reference: str, reason: str = "") -> DropStatus:
        """Say no to an offer.

        :param reason: told to the sender.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it was answered, or has ended.
        """
        drop = self._find_offer(reference)
        await self._incoming.reject(drop, reason)
        return drop.status()

    async def cancel(self, reference: str) -> DropStatus:
        """End a drop, sent or received, that has not ended; an offer that waits here is rejected.

        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it has ended.
        """
        drop = self._book.find(reference)
        if drop.machine.role is Role.SENDER:
            await self._outgoing.cancel(drop)
        elif drop.state is DropState.ASKING:
            await self._incoming.reject(drop, "")
        else:
            await self._incoming.cancel(drop)
        return drop.status()

    def _find_offer(self, reference: str) -> Drop:
        offers = [drop for drop in self._book if _is_pending(drop) and str(drop.id).startswith(reference.lower())]
        return self._book.find(reference, among=_is_pending if offers else lambda drop: True)

    # What devices say

    async def serve(self, stream: PeerStream) -> None:
        """Serve one inbound stream.

        :raises NetworkingError: the stream broke, or the other side does not keep to the protocol.
        """
        device = stream.require_device()
        messages = stream.messages(max_bytes=m.MAX_MESSAGE_BYTES)
        first = await _first(messages)
        if isinstance(first, m.SpacedropCancel):
            await self._incoming.peer_cancelled(device, first)
        else:
            await self._incoming.serve_offer(device, first, messages)


class SpacedropHandler(ProtocolHandler):
    """Serves ``/sdnet/spacedrop/1``."""

    protocol_name = m.PROTOCOL_NAME

    def __init__(self, service: SpacedropService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.serve(stream)


async def _first(messages: MessageStream) -> m.FirstMessage:
    try:
        with anyio.fail_after(FIRST_MESSAGE_TIMEOUT_S):
            message: m.FirstMessage = await messages.receive(m.FirstMessage)
            return message
    except TimeoutError:
        raise NetworkTimeoutError("The sender did not say in time what it wants.") from None


def _is_pending(drop: Drop) -> bool:
    return drop.machine.role is Role.RECEIVER and drop.state is DropState.ASKING
