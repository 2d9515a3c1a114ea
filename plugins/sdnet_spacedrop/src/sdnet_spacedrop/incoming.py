"""Drops that are offered to this device: ask its person, answer, let the file transfer in."""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio

from sdnet_core import PluginContext, RemoteDevice, Trust
from sdnet_core.errors import ConflictError, ConnectionFailedError, InvalidRequestError, NetworkingError, ProtocolError
from sdnet_core.wire import MessageStream, decode

from . import messages as m
from .drops import Drop, DropBook
from .events import SpacedropOffered
from .machine import DropState, ReceiverMachine, Role
from .mover import Mover
from .outgoing import publish_answer, send_cancel
from .policies import Policies
from .settings import SpacedropSettings
from .visibility import Visibility

__all__ = ["IncomingDrops", "check_folder", "publish_offer"]

logger = logging.getLogger(__name__)

MAX_PENDING = 32
"""Most offers that wait for an answer."""
MAX_PENDING_PER_DEVICE = 8
MAX_OFFERS_PER_MINUTE = 60
"""Most new offers one device may make."""
_NAMES_IN_EVENT = 8


class IncomingDrops:
    """The receiving side.

    :param start: runs a background task as long as the node runs.
    """

    def __init__(
        self,
        ctx: PluginContext,
        book: DropBook,
        mover: Mover,
        settings: SpacedropSettings,
        visibility: Visibility,
        policies: Policies,
        *,
        start: Callable[[Callable[[Drop], Coroutine[Any, Any, None]], Drop], None],
    ) -> None:
        self._ctx = ctx
        self._book = book
        self._mover = mover
        self._settings = settings
        self._visibility = visibility
        self._policies = policies
        self._start = start
        self._offers: dict[uuid.UUID, deque[float]] = {}

    # What devices say

    async def serve_offer(self, device: RemoteDevice, request: m.SpacedropRequest, messages: MessageStream) -> None:
        """Take an offer, wait for its answer, and send that.

        :raises ProtocolError: the sender does not keep to the protocol.
        :raises ConnectionFailedError: the stream broke.
        """
        drop = self._take(device, request)
        if isinstance(drop, m.SpacedropResponse):
            await messages.send(drop)
            return
        machine = _receiver(drop)
        if machine.asking or not drop.answered.is_set():
            await self._await_answer(drop, machine, messages)
        if not (machine.state is DropState.CANCELLED and machine.by_peer):
            await messages.send(machine.answer())

    async def peer_cancelled(self, device: RemoteDevice, cancel: m.SpacedropCancel) -> None:
        """The other side of a drop, in either role, does not want it any more; unknown ids are ignored."""
        drop = self._book.get(uuid.UUID(bytes=cancel.transfer_id))
        if drop is None or drop.device_id != device.device_id or drop.state.ended:
            return
        asking = drop.state is DropState.ASKING
        drop.machine.peer_cancelled(cancel.reason or f"{drop.device_name} cancelled it.")
        drop.notify()
        drop.scope.cancel()
        if not asking:
            self._start(self._mover.stop, drop)
        elif drop.machine.role is Role.RECEIVER:
            await self._book.conclude(drop)

    def _take(self, device: RemoteDevice, request: m.SpacedropRequest) -> Drop | m.SpacedropResponse:
        known = self._book.get(uuid.UUID(bytes=request.transfer_id))
        if known is not None:
            if known.device_id != device.device_id or not isinstance(known.machine, ReceiverMachine):
                return _refuse(request, m.Refusal.FAILED, "There is another drop with this id.")
            known.machine.repeated(request)
            if not known.machine.interrupted:
                return known
        refusal = self._refusal(device, request, known)
        if refusal is not None:
            return refusal
        timeout_s = self._timeout_s(request)
        if known is not None:
            drop = known
            _receiver(drop).resume()
            drop.answered, drop.ended_at, drop.concluded = anyio.Event(), None, False
            drop.expires_at = self._ctx.clock.now() + timeout_s
        else:
            drop = self._book.add(ReceiverMachine(request), device, timeout_s=timeout_s)
        if self._policies.of(device.device_id) == "accept-trusted" and device.trust is Trust.TRUSTED:
            _receiver(drop).accept()
            self._start(self._admit_unasked, drop)
        else:
            publish_offer(self._ctx, drop)
        drop.notify()
        return drop

    def _refusal(
        self, device: RemoteDevice, request: m.SpacedropRequest, known: Drop | None
    ) -> m.SpacedropResponse | None:
        if self._visibility.mode == "off" or self._policies.of(device.device_id) == "never":
            return _refuse(request, m.Refusal.POLICY, "This device takes no drops.")
        now = self._ctx.clock.monotonic()
        recent = self._offers.setdefault(device.device_id, deque(maxlen=MAX_OFFERS_PER_MINUTE))
        pending = [
            drop
            for drop in self._book
            if drop.machine.role is Role.RECEIVER and drop.paired and not drop.answered.is_set()
        ]
        of_device = sum(drop.device_id == device.device_id for drop in pending)
        if (
            len(pending) >= MAX_PENDING
            or of_device >= MAX_PENDING_PER_DEVICE
            or (len(recent) == MAX_OFFERS_PER_MINUTE and now - recent[0] < 60)
        ):
            return _refuse(request, m.Refusal.BUSY, "Too many offers wait there for an answer already.")
        recent.append(now)
        return None

    def _timeout_s(self, request: m.SpacedropRequest) -> float:
        return min(self._settings.answer_timeout_s, request.answer_timeout_ms / 1000)

    async def _await_answer(self, drop: Drop, machine: ReceiverMachine, messages: MessageStream) -> None:
        drop.conversation += 1
        mine = drop.conversation
        timeout_s = max(0.0, (drop.expires_at or 0.0) - self._ctx.clock.now())
        gone: list[Exception] = []

        async def listen() -> None:
            try:
                await self._listen(drop, machine, messages)
            except Exception as error:
                gone.append(error)
            tasks.cancel_scope.cancel()

        try:
            await messages.send(machine.asked(timeout_s))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                with anyio.move_on_after(timeout_s):
                    await drop.answered.wait()
                if machine.asking and drop.conversation == mine:
                    machine.time_out("Nobody answered in time.")
                if machine.state is DropState.ACCEPTED:  # it is being made lasting; the answer may go out only then
                    await drop.answered.wait()
                tasks.cancel_scope.cancel()
            if gone:
                raise gone[0]
            if machine.asking:
                raise ProtocolError("The offer was made again on another stream.")
        finally:
            if machine.asking and drop.conversation == mine:
                machine.interrupt(f"The connection to {drop.device_name} was lost before the answer.")
            if machine.state.ended and drop.ended_at is None:
                with anyio.CancelScope(shield=True):
                    await self._book.conclude(drop)

    async def _listen(self, drop: Drop, machine: ReceiverMachine, messages: MessageStream) -> None:
        payload = await messages.receive_bytes_or_end()
        if payload is None:
            raise ConnectionFailedError("The sender left before the answer.")
        machine.withdraw(decode(payload, m.SpacedropCancel, max_bytes=m.MAX_MESSAGE_BYTES))
        drop.notify()

    # What people decide

    async def accept(self, drop: Drop, folder: Path | None) -> None:
        """A person takes the offer.

        :param folder: where to put it; the downloads folder when None. It is made when the files come.
        :raises ConflictError: it was answered, or has ended.
        :raises InvalidRequestError: the folder cannot be one.
        :raises StorageError: the decision could not be kept.
        """
        await check_folder(self._ctx, folder)
        _receiver(drop).accept()
        drop.folder = None if folder is None else str(folder)
        await self._admit(drop)

    async def reject(self, drop: Drop, reason: str) -> None:
        """A person does not take the offer.

        :raises ConflictError: it was answered, or has ended.
        """
        if len(reason) > m.MAX_REASON_LENGTH:
            raise InvalidRequestError(f"The reason is longer than {m.MAX_REASON_LENGTH} characters.")
        _receiver(drop).reject(reason)
        drop.answered_at = self._ctx.clock.now()
        publish_answer(self._ctx, drop)
        await self._book.conclude(drop)

    async def cancel(self, drop: Drop) -> None:
        """A person does not want any more what was accepted.

        :raises ConflictError: it has ended.
        """
        drop.machine.cancel("The receiver cancelled it.")
        drop.notify()
        await self._mover.stop(drop)
        await send_cancel(self._ctx, drop, drop.machine.reason)

    # What follows

    async def _admit(self, drop: Drop) -> None:
        """Make an acceptance lasting, let the transfer in, send the answer, and follow the transfer."""
        machine = drop.machine
        drop.answered_at = self._ctx.clock.now()
        drop.folder = drop.folder or str(self._ctx.downloads_dir)
        try:
            await self._book.save(drop)
            await self._mover.admit(drop)
        except NetworkingError as error:
            machine.give_up(error.detail)
            await self._book.conclude(drop)
            raise
        if machine.state is not DropState.ACCEPTED:  # cancelled meanwhile
            await self._mover.stop(drop)
            await self._book.conclude(drop)
            raise ConflictError(f"The drop is {machine.state}: {machine.reason}")
        publish_answer(self._ctx, drop)
        drop.answered.set()
        drop.notify()
        self._start(self.follow, drop)

    async def _admit_unasked(self, drop: Drop) -> None:
        try:
            await self._admit(drop)
        except NetworkingError as error:
            logger.warning("drop %s could not be taken: %s", drop.id, error)

    async def follow(self, drop: Drop) -> None:
        """Watch the transfer of an accepted drop to its end."""
        try:
            await self._mover.follow(drop)
            if drop.state is DropState.CANCELLED:  # nobody goes on with it: nothing that has come is kept
                await self._mover.stop(drop)
        except NetworkingError as error:
            drop.machine.give_up(error.detail)
        await self._book.conclude(drop)

    async def restore(self, drop: Drop) -> None:
        """After a restart: let the transfer of an accepted drop in again, and follow it."""
        try:
            await self._mover.admit(drop)
        except NetworkingError as error:
            drop.machine.give_up(error.detail)
            await self._book.conclude(drop)
            return
        await self.follow(drop)


