"""Three machines of an introduction that talk without a network, and an introducer that may do anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from sdnet_core.wire import encode
from sdnet_pairing.introduction.machine import IntroducerMachine, PartyMachine, make_voucher, read_message
from sdnet_pairing.introduction.messages import EndReason, IntroductionMessage, Offer, Party, Voucher
from sdnet_pairing.introduction.steps import (
    Accepted,
    Ask,
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
)
from sdnet_pairing.steps import Pairing, Stored, StoreFailed

from .conversation import Device

NOW = 1_800_000_000
INTRODUCER, *_TWO = (Device("hub"), Device("laptop"), Device("phone"))
FIRST, SECOND = sorted(_TWO, key=lambda device: device.info.public_key)
MALLORY = Device("mallory")
DEVICES = {Side.FIRST: FIRST, Side.SECOND: SECOND}

Carry = Callable[[Side, int, bytes], list[bytes]]
"""Given to whom the introducer sends, the how-manieth message to that side it is, and its bytes: what arrives."""


def party(device: Device, **other: object) -> Party:
    """A device as an introducer vouches for it."""
    plain = Party(device_id=device.info.device_id, name=device.info.name, public_key=device.info.public_key)
    return msgspec.structs.replace(plain, **other)  # type: ignore[arg-type]


def voucher(**other: object) -> Voucher:
    """What an honest introducer signs, but for ``other``."""
    plain = Voucher(
        introduction_id=bytes(range(16)),
        introducer=INTRODUCER.info.public_key,
        first=party(FIRST),
        second=party(SECOND),
        created_at=NOW,
        expires_at=NOW + 600,
    )
    return msgspec.structs.replace(plain, **other)  # type: ignore[arg-type]


def offer(by: Device = INTRODUCER, **other: object) -> Offer:
    """A signed voucher."""
    return make_voucher(voucher(**other), by.side().sign)


@dataclass
class One:
    """One of the two, with a person and a disk that do as the test says."""

    device: Device
    conversation: str = ""
    answer: bool = True
    disk_works: bool = True
    now: float = NOW
    outbox: list[bytes] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    stored: Pairing | None = None

    def __post_init__(self) -> None:
        self.machine = PartyMachine(self.device.side(self.conversation), INTRODUCER.info.public_key)

    @property
    def finish(self) -> Finish | None:
        return next((command for command in self.commands if isinstance(command, Finish)), None)

    @property
    def failure(self) -> Fail | None:
        return next((command for command in self.commands if isinstance(command, Fail)), None)

    def give(self, event: Event) -> None:
        """Give the machine an event and carry out what it asks for."""
        commands = self.machine.handle(event)
        self.commands += commands
        for command in commands:
            match command:
                case Send(message):
                    self.outbox.append(encode(message))
                case Ask():
                    self.give(Accepted() if self.answer else Refused(EndReason.REJECTED))
                case Store(pairing):
                    self.stored = pairing if self.disk_works else None
                    self.give(Stored() if self.disk_works else StoreFailed())

    def receive(self, payload: bytes | IntroductionMessage) -> None:
        """What comes from the introducer's session."""
        message = read_message(payload) if isinstance(payload, bytes) else payload
        if isinstance(message, Offer):
            if self.machine._state.name == "START":
                self.give(Offered(message, self.now))
        else:
            self.give(Received(message))


def talk(
    first: One, second: One, signed: Offer | None = None, carry: Carry = lambda to, count, data: [data]
) -> list[Command]:
    """Let an introducer and the two talk until all are silent; gives what the introducer's machine asked for."""
    signed = signed or offer()
    machine = IntroducerMachine(signed, bytes(range(16)))
    done: list[Command] = []
    counts = dict.fromkeys(Side, 0)
    ones = {Side.FIRST: first, Side.SECOND: second}

    def act(commands: list[Command]) -> None:
        for command in commands:
            done.append(command)
            if isinstance(command, Send):
                assert command.side is not None
                for data in carry(command.side, counts[command.side], encode(command.message)):
                    ones[command.side].receive(data)
                counts[command.side] += 1

    act(machine.handle(Start()))
    while first.outbox or second.outbox:
        for side, one in ones.items():
            waiting, one.outbox = one.outbox, []
            for data in waiting:
                act(machine.handle(Received(read_message(data), side)))
    return done
