"""The Python interface of introductions: makes, lists, answers and ends them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import (
    Delivery,
    InboundMessage,
    PluginContext,
    ProtocolHandler,
    RemoteDevice,
    Trust,
    public_key_from_peer_id,
)
from sdnet_core.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PluginError,
    StorageError,
)
from sdnet_core.wire import decode

from ..events import (
    IntroductionStarted,
)
from ..limits import PairingLimits
from ..steps import LocalSide
from ..ui import PairingUserInterface
from ..used_codes import INTRODUCTIONS, UsedCodes
from .machine import MAX_SKEW_S, IntroducerMachine, PartyMachine, make_voucher, read_message
from .messages import (
    MAX_MESSAGE_BYTES,
    MAX_VOUCHER_BYTES,
    Decline,
    EndReason,
    Offer,
    Party,
    Voucher,
)
from .owner import PROTOCOL_NAME, Owner
from .record import Introduction, Watch
from .status import IntroductionRole, IntroductionStatus
from .steps import (
    Accepted,
    Cancel,
    Offered,
    Received,
    Refused,
    Side,
    Start,
)

__all__ = ["PROTOCOL_NAME", "IntroductionHandler", "IntroductionService"]

logger = logging.getLogger(__name__)


class IntroductionService:
    """Introductions on one node. All methods are for the event loop's thread; introductions live as long as the node.

    :param local_side: this device, as it shows itself now.
    :param interface: asks the person.
    """

    def __init__(
        self,
        ctx: PluginContext,
        limits: PairingLimits,
        *,
        local_side: Callable[[], LocalSide],
        interface: Callable[[], PairingUserInterface],
    ) -> None:
        self._ctx = ctx
        self._limits = limits
        self._local_side = local_side
        self._owner = Owner(ctx, limits, interface)
        self._seen: UsedCodes | None = None
        self._tasks: TaskGroup | None = None
        self._all: list[Introduction] = []

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve introductions until cancelled."""
        seen = UsedCodes(self._ctx.storage, limit=self._limits.max_used_codes, name=INTRODUCTIONS)
        await seen.load()
        self._seen = seen
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    # Asking for one

    def introduce(self, device_id: uuid.UUID, to: uuid.UUID) -> IntroductionStatus:
        """Vouch for each of two paired devices to the other, so that they pair. Both may ask their people first.

        :raises DeviceNotFoundError: one is not paired.
        :raises InvalidRequestError: they are the same device.
        :raises ConflictError: one is not trusted, these two are being introduced already, or too many others are.
        """
        tasks = self._require_running()
        devices = sorted((self._ctx.get_device(device_id), self._ctx.get_device(to)), key=_public_key)
        first, second = devices
        if first.device_id == second.device_id:
            raise InvalidRequestError("A device cannot be introduced to itself.")
        for device in devices:
            self._check_trusted(device)
        people: dict[Side | None, uuid.UUID] = {Side.FIRST: first.device_id, Side.SECOND: second.device_id}
        for other in self._all:
            if other.role is IntroductionRole.INTRODUCER and not other.state.ended and other.people == people:
                raise ConflictError(f"{first.name} and {second.name} are being introduced to each other already.")
        self._make_room()
        local, now = self._local_side(), self._ctx.clock.now()
        introduction_id = uuid.UUID(bytes=self._ctx.randomness.bytes(16), version=4)
        voucher = Voucher(
            introduction_id=introduction_id.bytes,
            introducer=local.device.public_key,
            first=_party(first),
            second=_party(second),
            created_at=int(now),
            expires_at=int(now + self._limits.introduction_lifetime_s),
        )
        introduction = Introduction(
            id=introduction_id,
            role=IntroductionRole.INTRODUCER,
            machine=IntroducerMachine(make_voucher(voucher, local.sign), introduction_id.bytes),
            people=people,
            introducer=local.device.name,
            introducer_id=local.device.id,
            parties=(voucher.first, voucher.second),
            created_at=now,
            expires_at=now + self._limits.introduction_lifetime_s,
            deadline=self._ctx.clock.monotonic() + self._limits.introduction_lifetime_s,
        )
        self._all.append(introduction)
        self._ctx.publish(
            IntroductionStarted(
                introduction_id=introduction_id,
                device_ids=(first.device_id, second.device_id),
                device_names=(first.name, second.name),
            )
        )
        introduction.give(Start())
        tasks.start_soon(self._owner.run, introduction)
        return self._owner.status(introduction)

    def introduce_all(self, device: str, to: Sequence[str]) -> list[IntroductionStatus]:
        """Introduce a device to several others; nothing is done unless all of them are found.

        :param device: a name, an id, or a unique beginning of either; so are those in ``to``.
        :raises NetworkingError: as `introduce`.
        """
        found, others = self._ctx.find_device(device), [self._ctx.find_device(reference) for reference in to]
        for other in (found, *others):
            self._check_trusted(other)
        return [self.introduce(found.device_id, other.device_id) for other in dict.fromkeys(others)]

    # Looking and answering

    def introductions(self) -> tuple[IntroductionStatus, ...]:
        """All introductions that this device has a part in, those that are over for a while too; newest last."""
        return tuple(map(self._owner.status, self._all))

    def get(self, reference: str) -> IntroductionStatus:
        """One introduction by its id, or a unique prefix of it.

        :raises NotFoundError: there is none, or several begin so.
        """
        return self._owner.status(self._find(reference))

    def pending(self) -> tuple[IntroductionStatus, ...]:
        """The introductions that wait for this device's person."""
        return tuple(self._owner.status(i) for i in self._all if i.awaits_answer)

    def accept(self, reference: str) -> IntroductionStatus:
        """Pair with the device that is introduced.

        :raises NotFoundError: as `get`.
        :raises ConflictError: it waits for no answer here.
        """
        return self._answer(reference, Accepted())

    def reject(self, reference: str) -> IntroductionStatus:
        """Do not pair with the device that is introduced.

        :raises NotFoundError: as `get`.
        :raises ConflictError: it waits for no answer here.
        """
        return self._answer(reference, Refused(EndReason.REJECTED))

    def cancel(self, reference: str) -> IntroductionStatus:
        """Give up an introduction that this device makes. What the two have agreed upon already stays.

        :raises NotFoundError: as `get`.
        :raises ConflictError: it is over, or another device makes it.
        """
        introduction = self._find(reference)
        if introduction.state.ended:
            raise ConflictError(f"That introduction is over: it is {introduction.state}.")
        if introduction.role is not IntroductionRole.INTRODUCER:
            raise ConflictError("Another device makes that introduction; reject it instead.")
        introduction.give(Cancel())
        return self._owner.status(introduction)

    def watch(self, reference: str) -> AsyncIterator[IntroductionStatus]:
        """Follow an introduction: its status now, and after each change, until it is over.

        :raises NotFoundError: as `get`.
        """
        return Watch(self._find(reference), self._owner.status)

    # What comes from other devices

    async def receive(self, device: RemoteDevice, payload: bytes) -> None:
        """Take one message from a paired device.

        :raises SerializationError: it is none of the protocol.
        """
        message = read_message(payload)
        if isinstance(message, Offer):
            await self._on_offer(device, message)
            return
        introduction_id = uuid.UUID(bytes=message.introduction_id)
        for introduction in self._all:
            side = next((side for side, who in introduction.people.items() if who == device.device_id), None)
            if introduction.id == introduction_id and device.device_id in introduction.people.values():
                introduction.give(Received(message, side))
                return
        logger.info("device %s sent a message about an introduction that is not known", device.device_id)

    def delivered(self, delivery: Delivery) -> None:
        """Hear what became of a message of ours."""
        self._owner.delivered(delivery)

    async def _on_offer(self, device: RemoteDevice, offer: Offer) -> None:
        tasks = self._require_running()
        assert self._seen is not None
        voucher: Voucher = decode(offer.voucher, Voucher, max_bytes=MAX_VOUCHER_BYTES)
        introduction_id = uuid.UUID(bytes=voucher.introduction_id)
        if any(introduction.id == introduction_id for introduction in self._all):
            return  # the same offer once more
        reason = None
        if introduction_id in self._seen:
            reason = EndReason.REPLAYED
        elif sum(i.awaits_answer and i.introducer_id == device.device_id for i in self._all) >= (
            self._limits.max_introductions_asked
        ):
            reason = EndReason.BUSY
        else:
            try:
                self._make_room()
                introduction = self._introduced(device, voucher)
                # Before anything is waited for: the same offer may come once more meanwhile.
                self._all.append(introduction)
                await self._seen.add(introduction_id, self._ctx.clock.now())
            except ConflictError:
                reason = EndReason.BUSY
            except StorageError:
                self._all.remove(introduction)
                reason = EndReason.FAILED
        if reason is not None:
            logger.info("an introduction by device %s was declined: %s", device.device_id, reason)
            await self._owner.tell(device.device_id, Decline(introduction_id=voucher.introduction_id, reason=reason))
            return
        introduction.give(Offered(offer, self._ctx.clock.now()))
        tasks.start_soon(self._owner.run, introduction)

    def _introduced(self, device: RemoteDevice, voucher: Voucher) -> Introduction:
        """What another device has begun; the voucher is not checked yet."""
        side = self._local_side()
        # The introducer's clock may differ; it ends the introduction by its own in any case.
        left_s = min(voucher.expires_at - self._ctx.clock.now() + MAX_SKEW_S, self._limits.introduction_lifetime_s)
        ours = side.device.public_key
        return Introduction(
            id=uuid.UUID(bytes=voucher.introduction_id),
            role=IntroductionRole.INTRODUCED,
            machine=PartyMachine(side, public_key_from_peer_id(device.peer_id)),
            people={None: device.device_id},
            introducer=device.name,
            introducer_id=device.device_id,
            parties=tuple(party for party in (voucher.first, voucher.second) if party.public_key != ours)[:1],
            created_at=self._ctx.clock.now(),
            expires_at=self._ctx.clock.now() + left_s,
            deadline=self._ctx.clock.monotonic() + left_s,
        )

    # Inside

    def _require_running(self) -> TaskGroup:
        if self._tasks is None:
            raise PluginError("Introductions are not possible while the node is starting or stopping.")
        return self._tasks

    def _check_trusted(self, device: RemoteDevice) -> None:
        if device.trust is not Trust.TRUSTED:
            raise ConflictError(f"{device.name} is {device.trust}: only trusted devices can be introduced.")

    def _make_room(self) -> None:
        going_on = sum(not introduction.state.ended for introduction in self._all)
        if going_on >= self._limits.max_introductions:
            raise ConflictError("Too many introductions are going on; cancel or answer one first.")
        ended = [introduction for introduction in self._all if introduction.state.ended]
        for old in ended[: max(0, len(ended) - self._limits.max_introductions + 1)]:
            self._all.remove(old)

    def _answer(self, reference: str, answer: Accepted | Refused) -> IntroductionStatus:
        introduction = self._find(reference)
        if not introduction.awaits_answer:
            raise ConflictError(f"Nobody waits for an answer in that introduction: it is {introduction.state}.")
        introduction.give_answer(answer)
        return self._owner.status(introduction)

    def _find(self, reference: str) -> Introduction:
        wanted = reference.strip().lower()
        found = [i for i in self._all if wanted and str(i.id).startswith(wanted)]
        if not found:
            raise NotFoundError(f"There is no pairing with the id {reference!r}; it may have ended.")
        if len(found) > 1:
            raise NotFoundError(f"{len(found)} introductions begin with {reference!r}; use more of the id.")
        return found[0]


class IntroductionHandler(ProtocolHandler):
    """Takes the messages of ``/sdnet/introduction/1``."""

    protocol_name = PROTOCOL_NAME
    max_message_bytes = MAX_MESSAGE_BYTES

    def __init__(self, service: IntroductionService) -> None:
        self._service = service

    async def handle_message(self, device: RemoteDevice, message: InboundMessage) -> bytes | None:
        await self._service.receive(device, message.data)
        return None

    async def handle_delivery(self, device: RemoteDevice, delivery: Delivery) -> None:
        self._service.delivered(delivery)


def _public_key(device: RemoteDevice) -> bytes:
    return public_key_from_peer_id(device.peer_id)


def _party(device: RemoteDevice) -> Party:
    return Party(device_id=device.device_id.bytes, name=device.name, public_key=_public_key(device))
