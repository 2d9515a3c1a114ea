"""Two machines that talk without a network, and somebody in between."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from sdnet_core import DeviceInfo, NetworkIdentity
from sdnet_core.wire import Message, encode
from sdnet_pairing.code import CodeKeys, PairingCode
from sdnet_pairing.machine import PURPOSE, InitiatorMachine, JoinerMachine, Machine
from sdnet_pairing.messages import RefusalReason
from sdnet_pairing.steps import (
    AskPerson,
    CodeConsumed,
    CodeProven,
    CodeUnavailable,
    Command,
    ConsumeCode,
    Event,
    Fail,
    Finished,
    LocalSide,
    Pairing,
    PersonAccepted,
    PersonRefused,
    Received,
    Send,
    Start,
    Stored,
    StoreFailed,
    StorePairing,
)


class Seeded:
    """Random bytes that are the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def bytes(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._seed} {self._count}".encode()).digest(length)

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


class Device:
    """A device with a key of its own."""

    def __init__(self, name: str) -> None:
        randomness = Seeded(name)
        self.identity = NetworkIdentity.generate(randomness)
        self.info = DeviceInfo(
            device_id=uuid.UUID(bytes=randomness.bytes(16), version=4).bytes,
            name=name,
            os="Linux",
            version="0.1.0",
            public_key=self.identity.public_key,
        )
        self.peer_id = self.identity.peer_id

    def side(self, conversation: str = "") -> LocalSide:
        """This device in one conversation."""
        return LocalSide(
            device=self.info,
            sign=lambda message: self.identity.sign(PURPOSE, message),
            random_bytes=Seeded(f"{self.info.name} {conversation}").bytes,
            addresses=("/ip4/192.0.2.1/tcp/4001",),
        )


@dataclass
class CodeBook:
    """The sessions that an initiator holds open."""

    open: dict[uuid.UUID, CodeKeys] = field(default_factory=dict)

    @classmethod
    def of(cls, *codes: CodeKeys) -> CodeBook:
        return cls({code.session_id: code for code in codes})

    def find(self, session_id: uuid.UUID) -> CodeKeys | None:
        return self.open.get(session_id)


@dataclass
class Party:
    """One machine, driven by a person and a disk that do as the test says."""

    machine: Machine
    book: CodeBook | None = None
    answer: bool = True
    disk_works: bool = True
    outbox: list[bytes] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    stored: Pairing | None = None
    session_id: uuid.UUID | None = None

    @property
    def finished(self) -> bool:
        return any(isinstance(command, Finished) for command in self.commands)

    @property
    def failure(self) -> Fail | None:
        return next((command for command in self.commands if isinstance(command, Fail)), None)

    def give(self, event: Event) -> list[Command]:
        """Give the machine an event and carry out what it asks for; what it sends goes into the outbox."""
        commands = self.machine.handle(event)
        self.commands += commands
        for command in commands:
            match command:
                case Send(message):
                    self.outbox.append(encode(message))
                case CodeProven(session_id):
                    self.session_id = session_id
                case ConsumeCode():
                    assert self.book is not None
                    assert self.session_id is not None
                    used = self.book.open.pop(self.session_id, None) is None
                    self.give(CodeUnavailable(RefusalReason.USED) if used else CodeConsumed())
                case AskPerson():
                    self.give(PersonAccepted() if self.answer else PersonRefused(RefusalReason.REJECTED))
                case StorePairing(pairing):
                    self.stored = pairing if self.disk_works else None
                    self.give(Stored() if self.disk_works else StoreFailed())
        return commands

    def receive(self, message: bytes | Message) -> list[Command]:
        return self.give(Received(message if isinstance(message, bytes) else encode(message)))


CODE = PairingCode(bytes(range(16))).keys()
OTHER_CODE = PairingCode(bytes(range(1, 17))).keys()
LAPTOP, PHONE, TABLET = Device("laptop"), Device("phone"), Device("tablet")

Network = Callable[[str, int, bytes], list[bytes]]
"""Given who sends, the how-manieth message it is, and its bytes: what arrives."""


def initiator(peer: Device, *, me: Device = LAPTOP, book: CodeBook | None = None, conversation: str = "") -> Party:
    codes = book if book is not None else CodeBook.of(CODE)
    return Party(InitiatorMachine(me.side(conversation), peer.peer_id, codes.find), codes)


def joiner(peer: Device = LAPTOP, *, me: Device = PHONE, code: CodeKeys = CODE, conversation: str = "") -> Party:
    return Party(JoinerMachine(me.side(conversation), peer.peer_id, code))


def talk(left: Party, right: Party, network: Network = lambda sender, count, message: [message]) -> None:
    """Let an initiator and a joiner talk until both are silent."""
    right.give(Start())
    counts = {"initiator": 0, "joiner": 0}
    while left.outbox or right.outbox:
        for name, sender, receiver in (("joiner", right, left), ("initiator", left, right)):
            waiting, sender.outbox = sender.outbox, []
            for message in waiting:
                for arriving in network(name, counts[name], message):
                    receiver.receive(arriving)
                counts[name] += 1
