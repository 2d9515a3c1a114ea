"""What the machines of an introduction are told and what they ask for (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..steps import Pairing, Stored, StoreFailed
from .messages import EndReason, IntroductionMessage, Offer, Party

__all__ = [
    "Accepted",
    "Ask",
    "Cancel",
    "Command",
    "Event",
    "Fail",
    "Finish",
    "Offered",
    "Received",
    "Refused",
    "Send",
    "Side",
    "Start",
    "Store",
    "TimeUp",
]


class Side(StrEnum):
    """The two devices of an introduction."""

    FIRST = "first"
    SECOND = "second"

    @property
    def other(self) -> Side:
        """The other one."""
        return Side.SECOND if self is Side.FIRST else Side.FIRST


@dataclass(frozen=True, slots=True)
class Start:
    """Begin (introducer)."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The introducer's offer came.

    :param now: by our clock, seconds since the epoch.
    """

    offer: Offer
    now: float


@dataclass(frozen=True, slots=True)
class Received:
    """A message about this introduction came: for one of the two, from the introducer.

    :param side: from which of the two (introducer only).
    """

    message: IntroductionMessage
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The person, or the policy in their place, said yes."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The person, or the policy in their place, said no."""

    reason: EndReason


@dataclass(frozen=True, slots=True)
class Cancel:
    """The introducer's person gave up."""


@dataclass(frozen=True, slots=True)
class TimeUp:
    """The introduction has expired."""


Event = Start | Offered | Received | Accepted | Refused | Cancel | TimeUp | Stored | StoreFailed


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message.

    :param side: to which of the two (introducer only); otherwise it goes to the introducer.
    """

    message: IntroductionMessage
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the person, or the policy, about this device; answer with `Accepted` or `Refused`."""

    party: Party


@dataclass(frozen=True, slots=True)
class Store:
    """Store the pairing as pending, durably; answer with `Stored` or `StoreFailed`."""

    pairing: Pairing


@dataclass(frozen=True, slots=True)
class Finish:
    """It went well.

    :param pairing: what was stored; None at the introducer.
    :param final: the other side has confirmed that it holds the same; otherwise the first session will show.
    """

    pairing: Pairing | None
    final: bool = True


@dataclass(frozen=True, slots=True)
class Fail:
    """It does not come about.

    :param side: on whose account (introducer only); None for its own, or for time.
    """

    reason: EndReason
    side: Side | None = None


Command = Send | Ask | Store | Finish | Fail
