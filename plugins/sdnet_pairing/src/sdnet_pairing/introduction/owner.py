"""What an introduction's machine asks for is done here: sending, asking, storing, telling."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from sdnet_core import Delivery, DeliveryOutcome, PluginContext, Priority, Trust, peer_id_from_public_key
from sdnet_core.errors import DeviceNotFoundError, NetworkingError
from sdnet_core.wire import encode

from ..events import IntroductionChanged, IntroductionCompleted, IntroductionFailed, IntroductionRequested
from ..limits import PairingLimits
from ..settings import PairingSettings
from ..steps import Stored, StoreFailed
from ..ui import PairingUserInterface
from .messages import Decline, EndReason, IntroductionMessage, Offer, Party
from .record import Introduction
from .status import IntroducedDevice, IntroductionRole, IntroductionState, IntroductionStatus, explain
from .steps import Accepted, Ask, Command, Event, Fail, Finish, Received, Refused, Send, Side, Store, TimeUp

__all__ = ["PROTOCOL_NAME", "Owner"]

logger = logging.getLogger(__name__)

PROTOCOL_NAME = "introduction"
LAST_WORD_TTL_S = 600.0
"""How long "no" is kept for a device that is away."""
_PENDING = (
    "The other device has not confirmed yet. The pairing counts as soon as it connects, and lapses after 24 hours."
)


class Owner:
    """Runs the introductions of one node, each in a task of its own.

    :param interface: asks the person.
    """

    def __init__(
        self, ctx: PluginContext, limits: PairingLimits, interface: Callable[[], PairingUserInterface]
    ) -> None:
        self._ctx = ctx
        self._limits = limits
        self._interface = interface
        self._settings: PairingSettings = ctx.config or PairingSettings()
        self._offers: dict[uuid.UUID, tuple[Introduction, Side]] = {}

    def status(self, introduction: Introduction) -> IntroductionStatus:
        """An introduction now, with what is still waited for."""
        status = introduction.status()
        if status.state.ended:
            return status
        waits = [self._why_waiting(introduction, device) for device in status.devices if device.stage != "confirmed"]
        if introduction.role is IntroductionRole.INTRODUCED or not waits:
            return status
        return replace(status, detail=" ".join(waits))

    def _why_waiting(self, introduction: Introduction, device: IntroducedDevice) -> str:
        try:
            connected = self._ctx.get_device(device.device_id).connected
        except DeviceNotFoundError:
            return f"{device.name} is not paired any more."
        if not connected:
            return f"{device.name} is not connected."
        sides = {side: key for key, (of, side) in self._offers.items() if of is introduction}
        for side, message_id in sides.items():
            if introduction.people[side] == device.device_id and (why := self._ctx.why_waiting(message_id)):
                return f"{device.name} has not got it yet: {why}"
        return f"{device.name} has accepted." if device.stage == "accepted" else f"{device.name} has not answered yet."

    async def run(self, introduction: Introduction) -> None:
        """Give an introduction's machine what happens, one after the other, until it is over."""
        async with anyio.create_task_group() as tasks:
            while not introduction.machine.ended:
                left_s = introduction.deadline - self._ctx.clock.monotonic()
                if left_s <= 0 and not introduction.inbox:
                    introduction.give(TimeUp())
                while introduction.inbox and not introduction.machine.ended:
                    await self._handle(introduction, introduction.inbox.popleft(), tasks)
                if not introduction.machine.ended:
                    introduction.wake = anyio.Event()
                    with anyio.move_on_after(max(0.0, min(left_s, self._limits.expiry_check_s))):
                        await introduction.wake.wait()
            tasks.cancel_scope.cancel()

    async def _handle(self, introduction: Introduction, event: Event, tasks: TaskGroup) -> None:
        events: deque[Event] = deque([event])
        while events:
            for command in introduction.machine.handle(events.popleft()):
                if (answer := await self._carry_out(introduction, command, tasks)) is not None:
                    events.append(answer)
        self._changed(introduction)

    async def _carry_out(self, introduction: Introduction, command: Command, tasks: TaskGroup) -> Event | None:
        match command:
            case Send(message, side):
                return await self._send(introduction, message, side)
            case Ask(party):
                return self._ask(introduction, party, tasks)
            case Store(pairing):
                try:
                    await self._ctx.add_paired_device(
                        pairing.device,
                        pairing_id=pairing.pairing_id,
                        pairing_root=pairing.root,
                        addresses=pairing.addresses,
                        pending=True,
                    )
                except NetworkingError as error:
                    logger.error("the pairing with %s could not be stored: %s", pairing.device.id, error)
                    return StoreFailed()
                return Stored()
            case Finish():
                await self._finish(introduction, command)
            case Fail(reason, side):
                self._fail(introduction, reason, side)
        return None

    async def _send(self, introduction: Introduction, message: IntroductionMessage, side: Side | None) -> Event | None:
        ended = introduction.machine.ended
        left_s = LAST_WORD_TTL_S if ended else introduction.deadline - self._ctx.clock.monotonic()
        message_id = await self.tell(introduction.people[side], message, ttl_s=max(1.0, left_s))
        if message_id is None:
            return None if ended else Refused(EndReason.FAILED)
        if isinstance(message, Offer) and side is not None:
            self._offers[message_id] = (introduction, side)
        return None

    async def tell(
        self, device_id: uuid.UUID, message: IntroductionMessage, *, ttl_s: float = LAST_WORD_TTL_S
    ) -> uuid.UUID | None:
        """Send a device a message, now or when it is back.

        :returns: the message's id; None if it could not be taken.
        """
        try:
            return await self._ctx.send_message(
                device_id, PROTOCOL_NAME, encode(message), priority=Priority.HIGH, ttl_s=ttl_s
            )
        except NetworkingError as error:
            logger.warning("device %s could not be told of an introduction: %s", device_id, error)
            return None

    def _ask(self, introduction: Introduction, party: Party, tasks: TaskGroup) -> Event | None:
        """Answer by the settings, or have the person asked."""
        introduction.parties = (party,)
        introducer = self._ctx.get_device(introduction.introducer_id)
        answer: Event | None = None
        if (reason := self._objection(party)) is not None:
            answer = Refused(reason)
        elif self._settings.introductions == "never":
            answer = Refused(EndReason.NEVER)
        elif self._settings.introductions == "always" and introducer.trust is Trust.TRUSTED:
            answer = Accepted()
        other = IntroducedDevice.of(party)
        self._ctx.publish(
            IntroductionRequested(
                introduction_id=introduction.id,
                introducer_id=introducer.device_id,
                introducer_name=introducer.name,
                device_id=other.device_id,
                device_name=other.name,
                fingerprint=other.fingerprint,
                peer_id=other.peer_id,
                asked=answer is None,
            )
        )
        if answer is None:
            introduction.state = IntroductionState.AWAITING_CONFIRMATION
            tasks.start_soon(self._ask_person, introduction)
        return answer

    def _objection(self, party: Party) -> EndReason | None:
        device_id, peer_id = uuid.UUID(bytes=party.device_id), peer_id_from_public_key(party.public_key)
        for known in self._ctx.devices():
            same_id, same_peer = known.device_id == device_id, known.peer_id == peer_id
            if same_id != same_peer:
                return EndReason.CONFLICT
            if same_id and known.trust is Trust.REVOKED:
                return EndReason.REVOKED
            if same_id and known.trust.access is not None:
                return EndReason.ALREADY
        return None

    async def _ask_person(self, introduction: Introduction) -> None:
        try:
            answer = await self._interface().confirm_introduction(introduction.status())
        except Exception:
            logger.exception("the user interface could not ask about introduction %s", introduction.id)
        else:
            introduction.give_answer(Accepted() if answer else Refused(EndReason.REJECTED))

    async def _finish(self, introduction: Introduction, command: Finish) -> None:
        pairing, pending = command.pairing, not command.final
        if pairing is not None and command.final:
            try:
                await self._ctx.confirm_pairing(pairing.device.id, pairing.pairing_id)
            except NetworkingError as error:
                logger.warning("the pairing with %s could not be made final yet: %s", pairing.device.id, error)
                pending = True
        introduction.state = IntroductionState.COMPLETED
        introduction.pending = pending
        introduction.detail = _PENDING if pending else ""
        devices = introduction.status().devices
        self._ctx.publish(
            IntroductionCompleted(
                introduction_id=introduction.id,
                role=str(introduction.role),
                device_ids=tuple(device.device_id for device in devices),
                device_names=tuple(device.name for device in devices),
                pending=pending,
            )
        )

    def _fail(self, introduction: Introduction, reason: EndReason, side: Side | None) -> None:
        match reason:
            case EndReason.EXPIRED:
                introduction.state = IntroductionState.EXPIRED
            case EndReason.CANCELLED:
                introduction.state = IntroductionState.CANCELLED
            case _:
                introduction.state = IntroductionState.FAILED
        introduction.reason = reason
        devices = introduction.status().devices
        if introduction.role is IntroductionRole.INTRODUCED:
            who = "this device, or the one that was introduced,"
        else:
            who = "a device" if side is None else devices[list(Side).index(side)].name
        introduction.detail = explain(reason, who)
        self._ctx.publish(
            IntroductionFailed(
                introduction_id=introduction.id,
                role=str(introduction.role),
                device_ids=tuple(device.device_id for device in devices),
                reason=str(reason),
                detail=introduction.detail,
            )
        )

    def _changed(self, introduction: Introduction) -> None:
        introduction.changed()
        self._ctx.publish(
            IntroductionChanged(
                introduction_id=introduction.id, role=str(introduction.role), state=str(introduction.state)
            )
        )
        if introduction.state.ended:
            self._offers = {key: value for key, value in self._offers.items() if value[0] is not introduction}

    def delivered(self, delivery: Delivery) -> None:
        """Hear what became of an offer of ours."""
        waiting = self._offers.pop(delivery.message_id, None)
        if waiting is not None and delivery.outcome in (DeliveryOutcome.REFUSED, DeliveryOutcome.FAILED):
            introduction, side = waiting
            decline = Decline(introduction_id=introduction.id.bytes, reason=EndReason.UNSUPPORTED)
            introduction.give(Received(decline, side))
