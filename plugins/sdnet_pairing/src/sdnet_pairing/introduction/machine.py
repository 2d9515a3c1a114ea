"""The three roles of an introduction as state machines that do no I/O.

An introduction that goes well, seen by one of the two devices::

    Offered(Offer)             → Ask
    Accepted                   → Send(Accept)
    Received(other's Accept)   → Store              Stored → Send(Confirm)
    Received(other's Confirm)  → Finish

The introducer sends the offer to both and carries the rest between them. It cannot compute the root: that comes from
an X25519 exchange whose two ends are signed with the device keys that it has vouched for.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import msgspec

from sdnet_core import is_small_order, verify
from sdnet_core.errors import AuthenticationFailedError, SerializationError
from sdnet_core.wire import decode, encode

from ..keys import Ephemeral, KeySchedule, Transcript, mac
from ..machine import PURPOSE
from ..steps import LocalSide, Pairing, Stored, StoreFailed
from .messages import (
    MAX_MESSAGE_BYTES,
    MAX_VOUCHER_BYTES,
    Accept,
    Confirm,
    Decline,
    EndReason,
    IntroductionMessage,
    Offer,
    Party,
    Voucher,
    Withdraw,
)
from .steps import (
    Accepted,
    Ask,
    Cancel,
    Command,
    Event,
    Fail,
    Finish,
    Offered,
    Received,
    Refused,
    Send,
    Side,
    Start,
    Store,
    TimeUp,
)

__all__ = ["MAX_LIFETIME_S", "MAX_SKEW_S", "IntroducerMachine", "PartyMachine", "Stage", "make_voucher", "read_message"]

MAX_LIFETIME_S = 3600
MAX_SKEW_S = 300
"""So much the introducer's clock may differ from ours."""


def make_voucher(voucher: Voucher, sign: Callable[[bytes], bytes]) -> Offer:
    """Sign a voucher.

    :param sign: signs for `PURPOSE` with the introducer's device key.
    """
    data = encode(voucher)
    return Offer(voucher=data, signature=sign(_voucher_signed(data)))


def read_message(payload: bytes) -> IntroductionMessage:
    """Decode any message of the protocol.

    :raises SerializationError: it is none.
    """
    message: IntroductionMessage = decode(payload, IntroductionMessage, max_bytes=MAX_MESSAGE_BYTES)
    return message


class _State(Enum):
    START = auto()
    ASKING = auto()
    ACCEPTED = auto()
    STORING = auto()
    CONFIRMING = auto()
    FINISHED = auto()
    FAILED = auto()


