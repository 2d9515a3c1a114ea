"""What the pairing plugin tells everybody who listens. No event carries a code or anything it could be found from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

__all__ = [
    "IntroductionChanged",
    "IntroductionCompleted",
    "IntroductionFailed",
    "IntroductionRequested",
    "IntroductionStarted",
    "PairingAttemptsRefused",
    "PairingCompleted",
    "PairingFailed",
    "PairingProgress",
    "PairingRequest",
    "PairingStateChanged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingRequest(NetworkEvent):
    """A device that knows the code asks to be paired; a person has to say yes or no.

    :param fingerprint: of its device key, as words, to compare with what it shows itself.
    """

    kind = "pairing-request"
    audited = True
    session_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    device_os: str
    fingerprint: str
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingCompleted(NetworkEvent):
    """Two devices are paired.

    :param role: of this device.
    :param pending: the other side has not confirmed yet; the pairing counts as soon as it connects.
    """

    kind = "pairing-completed"
    session_id: uuid.UUID
    role: str
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    pending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingFailed(NetworkEvent):
    """A pairing session ended without a pairing.

    :param role: of this device.
    :param reason: for programs, as in `sdnet_pairing.Reason`.
    :param detail: for people.
    """

    kind = "pairing-failed"
    audited = True
    session_id: uuid.UUID
    role: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingAttemptsRefused(NetworkEvent):
    """While a code was shown, somebody tried to pair without knowing it. Told once, when the code is gone.

    :param count: how often.
    :param peer_ids: the last who did, at most 8.
    """

    kind = "pairing-attempts-refused"
    audited = True
    session_id: uuid.UUID
    count: int
    peer_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStateChanged(NetworkEvent):
    """A pairing session has come into another state."""

    kind = "pairing-state-changed"
    session_id: uuid.UUID
    role: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingProgress(NetworkEvent):
    """A joiner's search for the device that shows the code has come further.

    :param activity: ``looking``, ``connecting``, ``asking`` or ``waiting-for-approval``.
    :param found: devices that show the code, or at which a hint points.
    :param detail: one line for people.
    """

    kind = "pairing-progress"
    session_id: uuid.UUID
    activity: str
    found: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionStarted(NetworkEvent):
    """This device introduces two others to each other.

    :param device_ids: the two.
    :param device_names: what this device calls them.
    """

    kind = "introduction-started"
    audited = True
    introduction_id: uuid.UUID
    device_ids: tuple[uuid.UUID, ...]
    device_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionRequested(NetworkEvent):
    """A paired device introduces another one to this device.

    :param introducer_id: who vouches.
    :param device_name: what the introducer calls the other one.
    :param fingerprint: of the other one's device key, as words.
    :param asked: a person has to say yes or no; otherwise the settings have answered.
    """

    kind = "introduction-requested"
    audited = True
    introduction_id: uuid.UUID
    introducer_id: uuid.UUID
    introducer_name: str
    device_id: uuid.UUID
    device_name: str
    fingerprint: str
    peer_id: str
    asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionCompleted(NetworkEvent):
    """Two devices are paired by an introduction.

    :param role: of this device, ``introducer`` or ``introduced``.
    :param device_ids: the other one; both at the introducer.
    :param pending: the other one has not confirmed yet; the pairing counts as soon as it connects.
    """

    kind = "introduction-completed"
    audited = True
    introduction_id: uuid.UUID
    role: str
    device_ids: tuple[uuid.UUID, ...]
    device_names: tuple[str, ...]
    pending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionFailed(NetworkEvent):
    """An introduction did not come about.

    :param role: of this device, ``introducer`` or ``introduced``.
    :param reason: for programs, as in `sdnet_pairing.EndReason`.
    :param detail: for people.
    """

    kind = "introduction-failed"
    audited = True
    introduction_id: uuid.UUID
    role: str
    device_ids: tuple[uuid.UUID, ...]
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroductionChanged(NetworkEvent):
    """An introduction has come further."""

    kind = "introduction-changed"
    introduction_id: uuid.UUID
    role: str
    state: str
