"""Drops that this device sends: ask, wait for the answer, hand over to the file transfer."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import (
    ConnectionFailedError,
    InvalidRequestError,
    NetworkingError,
    NetworkTimeoutError,
    ProtocolError,
    RefusedError,
)

from . import messages as m
from .drops import Drop, DropBook
from .events import SpacedropAnswered
from .machine import DropState, Role, SenderMachine
from .mover import Mover
from .settings import SpacedropSettings

__all__ = ["FAREWELL_TIMEOUT_S", "GONE", "GRACE_S", "OutgoingDrops", "publish_answer", "send_cancel"]

logger = logging.getLogger(__name__)

MAX_OUTGOING = 64
"""Most drops of our own that have not ended."""
GRACE_S = 5.0
"""How much longer we wait than the receiver's person may: its answer has to travel."""
CONNECT_TIMEOUT_S = 10.0
REPEAT_INTERVAL_S = 0.5
"""Between two attempts to take up an interrupted conversation."""
FAREWELL_TIMEOUT_S = 2.0

_NO_ANSWER = "{} did not answer in time."
GONE: Final = (NetworkingError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
"""What may come of telling a peer something that is not there any more."""


class OutgoingDrops:
    """The sending side.

    :param mover: moves the files once they are accepted.
    """

    def __init__(self, ctx: PluginContext, book: DropBook, mover: Mover, settings: SpacedropSettings) -> None:
        self._ctx = ctx
        self._book = book
        self._mover = mover
        self._settings = settings

    async def offer(self, device_id: uuid.UUID, paths: Sequence[Path], message: str) -> Drop:
        """Make the drop that `run` carries out.

        :raises DeviceNotFoundError: the device is not paired.
        :raises InvalidRequestError: the message is too long, a path is missing, or there is nothing to send.
        :raises RefusedError: too many drops are under way.
        """
        device = self._ctx.get_device(device_id)
        request = await self.make_request(paths, message)
        drop = self._book.add(SenderMachine(request), device, timeout_s=self._settings.answer_timeout_s)
        drop.sources = tuple(str(path) for path in paths)
        return drop

    async def make_request(self, paths: Sequence[Path], message: str) -> m.SpacedropRequest:
        """Make up an offer, for any device.

        :raises InvalidRequestError: the message is too long, a path is missing, or there is nothing to send.
        :raises RefusedError: too many drops are under way.
        """
        if len(message) > m.MAX_MESSAGE_LENGTH:
            raise InvalidRequestError(f"The message is longer than {m.MAX_MESSAGE_LENGTH} characters.")
        if any("\ud800" <= character <= "\udfff" for character in message):
            raise InvalidRequestError("The message contains characters that cannot be sent.")
        for path in paths:
            if not path.is_absolute():
                raise InvalidRequestError(f"{path} is not an absolute path.")
        if sum(drop.machine.role is Role.SENDER and not drop.state.ended for drop in self._book) >= MAX_OUTGOING:
            raise RefusedError(f"{MAX_OUTGOING} drops are under way already; wait until some are done.")
        items, more_items, item_count, total_bytes = await self._mover.summarize(paths)
        return m.SpacedropRequest(
            transfer_id=uuid.UUID(bytes=self._ctx.randomness.bytes(16), version=4).bytes,
            sender_name=self._ctx.local_device.name[: m.MAX_SENDER_NAME_LENGTH],
            message=message,
            items=items,
            more_items=more_items,
            item_count=item_count,
            total_bytes=total_bytes,
            answer_timeout_ms=max(1, round(self._settings.answer_timeout_s * 1000)),
        )

    async def run(self, drop: Drop) -> None:
        """Carry out a drop to its end; never raises for what can go wrong with it."""
        machine = drop.machine
        assert isinstance(machine, SenderMachine)
        await self._ask(drop, machine)
        if machine.state is DropState.ACCEPTED:
            drop.answered_at = self._ctx.clock.now()
        if machine.state in (DropState.ACCEPTED, DropState.REJECTED):
            publish_answer(self._ctx, drop)
        drop.notify()
        if machine.state is not DropState.ACCEPTED:
            if machine.state is DropState.FAILED and machine.reached:
                await send_cancel(self._ctx, drop, "The conversation went wrong.")
            await self._book.conclude(drop)
            return
        try:
            await self._book.save(drop)
        except NetworkingError as error:
            machine.give_up(error.detail)
        await self.carry_on(drop)

    async def carry_on(self, drop: Drop) -> None:
        """Send what was accepted, also after a restart; never raises for what can go wrong with it."""
        machine = drop.machine
        if not machine.state.ended:
            try:
                await self._mover.send(drop)
            except NetworkingError as error:
                machine.give_up(error.detail)
        if machine.state is DropState.FAILED:
            # The receiver may still wait for a transfer that never began.
            await send_cancel(self._ctx, drop, "The sender could not send the files.")
        await self._book.conclude(drop)

    async def cancel(self, drop: Drop) -> None:
        """A person does not want to send it any more.

        :raises ConflictError: it has ended.
        """
        asking = drop.state is DropState.ASKING
        drop.machine.cancel("The sender cancelled it.")
        drop.scope.cancel()
        drop.notify()
        if not asking:
            await self._mover.stop(drop)
            await send_cancel(self._ctx, drop, drop.machine.reason)

    async def _ask(self, drop: Drop, machine: SenderMachine) -> None:
        """Talk to the receiver until there is an answer, a person here cancels, or it takes too long."""
        deadline = anyio.current_time() + self._settings.answer_timeout_s + GRACE_S
        with drop.scope, anyio.CancelScope(deadline=deadline):
            assert drop.device_id is not None
            while machine.asking:
                try:
                    stream = await self._ctx.open_stream(drop.device_id, m.PROTOCOL_NAME, timeout_s=CONNECT_TIMEOUT_S)
                    await self._converse(drop, machine, stream, deadline)
                except (ConnectionFailedError, NetworkTimeoutError) as error:
                    if not machine.reached:
                        machine.give_up(error.detail)
                        return
                    logger.info("drop %s: the conversation broke off, asking again: %s", drop.id, error)
                    machine.repeat()
                    drop.asked = False
                    drop.notify()
                    await anyio.sleep(REPEAT_INTERVAL_S)
                except NetworkingError as error:
                    machine.give_up(error.detail, by_peer=isinstance(error, ProtocolError))
        if machine.asking:
            machine.time_out(_NO_ANSWER.format(drop.device_name))

    async def _converse(self, drop: Drop, machine: SenderMachine, stream: PeerStream, deadline: float) -> None:
        """One attempt: until the receiver has answered, or there is no time or no wish left."""
        messages = stream.messages(max_bytes=m.MAX_MESSAGE_BYTES)
        try:
            await messages.send(machine.request)
            while machine.asking:
                machine.receive(await messages.receive(m.SenderMessage))
                drop.asked = machine.asked
                drop.notify()
        finally:
            with anyio.move_on_after(FAREWELL_TIMEOUT_S, shield=True), suppress(*GONE):
                if machine.asking and anyio.current_time() >= deadline:
                    await messages.send(machine.time_out(_NO_ANSWER.format(drop.device_name)))
                elif machine.state is DropState.CANCELLED and not machine.by_peer:
                    await messages.send(machine.cancellation())
                await stream.aclose()


def publish_answer(ctx: PluginContext, drop: Drop) -> None:
    """Tell that a drop was accepted or refused."""
    machine = drop.machine
    ctx.publish(
        SpacedropAnswered(
            drop_id=drop.id,
            role=str(machine.role),
            device_id=drop.device_id,
            device_name=drop.device_name,
            accepted=machine.state is DropState.ACCEPTED,
            code=machine.code,
            reason=machine.reason,
        )
    )


async def send_cancel(ctx: PluginContext, drop: Drop, reason: str) -> None:
    """Tell the other side that a drop is cancelled, on a stream of its own; without it, it would notice later."""
    assert drop.device_id is not None
    cancel = m.SpacedropCancel(transfer_id=drop.machine.request.transfer_id, reason=reason[: m.MAX_REASON_LENGTH])
    with anyio.move_on_after(FAREWELL_TIMEOUT_S), suppress(*GONE):
        stream = await ctx.open_stream(drop.device_id, m.PROTOCOL_NAME, timeout_s=FAREWELL_TIMEOUT_S)
        await stream.messages(max_bytes=m.MAX_MESSAGE_BYTES).send(cancel)
        await stream.aclose()