def publish_offer(ctx: PluginContext, drop: Drop) -> None:
    """Tell that a person has to say yes or no."""
    status = drop.status()
    ctx.publish(
        SpacedropOffered(
            drop_id=drop.id,
            device_id=drop.device_id,
            device_name=drop.device_name,
            sender_name=status.sender_name,
            message=status.message,
            names=tuple(item.name for item in status.items[:_NAMES_IN_EVENT]),
            item_count=status.item_count,
            total_bytes=status.total_bytes,
            expires_at=drop.expires_at or 0.0,
            check=drop.check,
            folder=str(ctx.downloads_dir),
        )
    )


async def check_folder(ctx: PluginContext, folder: Path | None) -> None:
    """See whether files can be put into a folder; it need not be there yet.

    :raises InvalidRequestError: they cannot.
    """
    if folder is None:
        return
    if not folder.is_absolute():
        raise InvalidRequestError(f"{folder} is not an absolute path.")
    if reason := await ctx.run_blocking(_unusable, folder):
        raise InvalidRequestError(reason)


def _receiver(drop: Drop) -> ReceiverMachine:
    if not isinstance(drop.machine, ReceiverMachine):
        raise ConflictError("This device has sent that drop; only the receiver can answer it.")
    return drop.machine


def _refuse(request: m.SpacedropRequest, code: str, reason: str) -> m.SpacedropResponse:
    return m.SpacedropResponse(transfer_id=request.transfer_id, accepted=False, code=code, reason=reason)


def _unusable(folder: Path) -> str:
    """Why files cannot be put into a folder; empty if they can, as far as that can be told."""
    try:
        present = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror}."
    if not present.is_dir():
        return f"{present} is not a folder."
    if not os.access(present, os.W_OK | os.X_OK):
        return f"You may not write into {present}."
    return ""
