"""What the pairing plugin tells everybody who listens. No event carries a code or anything it could be found from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

__all__ = ["PairingCompleted", "PairingFailed", "PairingRequest", "PairingStateChanged"]


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
class PairingStateChanged(NetworkEvent):
    """A pairing session has come into another state."""

    kind = "pairing-state-changed"
    session_id: uuid.UUID
    role: str
    state: str
