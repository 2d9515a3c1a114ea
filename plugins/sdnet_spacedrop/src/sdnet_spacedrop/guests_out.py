"""Drops that this device sends to one that is not paired."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from sdnet_core import PeerStream, PluginContext
from sdnet_core.errors import NetworkingError, NetworkTimeoutError, ProtocolError, RefusedError

from . import messages as m
from . import nearby_messages as n
from .drops import Drop, DropBook
from .finder import Stranger
from .machine import DropState, SenderMachine
from .meeting import Inviter, Met
from .mover import Mover
from .oneoff import OneOffStream
from .outgoing import FAREWELL_TIMEOUT_S, GONE, GRACE_S, OutgoingDrops, publish_answer
from .settings import SpacedropSettings
from .text import printable

__all__ = ["GuestsOut"]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
HANDSHAKE_TIMEOUT_S = 10.0


class GuestsOut:
    """The sending side.

    :param outgoing: makes the offers, for paired and other devices alike.
    """

    def __init__(
        self, ctx: PluginContext, book: DropBook, mover: Mover, outgoing: OutgoingDrops, settings: SpacedropSettings
    ) -> None:
        self._ctx = ctx
        self._book = book
        self._mover = mover
        self._outgoing = outgoing
        self._settings = settings

    async def meet(self, stranger: Stranger, paths: Sequence[Path], message: str) -> tuple[Drop, OneOffStream]:
        """Agree upon a secret and a number; `run` carries out the drop then.

        :raises InvalidRequestError: the message is too long, a path is missing, or there is nothing to send.
        :raises RefusedError: the device takes no drops of strangers now, or too many drops are under way here.
        :raises ConnectionFailedError: it cannot be reached.
        :raises NetworkTimeoutError: it did not answer in time.
        :raises ProtocolError: it does not keep to the protocol.
        """
        request = await self._outgoing.make_request(paths, message)
        name = stranger.name or ""
        try:
            stream = await self._ctx.open_stranger_stream(
                stranger.peer_id, stranger.addresses, n.PROTOCOL_NAME, timeout_s=CONNECT_TIMEOUT_S
            )
        except NetworkingError as error:
            raise type(error)(f"{name} cannot be reached: {error.detail}") from error
        try:
            with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                met, talk = await self._shake_hands(stream, name)
        except TimeoutError:
            await stream.reset()
            raise NetworkTimeoutError(f"{name} did not answer in time.") from None
        except BaseException:
            await stream.reset()
            raise
        request = m.with_id(request, met.drop_id)
        machine = SenderMachine(request, state=DropState.COMPARING)
        drop = self._book.add_guest(
            machine,
            peer_id=stranger.peer_id,
            name=name,
            check=met.check,
            timeout_s=self._settings.answer_timeout_s,
        )
        drop.sources = tuple(str(path) for path in paths)
        return drop, talk

    async def _shake_hands(self, stream: PeerStream, name: str) -> tuple[Met, OneOffStream]:
        random = self._ctx.randomness.bytes
        own = self._ctx.local_device
        inviter = Inviter(
            own.peer_id, stream.peer_id, own.name[: m.MAX_SENDER_NAME_LENGTH], seed=random(32), nonce=random(32)
        )
        messages = stream.messages(max_bytes=n.MAX_HANDSHAKE_BYTES)
        await messages.send(inviter.commit())
        answer: n.KeyAnswer = await messages.receive(n.KeyAnswer)
        if isinstance(answer, n.NearbyRefusal):
            raise RefusedError(f"{name} refused: {printable(answer.reason) or answer.code}")
        await messages.send(inviter.receive(answer))
        assert inviter.met is not None
        sealed = self._ctx.seal_stream(stream, inviter.met.secret, opener=True, received=messages.take_pending())
        talk = OneOffStream(sealed)
        await talk.hear(n.NearbyReady)
        return inviter.met, talk

    async def run(self, drop: Drop, talk: OneOffStream) -> None:
        """Carry out a drop to its end; never raises for what can go wrong with it."""
        machine = drop.machine
        assert isinstance(machine, SenderMachine)
        try:
            try:
                with drop.scope:
                    await self._converse(drop, machine, talk)
                if machine.state in (DropState.ACCEPTED, DropState.REJECTED):
                    publish_answer(self._ctx, drop)
                if machine.state is DropState.ACCEPTED:
                    drop.answered_at = self._ctx.clock.now()
                    drop.notify()
                    await self._book.save(drop)
                    await self._mover.exchange(drop, talk)
            except NetworkingError as error:
                machine.give_up(error.detail, by_peer=isinstance(error, ProtocolError))
        finally:
            with anyio.CancelScope(shield=True):
                machine.give_up("The node stopped.")
                with anyio.move_on_after(FAREWELL_TIMEOUT_S), suppress(*GONE):
                    if not machine.by_peer and machine.state in (DropState.CANCELLED, DropState.TIMED_OUT):
                        await talk.say(machine.cancellation())
                    await talk.aclose()
                await talk.reset()
                await self._book.conclude(drop)

    async def _converse(self, drop: Drop, machine: SenderMachine, talk: OneOffStream) -> None:
        """Until there is an answer, somebody cancels, or it takes too long."""
        failures: list[NetworkingError] = []

        async def listen() -> None:
            try:
                while machine.open:
                    machine.receive(await talk.hear(m.SenderMessage))
                    drop.asked = machine.asked
                    drop.notify()
            except NetworkingError as error:
                failures.append(error)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            with anyio.move_on_after(self._settings.answer_timeout_s):
                await drop.confirmed.wait()
            if machine.state is DropState.COMPARING:
                machine.time_out("Nobody here said in time that the numbers are the same.")
            else:
                drop.expires_at = self._ctx.clock.now() + self._settings.answer_timeout_s
                drop.notify()
                await talk.say(machine.request)
                await anyio.sleep(self._settings.answer_timeout_s + GRACE_S)
                if machine.asking:
                    machine.time_out(f"{drop.device_name} did not answer in time.")
            tasks.cancel_scope.cancel()
        if failures and machine.open:
            raise failures[0]

    def confirm(self, drop: Drop) -> None:
        """The person here says that both screens show the same number.

        :raises ConflictError: there is nothing to compare, or no more.
        """
        assert isinstance(drop.machine, SenderMachine)
        drop.machine.confirm()
        drop.confirmed.set()
        drop.notify()

    def cancel(self, drop: Drop, reason: str) -> None:
        """A person does not want to send it any more.

        :raises ConflictError: it has ended.
        """
        waiting = drop.machine.open
        drop.machine.cancel(reason)
        drop.notify()
        if waiting:
            drop.scope.cancel()
        elif drop.single is not None:
            drop.single.cancel(reason)
