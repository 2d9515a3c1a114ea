"""What this plugin tells the node's listeners."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

__all__ = [
    "TransferAsked",
    "TransferCompleted",
    "TransferEvent",
    "TransferFailed",
    "TransferProgress",
    "TransferStarted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEvent(NetworkEvent):
    """Base of this plugin's events.

    :param direction: ``send`` or ``receive``, seen from here.
    """

    kind = "transfer"
    transfer_id: uuid.UUID
    direction: str
    device_id: uuid.UUID
    device_name: str
    purpose: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferAsked(TransferEvent):
    """A device wants to send something, and a person here is to allow it."""

    kind = "transfer-asked"
    items: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStarted(TransferEvent):
    """Bytes begin to move, or move again after the devices met again."""

    kind = "transfer-started"
    items: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress(TransferEvent):
    """How far a transfer is; at most four times a second.

    :param rate: bytes a second.
    """

    kind = "transfer-progress"
    done_bytes: int
    total_bytes: int
    rate: float
    eta_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCompleted(TransferEvent):
    """Everything is in place and safe on the receiver's disk.

    :param paths: at the receiver, what it was put under.
    """

    kind = "transfer-completed"
    total_bytes: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed(TransferEvent):
    """It ended without completing.

    :param state: ``failed``, ``cancelled`` or ``rejected``.
    """

    kind = "transfer-failed"
    state: str
    reason: str
