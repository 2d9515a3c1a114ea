"""The Spacedrop service: what programs, the local API and the protocol use."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import PeerStream, PluginContext, ProtocolHandler
from sdnet_core.errors import ConflictError, InvalidRequestError, NetworkTimeoutError
from sdnet_core.wire import MessageStream

from . import messages as m
from . import nearby_messages as n
from .drops import Changes, Drop, DropBook, DropStatus
from .finder import Finder, NearbyDevice
from .guests_in import GuestsIn
from .guests_out import GuestsOut
from .incoming import IncomingDrops
from .machine import DropState, Role
from .mover import Mover
from .outgoing import OutgoingDrops
from .policies import Policies
from .settings import SpacedropSettings
from .visibility import Visibility

__all__ = ["SpacedropHandler", "SpacedropService", "StrangerHandler"]

FIRST_MESSAGE_TIMEOUT_S = 10.0


class SpacedropService:
    """Offers files to devices, and asks this device's person about theirs.

    Get it with ``ctx.get_service(SpacedropService)``. A drop is named by its id or a unique prefix of it.

    :ivar visibility: who may send here.
    :ivar policies: what is done with single devices' offers.
    """

    def __init__(self, ctx: PluginContext) -> None:
        settings: SpacedropSettings = ctx.config or SpacedropSettings()
        self.settings = settings
        self._ctx = ctx
        self.visibility = Visibility(ctx, settings.visibility)
        self.policies = Policies(ctx, settings.policy)
        self._finder = Finder(ctx)
        self._book = DropBook(ctx, settings.history_days)
        self._mover = Mover(ctx)
        self._outgoing = OutgoingDrops(ctx, self._book, self._mover, settings)
        self._incoming = IncomingDrops(
            ctx, self._book, self._mover, settings, self.visibility, self.policies, start=self._start
        )
        self._guests_out = GuestsOut(ctx, self._book, self._mover, self._outgoing, settings)
        self._guests_in = GuestsIn(ctx, self._book, self._mover, settings, self.visibility, self.policies)
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up the drops that the last stop cut short; run until cancelled.

        :raises StorageError: the store cannot be read.
        """
        await self.visibility.load()
        await self.policies.load()
        await self._book.load()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self.visibility.run)
                for drop in self._book:
                    if drop.state.ended:
                        continue
                    if not drop.paired:
                        self._start(self._guests_in.restore, drop)
                    elif drop.machine.role is Role.SENDER:
                        self._start(self._outgoing.carry_on, drop)
                    else:
                        self._start(self._incoming.restore, drop)
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        if self._tasks is None:
            raise ConflictError("Spacedrop is not running.")
        self._tasks.start_soon(function, *args)

    # What is there

    def drops(self) -> list[DropStatus]:
        """All drops, sent and received, the latest first."""
        return self._statuses(lambda drop: True)

    def pending(self) -> list[DropStatus]:
        """The offers that wait for an answer from this device's person, the latest first."""
        return self._statuses(_is_pending)

    def history(self) -> list[DropStatus]:
        """The drops that have ended, sent and received, the latest first."""
        return self._statuses(lambda drop: drop.concluded)

    async def forget(self, reference: str | None = None) -> int:
        """Take drops that have ended out of the history; the files stay where they are.

        :param reference: one; all of them when None.
        :returns: how many.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it has not ended.
        """
        if reference is None:
            return await self._book.forget()
        found = self._book.find(reference)
        if not found.concluded:
            raise ConflictError(f"The drop is still {found.state}; it can be cancelled.")
        return await self._book.forget(lambda drop: drop is found)

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
        return Changes([self._book.find(reference)])

    def watch_all(self, references: Sequence[str]) -> AsyncIterator[DropStatus]:
        """The status of several drops now and after every change of one, until all have ended.

        :raises NotFoundError: there is none, or several fit one of them.
        """
        return Changes([self._book.find(reference) for reference in references])

    def _statuses(self, among: Callable[[Drop], bool]) -> list[DropStatus]:
        found = sorted(filter(among, self._book), key=lambda drop: drop.created_at, reverse=True)
        return [drop.status() for drop in found]

    # Who is there

    async def nearby(self) -> list[NearbyDevice]:
        """The devices that are near; takes two to six seconds. Devices that are not paired are found if they let
        everyone find them, and learn this device's peer id by being asked for their names."""
        return await self._finder.look()

    async def find_recipients(
        self, references: Sequence[str], *, everyone: bool = False, nearby: bool = False
    ) -> list[NearbyDevice]:
        """Find out to whom files are to be sent.

        :param references: names, ids, or unique prefixes of either. A paired device's name goes before others'.
        :param everyone: all paired devices that are connected; with ``nearby`` all that are near.
        :param nearby: devices that are not paired, too.
        :raises NotFoundError: nobody fits one of them, or several do.
        """
        return await self._finder.resolve(references, everyone=everyone, nearby=nearby)

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

    async def send_nearby(self, peer_id: str, paths: Sequence[Path | str], message: str = "") -> DropStatus:
        """Turn to a device that is not paired. Returns when there is a number for people to compare.

        Nothing is offered before `confirm`, which has to come within ``answer_timeout_s``.

        :param peer_id: of a device that `nearby` has found.
        :param paths: absolute.
        :raises NotFoundError: it is not near.
        :raises RefusedError: it takes nothing of strangers now, or too many drops are under way here.
        :raises InvalidRequestError: the message is too long, a path is missing, or there is nothing to send.
        :raises NetworkingError: it cannot be reached, or does not keep to the protocol.
        """
        stranger = await self._finder.stranger(peer_id)
        drop, talk = await self._guests_out.meet(stranger, [Path(path) for path in paths], message)
        self._start(self._guests_out.run, drop, talk)
        return drop.status()

    async def confirm(self, reference: str) -> DropStatus:
        """Say that the other screen shows the same number; the offer goes out.

        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: there is nothing to compare, or no more.
        """
        drop = self._book.find(reference)
        if drop.machine.role is not Role.SENDER:
            raise ConflictError("The sender confirms the number; the receiver does so by accepting.")
        self._guests_out.confirm(drop)
        return drop.status()

    async def accept(self, reference: str, folder: Path | str | None = None) -> DropStatus:
        """Take an offer; the files come by themselves then.

        :param folder: an absolute path, made if it is missing; the downloads folder when None.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it was answered, or has ended.
        :raises InvalidRequestError: the folder cannot be one.
        """
        drop = self._find_offer(reference)
        place = None if folder is None else Path(folder)
        await (self._incoming.accept if drop.paired else self._guests_in.accept)(drop, place)
        return drop.status()

    async def reject(self, reference: str, reason: str = "") -> DropStatus:
        """Say no to an offer.

        :param reason: told to the sender.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it was answered, or has ended.
        """
        await self._reject(self._find_offer(reference), reason)
        return self._find_offer(reference).status()

    async def _reject(self, drop: Drop, reason: str) -> None:
        if len(reason) > m.MAX_REASON_LENGTH:
            raise InvalidRequestError(f"The reason is longer than {m.MAX_REASON_LENGTH} characters.")
        if drop.machine.role is Role.SENDER:
            raise ConflictError("This device has sent that drop; only the receiver can answer it.")
        if drop.paired:
            await self._incoming.reject(drop, reason)
        else:
            self._guests_in.reject(drop, reason)

    async def cancel(self, reference: str, reason: str = "") -> DropStatus:
        """End a drop, sent or received, that has not ended; an offer that waits here is rejected.

        :param reason: told to the other side where it waits for people.
        :raises NotFoundError: there is no such drop, or several fit.
        :raises ConflictError: it has ended.
        """
        drop = self._book.find(reference)
        sender = drop.machine.role is Role.SENDER
        if drop.machine.open and not sender:
            await self._reject(drop, reason)
        elif not drop.paired:
            if sender:
                self._guests_out.cancel(drop, reason[: m.MAX_REASON_LENGTH] or "The sender cancelled it.")
            else:
                self._guests_in.cancel(drop)
        else:
            await (self._outgoing if sender else self._incoming).cancel(drop)
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

    async def serve_stranger(self, stream: PeerStream) -> None:
        """Serve one inbound stream of a device that need not be paired.

        :raises NetworkingError: the stream broke, or the other side does not keep to the protocol.
        """
        await self._guests_in.serve(stream)


class StrangerHandler(ProtocolHandler):
    """Serves ``/sdnet/spacedrop-nearby/1``."""

    protocol_name = n.PROTOCOL_NAME

    def __init__(self, service: SpacedropService) -> None:
        self._service = service

    async def handle_stream(self, stream: PeerStream) -> None:
        await self._service.serve_stranger(stream)


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
    return drop.machine.role is Role.RECEIVER and drop.machine.open
