"""One introduction as its person sees it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum

from sdnet_core import Fingerprint, peer_id_from_public_key

from .messages import EndReason, Party

__all__ = ["IntroducedDevice", "IntroductionRole", "IntroductionState", "IntroductionStatus", "explain"]


class IntroductionRole(StrEnum):
    """What this device is in an introduction."""

    INTRODUCER = "introducer"
    """It vouches for each of two devices to the other."""
    INTRODUCED = "introduced"
    """Another device is introduced to it."""


class IntroductionState(StrEnum):
    """Where an introduction is."""

    AWAITING_CONFIRMATION = "awaiting-confirmation"
    """This device's person is asked."""
    WAITING = "waiting"
    """It waits for the other devices."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self not in (self.AWAITING_CONFIRMATION, self.WAITING)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroducedDevice:
    """A device that is introduced, as the introducer has vouched for it.

    :param fingerprint: of its device key, as words.
    :param stage: at the introducer: ``offered``, ``accepted`` or ``confirmed``; empty elsewhere.
    """

    device_id: uuid.UUID
    name: str
    peer_id: str
    fingerprint: str
    fingerprint_hex: str
    stage: str = ""

    @classmethod
    def of(cls, party: Party, stage: str = "") -> IntroducedDevice:
        """Take over what the voucher says."""
        fingerprint = Fingerprint.of(party.public_key)
        return cls(
            device_id=uuid.UUID(bytes=party.device_id),
            name=party.name,
            peer_id=peer_id_from_public_key(party.public_key),
            fingerprint=fingerprint.words,
            fingerprint_hex=fingerprint.hex,
            stage=stage,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionStatus:
    """An introduction at one moment.

    :param id: the same on all three devices.
    :param introducer: name of the device that vouches.
    :param devices: both at the introducer, the other one elsewhere.
    :param expires_at: seconds since the epoch.
    :param reason: why it did not come about; an `EndReason`.
    :param detail: the same, or what is still to come, for a person.
    :param pending: completed here, not confirmed by the other device yet.
    """

    id: uuid.UUID
    role: IntroductionRole
    state: IntroductionState
    introducer: str
    introducer_id: uuid.UUID
    devices: tuple[IntroducedDevice, ...]
    created_at: float
    expires_at: float
    reason: EndReason | None
    detail: str
    pending: bool


_WHY = {
    EndReason.REJECTED: "{who} rejected the introduction.",
    EndReason.NEVER: "{who} takes no introductions.",
    EndReason.ALREADY: "{who} is paired with the other device already.",
    EndReason.REVOKED: "{who} has revoked the other device; pair the two with a code if that is wanted.",
    EndReason.CONFLICT: "At {who}, another device with the same identity is paired already.",
    EndReason.BUSY: "Too many introductions wait for an answer at {who} already.",
    EndReason.EXPIRED: "The introduction has expired: a device could not be reached in time, or nobody answered.",
    EndReason.CANCELLED: "The introduction was cancelled.",
    EndReason.REPLAYED: "{who} has seen this introduction before.",
    EndReason.FAILED: "{who} could not complete the introduction.",
    EndReason.UNSUPPORTED: "{who} does not take introductions from this device: its pairing plugin is missing or too "
    "old, or it trusts this device less than others.",
}


def explain(reason: EndReason, who: str) -> str:
    """Why an introduction did not come about, one sentence for a person.

    :param who: the device on whose account.
    """
    text = _WHY[reason].format(who=who)
    return text[:1].upper() + text[1:]
