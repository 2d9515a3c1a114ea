"""Drops that strangers offer to this device: nothing of them touches the disk before a person agrees."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import ConflictError, NetworkingError, NetworkTimeoutError, ProtocolError
from sdnet_core.wire import MessageStream

from . import messages as m
from . import nearby_messages as n
from .budget import StrangerBudget
from .drops import Drop, DropBook
from .events import SpacedropMet
from .incoming import check_folder, publish_offer
from .machine import DropState, ReceiverMachine
from .meeting import Invitee, Met
from .mover import Mover
from .oneoff import OneOffStream
from .outgoing import FAREWELL_TIMEOUT_S, GONE, publish_answer
from .policies import Policies
from .settings import SpacedropSettings
from .visibility import Visibility

__all__ = ["GuestsIn"]

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
"""For the whole exchange of keys, in which no person has a part."""


class GuestsIn:
    """The receiving side."""

    def __init__(
        self,
        ctx: PluginContext,
        book: DropBook,
        mover: Mover,
        settings: SpacedropSettings,
        visibility: Visibility,
        policies: Policies,
    ) -> None:
        self._ctx = ctx
        self._book = book
        self._mover = mover
        self._settings = settings
        self._visibility = visibility
        self._policies = policies
        self._budget = StrangerBudget(ctx.clock)

    # What strangers say

    async def serve(self, stream: PeerStream) -> None:
        """Serve one inbound stream.

        :raises NetworkingError: the stream broke, or the other side does not keep to the protocol.
        """
        messages = stream.messages(max_bytes=n.MAX_HANDSHAKE_BYTES)
        peer_id = stream.peer_id
        try:
            with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                first: n.NearbyFirst = await messages.receive(n.NearbyFirst)
                if self._visibility.mode != "everyone" or self._policies.default == "never":
                    reason = "It takes nothing from devices that are not paired."
                    await messages.send(n.NearbyRefusal(code=m.Refusal.POLICY, reason=reason))
                    return
                if isinstance(first, n.NearbyQuery):
                    if self._budget.allow_query():
                        await messages.send(n.NearbyPresence(name=self._own_name))
                    return
                if not self._budget.allow_meeting(peer_id):
                    reason = "Too many devices that are not paired ask there already; try again in a minute."
                    await messages.send(n.NearbyRefusal(code=m.Refusal.BUSY, reason=reason))
                    return
        except TimeoutError:
            raise NetworkTimeoutError("The sender did not say in time what it wants.") from None
        with ExitStack() as waiting:
            waiting.enter_context(self._budget.waiting(peer_id))
            try:
                with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                    met = await self._shake_hands(messages, peer_id, first)
            except TimeoutError:
                raise NetworkTimeoutError("The sender did not show its key in time.") from None
            if self._book.get(met.drop_id) is not None:
                raise ProtocolError("There is another drop with this id.")
            sealed = self._ctx.seal_stream(stream, met.secret, opener=False, received=messages.take_pending())
            await self._carry_out(self._enter(met, peer_id), OneOffStream(sealed), answered=waiting.close)

    async def _shake_hands(self, messages: MessageStream, peer_id: str, commit: n.NearbyCommit) -> Met:
        random = self._ctx.randomness.bytes
        own = self._ctx.local_device.peer_id
        invitee = Invitee(peer_id, own, self._own_name, seed=random(32), nonce=random(32))
        await messages.send(invitee.receive_commit(commit))
        invitee.receive_reveal(await messages.receive(n.NearbyReveal))
        assert invitee.met is not None
        return invitee.met

    @property
    def _own_name(self) -> str:
        return self._ctx.local_device.name[: m.MAX_SENDER_NAME_LENGTH]

    def _enter(self, met: Met, peer_id: str) -> Drop:
        machine = ReceiverMachine(None, drop_id=met.drop_id, state=DropState.COMPARING)
        drop = self._book.add_guest(
            machine, peer_id=peer_id, name=met.peer_name, check=met.check, timeout_s=self._settings.answer_timeout_s
        )
        self._ctx.publish(
            SpacedropMet(
                drop_id=drop.id, sender_name=drop.device_name, check=drop.check, expires_at=drop.expires_at or 0.0
            )
        )
        return drop

    async def _carry_out(self, drop: Drop, talk: OneOffStream, *, answered: Callable[[], None]) -> None:
        """See a drop through to its end; what goes wrong with it is noted in it.

        :param answered: called when no person has to decide any more.
        """
        machine = drop.machine
        assert isinstance(machine, ReceiverMachine)
        told = False
        try:
            try:
                await self._ask(drop, machine, talk)
                answered()
                if machine.state is DropState.ACCEPTED:
                    told = True
                    await talk.say(machine.answer())
                    await self._mover.exchange(drop, talk)
            except NetworkingError as error:
                machine.give_up(error.detail, by_peer=isinstance(error, ProtocolError))
        finally:
            with anyio.CancelScope(shield=True):
                machine.give_up(f"The connection to {drop.device_name} was lost.")
                with anyio.move_on_after(FAREWELL_TIMEOUT_S), suppress(*GONE):
                    if not told and not machine.by_peer:
                        await talk.say(machine.answer())
                    await talk.aclose()
                await talk.reset()
                await self._book.conclude(drop)

    async def _ask(self, drop: Drop, machine: ReceiverMachine, talk: OneOffStream) -> None:
        """Show the number, wait for the offer, and then for the person's answer."""
        await talk.say(n.NearbyReady())
        failures: list[NetworkingError] = []

        async def listen() -> None:
            try:
                await self._listen(drop, machine, talk)
            except NetworkingError as error:
                failures.append(error)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            while not drop.answered.is_set():
                remaining_s = (drop.expires_at or 0.0) - self._ctx.clock.now()
                if remaining_s <= 0 and machine.open:
                    machine.time_out(
                        "The sender did not confirm the number in time."
                        if machine.state is DropState.COMPARING
                        else "Nobody answered in time."
                    )
                    break
                with anyio.move_on_after(max(0.01, remaining_s)):
                    await drop.answered.wait()
            tasks.cancel_scope.cancel()
        if failures and machine.open:
            raise failures[0]

    async def _listen(self, drop: Drop, machine: ReceiverMachine, talk: OneOffStream) -> None:
        first: m.FirstMessage = await talk.hear(m.FirstMessage)
        if isinstance(first, m.SpacedropRequest):
            machine.offer(first)
            timeout_s = min(self._settings.answer_timeout_s, first.answer_timeout_ms / 1000)
            drop.expires_at = self._ctx.clock.now() + timeout_s
            publish_offer(self._ctx, drop)
            drop.notify()
            await talk.say(machine.asked(timeout_s))
            first = await talk.hear(m.SpacedropCancel)
        assert isinstance(first, m.SpacedropCancel)
        machine.withdraw(first)
        drop.notify()

    # What people decide

    async def accept(self, drop: Drop, folder: Path | None) -> None:
        """A person takes the offer, and says by that that the numbers are the same.

        :raises ConflictError: there is no offer yet, it was answered, or has ended.
        :raises InvalidRequestError: the folder cannot be one.
        :raises StorageError: the decision could not be kept.
        """
        machine = drop.machine
        assert isinstance(machine, ReceiverMachine)
        await check_folder(self._ctx, folder)
        if machine.state is DropState.COMPARING:
            first = f"its person first compares the number, {drop.check}"
            raise ConflictError(f"{drop.device_name} has not said yet what it sends: {first}.")
        machine.accept()
        drop.folder = str(folder or self._ctx.downloads_dir)
        drop.answered_at = self._ctx.clock.now()
        try:
            await self._book.save(drop)
        except NetworkingError as error:
            machine.give_up(error.detail)
            drop.answered.set()
            raise
        if machine.state is not DropState.ACCEPTED:
            raise ConflictError(f"The drop is {machine.state}: {machine.reason}")
        publish_answer(self._ctx, drop)
        drop.answered.set()
        drop.notify()

    def reject(self, drop: Drop, reason: str) -> None:
        """A person does not take it, or the numbers differ.

        :raises ConflictError: it was answered, or has ended.
        """
        machine = drop.machine
        assert isinstance(machine, ReceiverMachine)
        machine.reject(reason)
        drop.answered_at = self._ctx.clock.now()
        publish_answer(self._ctx, drop)
        drop.answered.set()
        drop.notify()

    def cancel(self, drop: Drop) -> None:
        """A person does not want any more what was accepted.

        :raises ConflictError: it has ended.
        """
        drop.machine.cancel("The receiver cancelled it.")
        drop.notify()
        if drop.single is not None:
            drop.single.cancel(drop.machine.reason)

    async def restore(self, drop: Drop) -> None:
        """After a restart: what was cut short cannot go on; nothing of it stays."""
        if drop.folder is not None:
            try:
                await self._mover.clear(drop)
            except NetworkingError as error:
                logger.warning("what is left of drop %s could not be removed: %s", drop.id, error)
        drop.machine.give_up("The node stopped in the middle of it.")
        await self._book.conclude(drop)
