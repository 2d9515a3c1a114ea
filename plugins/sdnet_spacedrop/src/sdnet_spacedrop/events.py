"""What the Spacedrop plugin tells everybody who listens."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

__all__ = [
    "SpacedropAnswered",
    "SpacedropCompleted",
    "SpacedropFailed",
    "SpacedropMet",
    "SpacedropOffered",
    "SpacedropVisibilityChanged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropOffered(NetworkEvent):
    """A device offers files; a person has to say yes or no. Texts are safe to show.

    :param device_id: None for a device that is not paired; then ``device_name`` is what it says of itself.
    :param check: the number that the person compares with the sender's screen before accepting; empty if paired.
    :param folder: where the files go unless another folder is chosen.
    :param names: the first of the files and folders.
    :param item_count: all files and folders, inside folders too.
    :param expires_at: when it is too late to answer, seconds since the epoch.
    """

    kind = "spacedrop-offered"
    drop_id: uuid.UUID
    device_id: uuid.UUID | None
    device_name: str
    sender_name: str
    message: str
    names: tuple[str, ...]
    item_count: int
    total_bytes: int
    expires_at: float
    check: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropMet(NetworkEvent):
    """A device nearby that is not paired wants to send something; its person compares the check number first.

    Show the number. `SpacedropOffered` follows when the sender has confirmed it.

    :param sender_name: what the device says of itself; safe to show.
    :param check: the number that both screens show.
    :param expires_at: until when the sender has time, seconds since the epoch.
    """

    kind = "spacedrop-met"
    drop_id: uuid.UUID
    sender_name: str
    check: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropVisibilityChanged(NetworkEvent):
    """Who may send files to this device was changed.

    :param visibility: ``everyone``, ``paired`` or ``off``.
    :param until: when it changes back by itself, seconds since the epoch; None for never.
    """

    kind = "spacedrop-visibility-changed"
    visibility: str
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropAnswered(NetworkEvent):
    """An offer was accepted or refused, by a person or by policy.

    :param role: of this device: ``sender`` or ``receiver``.
    :param code: why not, as in `sdnet_spacedrop.messages.Refusal`; empty when accepted.
    """

    kind = "spacedrop-answered"
    drop_id: uuid.UUID
    role: str
    device_id: uuid.UUID | None
    device_name: str
    accepted: bool
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropCompleted(NetworkEvent):
    """Everything that was offered has arrived.

    :param folder: where it was put; empty on the sender.
    """

    kind = "spacedrop-completed"
    drop_id: uuid.UUID
    role: str
    device_id: uuid.UUID | None
    device_name: str
    total_bytes: int
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacedropFailed(NetworkEvent):
    """A drop ended without arriving: nobody answered, somebody cancelled, or something broke.

    :param state: ``timed-out``, ``cancelled`` or ``failed``.
    :param reason: for people.
    """

    kind = "spacedrop-failed"
    drop_id: uuid.UUID
    role: str
    device_id: uuid.UUID | None
    device_name: str
    state: str
    reason: str