class PartyMachine:
    """One of the two devices that are introduced.

    :param introducer: device key of the peer that the offer came from, as its session has authenticated it.
    :ivar voucher: what was vouched for, once an offer was taken.
    """

    voucher: Voucher

    def __init__(self, local: LocalSide, introducer: bytes) -> None:
        self._local = local
        self._introducer = introducer
        self._state = _State.START
        self._id = bytes(16)
        self._offer: Offer
        self._side = Side.FIRST
        self._ephemeral: Ephemeral
        self._own: Accept
        self._others: Accept | None = None
        self._confirm: Confirm | None = None
        self._keys: KeySchedule
        self._point = b""
        self._pairing: Pairing

    def __repr__(self) -> str:
        return f"<PartyMachine {self._state.name.lower()}>"

    @property
    def ended(self) -> bool:
        """Whether it is over, one way or the other."""
        return self._state in (_State.FINISHED, _State.FAILED)

    @property
    def other(self) -> Party:
        """The device that is introduced to us."""
        return self.voucher.second if self._side is Side.FIRST else self.voucher.first

    def handle(self, event: Event) -> list[Command]:
        """Take one event; once it is over nothing is answered."""
        if self.ended:
            return []
        try:
            return self._handle(event)
        except (AuthenticationFailedError, SerializationError):
            return self._fail(EndReason.FAILED)

    def _handle(self, event: Event) -> list[Command]:
        match self._state, event:
            case _State.START, Offered(offer, now):
                return self._on_offer(offer, now)
            case _State.ASKING, Accepted():
                return self._on_accepted()
            case _State.ASKING, Refused(reason):
                return self._fail(reason)
            case _, Received(Withdraw(reason=reason)):
                return self._on_withdraw(reason)
            case _State.ASKING | _State.ACCEPTED, Received(Accept() as message):
                return self._on_other(message)
            case ((_State.ACCEPTED | _State.STORING | _State.CONFIRMING), Received(Confirm() as message)):
                return self._on_confirm(message)
            case _State.STORING, Stored():
                return self._on_stored()
            case _State.STORING, StoreFailed():
                return self._fail(EndReason.FAILED)
            case ((_State.ASKING | _State.ACCEPTED | _State.STORING | _State.CONFIRMING), TimeUp()):
                return self._on_time_up()
            case ((_State.STORING | _State.CONFIRMING), Received(Accept())):
                return []  # the other side's first word counts
            case _, Received():
                return self._fail(EndReason.FAILED)
        raise RuntimeError(f"{type(event).__name__} does not belong to the state {self._state.name}")

    def _on_offer(self, offer: Offer, now: float) -> list[Command]:
        voucher: Voucher = decode(offer.voucher, Voucher, max_bytes=MAX_VOUCHER_BYTES)
        self.voucher, self._offer, self._id = voucher, offer, voucher.introduction_id
        if voucher.introducer != self._introducer:
            raise AuthenticationFailedError("The introduction is not by the device that sent it.")
        verify(voucher.introducer, PURPOSE, _voucher_signed(offer.voucher), offer.signature)
        mine = (self._local.device.device_id, self._local.device.public_key)
        sides = {Side.FIRST: voucher.first, Side.SECOND: voucher.second}
        found = [side for side, party in sides.items() if (party.device_id, party.public_key) == mine]
        if len(found) != 1 or voucher.first.public_key >= voucher.second.public_key:
            raise AuthenticationFailedError("The introduction is not of this device and another one.")
        self._side = found[0]
        other = self.other
        if (
            is_small_order(other.public_key)
            or other.public_key == voucher.introducer
            or other.device_id == self._local.device.device_id
        ):
            raise AuthenticationFailedError("The key of the device that is introduced is not acceptable.")
        if not voucher.created_at <= voucher.expires_at <= voucher.created_at + MAX_LIFETIME_S:
            raise SerializationError("An introduction is good for an hour at most.")
        if voucher.created_at > now + MAX_SKEW_S or voucher.expires_at < now - MAX_SKEW_S:
            return self._fail(EndReason.EXPIRED)
        self._state = _State.ASKING
        return [Ask(other)]

    def _on_accepted(self) -> list[Command]:
        local = self._local
        self._ephemeral = Ephemeral(local.random_bytes(32))
        unsigned = Accept(
            introduction_id=self._id,
            device=local.device,
            addresses=local.addresses,
            ephemeral=self._ephemeral.public,
            nonce=local.random_bytes(32),
            signature=bytes(64),
        )
        self._own = msgspec.structs.replace(unsigned, signature=local.sign(_accept_signed(self._offer, unsigned)))
        self._state = _State.ACCEPTED
        return [Send(self._own), *self._proceed()]

    def _on_other(self, message: Accept) -> list[Command]:
        if self._others is None:
            self._others = message
        return self._proceed() if self._state is _State.ACCEPTED else []

    def _proceed(self) -> list[Command]:
        """Once both have accepted: check the other one, and make the root."""
        theirs, other = self._others, self.other
        if theirs is None:
            return []
        self._check_id(theirs.introduction_id)
        if (theirs.device.public_key, theirs.device.device_id) != (other.public_key, other.device_id):
            raise AuthenticationFailedError("The other device is not the one that was introduced.")
        verify(other.public_key, PURPOSE, _accept_signed(self._offer, theirs), theirs.signature)
        if theirs.ephemeral == self._own.ephemeral:
            raise AuthenticationFailedError("The other device sent our own key back.")
        self._keys = KeySchedule(self._ephemeral.exchange(theirs.ephemeral), b"")
        first, second = (self._own, theirs) if self._side is Side.FIRST else (theirs, self._own)
        self._point = _offer_transcript(self._offer).add("first", encode(first)).add("second", encode(second)).digest()
        self._pairing = Pairing(
            device=theirs.device,
            addresses=theirs.addresses,
            session_id=uuid.UUID(bytes=self._id),
            pairing_id=uuid.UUID(bytes=self._keys.key("introduction pairing id", self._point)[:16], version=4),
            root=self._keys.key("introduction root", self._point),
        )
        self._state = _State.STORING
        return [Store(self._pairing)]

    def _on_stored(self) -> list[Command]:
        self._state = _State.CONFIRMING
        confirm = Confirm(introduction_id=self._id, mac=self._mac(self._side))
        return [Send(confirm), *self._conclude()]

    def _on_confirm(self, message: Confirm) -> list[Command]:
        if self._confirm is None and message.introduction_id == self._id:
            self._confirm = message
        return self._conclude() if self._state is _State.CONFIRMING else []

    def _conclude(self) -> list[Command]:
        if self._confirm is None:
            return []
        if not hmac.compare_digest(self._mac(self._side.other), self._confirm.mac):
            # The pairing stays pending: it counts if the other device proves the root in a session.
            return self._finish(final=False)
        return self._finish(final=True)

    def _on_withdraw(self, reason: EndReason) -> list[Command]:
        if self._state in (_State.STORING, _State.CONFIRMING):
            return []  # the other device may hold the pairing by now; the first session shows
        return self._fail(reason, tell=False)

    def _on_time_up(self) -> list[Command]:
        if self._state in (_State.STORING, _State.CONFIRMING):
            return self._finish(final=False) if self._state is _State.CONFIRMING else []
        return self._fail(EndReason.EXPIRED)

    def _mac(self, side: Side) -> bytes:
        return mac(self._pairing.root, f"introduction confirmation {side}", self._point)

    def _check_id(self, introduction_id: bytes) -> None:
        if introduction_id != self._id:
            raise SerializationError("A message of another introduction came.")

    def _finish(self, *, final: bool) -> list[Command]:
        self._state = _State.FINISHED
        return [Finish(self._pairing, final)]

    def _fail(self, reason: EndReason, *, tell: bool = True) -> list[Command]:
        self._state = _State.FAILED
        told = [Send(Decline(introduction_id=self._id, reason=reason))] if tell else []
        return [*told, Fail(reason)]


