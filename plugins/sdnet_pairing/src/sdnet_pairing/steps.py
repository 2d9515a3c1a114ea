"""What a pairing machine is told and what it asks for: the vocabulary of `sdnet_pairing.machine` (pure)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from sdnet_core import DeviceInfo
from sdnet_core.wire import Message

from .messages import RefusalReason

__all__ = [
    "AskPerson",
    "CodeConsumed",
    "CodeProven",
    "CodeUnavailable",
    "Command",
    "ConsumeCode",
    "Event",
    "Fail",
    "Failure",
    "Finished",
    "LocalSide",
    "Pairing",
    "PersonAccepted",
    "PersonRefused",
    "Received",
    "Send",
    "Start",
    "StoreFailed",
    "StorePairing",
    "Stored",
]


class Failure(Enum):
    """Why a conversation failed, as far as this side knows."""

    REFUSED = auto()
    """The uniform refusal came: no open session has this code."""
    UNPROVEN = auto()
    """We refused: the other side did not prove knowledge of an open code."""
    AUTHENTICATION = auto()
    """The other side knew the code at first, but a later proof of it or of its device key was wrong."""
    PROTOCOL = auto()
    """The other side sent something that does not belong there."""
    DENIED = auto()
    """The initiator said no and gave a reason."""
    STORAGE = auto()
    """The pairing could not be stored on this side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSide:
    """What a machine needs of its own device.

    :param sign: signs for `PURPOSE` with the device key.
    :param random_bytes: gives so many cryptographically secure bytes.
    :param addresses: where this device can be dialled.
    """

    device: DeviceInfo
    sign: Callable[[bytes], bytes] = field(repr=False)
    random_bytes: Callable[[int], bytes] = field(repr=False)
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What both sides hold when they agree.

    :param device: the other device.
    :param addresses: where it says it can be dialled.
    :param root: the shared secret, 32 bytes.
    """

    device: DeviceInfo
    addresses: tuple[str, ...]
    session_id: uuid.UUID
    pairing_id: uuid.UUID
    root: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin (joiner)."""


@dataclass(frozen=True, slots=True)
class Received:
    """One whole message came in, still encoded."""

    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CodeConsumed:
    """The code was still unused and is now, durably, used."""


@dataclass(frozen=True, slots=True)
class CodeUnavailable:
    """The code cannot be consumed any more, or not by this device."""

    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class PersonAccepted:
    """The person, or the policy in their place, said yes."""


@dataclass(frozen=True, slots=True)
class PersonRefused:
    """The person said no, or nothing in time, or gave up the session."""

    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class Stored:
    """The pairing is on disk."""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The pairing could not be stored."""


Event = Start | Received | CodeConsumed | CodeUnavailable | PersonAccepted | PersonRefused | Stored | StoreFailed


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message."""

    message: Message


@dataclass(frozen=True, slots=True)
class CodeProven:
    """The other side knows the code of this session."""

    session_id: uuid.UUID
    device: DeviceInfo | None = None


@dataclass(frozen=True, slots=True)
class ConsumeCode:
    """Use up the code, durably; answer with `CodeConsumed` or `CodeUnavailable`."""

    device: DeviceInfo


@dataclass(frozen=True, slots=True)
class AskPerson:
    """Ask the person about this device; answer with `PersonAccepted` or `PersonRefused`."""

    device: DeviceInfo


@dataclass(frozen=True, slots=True)
class StorePairing:
    """Store the pairing, durably (the initiator as pending); answer with `Stored` or `StoreFailed`."""

    pairing: Pairing


@dataclass(frozen=True, slots=True)
class Finished:
    """The conversation went well; the initiator makes the pending pairing final."""

    pairing: Pairing


@dataclass(frozen=True, slots=True)
class Fail:
    """The conversation has failed; nothing more happens.

    :param reason: the one given by the other side, or by us, where there is one.
    """

    failure: Failure
    reason: RefusalReason | None = None


Command = Send | CodeProven | ConsumeCode | AskPerson | StorePairing | Finished | Fail