class Stage(Enum):
    """How far one of the two devices has come, as the introducer knows it."""

    OFFERED = auto()
    ACCEPTED = auto()
    CONFIRMED = auto()


@dataclass(slots=True)
class IntroducerMachine:
    """The device that introduces two others: makes the offer, and carries what they say to each other.

    :param offer: the signed voucher.
    :ivar stages: how far each has come.
    """

    offer: Offer
    introduction_id: bytes
    stages: dict[Side, Stage] = field(default_factory=lambda: dict.fromkeys(Side, Stage.OFFERED))
    ended: bool = False

    def handle(self, event: Event) -> list[Command]:
        """Take one event; once it is over nothing is answered."""
        if self.ended:
            return []
        match event:
            case Start():
                return [Send(self.offer, side) for side in Side]
            case Received(message, Side() as side):
                return self._on_message(side, message)
            case Cancel():
                return self._fail(EndReason.CANCELLED)
            case TimeUp():
                return self._fail(EndReason.EXPIRED)
            case Refused(reason):
                return self._fail(reason)
        raise RuntimeError(f"{type(event).__name__} is nothing for an introducer")

    def _on_message(self, side: Side, message: Any) -> list[Command]:
        stage = self.stages[side]
        match message:
            case Decline(reason=reason):
                return self._fail(reason, side)
            case Accept() if stage is Stage.OFFERED:
                self.stages[side] = Stage.ACCEPTED
                return [Send(message, side.other)]
            case Confirm() if stage is Stage.ACCEPTED:
                self.stages[side] = Stage.CONFIRMED
                done = all(stage is Stage.CONFIRMED for stage in self.stages.values())
                self.ended = done
                return [Send(message, side.other), *([Finish(None)] if done else [])]
            case Accept() | Confirm() if stage is not Stage.OFFERED:
                return []  # the first word counts
        return self._fail(EndReason.FAILED, side)

    def _fail(self, reason: EndReason, side: Side | None = None) -> list[Command]:
        self.ended = True
        told = [s for s in Side if s is not side]
        withdraw = Withdraw(introduction_id=self.introduction_id, reason=reason)
        return [*(Send(withdraw, to) for to in told), Fail(reason, side)]


def _voucher_signed(voucher: bytes) -> bytes:
    return b"introduction voucher" + Transcript().add("protocol", _PROTOCOL).add("voucher", voucher).digest()


def _accept_signed(offer: Offer, accept: Accept) -> bytes:
    point = _offer_transcript(offer).add("device", encode(accept.device))
    point.add("addresses", *(address.encode() for address in accept.addresses))
    return b"introduction accept" + point.add("keys", accept.ephemeral, accept.nonce).digest()


def _offer_transcript(offer: Offer) -> Transcript:
    return Transcript().add("protocol", _PROTOCOL).add("offer", offer.voucher, offer.signature)


_PROTOCOL = b"/sdnet/introduction/1"
